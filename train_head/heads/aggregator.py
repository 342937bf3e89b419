"""Frame aggregators: what makes frames know of each other before they are pooled (CLIP4Clip, Luo et al. 2022).

V videos, F frames, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from glscl.common.errors import UsageError
from glscl.train_head.heads.base import Head, Initialisation, require_at_least
from glscl.train_head.heads.layers import ResidualBlock, attention_bias
from glscl.train_head.heads.packing import Packing

AGGREGATORS = ("seq_transf", "seq_lstm", "none")


class NoAggregator(nn.Module):
    """Frames as they are."""

    def forward(self, frames: Tensor, mask: Tensor, *, padding_is_read: bool = False) -> Tensor:
        return frames


class LstmAggregator(nn.Module):
    """`X' = X + LSTM(X)`, one uni-directional layer.

    Real frames come first, and an LSTM looks back only, so the padded ones behind them change nothing.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(embed_dim, embed_dim, batch_first=True)

    def forward(self, frames: Tensor, mask: Tensor, *, padding_is_read: bool = False) -> Tensor:
        """(V, F, D) with mask (V, F) → (V, F, D); a padded frame comes back as it was."""
        with torch.autocast(device_type=frames.device.type, enabled=False):
            hidden, _ = self.lstm(frames.to(next(self.lstm.parameters()).dtype))
        return frames + hidden.masked_fill(~mask.unsqueeze(-1), 0.0)


class TransformerAggregator(nn.Module):
    """`X' = X + Transformer(X + P)` with learned frame positions P and padded frames masked out as keys.

    Args:
        embed_dim: D.
        layers: number of blocks.
        heads: attention heads; None = D/64.
        positions: longest clip the learned positions allow.
    """

    def __init__(self, embed_dim: int, *, layers: int = 4, heads: int | None = None, positions: int = 77) -> None:
        super().__init__()
        require_at_least("aggregator_layers", layers, 1)
        require_at_least("frame_positions", positions, 1)
        heads = max(1, embed_dim // 64) if heads is None else heads
        self.positions = nn.Embedding(positions, embed_dim)
        self.blocks = nn.ModuleList(ResidualBlock(embed_dim, heads) for _ in range(layers))
        initialise_like_clip(self.positions, self.blocks)

    def forward(self, frames: Tensor, mask: Tensor, *, padding_is_read: bool = False) -> Tensor:
        """(V, F, D) with mask (V, F) → (V, F, D).

        What comes back for a padded frame is settled only with `padding_is_read`: the transformer's output there, too.
        """
        packing = Packing.from_mask(None if padding_is_read else mask)
        state = packing.pack(frames + position_rows(self.positions, frames.shape[1]))
        bias = attention_bias(mask, frames)
        for block in self.blocks:
            state = block(state, bias, packing=packing)
        return frames + packing.unpack(state)

    def initialise_from_backbone(self, tensors: Mapping[str, Tensor]) -> Initialisation:
        return copy_text_transformer(tensors, self.positions, self.blocks)


def build_aggregator(
    kind: str, embed_dim: int, *, layers: int = 4, heads: int | None = None, positions: int = 77
) -> nn.Module:
    """The aggregator `kind`, one of "seq_transf", "seq_lstm", "none".

    Raises:
        UsageError: an unknown kind, or sizes that do not fit together.
    """
    if kind == "seq_transf":
        return TransformerAggregator(embed_dim, layers=layers, heads=heads, positions=positions)
    if kind == "seq_lstm":
        return LstmAggregator(embed_dim)
    if kind == "none":
        return NoAggregator()
    raise UsageError(f"aggregator must be one of {', '.join(AGGREGATORS)}, found {kind!r}")


class AggregatingHead(Head):
    """A head whose frames know of each other, through `aggregator`, before they are compared.

    Args:
        embed_dim: D.
        aggregator: "seq_transf", "seq_lstm" or "none".
        aggregator_layers: blocks of "seq_transf".
        aggregator_heads: attention heads of "seq_transf"; None = max(1, D // 64).
        frame_positions: longest clip the positions of "seq_transf" allow.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        aggregator: str = "seq_transf",
        aggregator_layers: int = 4,
        aggregator_heads: int | None = None,
        frame_positions: int = 77,
        **common: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        self.aggregator = build_aggregator(
            aggregator, embed_dim, layers=aggregator_layers, heads=aggregator_heads, positions=frame_positions
        )


def position_rows(positions: nn.Embedding, length: int) -> Tensor:
    """The first `length` learned positions, (length, D).

    Raises:
        UsageError: there are fewer.
    """
    if length > positions.num_embeddings:
        raise UsageError(
            f"a sequence of {length} entries does not fit {positions.num_embeddings} learned positions",
            hint="Use fewer frames, or build the head with more frame_positions",
        )
    return positions.weight[:length]


def initialise_like_clip(positions: nn.Embedding, blocks: nn.ModuleList) -> None:
    """Random start with the standard deviations of CLIP's text transformer (Radford et al. 2021)."""
    width = positions.embedding_dim
    narrow = width**-0.5 * (2 * len(blocks)) ** -0.5
    nn.init.normal_(positions.weight, std=0.01)
    for block in blocks:
        assert isinstance(block, ResidualBlock)
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=narrow)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=narrow)
        for bias in (block.attn.in_proj_bias, block.attn.out_proj.bias, block.mlp.c_fc.bias, block.mlp.c_proj.bias):
            nn.init.zeros_(bias)


@torch.no_grad()
def copy_text_transformer(
    tensors: Mapping[str, Tensor], positions: nn.Embedding, blocks: nn.ModuleList
) -> Initialisation:
    """Copy the first blocks and the positions of a backbone's text transformer, as far as they fit.

    A block is copied whole or not at all. Positions are copied up to the shorter of the two lengths.

    Args:
        tensors: tensors under open_clip's names (`positional_embedding`, `transformer.resblocks.{i}.…`).
        positions: the head's learned positions.
        blocks: the head's `ResidualBlock`s.
    """
    result = Initialisation([], [])
    source = tensors.get("positional_embedding")
    if source is None:
        result.skipped.append("positions: the backbone has no positional_embedding")
    elif source.ndim != 2 or source.shape[1] != positions.embedding_dim:
        result.skipped.append(
            f"positions: the backbone's have shape {tuple(source.shape)}, needed are rows of {positions.embedding_dim}"
        )
    else:
        rows = min(len(source), positions.num_embeddings)
        positions.weight[:rows].copy_(source[:rows])
        result.initialised.append("positions")
        if rows < positions.num_embeddings:
            result.skipped.append(f"positions[{rows}:]: the backbone has {rows} of {positions.num_embeddings}")
    for index, block in enumerate(blocks):
        problem = None
        for name, parameter in block.named_parameters():
            key = f"transformer.resblocks.{index}.{name}"
            if key not in tensors:
                problem = f"the backbone has no {key}"
            elif tensors[key].shape != parameter.shape:
                found, expected = tuple(tensors[key].shape), tuple(parameter.shape)
                problem = f"{key} has shape {found}, expected {expected}"
            if problem:
                break
        if problem:
            result.skipped.append(f"blocks.{index}: {problem}")
            continue
        for name, parameter in block.named_parameters():
            parameter.copy_(tensors[f"transformer.resblocks.{index}.{name}"])
        result.initialised.append(f"blocks.{index}")
    return result
