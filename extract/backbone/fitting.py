"""Weights of a file into a model, whole or not at all; and what weights that do not fit look like."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from glscl.common.clip_names import ClipWeights, clip_weights
from glscl.common.errors import BackboneError, Hint, InputError
from glscl.common.state_dicts import first_words, read_state_dict

if TYPE_CHECKING:
    from glscl.extract.backbone.clip_model import ClipModel

_TITLES = {"glscl": "GLSCL", "xclip": "X-CLIP", "xpool": "X-Pool", "drl": "DRL", "dicosa": "DiCoSA"}
_FORMS = {"open_clip": "open_clip weights", "clip": "a Hugging Face CLIPModel", "siglip": "a Hugging Face SiglipModel"}
_NOT_USED = "text_decoder."  # of CoCa, which writes captions: open_clip leaves a part of it uninitialised
_TOWERS = {  # names of a tower alone, as it hangs in a model and without it
    r"visual\.|vision_model\.|class_embedding|conv1\.|patch_embed|embeddings\.patch_embedding": "pictures",
    r"text\.|text_model\.|token_embedding\.|embeddings\.token_embedding": "captions",
}
_MERGE = "Merge it into its model where it was trained (peft: merge_and_unload) and save that"
ALIGNED = 64  # bytes, as torch allocates: sums may round otherwise elsewhere
_MOST_BUILT = 16  # architectures that are compared in full; no more share a text tower


def read_backbone(source: Path, *, mapped: bool = False) -> ClipWeights:
    """The backbone in a file or folder of any kind.

    Args:
        mapped: as in `read_state_dict`.

    Raises:
        BackboneError: it cannot be read, or holds none.
    """
    try:
        found = clip_weights(read_state_dict(source, mapped=mapped))
    except InputError as error:
        raise BackboneError(error.message, hint=error.hint) from error
    if not found.weights:
        raise BackboneError(
            f"{source} holds no backbone: it looks like the head of {_title(found.program)} alone",
            hint=Hint("Import the head", "import-checkpoint", {"": source}),
        )
    if found.twin is not None:
        raise BackboneError(
            f"{source} holds several backbones: one below {found.root or 'the top'!r} and one below {found.twin!r}",
            hint="Save the one that is meant alone",
        )
    return found


def fit(model: ClipModel, found: ClipWeights, source: Path, name: str, *, mapped: bool = False) -> None:
    """Replace all weights of a model.

    Args:
        mapped: as in `load_model`.

    Raises:
        BackboneError: names or shapes that are not the model's; the message has the first of them, what the weights look
            like, and what fits them. Or numbers that are none: quantised, NaN or infinite.
    """
    weights, own = _as_in(model, found.weights, source), model.state_dict()
    missing, unknown = [key for key in own if key not in weights], [key for key in weights if key not in own]
    other = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if missing or unknown or other:
        problems = [_some("lacks", missing), _some("has the unknown", unknown)]
        if other and not missing:
            key = other[0]
            problems = [f"{key} has shape {tuple(weights[key].shape)}, expected {tuple(own[key].shape)}"]
        likeness = architectures_of(found.weights)
        raise BackboneError(
            f"The weights in {source} do not fit {name}: {' and '.join(filter(None, problems))}; "
            f"they look like {_looks_like(found, likeness)}",
            hint=f"Use `backbone={likeness[0]}`" if likeness else _MERGE if _is_adapter(found.weights) else None,
        )
    used = {key: value for key, value in weights.items() if not key.startswith(_NOT_USED)}
    for key, value in used.items():
        if own[key].is_floating_point() and not value.is_floating_point():
            raise BackboneError(f"{source} has {key} in {value.dtype}: quantised weights are not read")
        if value.is_floating_point() and not torch.isfinite(
            value.sum(dtype=torch.promote_types(value.dtype, torch.float32))
        ):
            raise BackboneError(
                f"{source} has NaN or infinite numbers in {key}: its training has failed, or it is damaged"
            )
    model.load_state_dict(_as_own(weights, own, mapped=mapped), assign=True)


class NotRead(nn.Module):
    """Stands where a tower for pictures would, in a model that encodes captions alone."""

    def forward(self, *_: Any) -> Any:
        raise RuntimeError("The tower for pictures was not loaded")


def fit_texts(model: ClipModel, found: ClipWeights, source: Path, name: str) -> None:
    """`fit` of all but the tower for pictures, which is taken out of the model, for weights that have been fit before.

    Raises:
        BackboneError: names or shapes are not the model's.
    """
    model.visual = NotRead()  # pyright: ignore[reportAttributeAccessIssue]
    own = model.state_dict()
    weights = {
        key: value for key, value in _as_in(model, found.weights, source).items() if not key.startswith("visual.")
    }
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in weights.items()}:
        raise BackboneError(f"The weights in {source} do not fit {name}")
    model.load_state_dict(_as_own(weights, own), assign=True)


def _as_own(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], *, mapped: bool = False) -> dict[str, Tensor]:
    """Weights in the types of a model's own, each alone in memory, where torch would put it.

    Copied is what was loaded otherwise: what shares memory, or is a file's, which may change while it is mapped; with
    `mapped` of these no floating-point numbers.
    """
    shared = Counter(value.untyped_storage().data_ptr() for value in weights.values())

    def is_plain(value: Tensor) -> bool:
        if mapped and value.is_floating_point():
            return True
        storage = value.untyped_storage()
        whole = storage.nbytes() == value.nbytes and value.is_contiguous()
        return whole and shared[storage.data_ptr()] == 1 and storage.data_ptr() % ALIGNED == 0

    return {key: value.to(own[key].dtype, copy=not is_plain(value)).contiguous() for key, value in weights.items()}


def _as_in(model: ClipModel, weights: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """The same weights as this model's class names and shapes them."""
    from open_clip.convert import convert_state_dict

    try:
        found: dict[str, Tensor] = convert_state_dict(model, dict(weights))  # pyright: ignore[reportArgumentType] (CoCa)
    except Exception as error:  # Apple's names, but not as open_clip knows them
        raise BackboneError(f"The weights in {source} cannot be converted: {first_words(error)}") from error
    inside = hasattr(model, "text")
    if inside and "positional_embedding" in found:  # the plain class keeps its text tower at the top
        top = ("visual.", "logit_scale", "logit_bias", "text.", "text_decoder.")
        found = {key if key.startswith(top) else f"text.{key}": value for key, value in found.items()}
    elif not inside and "text.positional_embedding" in found:
        found = {key.removeprefix("text."): value for key, value in found.items()}
    for key, usual in (("logit_scale", math.log(100.0)), ("logit_bias", 0.0)):  # of a loss; towers alone come without
        own = getattr(model, key, None)
        if isinstance(own, Tensor):
            found[key] = found.get(key, torch.full_like(own.detach(), usual)).reshape(own.shape)
    return found


def _some(verb: str, keys: list[str]) -> str:
    if not keys:
        return ""
    rest = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"it {verb} {keys[0][:100]}{rest}"


def _looks_like(found: ClipWeights, likeness: list[str]) -> str:
    title = _FORMS[found.form]
    if found.program:
        title = f"a whole model of {_title(found.program)}"
    if likeness:
        return f"{title} of {likeness[0]}"
    if _is_adapter(found.weights):
        return "an adapter (LoRA), which holds what is added to weights and not them"
    has = {kind for mark, kind in _TOWERS.items() if any(re.match(mark, key) for key in found.weights)}
    if len(has) == 1:
        return f"the tower for {has.pop()} alone"
    return title if found.form != "open_clip" or found.program else "no architecture of open_clip"


def _is_adapter(weights: Mapping[str, Tensor]) -> bool:
    return any(".lora_" in key for key in weights)


def _title(program: str | None) -> str:
    return _TITLES.get(program or "", "CLIP4Clip")


# --- which architecture ------------------------------------------------------------------------------------------------


def architecture_of(source: Path) -> str:
    """The architecture of the backbone in a file or folder. Raises BackboneError where open_clip has none of its shapes."""
    found = read_backbone(source)
    alike = architectures_of(found.weights)
    if not alike:
        is_adapter = _is_adapter(found.weights)
        raise BackboneError(
            f"The weights in {source} have the shapes of no architecture of open_clip; "
            f"they look like {_looks_like(found, alike)}",
            hint=_MERGE if is_adapter else "Name it with `backbone`",
        )
    return alike[0]


def architectures_of(weights: Mapping[str, Tensor]) -> list[str]:
    """Architectures of open_clip that have exactly these names and shapes."""
    import open_clip

    found = {key.removeprefix("text."): tuple(value.shape) for key, value in weights.items()}
    candidates = [name for name in open_clip.list_models() if _may_be(open_clip.get_model_config(name), found)]
    logits = {"logit_scale", "logit_bias"}
    wanted = {key: shape for key, shape in found.items() if key not in logits}
    alike = []
    for name in candidates[:_MOST_BUILT]:
        own = {key.removeprefix("text."): tuple(value.shape) for key, value in empty_model(name).state_dict().items()}
        if {key: shape for key, shape in own.items() if key not in logits} == wanted:
            alike.append(name)
    return alike


def _may_be(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether an architecture has a text tower of these sizes, by its configuration alone."""
    text = {"width": 512, "vocab_size": 49408, "context_length": 77} | config["text_cfg"]
    timm = any(key.startswith("visual.trunk.") for key in shapes)
    if "hf_model_name" in text or timm != ("timm_model_name" in config["vision_cfg"]):
        return False
    if shapes.get("token_embedding.weight") != (text["vocab_size"], text["width"]):
        return False
    length, *_ = shapes.get("positional_embedding", (0,))
    return length in (text["context_length"], text["context_length"] + 1)  # CoCa's has a place for its class token


def empty_model(name: str) -> nn.Module:
    """A model of an architecture without memory for its weights: names and shapes."""
    import open_clip
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    config = open_clip.get_model_config(name)
    assert config is not None, "names come from open_clip's own list"
    custom = config.pop("custom_text", False)
    kind = CLIP if not custom else CoCa if "multimodal_cfg" in config else CustomTextCLIP
    with torch.device("meta"):
        return kind(**config)
