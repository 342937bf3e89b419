"""Weights of public programs, read into our heads under the names those programs save them.

D embed_dim, Q queries.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glscl.common.arguments import types_checked
from glscl.common.clip_names import PROGRAMS, program_of
from glscl.common.errors import CheckpointError, Hint, UsageError
from glscl.common.state_dicts import plain_names
from glscl.train_head.heads import build_head
from glscl.train_head.heads.aggregator import AGGREGATORS
from glscl.train_head.heads.base import Head

logger = logging.getLogger(__name__)

SOURCES = tuple(PROGRAMS)

# Saved by GLSCL's program and never used by it: templates, an unused weighting, nearly half of its head parameters.
_GLSCL_UNUSED = ("clip.", "weight_fc.", "decoder_layer_noun.", "decoder_layer_spatial.")
_NAMED = 3  # keys that a message names
_POSITIONS = "frame_position_embeddings.weight"


class _Plan(NamedTuple):
    """How a public state dict becomes a head.

    Attributes:
        head: its name.
        options: what the keys say about its options.
        names: (their prefix, our prefix) of every weight that is used.
        unused: prefixes of what the program saves and does not use.
    """

    head: str
    options: dict[str, Any]
    names: list[tuple[str, str]]
    unused: list[str]


def source_of(weights: Mapping[str, Tensor]) -> str:
    """Which program saved these weights, a member of `SOURCES`. Raises CheckpointError where none of them did."""
    found = program_of(weights)
    if found is None and any(key.startswith("clip.") for key in weights):
        return "clip4clip"  # its mean pooling has no weights of its own
    if found is None:
        raise CheckpointError(
            "these weights hold no head of a known program",
            hint=Hint("If they are a backbone, extract with it: give the file as `pretrained`"),
        )
    return found


def head_of(weights: Mapping[str, Tensor], source: str) -> str:
    """Name of the head that a program's weights are of. DRL's `wti` has weights; without them it is `ti`."""
    if source == "drl":
        return "wti" if any(key.startswith("text_weight_fc.") for key in weights) else "ti"
    if source != "clip4clip":
        return source
    if any(key.startswith("cross.") for key in weights):
        return "tight_transf"
    kind = _aggregator_in(weights)
    return "mean_pool" if kind == "none" else kind


@types_checked
def head_from_state_dict(
    state_dict: Mapping[str, Tensor], source: str | None = None, *, embed_dim: int, **options: Any
) -> Head:
    """Build a head and fill it with the weights of a public program.

    Sizes, numbers of layers and the kind of aggregator come from the keys unless `options` gives them; what distributed and
    compiled training put into names is taken off. Keys that the program saves and never uses, and its backbone (`clip.…`),
    are left out; `head.dropped_keys` lists them and the log counts them. `clip.logit_scale` becomes the head's.

    Args:
        state_dict: the program's own state dict.
        source: "glscl" (zchoi/GLSCL), "clip4clip" (ArrowLuo/CLIP4Clip), "xclip" (xuguohai/X-CLIP), "xpool"
            (layer6ai-labs/xpool), "drl" (foolwood/DRL) or "dicosa" (jpthu17/DiCoSA); None tells it by the keys.
        embed_dim: D.
        **options: options of the head. To score exactly as GLSCL's program does, padding included, pass
            `mask_padding=False, consistency_scale="queries"`. Its checkpoints always hold a second set of queries and
            a second decoder; they are used where `share_queries=False` / `share_decoder=False` asks for them.

    Returns:
        The head in evaluation mode, see `head_of`.

    Raises:
        CheckpointError: unknown keys, missing keys, or shapes that do not fit; the message names them.
        UsageError: an unknown source or option.
    """
    weights = plain_names(state_dict) if state_dict else {}
    source = source or source_of(weights)
    if source not in SOURCES:
        raise UsageError(f"there is no source {source!r}; choose from {', '.join(SOURCES)}")
    plan = _plan_glscl(weights, options) if source == "glscl" else _PLANS[source](weights, embed_dim)
    head = build_head(plan.head, embed_dim=embed_dim, **{**plan.options, **options})
    dropped = [key for key in weights if key.startswith(tuple(plan.unused)) and key != "clip.logit_scale"]
    _load(head, plan, weights, dropped, source)
    head.dropped_keys = tuple(dropped)
    if dropped:
        modules = ", ".join(sorted({key.split(".")[0] for key in dropped}))
        logger.info("%s: %d keys not used by head %s: %s", source, len(dropped), plan.head, modules)
    return head.eval()


def _plan_glscl(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> _Plan:
    aggregator = _plan_aggregator(weights, options.get("aggregator"))
    inferred = {**aggregator.options, "decoder_layers": _layers(weights, "transformer_decoder_noun.layers.")}
    if "spatial_queries" in weights:
        inferred["queries"] = weights["spatial_queries"].shape[0]
    names = [*aggregator.names, ("spatial_queries", "queries")]
    unused = [*_GLSCL_UNUSED, *aggregator.unused]
    if options.get("share_queries", True):
        unused.append("noun_queries")
    else:
        names.append(("noun_queries", "text_queries"))
    if options.get("share_decoder", True):
        names.append(("transformer_decoder_noun.", "decoder."))
        unused.append("transformer_decoder_spatial.")
        _warn_if_trained(weights)
    else:
        names += [("transformer_decoder_spatial.", "decoder."), ("transformer_decoder_noun.", "text_decoder.")]
    return _Plan("glscl", inferred, names, unused)


def _plan_clip4clip(weights: Mapping[str, Tensor], _: int) -> _Plan:
    head = head_of(weights, "clip4clip")
    if head != "tight_transf":
        return _plan_with_aggregator(weights, head, [])
    positions = "cross.embeddings.position_embeddings.weight"
    inferred = {"layers": _layers(weights, "cross.transformer.resblocks.")}
    if positions in weights:
        inferred["positions"] = weights[positions].shape[0]
    names = [
        (positions, "positions.weight"),
        ("cross.transformer.resblocks.", "blocks."),
        ("cross.pooler.ln_pool.", "pool_norm."),
        ("cross.pooler.dense.", "pool."),
        ("similarity_dense.", "similarity."),
    ]
    return _Plan("tight_transf", inferred, names, ["clip."])


def _plan_xclip(weights: Mapping[str, Tensor], _: int) -> _Plan:
    names = [
        ("global_mat_weight", "global_map"),
        ("local_mat_weight", "local_map"),
        ("word_logit_weight", "video_word_map"),
        ("frame_logit_weight", "text_frame_map"),
        ("word_mat_weight", "word_map"),
        ("frame_mat_weight", "frame_of_word_map"),
        ("frame_mat_weight2", "frame_map"),
        ("word_mat_weight2", "word_of_frame_map"),
    ]
    sizes = {"max_words": "word_logit_weight", "max_frames": "frame_logit_weight"}
    inferred = {option: len(weights[key]) for option, key in sizes.items() if key in weights and weights[key].ndim}
    return _plan_with_aggregator(weights, "xclip", names, **inferred)


def _plan_xpool(weights: Mapping[str, Tensor], _: int) -> _Plan:
    names = [
        *((f"pool_frames.cross_attn.{theirs}_proj.", f"{ours}.") for theirs, ours in zip(("q", "k", "v"), _ATTENTION)),
        ("pool_frames.cross_attn.out_proj.", "out."),
        ("pool_frames.linear_proj.", "linear."),
        ("pool_frames.layer_norm", "norm"),
    ]
    return _Plan("xpool", {}, names, ["clip."])


def _plan_drl(weights: Mapping[str, Tensor], _: int) -> _Plan:
    names = [("text_weight_fc.", "token_scorer."), ("video_weight_fc.", "frame_scorer.")]
    head = head_of(weights, "drl")
    return _plan_with_aggregator(weights, head, names if head == "wti" else [])


def _plan_dicosa(weights: Mapping[str, Tensor], embed_dim: int) -> _Plan:
    first = weights.get("weight_fc.0.weight")
    inferred = {}
    if first is not None and first.ndim == 2 and first.shape[1] > 1:  # it reads a chunk of each side
        inferred["chunks"] = max(1, embed_dim // (first.shape[1] // 2))
    names = [("weight_fc.0.", "chunk_hidden."), ("weight_fc.2.", "chunk_weight.")]
    return _plan_with_aggregator(weights, "dicosa", names, **inferred)


_ATTENTION = ("query", "key", "value")
_PLANS = {
    "clip4clip": _plan_clip4clip,
    "xclip": _plan_xclip,
    "xpool": _plan_xpool,
    "drl": _plan_drl,
    "dicosa": _plan_dicosa,
}


def _plan_with_aggregator(
    weights: Mapping[str, Tensor], head: str, names: list[tuple[str, str]], **inferred: Any
) -> _Plan:
    """A head on frames that an aggregator made; CLIP4Clip's heads are named after theirs."""
    plan = _plan_aggregator(weights, None)
    options = {**plan.options, **inferred}
    if head in ("mean_pool", *AGGREGATORS):
        del options["aggregator"]
    return _Plan(head, options, [*plan.names, *names], ["clip.", *plan.unused])


def _plan_aggregator(weights: Mapping[str, Tensor], kind: str | None) -> _Plan:
    """The frame aggregator, which all programs name alike; `kind` None tells it from the keys."""
    kind = kind or _aggregator_in(weights)
    if kind == "seq_transf":
        inferred = {"aggregator": kind, "aggregator_layers": _layers(weights, "transformerClip.resblocks.")}
        if _POSITIONS in weights:
            inferred["frame_positions"] = weights[_POSITIONS].shape[0]
        names = [(_POSITIONS, "aggregator.positions.weight"), ("transformerClip.resblocks.", "aggregator.blocks.")]
        return _Plan("", inferred, names, [])
    if kind == "seq_lstm":  # its frame positions are saved and never added
        return _Plan("", {"aggregator": kind}, [("lstm_visual.", "aggregator.lstm.")], [_POSITIONS])
    return _Plan("", {"aggregator": kind}, [], [])


def _aggregator_in(weights: Mapping[str, Tensor]) -> str:
    if any(key.startswith("transformerClip.") for key in weights):
        return "seq_transf"
    return "seq_lstm" if any(key.startswith("lstm_visual.") for key in weights) else "none"


def _layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Number of layers below `prefix` by the highest index, at least 1. Raises CheckpointError where one is left out."""
    indices = {match[1] for key in weights if (match := re.match(re.escape(prefix) + r"([0-9]+)\.", key))}
    if indices and indices != {str(i) for i in range(len(indices))}:
        raise CheckpointError(
            f"{prefix} has the layers {', '.join(sorted(indices)[:8])[:200]}; expected 0, 1, …, each once"
        )
    return max(1, len(indices))


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


def _public_name(ours: str, names: list[tuple[str, str]]) -> str:
    """What the public program calls our weight `ours`."""
    for theirs, prefix in names:
        if ours.startswith(prefix):
            return theirs + ours.removeprefix(prefix)
    return ours


def _load(head: Head, plan: _Plan, weights: Mapping[str, Tensor], dropped: list[str], source: str) -> None:
    """Copy the weights into the head, and refuse whatever does not fit."""
    ours = head.state_dict()
    adapters = ("text_adapter.", "video_adapter.")  # no public program has them; they start as no change
    public = {name: _public_name(name, plan.names) for name in ours if not name.startswith(adapters)}
    public["logit_scale"] = "clip.logit_scale"
    known = {*public.values(), *dropped}
    unknown = [key for key in weights if key not in known]
    missing = sorted(theirs for theirs in public.values() if theirs not in weights and theirs != "clip.logit_scale")
    if unknown or missing:
        found = [_some(what, keys) for what, keys in (("unknown", unknown), ("missing", missing)) if keys]
        known = program_of(weights)
        raise CheckpointError(
            f"these weights of {source} do not fit head {plan.head}; {'; '.join(found)}",
            hint=f"They look like those of {known}" if known not in (None, source) else None,
        )
    for name, theirs in public.items():
        if theirs not in weights or (name == "logit_scale" and not head.has_logit_scale):
            continue
        value = weights[theirs].reshape(()) if name == "logit_scale" else weights[theirs]
        if value.shape != ours[name].shape:
            shape, expected = tuple(value.shape), tuple(ours[name].shape)
            raise CheckpointError(f"{theirs} of {source} has shape {shape}, head {plan.head} expects {expected}")
        if ours[name].is_floating_point() and not value.is_floating_point():
            raise CheckpointError(f"{theirs} of {source} is in {value.dtype}: quantised weights are not read")
        ours[name] = value.to(ours[name].dtype)
    head.load_state_dict(ours)


def _some(what: str, keys: list[str]) -> str:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f"{what} keys: {', '.join(key if len(key) <= 100 else f'{key[:100]} …' for key in keys[:_NAMED])}{more}"
