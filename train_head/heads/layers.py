"""The layers heads are made of: attention, CLIP's residual block, the post-norm decoder layer, feature adapters.

N items, S sequence length, M memory length, D width, H attention heads, R entries that are no padding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glscl.common.errors import UsageError
from glscl.train_head.heads.dropout import Dropout, dropout
from glscl.train_head.heads.packing import Packing

ADAPTERS = ("none", "linear", "mlp")
QUICK = 1.702  # of QuickGELU


class Attention(nn.Module):
    """Multi-head attention whose parameters are named and laid out as in `torch.nn.MultiheadAttention`.

    Args:
        width: D.
        heads: H; must divide D.
        dropout: on the attention weights, in training mode only.
    """

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise UsageError(f"attention of width {width} cannot be split into {heads} heads")
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        queries: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        packing: Packing = Packing.NONE,
    ) -> Tensor:
        """Attend.

        Args:
            queries: (N, S, D), or (1, S, D) shared by all items of the memory; (R, D) where they are packed.
            memory: (N, M, D); None attends to the queries themselves.
            mask: (N, M) bool, True = may be attended, or what `attention_bias` makes of it; None = all.
            packing: how the queries are packed; only without memory.

        Returns:
            (N, S, D), packed as the queries are.
        """
        if memory is None:
            projected = packing.unpack(F.linear(queries, self.in_proj_weight, self.in_proj_bias))
            query, key, value = projected.chunk(3, dim=-1)
            return self.out_proj(packing.pack(self._attend(query, key, value, mask)))
        weight, bias = self.memory_projection()
        return self.read(queries, F.linear(memory, weight, bias), mask)

    def memory_projection(self) -> tuple[Tensor, Tensor]:
        """Weight (2D, D) and bias (2D) that make keys and values of a memory."""
        width = self.out_proj.in_features
        return self.in_proj_weight[width:], self.in_proj_bias[width:]

    def read(self, queries: Tensor, projected: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend to a memory whose keys and values are made: `projected` (N, M, 2D); the others as in `forward`."""
        width = self.out_proj.in_features
        query = F.linear(queries, self.in_proj_weight[:width], self.in_proj_bias[:width])
        key, value = projected.chunk(2, dim=-1)
        return self.out_proj(self._attend(query, key, value, mask))

    def repeated(self, queries: Tensor, items: int) -> Tensor:
        """Self-attention of entries that all items share, where every item draws its own dropout.

        What comes before the dropout is done once; so is the output projection, of the values instead of the result.

        Args:
            queries: (S, D).
            items: N.

        Returns:
            (N, S, D).
        """
        split = F.linear(queries, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(1, 2, 0, 3)  # (H, S, D/H)
        weights = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)  # (H, S, S)
        values = value @ self.out_proj.weight.T.unflatten(0, (self.heads, -1))  # (H, S, D)
        dropped = dropout(weights.transpose(0, 1).flatten(1).expand(items, -1, -1), self.dropout)  # (N, S, H·S)
        return F.linear(dropped, values.flatten(0, 1).T, self.out_proj.bias)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """(N or 1, S, D), (N, M, D), (N, M, D) → (N, S, D)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)
        )  # (N, H, S, D/H), (N, H, M, D/H)
        attended = F.scaled_dot_product_attention(
            query.expand(key.shape[0], -1, -1, -1),
            key,
            value,
            attn_mask=mask if mask is None or mask.ndim == 4 else mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return attended.transpose(1, 2).flatten(2)


def attention_bias(mask: Tensor | None, entries: Tensor) -> Tensor | None:
    """A mask (N, M) bool as what its layers add to their scores, made once instead of by each of them; on a GPU alone.

    Zero or -inf (N, 1, 1, M), in the type of the entries or that autocast attends in. Its strides are multiples of eight, else
    torch would copy it for every layer.
    """
    if mask is None or mask.device.type != "cuda" or torch.compiler.is_compiling():
        return mask
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else entries.dtype
    rows = mask.new_zeros((len(mask), 1, 1, -(-mask.shape[1] // 8) * 8), dtype=dtype)
    return rows[..., : mask.shape[1]].masked_fill_(~mask[:, None, None, :], -torch.inf)


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU: `x · sigmoid(1.702 x)`."""
    return x * torch.sigmoid(QUICK * x)


class FeedForward(nn.Module):
    """D → 4D → QuickGELU → D, named as in CLIP.

    `quick_gelu(h) = silu(1.702 h) / 1.702`, and both factors go to the weights: one pass over the hidden layer instead of
    three, two tensors kept for the backward pass instead of four.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x, QUICK * self.c_fc.weight, QUICK * self.c_fc.bias)  # (…, 4D)
        return F.linear(F.silu(hidden), self.c_proj.weight / QUICK, self.c_proj.bias)


class ResidualBlock(nn.Module):
    """One pre-norm transformer block of CLIP, with a key padding mask.

    Args:
        width: D.
        heads: attention heads.
        eps: of the layer norms; CLIP4Clip and its descendants use 1e-12.
    """

    def __init__(self, width: int, heads: int, *, eps: float = 1e-12) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.mlp = FeedForward(width)
        self.ln_2 = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, mask: Tensor, *, packing: Packing = Packing.NONE) -> Tensor:
        """(N, S, D) with mask (N, S) bool, True = may be attended → (N, S, D); packed (R, D) comes back packed."""
        return self.feed_forward(x + self.attn(self.ln_1(x), mask=mask, packing=packing))

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half of the block: (…, D) → (…, D)."""
        return x + self.mlp(self.ln_2(x))


class DecoderLayer(nn.Module):
    """Post-norm decoder layer: self-attention, cross-attention, feed-forward (Vaswani et al. 2017, section 3.1).

    Parameters are named as in `torch.nn.TransformerDecoderLayer`.

    Args:
        width: D.
        heads: attention heads.
        feedforward: width of the hidden layer.
        dropout: on attention weights, on every sub-layer's output and inside the feed-forward.
    """

    def __init__(self, width: int, heads: int, *, feedforward: int = 2048, dropout: float = 0.1) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, dropout=dropout)
        self.multihead_attn = Attention(width, heads, dropout=dropout)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(self, queries: Tensor, projected: Tensor, mask: Tensor | None) -> Tensor:
        """queries (N or 1, S, D); keys and values of the memory (N, M, 2D); mask (N, M) bool or None → (N, S, D)."""
        if len(queries) < len(projected) and self.training and self.dropout.p > 0:
            attended = self.self_attn.repeated(queries[0], len(projected))
        else:
            attended = self.self_attn(queries)
        queries = self.norm1(queries + self.dropout(attended))
        queries = self.norm2(queries + self.dropout(self.multihead_attn.read(queries, projected, mask)))
        hidden = self.dropout(F.relu(self.linear1(queries)))
        return self.norm3(queries + self.dropout(self.linear2(hidden)))


class Decoder(nn.Module):
    """Learned queries that read a memory through a stack of `DecoderLayer`; no final norm.

    Args:
        width: D.
        layers: number of decoder layers.
        heads: attention heads.
        feedforward: width of the hidden layers.
        dropout: see `DecoderLayer`.
    """

    def __init__(
        self, width: int, layers: int, *, heads: int = 8, feedforward: int = 2048, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads, feedforward=feedforward, dropout=dropout) for _ in range(layers)
        )
        self.dropout = dropout

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """queries (S, D), the same for all items; memory (N, M, D); mask (N, M) bool or None → (N, S, D).

        The first self-attention sees no item, so it runs once, but for dropout, of which every item draws its own. Keys
        and values are made of the real entries alone.
        """
        state = queries.unsqueeze(0)  # (1, S, D)
        packing = Packing.from_mask(mask)
        packed, mask = packing.pack(memory), attention_bias(mask, memory)
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)  # `__init__` puts nothing else there
            projected = packing.unpack(F.linear(packed, *layer.multihead_attn.memory_projection()))  # (N, M, 2D)
            state = layer(state, projected, mask)
        return state  # (N, S, D)


class LinearAdapter(nn.Module):
    """`x + W x + b`, W and b zero at start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Linear(width, width)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)


class MlpAdapter(nn.Module):
    """`x + r · Up(GELU(Down(LN(x))))` with D → D/4 → D, Up zero at start and a learned ratio r.

    After CLIP-Adapter (Gao et al. 2021), applied to every token and frame instead of the pooled feature.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(width // 4, 1)
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        self.ratio = nn.Parameter(torch.ones(()))
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ratio * self.up(F.gelu(self.down(self.norm(x))))


def build_adapter(kind: str, width: int) -> nn.Module | None:
    """The feature adapter of one side, None for "none".

    Raises:
        UsageError: an unknown kind.
    """
    if kind == "none":
        return None
    if kind == "linear":
        return LinearAdapter(width)
    if kind == "mlp":
        return MlpAdapter(width)
    raise UsageError(f"adapter must be one of {', '.join(ADAPTERS)}, found {kind!r}")


def entry_scorer(width: int) -> nn.Sequential:
    """D → D → ReLU → 1: one logit for every token or frame; nearly equal logits at start."""
    hidden, logit = nn.Linear(width, width), nn.Linear(width, 1)
    for layer in (hidden, logit):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(hidden, nn.ReLU(), logit)


def identity_linear(width: int, *, bias: bool = True) -> nn.Linear:
    """A linear map that starts as the identity."""
    layer = nn.Linear(width, width, bias=bias)
    nn.init.eye_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
