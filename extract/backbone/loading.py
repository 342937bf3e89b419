"""Models, tokenizers and weights of open_clip, wherever they come from; each failure in one line."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import socket
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn

from glscl.common.archive_limits import check_torch_file
from glscl.common.errors import BackboneError, Hint
from glscl.extract.backbone.patch_embedding import widen_patch_embedding
from glscl.extract.backbone.tuned_weights import TunedWeights, read_tuned

DEMO_BACKBONE = Path(__file__).parents[2] / "demo" / "backbone"


if TYPE_CHECKING:

    class VisionTower(nn.Module):
        preprocess_cfg: dict[str, Any]
        attnpool: Any  # of a ModifiedResNet

    class ClipModel(nn.Module):
        """What is used here of a model of open_clip, whose classes have no base of their own."""

        visual: VisionTower
        logit_scale: nn.Parameter
        # of the plain CLIP class alone
        context_length: int
        transformer: Any  # of open_clip.transformer
        token_embedding: nn.Embedding
        positional_embedding: nn.Parameter
        ln_final: nn.LayerNorm
        text_projection: nn.Parameter
        attn_mask: torch.Tensor
        text_pool_type: str

        def encode_image(self, image: torch.Tensor, normalize: bool = False) -> torch.Tensor: ...
        def encode_text(self, text: torch.Tensor, normalize: bool = False) -> torch.Tensor: ...
        def forward_intermediates(self, **options: Any) -> dict[str, Any]: ...


def load_model(name: str, pretrained: str | None, *, across_frames: bool = False) -> tuple[ClipModel, Any, str]:
    """A model with its weights, its tokenizer, and what to call the weights.

    Args:
        name, pretrained, across_frames: as in `load_backbone`.

    Raises:
        BackboneError: unknown name or tag, weights that cannot be had or do not fit.
    """
    file = Path(pretrained) if pretrained and Path(pretrained).is_file() else None
    tuned = read_tuned(file) if file else None
    if file and tuned:
        _check_tuned(file, tuned, name, across_frames)
    if name == "demo":
        model, tokenizer = _load_folder(DEMO_BACKBONE)
    elif name.startswith("local-dir:"):
        model, tokenizer = _load_folder(Path(name.removeprefix("local-dir:")))
    else:
        model, tokenizer = _load_open_clip(name, pretrained, tuned)
    if not is_clip(model):
        raise BackboneError(
            f"The model of {name} is a {type(model).__name__}, expected one that encodes pictures and texts"
        )
    if file and (tuned or name == "demo" or ":" in name):
        _load_file(model, file, tuned)
    return model, tokenizer, _pretrained_name(name, pretrained)


def is_clip(model: nn.Module) -> TypeGuard[ClipModel]:
    """Whether a model encodes pictures and texts as those of open_clip do."""
    return all(hasattr(model, name) for name in ("visual", "logit_scale", "encode_image", "encode_text"))


def _load_folder(folder: Path) -> tuple[nn.Module, Any]:
    """A model from `open_clip_config.json`, its weights, and optionally an own `*.txt.gz` merges file."""
    import open_clip

    if not (folder / "open_clip_config.json").is_file():
        raise BackboneError(f"{folder} has no open_clip_config.json", hint="Name a folder with config and weights")
    merges = sorted(folder.glob("*.txt.gz"))
    with _quiet(), _as_backbone_error(f"Cannot load the backbone in {folder}"):
        model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True)
        tokenizer_options: dict[str, Any] = {"bpe_path": str(merges[0])} if merges else {}
        return model, open_clip.get_tokenizer(f"local-dir:{folder}", **tokenizer_options)


def _load_open_clip(name: str, pretrained: str | None, tuned: TunedWeights | None) -> tuple[nn.Module, Any]:
    _stay_offline_where_there_is_no_network()
    import open_clip

    hub = name.startswith("hf-hub:")
    options: dict[str, Any] = {}
    if not hub:
        known = open_clip.list_models()
        if name not in known:
            close = difflib.get_close_matches(name, known, 3, 0.4)
            raise BackboneError(f"open_clip has no architecture {name!r}; close to it: {', '.join(close) or 'none'}")
        if not pretrained:
            raise BackboneError(f"{name} needs weights", hint="Give `pretrained=openai`, another tag, or a file")
        tags = open_clip.list_pretrained_tags_by_model(name)
        if tuned:
            options = {"force_quick_gelu": tuned.quick_gelu or None, "force_preprocess_cfg": tuned.preprocessing}
        elif Path(pretrained).is_file():
            options["force_quick_gelu"] = _is_openai_archive(Path(pretrained)) or None
        elif pretrained not in tags:
            raise BackboneError(
                f"{pretrained!r} is neither a file nor a tag of {name}; its tags are {', '.join(tags) or 'none'}",
                hint="Give `pretrained` one of these or a file",
            )
        else:  # weights trained with QuickGELU need it, whatever the name of the architecture says
            settings = open_clip.get_pretrained_cfg(name, pretrained) or {}
            options["force_quick_gelu"] = bool(settings.get("quick_gelu")) or None
    options = {key: value for key, value in options.items() if value is not None}
    source = name if hub else f"{name}/{pretrained}"
    with (
        _quiet(),
        _as_backbone_error(
            f"Cannot load the weights of {source}",
            hint="They are downloaded once from the model hub: run where there is a network, or copy the file here and "
            f"give `backbone={name}` `pretrained=FILE`",
        ),
    ):
        tag = None if hub or tuned else pretrained
        model = open_clip.create_model(name, tag, require_pretrained=not tuned, **options)
    try:
        with _quiet():
            return model, open_clip.get_tokenizer(name)
    except (ImportError, OSError, ValueError, AttributeError) as error:
        raise BackboneError(
            f"The tokenizer of {name} cannot be had: {_last_line(error)}",
            hint="It may need the transformers package (pip install 'glscl[siglip]') and a network once",
        ) from error


def _check_tuned(file: Path, tuned: TunedWeights, name: str, across_frames: bool) -> None:
    if tuned.name != name:
        raise BackboneError(f"{file} holds weights of {tuned.name}, not of {name}", hint=f"Use `backbone={tuned.name}`")
    if tuned.patch_embedding == "3d" and not across_frames:
        raise BackboneError(
            f"{file} has a 3d patch embedding: it sees each frame with its neighbours, and a cache encodes frames one by one",
            hint=Hint("Judge it from pixels", "eval", {"run": file.parent, "videos": "DIR"}),
        )


def _load_file(model: ClipModel, file: Path, tuned: TunedWeights | None) -> None:
    """Replace the weights of a model by those in a file."""
    import open_clip

    if tuned and tuned.patch_embedding == "3d":
        widen_patch_embedding(model)
    with _quiet(), _as_backbone_error(f"Cannot load the weights in {file}"):
        if file.suffix != ".safetensors":
            check_torch_file(file)
        open_clip.load_checkpoint(model, str(file))  # pyright: ignore[reportArgumentType] (its annotation leaves out CoCa)


def _pretrained_name(name: str, pretrained: str | None) -> str:
    if pretrained and Path(pretrained).is_file():
        return Path(pretrained).name
    if name == "demo":
        return "built-in"
    return name.partition(":")[0] if ":" in name else str(pretrained)


def _is_openai_archive(path: Path) -> bool:
    """OpenAI's own files are TorchScript archives; those models use QuickGELU."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _stay_offline_where_there_is_no_network() -> None:
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
def _as_backbone_error(message: str, hint: Hint | str | None = None) -> Iterator[None]:
    try:
        yield
    except BackboneError:
        raise
    except Exception as error:  # hub clients, torch and safetensors each raise their own types
        raise BackboneError(f"{message}: {_last_line(error)}", hint=hint) from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
