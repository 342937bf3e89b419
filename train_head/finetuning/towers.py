"""Which weights of a backbone are trained, and how the trained backbone leaves.

An open_clip model has a vision tower (`visual`) and a text tower (`text`, or the model itself in the plain CLIP class).
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glscl.common.errors import UsageError
from glscl.common.state_dicts import weights_hash
from glscl.extract.backbone.encoder import Backbone
from glscl.extract.backbone.patch_embedding import temporal_embedding, widen_patch_embedding
from glscl.extract.backbone.tuned_weights import TunedWeights, write_tuned
from glscl.train_head.finetuning.settings import FinetuneSettings

FILES = {"best": "backbone.safetensors", "last": "backbone-last.safetensors"}
_TEXT_OF_PLAIN = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
_OF_LORA = ("attn", "out_proj", "c_fc", "c_proj", "q_proj", "k_proj", "v_proj")  # modules inside the blocks


def unfreeze(backbone: Backbone, settings: FinetuneSettings) -> None:
    """Choose what of a backbone is trained, in place. The logit scale is the head's; the backbone's stays as it is.

    Raises:
        UsageError: more layers to freeze than there are, or no peft package.
        BackboneError: a tower without what is asked for.
    """
    model = backbone.model
    if settings.patch_embedding == "3d" and temporal_embedding(model) is None:
        widen_patch_embedding(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(tower_of(name) != settings.freeze and tower_of(name) != "neither")
    if settings.freeze_layers:
        _freeze_layers(model, settings.freeze_layers, backbone.name)
    if settings.lora_rank:
        add_lora(backbone, settings.lora_rank, settings.freeze)
    if settings.gradient_checkpointing:
        switch = model.set_grad_checkpointing
        assert callable(switch)  # every open_clip model has it
        switch(True)


def vision_tower(model: nn.Module) -> nn.Module:
    """The tower for pictures of an open_clip model."""
    return model.get_submodule("visual")


def tower_of(parameter: str) -> str:
    """ "vision", "text", or "neither" (temperature, decoders of captioning models) for the name of a parameter."""
    first = parameter.split(".")[0]
    if first == "visual":
        return "vision"
    return "text" if first == "text" or first in _TEXT_OF_PLAIN else "neither"


def freeze_statistics(model: nn.Module) -> None:
    """Keep the running statistics of batch norms: frames of few videos, one after another, are no fair sample."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _freeze_layers(model: nn.Module, count: int, name: str) -> None:
    for tower, blocks, behind in _towers(model, name):
        if count > len(blocks):
            raise UsageError(f"`freeze_layers` is {count}; the {tower} tower of {name} has {len(blocks)} blocks")
        open_ = {id(p) for block in blocks[count:] for p in block.parameters()} | {id(p) for p in behind}
        for key, parameter in model.named_parameters():
            if tower_of(key) == tower and id(parameter) not in open_:
                parameter.requires_grad_(False)


def _towers(model: nn.Module, name: str) -> list[tuple[str, list[nn.Module], list[nn.Parameter]]]:
    """Name, blocks in order, and the parameters behind the last block, of each tower."""
    visual, text = vision_tower(model), model.get_submodule("text") if hasattr(model, "text") else model
    blocks, behind = _blocks(visual), _parameters(visual, ("ln_post", "proj", "attn_pool"))
    if hasattr(visual, "layer4"):
        blocks = [visual.get_submodule(f"layer{number}") for number in (1, 2, 3, 4)]
        behind = _parameters(visual, ("attnpool",))
    if not blocks:
        raise UsageError(f"`freeze_layers` knows no blocks in the vision tower of {name}", hint="Use `freeze=vision`")
    text_blocks = _blocks(text)
    if not text_blocks:
        raise UsageError(f"`freeze_layers` knows no blocks in the text tower of {name}", hint="Use `freeze=text`")
    last = _parameters(text, ("ln_final", "text_projection"))
    return [("vision", blocks, behind), ("text", text_blocks, last)]


def _blocks(tower: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer, in order; none where there is none."""
    found = [module for name, module in tower.named_modules() if name == "transformer.resblocks"]
    return list(found[0].children()) if found else []


def _parameters(module: nn.Module, names: tuple[str, ...]) -> list[nn.Parameter]:
    return [parameter for key, parameter in module.named_parameters() if key.split(".")[0] in names]


# --- low-rank additions ------------------------------------------------------------------------------------------------


def add_lora(backbone: Backbone, rank: int, freeze: str) -> None:
    """Freeze the backbone and add trainable low-rank matrices to the attention and MLP of its transformer blocks.

    Source: Hu et al. 2021 (LoRA), by the peft package; alpha is twice the rank, so that its scale is 2.

    Raises:
        UsageError: peft is not installed, or the towers have no transformer blocks to add to.
    """
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError as error:
        raise UsageError("`lora_rank` needs the peft package", hint="pip install 'glscl[lora]'") from error
    model = backbone.model
    targets = [
        name
        for name, module in model.named_modules()
        if ".resblocks." in name
        and name.rpartition(".")[2] in _OF_LORA
        and not name.endswith("attn.out_proj")  # part of the attention, which takes it along
        and isinstance(module, (nn.Linear, nn.MultiheadAttention))
        and tower_of(name) not in (freeze, "neither")
    ]
    if not targets:
        raise UsageError(f"`lora_rank` finds no transformer blocks to train in {backbone.name}")
    exactly = "|".join(map(re.escape, targets))  # a list would also take modules whose names end like these
    LoraModel(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=exactly), "default")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def has_lora(model: nn.Module) -> bool:
    """Whether low-rank additions hang on a model."""
    return any("lora_" in name for name, _ in model.named_parameters())


def merged(model: nn.Module) -> nn.Module:
    """The model itself, or a copy on the host with its low-rank additions added in, under open_clip's names again."""
    if not has_lora(model):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = copy.deepcopy(model).cpu()
    wrapped = [name for name, module in plain.named_modules() if isinstance(module, BaseTunerLayer)]
    for name in wrapped:
        if any(name.startswith(f"{outer}.") for outer in wrapped):
            continue  # the projection inside an attention, which takes it along
        parent, _, child = name.rpartition(".")
        setattr(plain.get_submodule(parent), child, _merged_layer(plain.get_submodule(name)))
    return plain


def _merged_layer(layer: Any) -> nn.Module:
    if hasattr(layer, "unload_and_optionally_merge_module"):  # attentions, whose parts have additions too
        return layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    layer.merge()
    return layer.get_base_layer()


# --- out ---------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def export_backbone(folder: Path, which: str, backbone: Backbone) -> dict[str, Any]:
    """Write the trained backbone as an extraction takes it for `pretrained`; file and weights' hash for run.json.

    Raises:
        StorageError: the disk is full or failing.
    """
    model = merged(backbone.model)
    embedding = "2d" if temporal_embedding(model) is None else "3d"
    about = backbone.description
    settings = {key: value for key, value in about.preprocessing.items() if key != "method"}  # how it is carried out
    write_tuned(folder / FILES[which], model, TunedWeights(backbone.name, about.quick_gelu, settings, embedding))
    return {"backbone": FILES[which], "weights": weights_hash(model.state_dict()), "patch_embedding": embedding}
