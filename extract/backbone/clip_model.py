"""What is used here of a model of open_clip, whose classes have no base of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn

if TYPE_CHECKING:

    class VisionTower(nn.Module):
        preprocess_cfg: dict[str, Any]
        attnpool: Any  # of a ModifiedResNet

    class ClipModel(nn.Module):
        """A model that encodes pictures and texts."""

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

else:
    ClipModel = nn.Module


def is_clip(model: nn.Module) -> TypeGuard[ClipModel]:
    """Whether a model encodes pictures and texts as those of open_clip do."""
    return all(hasattr(model, name) for name in ("visual", "logit_scale", "encode_image", "encode_text"))
