"""Weights of public programs, read into our heads under the names those programs save them.

D embed_dim, Q queries.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from glscl.errors import CheckpointError, UsageError
from glscl.train_head.heads import build_head
from glscl.train_head.heads.base import Head

logger = logging.getLogger(__name__)

SOURCES = ("glscl", "clip4clip")

# Saved by GLSCL's program and never used by it: templates, an unused weighting, nearly half of its head parameters.
_GLSCL_UNUSED = ("clip.", "weight_fc.", "decoder_layer_noun.", "decoder_layer_spatial.")
_CLIP4CLIP_UNUSED = ("clip.",)


def head_from_state_dict(state_dict: Mapping[str, Tensor], source: str, *, embed_dim: int, **options: Any) -> Head:
    """Build a head and fill it with the weights of a public program.

    Sizes, numbers of layers and the kind of aggregator come from the keys unless `options` gives them; a `module.`
    prefix of distributed training is taken off. Keys that the program saves and never uses, and its backbone (`clip.…`),
    are left out; `head.dropped_keys` lists them and the log counts them. `clip.logit_scale` becomes the head's.

    Args:
        state_dict: the program's own state dict.
        source: "glscl" (zchoi/GLSCL) or "clip4clip" (ArrowLuo/CLIP4Clip).
        embed_dim: D.
        **options: options of the head. To score exactly as GLSCL's program does, padding included, pass
            `mask_padding=False, consistency_scale="queries"`. Its checkpoints always hold a second set of queries and
            a second decoder; they are used where `share_queries=False` / `share_decoder=False` asks for them.

    Returns:
        The head in evaluation mode: `glscl`, or for "clip4clip" one of `mean_pool`, `seq_lstm`, `seq_transf`,
        `tight_transf`, by the keys.

    Raises:
        CheckpointError: unknown keys, missing keys, or shapes that do not fit; the message names them.
        UsageError: an unknown source or option.
    """
    if source not in SOURCES:
        raise UsageError(f"there is no source {source!r}; choose from {', '.join(SOURCES)}")
    weights = {key.removeprefix("module."): value for key, value in state_dict.items()}
    translate = _from_glscl if source == "glscl" else _from_clip4clip
    name, inferred, renamed, dropped = translate(weights, options)
    head = build_head(name, embed_dim=embed_dim, **{**inferred, **options})
    _load(head, weights, renamed, dropped, source)
    if dropped:
        shown = sorted({re.split(r"\.", key)[0] for key in dropped})
        logger.info("%s: %d keys not used by head %s: %s", source, len(dropped), name, ", ".join(shown))
    return head.eval()


def _from_glscl(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> tuple[str, dict, dict, list[str]]:
    """(head name, inferred options, {public key: our key}, dropped keys) of a GLSCL state dict."""
    share_queries = options.get("share_queries", True)
    share_decoder = options.get("share_decoder", True)
    inferred, renamed, dropped = _aggregator_keys(weights, options.get("aggregator"))
    if "spatial_queries" in weights:
        inferred["queries"] = weights["spatial_queries"].shape[0]
    inferred["decoder_layers"] = max(_layers(weights, "transformer_decoder_noun.layers."), 1)
    renamed["spatial_queries"] = "queries"
    renames = {"transformer_decoder_noun.layers.": "decoder.layers."}
    unused = list(_GLSCL_UNUSED)
    if share_queries:
        unused.append("noun_queries")
    else:
        renamed["noun_queries"] = "text_queries"
    if share_decoder:
        unused.append("transformer_decoder_spatial.")
        _warn_if_trained(weights)
    else:
        renames = {
            "transformer_decoder_spatial.layers.": "decoder.layers.",
            "transformer_decoder_noun.layers.": "text_decoder.layers.",
        }
    _rename(weights, renames, renamed)
    dropped += [key for key in weights if key.startswith(tuple(unused))]
    return "glscl", inferred, renamed, dropped


def _from_clip4clip(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> tuple[str, dict, dict, list[str]]:
    """(head name, inferred options, {public key: our key}, dropped keys) of a CLIP4Clip state dict."""
    dropped = [key for key in weights if key.startswith(_CLIP4CLIP_UNUSED)]
    if any(key.startswith("cross.") for key in weights):
        renamed = {
            "cross.embeddings.position_embeddings.weight": "positions.weight",
            "similarity_dense.weight": "similarity.weight",
            "similarity_dense.bias": "similarity.bias",
        }
        renames = {
            "cross.transformer.resblocks.": "blocks.",
            "cross.pooler.ln_pool.": "pool_norm.",
            "cross.pooler.dense.": "pool.",
        }
        inferred = {"layers": max(_layers(weights, "cross.transformer.resblocks."), 1)}
        if "cross.embeddings.position_embeddings.weight" in weights:
            inferred["positions"] = weights["cross.embeddings.position_embeddings.weight"].shape[0]
        _rename(weights, renames, renamed)
        return "tight_transf", inferred, renamed, dropped
    inferred, renamed, unused = _aggregator_keys(weights, None)
    kind = inferred.pop("aggregator")
    return {"none": "mean_pool"}.get(kind, kind), inferred, renamed, dropped + unused


def _aggregator_keys(weights: Mapping[str, Tensor], kind: str | None) -> tuple[dict, dict, list[str]]:
    """Inferred options, renamed keys and unused keys of the frame aggregator, which both programs name alike."""
    positions = "frame_position_embeddings.weight"
    if kind is None:
        if any(key.startswith("transformerClip.") for key in weights):
            kind = "seq_transf"
        else:
            kind = "seq_lstm" if any(key.startswith("lstm_visual.") for key in weights) else "none"
    inferred: dict[str, Any] = {"aggregator": kind}
    renamed: dict[str, str] = {}
    if kind == "seq_transf":
        inferred["aggregator_layers"] = max(_layers(weights, "transformerClip.resblocks."), 1)
        if positions in weights:
            inferred["frame_positions"] = weights[positions].shape[0]
        renamed[positions] = "aggregator.positions.weight"
        _rename(weights, {"transformerClip.resblocks.": "aggregator.blocks."}, renamed)
        return inferred, renamed, []
    if kind == "seq_lstm":
        _rename(weights, {"lstm_visual.": "aggregator.lstm."}, renamed)
        return inferred, renamed, [key for key in (positions,) if key in weights]  # the LSTM never adds positions
    return inferred, renamed, []


def _rename(weights: Mapping[str, Tensor], prefixes: Mapping[str, str], renamed: dict[str, str]) -> None:
    """Add {public key: our key} for every key that starts with one of the prefixes."""
    for key in weights:
        for theirs, ours in prefixes.items():
            if key.startswith(theirs):
                renamed[key] = ours + key.removeprefix(theirs)


def _layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Number of consecutive layers below `prefix`, counted by the highest index."""
    indices = [int(match[1]) for key in weights if (match := re.match(re.escape(prefix) + r"(\d+)\.", key))]
    return max(indices, default=-1) + 1


def _warn_if_trained(weights: Mapping[str, Tensor]) -> None:
    """Say so when the second decoder was trained: its layers start as copies of a template that never changes."""
    prefix = "transformer_decoder_spatial.layers."
    for key, value in weights.items():
        template = weights.get("decoder_layer_spatial." + re.sub(r"^\d+\.", "", key.removeprefix(prefix)))
        if key.startswith(prefix) and template is not None and not torch.equal(template, value):
            logger.warning(
                "transformer_decoder_spatial differs from its initial template, so these weights were trained with a "
                "decoder for each side; pass share_decoder=False to use both"
            )
            return


def _load(
    head: Head, weights: Mapping[str, Tensor], renamed: Mapping[str, str], dropped: list[str], source: str
) -> None:
    """Copy the renamed weights into the head and refuse whatever does not fit."""
    ours = head.state_dict()
    expected = {name for name in ours if name != "logit_scale" and not name.startswith(("text_adapter", "video_adapter"))}
    unknown = [key for key in weights if key not in dropped and renamed.get(key) not in expected]
    names = {our: public for public, our in renamed.items()}
    missing = [names.get(name, name) for name in sorted(expected) if names.get(name) not in weights]
    if unknown or missing:
        parts = []
        if unknown:
            parts.append(f"unknown keys: {', '.join(unknown)}")
        if missing:
            parts.append(f"missing keys: {', '.join(missing)}")
        raise CheckpointError(f"these weights of {source} do not fit head {head.options}: {'; '.join(parts)}")
    filled = dict(ours)
    for public, our in renamed.items():
        if public not in weights:
            continue
        if weights[public].shape != ours[our].shape:
            found, wanted = tuple(weights[public].shape), tuple(ours[our].shape)
            raise CheckpointError(f"{public} of {source} has shape {found}, the head expects {wanted}")
        filled[our] = weights[public].to(ours[our].dtype)
    if "clip.logit_scale" in weights and head.has_logit_scale:
        filled["logit_scale"] = weights["clip.logit_scale"].to(head.dtype).reshape(())
        dropped.remove("clip.logit_scale")
    head.load_state_dict(filled)
    head.dropped_keys = tuple(dropped)
