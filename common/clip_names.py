"""What a state dict is of, and its weights under open_clip's names: those of OpenAI and open_clip, Hugging Face, whole programs.

D embed_dim, W width of a tower.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

# Public programs by a name that only their checkpoints have, in the order in which they are looked for (GLSCL saves the
# weighting of DiCoSA too, and never uses it). CLIP4Clip's are what is left of a whole model with frame aggregator.
PROGRAMS = {
    "glscl": r"spatial_queries$",
    "xclip": r"global_mat_weight$",
    "xpool": r"pool_frames\.",
    "drl": r"text_weight_fc\.",
    "dicosa": r"weight_fc\.",
    "clip4clip": r"(transformerClip|lstm_visual|cross|similarity_dense|frame_position_embeddings)\.",
}
# The architectures of OpenAI's weights, from which all these programs start, and how they are used: pixels, and the activation.
OPENAI_MODELS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")
OPENAI_SETTINGS = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "quick_gelu": True,
}
_TOWER = re.compile(r"((?:.*?\.)?)(?:visual|vision_model)\.")
_NO_WEIGHTS = re.compile(r"(^|\.)(attn_mask|position_ids)$")  # what some versions keep beside them


class ClipWeights(NamedTuple):
    """A backbone as it was found in a state dict.

    Attributes:
        weights: by open_clip's names.
        form: "open_clip" (OpenAI's names are the same), "clip" or "siglip" for those two of Hugging Face.
        root: what stood before all its names, such as "clip.".
        others: names that are not of the backbone: those of a head.
        program: whose whole model it is, a key of `PROGRAMS`, None where there is nothing beside the backbone.
        twin: what stands before all names of a second backbone of the same names, as where a teacher is saved too.
    """

    weights: dict[str, Tensor]
    form: str
    root: str
    others: tuple[str, ...]
    program: str | None
    twin: str | None = None


def clip_weights(found: Mapping[str, Tensor]) -> ClipWeights:
    """The backbone in a state dict; without weights where there is none."""
    root = next((match[1] for name in found if (match := _TOWER.match(name))), None)
    if root is None and any(name.startswith("clip.") and name != "clip.logit_scale" for name in found):
        root = "clip."  # as every program of PROGRAMS calls it, without its tower of pictures
    if root is None:
        program = program_of(found)
        inside = {} if program else dict(found)
        return ClipWeights(inside, "open_clip", "", tuple(found.keys() - inside.keys()), program)
    text = ("text_model.", "text_projection.", "visual_projection.", "vision_model.", "logit_scale", "logit_bias")
    own = {name.removeprefix(root): value for name, value in found.items() if name.startswith(root)}
    others = [name for name in found if not name.startswith(root)]
    form = "open_clip"
    if any(name.startswith("vision_model.") for name in own):
        form = "siglip" if "vision_model.head.probe" in own else "clip"
        others += [root + name for name in own if not name.startswith(text)]
        own = {name: value for name, value in own.items() if name.startswith(text)}
    elif not root:  # a head beside a bare backbone
        others = [name for name in own if any(re.match(mark, name) for mark in PROGRAMS.values())]
        own = {name: value for name, value in own.items() if name not in others}
    own = {name: value for name, value in own.items() if not _NO_WEIGHTS.search(name)}
    weights = own if form == "open_clip" else _from_hugging_face(own, _SIGLIP if form == "siglip" else _CLIP)
    program = program_of(others) or ("clip4clip" if root == "clip." else None)
    return ClipWeights(weights, form, root, tuple(others), program, _twin_of(root, found))


def _twin_of(root: str, found: Mapping[str, Tensor]) -> str | None:
    """The root of another whole tower of pictures like the one below `root`."""
    roots = dict.fromkeys(match[1] for name in found if (match := _TOWER.match(name)))
    tower = [name.removeprefix(root) for name in found if (match := _TOWER.match(name)) and match[1] == root]
    return next((other for other in roots if other != root and all(other + name in found for name in tower)), None)


def program_of(names: Mapping[str, object] | tuple[str, ...] | list[str]) -> str | None:
    """Whose names these are, a key of `PROGRAMS`."""
    return next((program for program, mark in PROGRAMS.items() if any(re.match(mark, name) for name in names)), None)


# --- Hugging Face ------------------------------------------------------------------------------------------------------

# Their names (regular expressions) → open_clip's. `*` is a matrix that open_clip keeps transposed, `[]` one with a leading 1.
_BLOCK = {
    r"self_attn\.out_proj\.": "attn.out_proj.",
    r"layer_norm(\d)\.": r"ln_\1.",
    r"mlp\.fc1\.": "mlp.c_fc.",
    r"mlp\.fc2\.": "mlp.c_proj.",
}
_TIMM_BLOCK = {r"self_attn\.out_proj\.": "attn.proj.", r"layer_norm(\d)\.": r"norm\1.", r"mlp\.": "mlp."}


def _blocks(theirs: str, ours: str, block: Mapping[str, str]) -> dict[str, str]:
    """Names of all blocks of a tower. Number and parts of a block are groups of the expressions."""
    inside = {}
    for name, new in block.items():
        shifted = re.sub(r"\\1", r"\\2", new)
        inside[rf"{theirs}\.encoder\.layers\.(\d+)\.{name}"] = rf"{ours}.\1.{shifted}"
    return inside


_CLIP = {
    r"text_model\.embeddings\.token_embedding\.": "token_embedding.",
    r"text_model\.embeddings\.position_embedding\.weight": "positional_embedding",
    r"text_model\.final_layer_norm\.": "ln_final.",
    r"text_projection\.weight": "text_projection*",
    **_blocks("text_model", "transformer.resblocks", _BLOCK),
    r"vision_model\.embeddings\.class_embedding": "visual.class_embedding",
    r"vision_model\.embeddings\.patch_embedding\.": "visual.conv1.",
    r"vision_model\.embeddings\.position_embedding\.weight": "visual.positional_embedding",
    r"vision_model\.pre_layrnorm\.": "visual.ln_pre.",
    r"vision_model\.post_layernorm\.": "visual.ln_post.",
    r"visual_projection\.weight": "visual.proj*",
    **_blocks("vision_model", "visual.transformer.resblocks", _BLOCK),
}
_SIGLIP = {
    r"text_model\.embeddings\.token_embedding\.": "text.token_embedding.",
    r"text_model\.embeddings\.position_embedding\.weight": "text.positional_embedding",
    r"text_model\.final_layer_norm\.": "text.ln_final.",
    r"text_model\.head\.": "text.text_projection.",
    **_blocks("text_model", "text.transformer.resblocks", _BLOCK),
    r"vision_model\.embeddings\.patch_embedding\.": "visual.trunk.patch_embed.proj.",
    r"vision_model\.embeddings\.position_embedding\.weight": "visual.trunk.pos_embed[]",
    r"vision_model\.post_layernorm\.": "visual.trunk.norm.",
    r"vision_model\.head\.probe": "visual.trunk.attn_pool.latent",
    r"vision_model\.head\.attention\.out_proj\.": "visual.trunk.attn_pool.proj.",
    r"vision_model\.head\.layernorm\.": "visual.trunk.attn_pool.norm.",
    r"vision_model\.head\.mlp\.": "visual.trunk.attn_pool.mlp.",
    **_blocks("vision_model", "visual.trunk.blocks", _TIMM_BLOCK),
}
_QUERY = re.compile(r"(.*\.self_attn)\.q_proj\.(weight|bias)")
_POOL = re.compile(r"vision_model\.head\.attention\.in_proj_(weight|bias)")


def _from_hugging_face(theirs: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """CLIPModel or SiglipModel as open_clip names it, with query, key and value of an attention in one matrix.

    What has no counterpart keeps its name, so that whoever loads it can tell.
    """
    import torch

    ours: dict[str, Tensor] = {}
    for name, value in theirs.items():
        if query := _QUERY.fullmatch(name):
            parts = [theirs.get(f"{query[1]}.{part}_proj.{query[2]}") for part in "qkv"]
            if all(part is not None for part in parts):
                timm = names is _SIGLIP and name.startswith("vision_model.")
                fused = f"self_attn.qkv.{query[2]}" if timm else f"self_attn.in_proj_{query[2]}"
                place = _renamed(f"{query[1].removesuffix('self_attn')}self_attn.out_proj.{query[2]}", names)
                place = re.sub(r"attn\.(out_)?proj\..*", fused.replace("self_attn", "attn"), place)
                ours[place] = torch.cat([part for part in parts if part is not None])
                continue
        if re.search(r"\.self_attn\.[kv]_proj\.", name):
            continue  # beside its query
        if pool := _POOL.fullmatch(name):
            width = len(value) // 3
            ours[f"visual.trunk.attn_pool.q.{pool[1]}"] = value[:width]
            ours[f"visual.trunk.attn_pool.kv.{pool[1]}"] = value[width:]
            continue
        place = _renamed(name, names)
        value = value.T if place.endswith("*") else value[None] if place.endswith("[]") else value
        ours[place.removesuffix("*").removesuffix("[]")] = value
    return ours


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for theirs, ours in names.items():
        if match := re.match(theirs, name):
            return match.expand(ours) + name[match.end() :]
    return name
