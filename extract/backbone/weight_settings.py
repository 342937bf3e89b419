"""Activation, preprocessing and what else shapes do not tell belong to the weights: what says how a file wants to be used.

In this order: what the user says; what stands in the file or beside it; that a public program or OpenAI wrote it, of an
architecture of OpenAI's; what all published weights of the architecture agree on. What is open then is taken as open_clip has it by default, and a note says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from glscl.common.clip_names import OPENAI_MODELS, OPENAI_SETTINGS, ClipWeights, program_of
from glscl.common.errors import BackboneError
from glscl.extract.settings import ActivationSettings, WeightSettings, parse_channels, parse_deviations

PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
KEYS = (*PREPROCESSING, "quick_gelu")
CONFIG_FILES = ("open_clip_config.json", "config.json", "preprocessor_config.json")  # beside weights


def said(asked: ActivationSettings | None) -> dict[str, Any]:
    """What a user says, by name, as open_clip has it."""
    values = {name: getattr(asked, name, None) for name in KEYS}
    read = {"mean": parse_channels, "std": parse_deviations}
    return {name: read[name](v) if name in read else v for name, v in values.items() if v is not None}


def recorded(configuration: Mapping[str, Any]) -> WeightSettings:
    """What a cache's `backbone` says of it, for loading the same again."""
    made = configuration.get("preprocessing", {})
    channels = {name: ",".join(map(str, made[name])) for name in ("mean", "std") if name in made}
    others = {name: made[name] for name in ("interpolation", "resize_mode") if name in made}
    return WeightSettings(quick_gelu=configuration.get("quick_gelu"), **channels, **others)


class Decided(NamedTuple):
    """How weights are used: `values` of KEYS that are known or chosen, `notes` on what was chosen."""

    values: dict[str, Any]
    notes: list[str]


def decide(
    name: str,
    source: Path,
    found: ClipWeights,
    *,
    asked: ActivationSettings | None,
    is_script: bool,
    in_file: Any = None,
) -> Decided:
    """How the weights in a file or folder are used.

    Args:
        name: architecture of open_clip.
        source: the file or folder.
        found: what was read from it.
        asked: what the user says.
        is_script: whether it is a TorchScript archive, as OpenAI published its weights.
        in_file: what stands in the file itself, KEYS → values; None looks beside it.
    """
    values = said_in_files(name, source, found) if in_file is None else dict(in_file)
    tags = published(name)
    is_openais = name.removesuffix("-quickgelu") in OPENAI_MODELS or not tags
    if not values.keys() & set(KEYS) and (found.program or is_script) and is_openais:
        values = dict(OPENAI_SETTINGS)
        guessed = found.program == "clip4clip" and program_of(found.others) is None  # nothing but its `clip.`
    else:
        guessed = False
    values = {**agreed(tags), **{key: value for key, value in values.items() if value is not None}, **said(asked)}
    open_ones = [key for key in KEYS if key not in values]
    notes = _notes(name, source, open_ones, tags) if open_ones else []
    if guessed and "quick_gelu" not in said(asked):
        notes.append(
            f"{source} looks like a whole CLIP4Clip and is used as OpenAI's weights are, with QuickGELU. If another program "
            "made it from other weights, say `quick_gelu=False`"
        )
    if found.form != "open_clip" and in_file is None:
        notes += _crops(source)
    return Decided(values, notes)


def agreed(tags: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What all published weights of an architecture have in common."""
    return {key: next(iter(tags.values()))[key] for key in KEYS if len({str(tag[key]) for tag in tags.values()}) == 1}


def _notes(name: str, source: Path, open_ones: list[str], tags: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line that names what nobody said and what is taken."""
    taken = default_of(name)
    shown = ", ".join(f"`{key}={_shown(taken[key])}`" for key in open_ones)
    line = f"{source} does not say {_listed(open_ones)}; taken is what open_clip takes for {name}: {shown}"
    if tags:
        others = [tag for tag, about in tags.items() if any(about[key] != taken[key] for key in open_ones)]
        line += f" (published weights differ: {', '.join(others[:3])}{' …' if len(others) > 3 else ''} need others)"
    return [f"{line}. If that is wrong, say it"]


def _listed(keys: list[str]) -> str:
    words = {"mean": "mean", "std": "deviation", "interpolation": "interpolation", "resize_mode": "resizing"}
    named = [words.get(key, "activation (QuickGELU or not)") for key in keys]
    return f"its {named[0]}" if len(named) == 1 else f"its {', '.join(named[:-1])} and {named[-1]}"


def _shown(value: Any) -> str:
    return ",".join(f"{number:g}" for number in value) if isinstance(value, tuple) else str(value)


def default_of(name: str) -> dict[str, Any]:
    """KEYS → values as open_clip has them where weights say nothing."""
    import open_clip
    from open_clip.transform import PreprocessCfg

    plain = PreprocessCfg()
    config = open_clip.get_model_config(name) or {}
    return {key: getattr(plain, key) for key in PREPROCESSING} | {"quick_gelu": bool(config.get("quick_gelu"))}


def published(name: str) -> dict[str, dict[str, Any]]:
    """Tag → KEYS → values of all published weights of an architecture."""
    import open_clip

    plain = default_of(name)
    found = {}
    for tag in open_clip.list_pretrained_tags_by_model(name):
        about = open_clip.get_pretrained_cfg(name, tag)
        values = {key: about.get(key) or plain[key] for key in PREPROCESSING}
        values = {key: tuple(value) if key in ("mean", "std") else value for key, value in values.items()}
        found[tag] = values | {"quick_gelu": bool(about.get("quick_gelu")) or plain["quick_gelu"]}
    return found


# --- beside the weights ------------------------------------------------------------------------------------------------


def said_in_files(name: str, source: Path, found: ClipWeights) -> dict[str, Any]:
    """What `open_clip_config.json`, or the configuration files of transformers, in the same folder say of weights.

    Raises:
        BackboneError: they are no JSON, or name an activation that open_clip's towers do not have.
    """
    folder = _folder(source)
    if found.form == "open_clip":
        config = _json(folder / "open_clip_config.json")
        if not describes(config.get("model_cfg"), name):  # of another model, or none
            return {}
        about = config.get("preprocess_cfg") or {}
        values = {key: about[key] for key in PREPROCESSING if about.get(key) is not None}
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return {**OPENAI_SETTINGS, **values, "quick_gelu": bool(config["model_cfg"].get("quick_gelu"))}
    return {**_activation(folder / "config.json"), **_pictures(_json(folder / "preprocessor_config.json"))}


def describes(config: Any, name: str) -> bool:
    """Whether a `model_cfg` has the towers of an architecture of open_clip: their sizes, and what shapes hide."""
    import open_clip
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    def towers(about: Any) -> list[Any]:
        found = [about.get("embed_dim")]
        for part, usual, keys in (("vision_cfg", CLIPVisionCfg, _VISION), ("text_cfg", CLIPTextCfg, _TEXT)):
            given = about.get(part) or {}
            found += [str(given.get(key) or getattr(usual, key)) for key in keys]
        return found

    known = open_clip.get_model_config(name)
    return isinstance(config, dict) and known is not None and towers(config) == towers(known)


_BOTH = ("layers", "width", "pool_type", "final_ln_after_pool", "act_kwargs", "norm_kwargs")
_VISION = (*_BOTH, "head_width", "patch_size", "image_size", "timm_model_name", "timm_pool")
_TEXT = (*_BOTH, "heads", "context_length", "vocab_size", "hf_model_name", "hf_pooler_type", "no_causal_mask")


def check_towers(model: Any, source: Path, found: ClipWeights) -> None:
    """Refuse weights of transformers whose config.json says of heads or norms what this model, of the same shapes, has not.

    Raises:
        BackboneError: names what differs.
    """
    if found.form == "open_clip":
        return
    path = _folder(source) / "config.json"
    config = _json(path)
    usual = _USUAL[found.form]
    for part in ("vision_config", "text_config"):
        if not isinstance(config.get(part), dict):
            continue
        modules = [
            each for name, each in model.named_modules() if name.startswith("visual") == (part == "vision_config")
        ]
        own = {
            "num_attention_heads": {each.num_heads for each in modules if hasattr(each, "num_heads")},
            "layer_norm_eps": {each.eps for each in modules if isinstance(each, nn.LayerNorm)},
        }
        for key, values in own.items():
            value = config[part].get(key, usual[part, key])
            if any(not math.isclose(value, each, rel_tol=1e-3) for each in values):
                raise BackboneError(
                    f"{path} says {key} {value} of its {part.removesuffix('_config')} tower, which open_clip computes with "
                    f"{', '.join(f'{each:g}' for each in sorted(values))}: its features would be others"
                )


_USUAL = {
    "clip": {
        ("vision_config", "num_attention_heads"): 12,
        ("text_config", "num_attention_heads"): 8,
        ("vision_config", "layer_norm_eps"): 1e-5,
        ("text_config", "layer_norm_eps"): 1e-5,
    },
    "siglip": {
        ("vision_config", "num_attention_heads"): 12,
        ("text_config", "num_attention_heads"): 12,
        ("vision_config", "layer_norm_eps"): 1e-6,
        ("text_config", "layer_norm_eps"): 1e-6,
    },
}  # of transformers, whose config.json may leave out what is usual


def _activation(path: Path) -> dict[str, Any]:
    """Of transformers' config.json, which leaves out what is usual: for CLIP that is QuickGELU."""
    config = _json(path)
    kind = str(config.get("model_type", ""))
    if not kind.startswith(("clip", "siglip")):
        return {}
    usual, known = ("gelu_pytorch_tanh", ("gelu_pytorch_tanh",)) if kind.startswith("siglip") else (
        "quick_gelu", ("quick_gelu", "gelu")
    )  # fmt: skip
    usual = config.get("hidden_act", usual)
    towers = [config[part] for part in ("vision_config", "text_config") if isinstance(config.get(part), dict)]
    named = {str(tower.get("hidden_act", usual)) for tower in towers} or {usual}
    if len(named) > 1 or not named <= {*known}:
        raise BackboneError(
            f"{path} names the activation {' and '.join(sorted(named))}; open_clip's towers have "
            f"{' or '.join(known)}, the same in both"
        )
    return {"quick_gelu": named == {"quick_gelu"}}


def _pictures(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of transformers' preprocessor_config.json."""
    values: dict[str, Any] = {}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if isinstance(config.get(theirs), list) and len(config[theirs]) == 3:
            values[ours] = tuple(map(float, config[theirs]))
    if config.get("do_normalize") is False:
        values |= {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if config.get("resample") in (2, 3):  # of Pillow
        values["interpolation"] = {2: "bilinear", 3: "bicubic"}[config["resample"]]
    size = config.get("size")
    if isinstance(size, int) or (isinstance(size, Mapping) and "shortest_edge" in size):
        values["resize_mode"] = "shortest"
    elif isinstance(size, Mapping) and "height" in size:
        values["resize_mode"] = "squash"
    return values


def _crops(source: Path) -> list[str]:
    """A note where preprocessor_config.json cuts a part out of a larger picture, which open_clip's preprocessing does not."""
    path = _folder(source) / "preprocessor_config.json"
    config = _json(path)
    edge, crop = (
        size.get(key) if isinstance(size, Mapping) else size
        for size, key in ((config.get("size"), "shortest_edge"), (config.get("crop_size"), "height"))
    )
    if not (isinstance(edge, int) and isinstance(crop, int)) or edge == crop:
        return []
    return [f"{path} resizes to {edge} pixels and cuts {crop} out of them; here pictures are resized to {crop}"]


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise BackboneError(f"{path} cannot be read: it is not JSON") from error
    return found if isinstance(found, dict) else {}
