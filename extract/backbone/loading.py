"""Models, tokenizers and weights of open_clip, wherever they come from; each failure in one line."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from glscl.common.addresses import address_of
from glscl.common.archive_limits import check_zip
from glscl.common.clip_names import ClipWeights
from glscl.common.errors import BackboneError, Hint
from glscl.common.staged import brought
from glscl.common.state_dicts import FOLDER_FILES, first_words, is_script, weights_file
from glscl.extract.backbone.catalog import needed_files
from glscl.extract.backbone.clip_model import ClipModel, is_clip
from glscl.extract.backbone.fitting import architecture_of, fit, fit_texts, read_backbone
from glscl.extract.backbone.known_weights import WeightsFile
from glscl.extract.backbone.patch_embedding import widen_patch_embedding
from glscl.extract.backbone.tuned_weights import TunedWeights, read_tuned
from glscl.extract.backbone.weight_settings import check_towers, decide, describes, said
from glscl.extract.settings import ActivationSettings

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "sentencepiece.bpe.model")
DEMO_BACKBONE = Path(__file__).parents[2] / "demo" / "backbone"


class Loaded(NamedTuple):
    """A model with its weights.

    Attributes:
        tokenizer: of open_clip.
        name, pretrained: of architecture and weights, as a cache keeps them.
        notes: what nobody said of the weights, and what was taken.
        file: that its weights are from, where it is one.
        known: hash of the weights, where they were read before.
    """

    model: ClipModel
    tokenizer: Any
    name: str
    pretrained: str
    notes: tuple[str, ...] = ()
    file: WeightsFile | None = None
    known: str | None = None


def load_model(
    name: str,
    pretrained: str | None,
    *,
    asked: ActivationSettings | None = None,
    across_frames: bool = False,
    mapped: bool = False,
) -> Loaded:
    """A model with its weights and its tokenizer.

    Args:
        name, pretrained, across_frames: as in `load_backbone`.
        asked: how the weights are used, as far as the user says it; wins over everything.
        mapped: weights may stay the file's own bytes, which may change: for who copies all of them at once.

    Raises:
        BackboneError: unknown name or tag, weights that cannot be had or do not fit.
    """
    if pretrained and address_of(pretrained, "pretrained") is not None:
        pretrained = str(brought(pretrained, "pretrained"))
    source = Path(pretrained) if pretrained and _is_there(pretrained) else None
    file = WeightsFile.of(name, _source_of(name, pretrained))
    tuned = read_tuned(source) if source and source.is_file() else None
    if source and tuned:
        _check_tuned(source, tuned, name, across_frames)
    of_a_model = name == "demo" or ":" in name  # which has no tags: what is no path is the default, or of a record
    if of_a_model and not source and {"/", "."} & set(pretrained or ""):
        raise BackboneError(
            f"{pretrained!r} is no file or folder with weights", hint="Give them with `pretrained=FILE`"
        )
    if _is_folder(name):
        loaded = _load_folder(_folder_of(name), name, asked, filled=source is None, mapped=mapped)
    elif name.startswith("hf-hub:"):
        loaded = _load_published(name, None, asked)
    elif source:
        loaded = _load_source(name, source, tuned, asked, mapped=mapped)
    else:
        loaded = _load_published(name, pretrained, asked)
    if not is_clip(loaded.model):
        raise BackboneError(
            f"The model of {name} is a {type(loaded.model).__name__}, expected one that encodes pictures and texts"
        )
    if source and of_a_model:
        _fill(loaded.model, source, tuned, name, mapped=mapped)
        loaded = loaded._replace(pretrained=source.name)
    return loaded._replace(file=file, known=file.known_hash() if file and not _is_folder(name) else None)


def load_text_tower(name: str, pretrained: str | None, *, asked: ActivationSettings) -> Loaded | None:
    """As `load_model`, for captions alone: nothing of the pictures' tower is read, nor is all hashed again.

    Args:
        asked: how the weights are used, the activation at least.

    Returns:
        None where the weights are not those of one file that was loaded before and is unchanged since; or are of the hub.
    """
    file = WeightsFile.of(name, _source_of(name, pretrained))
    known = file and file.known_hash()
    if file is None or known is None or asked.quick_gelu is None or name.startswith("hf-hub:"):
        return None
    if _is_folder(name):
        loaded = _load_folder(_folder_of(name), name, asked, filled=False)
    else:
        loaded = Loaded(_unfilled(name, said(asked)), _tokenizer_of(name, file.path), name, str(pretrained))
    fit_texts(loaded.model, read_backbone(file.path, mapped=True), file.path, name)
    return loaded._replace(known=known)


def _is_folder(name: str) -> bool:
    return name == "demo" or name.startswith("local-dir:")


def _folder_of(name: str) -> Path:
    return DEMO_BACKBONE if name == "demo" else Path(name.removeprefix("local-dir:"))


def _source_of(name: str, pretrained: str | None) -> Path | None:
    """The file or folder that the weights of a backbone are in, as far as it is on this machine."""
    if pretrained and _is_there(pretrained):
        return Path(pretrained)
    if _is_folder(name):
        return _folder_of(name)
    found = next((file.path for file in needed_files(name, pretrained) if file.what == "weights"), None)
    return Path(found) if found else None


def _is_there(pretrained: str) -> bool:
    """Whether weights are named by a file, or a folder with weights, and not by a tag."""
    path = Path(pretrained)
    return path.is_file() or (path.is_dir() and weights_file(path) is not None)


def _load_folder(
    folder: Path, name: str, asked: ActivationSettings | None, *, filled: bool, mapped: bool = False
) -> Loaded:
    """A model from `open_clip_config.json`, its weights, tokenizer files or an own `*.txt.gz` of merges.

    A folder of transformers (`config.json`) is taken as the architecture of open_clip that its weights fit.
    """
    import open_clip

    config = folder / "open_clip_config.json"
    if not config.is_file():
        if not (folder / "config.json").is_file():
            raise BackboneError(f"{folder} has no open_clip_config.json", hint="Name a folder with config and weights")
        return _load_source(architecture_of(folder), folder, None, asked, mapped=mapped)
    about = _read_config(config)
    text = dict(about["model_cfg"].get("text_cfg") or {})
    if (folder / str(text.get("hf_model_name") or "-")).is_dir():  # what `fetch` writes holds for any place
        text["hf_model_name"] = str(folder / text["hf_model_name"])
    text["hf_model_pretrained"] = False
    with _quiet(), NotInitialised(), as_backbone_error(f"Cannot load the backbone in {folder}"):
        model: Any = open_clip.create_model(
            f"local-dir:{folder}",
            load_weights=False,
            pretrained_text=False,
            text_cfg=text,
            **_options(said(asked)),
        )
    if filled:
        _fill(model, folder, None, name, mapped=mapped)
    known = about.get("glscl") or {}
    called = "built-in" if name == "demo" else str(known.get("pretrained") or "local-dir")
    return Loaded(model, _tokenizer_in(folder), str(known.get("name") or name), called)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found["model_cfg"], dict):
            return found
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        pass
    raise BackboneError(f"{path} describes no model: expected JSON with a model_cfg")


def _tokenizer_in(folder: Path) -> Any:
    import open_clip

    merges = sorted(folder.glob("*.txt.gz"))
    options: dict[str, Any] = {"bpe_path": str(merges[0])} if merges else {}
    with _quiet(), as_backbone_error(f"Cannot load the tokenizer in {folder}"):
        return open_clip.get_tokenizer(f"local-dir:{folder}", **options)


def _load_source(
    name: str, source: Path, tuned: TunedWeights | None, asked: ActivationSettings | None, *, mapped: bool
) -> Loaded:
    """An architecture with the weights in a file or folder."""
    _check_architecture(name)
    if source.suffix in (".npz", ".npy"):
        return _load_big_vision(name, source, asked)
    if source.is_dir() and (source / "open_clip_config.json").is_file():
        about = _read_config(source / "open_clip_config.json")
        fetched = (about.get("glscl") or {}).get("name")  # by `fetch`
        if fetched != name if fetched else not describes(about["model_cfg"], name):
            raise BackboneError(
                f"{source} holds {fetched or 'a model of other towers'}, not {name}",
                hint=f"Use `backbone={fetched or f'local-dir:{source}'}`",
            )
        loaded = _load_folder(source, f"local-dir:{source}", asked, filled=True, mapped=mapped)
        return loaded if fetched else loaded._replace(name=name, pretrained=source.name)
    found = read_backbone(source, mapped=mapped)
    in_file = {**tuned.preprocessing, "quick_gelu": tuned.quick_gelu} if tuned else None
    decided = decide(name, source, found, asked=asked, is_script=is_script(source), in_file=in_file)
    values = {**decided.values, **(tuned.preprocessing if tuned else {}), **said(asked)}
    model = _unfilled(name, values)
    _fill(model, source, tuned, name, found, mapped=mapped)
    check_towers(model, source, found)
    return Loaded(model, _tokenizer_of(name, source), name, source.name, tuple(decided.notes))


def _unfilled(name: str, values: Mapping[str, Any]) -> Any:
    """A model of an architecture, as `values` of `weight_settings.KEYS` have it, whose weights hold anything."""
    import open_clip

    with _quiet(), NotInitialised(), as_backbone_error(f"Cannot build {name}"):
        return open_clip.create_model(name, None, load_weights=False, pretrained_text=False, **_options(values))


def _load_big_vision(name: str, source: Path, asked: ActivationSettings | None) -> Loaded:
    """Weights of Google's big_vision (SigLIP), which open_clip itself converts."""
    import open_clip

    if "SigLIP" not in name:
        raise BackboneError(
            f"{source} holds arrays of NumPy, which are read as big_vision's SigLIP alone, not as {name}"
        )
    decided = decide(name, source, ClipWeights({}, "open_clip", "", (), None), asked=asked, is_script=False)
    with _quiet(), as_backbone_error(f"Cannot load the weights in {source}"):
        check_zip(source)
        model: Any = open_clip.create_model(name, None, load_weights=False, **_options(decided.values))
        open_clip.load_checkpoint(model, str(source))
    return Loaded(model, _tokenizer_of(name, source), name, source.name, tuple(decided.notes))


def _load_published(name: str, pretrained: str | None, asked: ActivationSettings | None) -> Loaded:
    """Weights that open_clip knows by a tag, or a repository of the hub."""
    stay_offline_where_there_is_no_network()
    import open_clip

    hub, values = name.startswith("hf-hub:"), said(asked)
    if not hub:
        _check_architecture(name)
        if not pretrained:
            raise BackboneError(f"{name} needs weights", hint="Give `pretrained=openai`, another tag, or a file")
        tags = open_clip.list_pretrained_tags_by_model(name)
        if Path(pretrained).is_dir():
            raise BackboneError(f"{pretrained} holds no weights", hint=f"Expected is a file such as {FOLDER_FILES[0]}")
        if pretrained not in tags:
            raise BackboneError(
                f"{pretrained!r} is neither a file nor a tag of {name}; its tags are {', '.join(tags) or 'none'}",
                hint="Give `pretrained` one of these or a file",
            )
        # weights trained with QuickGELU need it, whatever the name of the architecture says
        if (open_clip.get_pretrained_cfg(name, pretrained) or {}).get("quick_gelu"):
            values = {"quick_gelu": True, **values}
    source = name if hub else f"{name}/{pretrained}"
    try:
        with _quiet(), NotInitialised():
            model: Any = open_clip.create_model(
                name, None if hub else pretrained, require_pretrained=True, **_options(values)
            )
    except Exception as error:  # hub clients, torch and safetensors each raise their own types
        raise unavailable(name, pretrained, f"Cannot load the weights of {source}", error) from error
    return Loaded(model, _tokenizer_of(name), name, name.partition(":")[0] if hub else str(pretrained))


def _check_architecture(name: str) -> None:
    import open_clip

    known = open_clip.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known, 3, 0.4)
        raise BackboneError(f"open_clip has no architecture {name!r}; close to it: {', '.join(close) or 'none'}")


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    """How weights are used, as `open_clip.create_model` takes it."""
    pictures = {key: value for key, value in values.items() if key != "quick_gelu"}
    options: dict[str, Any] = {"force_preprocess_cfg": pictures} if pictures else {}
    return options if values.get("quick_gelu") is None else {**options, "quick_gelu": values["quick_gelu"]}


def _tokenizer_of(name: str, source: Path | None = None) -> Any:
    """The tokenizer of an architecture; one of transformers from the files beside the weights, where they are there."""
    import open_clip

    text = (open_clip.get_model_config(name) or {}).get("text_cfg", {}) if ":" not in name else {}
    folder = source and (source if source.is_dir() else source.parent)
    try:
        with _quiet():
            if folder and text.get("hf_tokenizer_name") and any(map(Path.is_file, map(folder.joinpath, _TOKENIZERS))):
                from open_clip.tokenizer import HFTokenizer

                length = text.get("context_length", 77)
                mode = text.get("tokenizer_mode")
                options = text.get("tokenizer_kwargs", {})
                return HFTokenizer(str(folder), context_length=length, tokenizer_mode=mode, **options)
            if ":" not in name and not (text.get("hf_tokenizer_name") or text.get("tokenizer_kwargs")):
                made: Any = getattr(open_clip.tokenizer, "_tokenizer", None)  # which its import has made: 0.1 s
                if made is not None and made.context_length == text.get("context_length", 77):
                    return made
            return open_clip.get_tokenizer(name)
    except (ImportError, OSError, ValueError, AttributeError) as error:
        raise unavailable(name, None, f"Cannot load the tokenizer of {name}", error) from error


def _check_tuned(file: Path, tuned: TunedWeights, name: str, across_frames: bool) -> None:
    if tuned.name != name:
        raise BackboneError(f"{file} holds weights of {tuned.name}, not of {name}", hint=f"Use `backbone={tuned.name}`")
    if tuned.patch_embedding == "3d" and not across_frames:
        raise BackboneError(
            f"{file} has a 3d patch embedding: it sees each frame with its neighbours, and a cache encodes frames one by one",
            hint=Hint("Judge it from pixels", "eval", {"run": file.parent, "videos": "DIR"}),
        )


def _fill(
    model: ClipModel,
    source: Path,
    tuned: TunedWeights | None,
    name: str,
    found: ClipWeights | None = None,
    *,
    mapped: bool,
) -> None:
    """Replace the weights of a model by those in a file or folder."""
    if tuned and tuned.patch_embedding == "3d":
        widen_patch_embedding(model)
    fit(model, found or read_backbone(source, mapped=mapped), source, name, mapped=mapped)


def stay_offline_where_there_is_no_network() -> None:
    """Without a network the hub's client retries for a minute; one name look-up tells at once."""
    if "HF_HUB_OFFLINE" in os.environ:
        return
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").split("//")[-1].split("/")[0].split(":")[0]
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        with contextlib.suppress(ImportError, AttributeError):
            import huggingface_hub.constants

            huggingface_hub.constants.HF_HUB_OFFLINE = True


def unavailable(name: str, pretrained: str | None, message: str, error: Exception) -> BackboneError:
    """What to say where something cannot be had from the hub: which file, and the ways that need no network here."""
    if isinstance(error, ImportError):
        return BackboneError(
            f"{message}: {first_words(error)}", hint="Install transformers: pip install 'glscl[siglip]'"
        )
    missing = [file for file in needed_files(name, pretrained) if file.path is None]
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    reason = first_words(error)
    if missing:
        listed = " and ".join(f"its {file.what} ({file.names[0]} of {file.source})" for file in missing)
        verb = "are" if len(missing) > 1 or missing[0].what == "weights" else "is"
        reason = f"{listed} {verb} not on this machine, and " + ("the hub cannot be reached" if offline else reason)
    return BackboneError(
        f"{message}: {reason}",
        hint=Hint(
            "Where there is a network, make a folder of it, which works here as `backbone=local-dir:FOLDER`",
            "fetch",
            {"": name, "pretrained": pretrained},
            otherwise=Hint(
                "give weights that are here with `pretrained=FILE`, or fill the hub's cache (HF_HOME) there and copy it"
            ),
        ),
    )


class NotInitialised(TorchFunctionMode):
    """Leaves out the random numbers that a new model begins with: weights replace all of them, and drawing them takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_RANDOM = {Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_, init.trunc_normal_}
_RANDOM |= {init.kaiming_normal_, init.kaiming_uniform_, init.xavier_normal_, init.xavier_uniform_}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """open_clip logs every failed attempt; our one line says it once."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def as_backbone_error(message: str, hint: Hint | str | None = None) -> Iterator[None]:
    try:
        yield
    except BackboneError:
        raise
    except Exception as error:  # hub clients, torch and safetensors each raise their own types
        raise BackboneError(f"{message}: {first_words(error)}", hint=hint) from error
