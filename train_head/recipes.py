"""What is trained with by dataset, as published (docs/recipes.md has commands, times and results).

A recipe holds what differs from the defaults of `glscl.train_head.settings.TrainSettings`: learning rate 1e-4 for the
head, AdamW with weight decay 0.2, betas 0.9 and 0.98, eps 1e-6, warm-up over a tenth of the steps, cosine to zero,
gradients clipped to norm 1, batches of 128, five epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glscl.common.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one dataset is extracted and trained on.

    Attributes:
        words: tokens kept a caption when extracting, start and end included.
        fps: frames a second when extracting.
        frames: frames a video that training and evaluation look at.
        training: settings of the training that are not as usual, by name.
        head_options: options of single heads, by head.
    """

    words: int = 32
    fps: float = 1.0
    frames: int = 12
    training: Mapping[str, Any] = field(default_factory=dict)
    head_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def settings(self, head: str) -> dict[str, Any]:
        """What it says of the settings of a training of `head`, by name; a layer for `glscl.common.settings.build`."""
        return {"max_frames": self.frames, **self.training, "options": dict(self.head_options.get(head, {}))}


def _glscl(**changes: Any) -> dict[str, Any]:
    published = {
        "queries": 8,
        "temperature": 3.0,
        "alpha": 1e-4,
        "beta": 0.005,
        "decoder_layers": 3,
        "local_weight": 0.5,
        "dropout": 0.1,
    }
    return {**published, **changes}


RECIPES: dict[str, Recipe] = {
    "msrvtt": Recipe(head_options={"glscl": _glscl()}),
    "msvd": Recipe(head_options={"glscl": _glscl()}),
    "lsmdc": Recipe(head_options={"glscl": _glscl()}),
    "didemo": Recipe(words=64, frames=64, training={"batch_size": 32}, head_options={"glscl": _glscl()}),
    "activitynet": Recipe(
        words=64, frames=64, training={"batch_size": 64, "epochs": 10}, head_options={"glscl": _glscl(queries=12)}
    ),
    # The built-in corpus is small and its features have 128 dimensions: larger steps, fewer of them, shallower heads.
    "demo": Recipe(
        fps=2.0,
        training={"epochs": 3, "lr": 2e-3},
        head_options={
            "seq_transf": {"aggregator_layers": 2},
            "glscl": _glscl(aggregator_layers=1, decoder_layers=1),
        },
    ),
    "default": Recipe(head_options={"glscl": _glscl()}),
}


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises UsageError where there is none."""
    if name not in RECIPES:
        raise UsageError(f"There is no recipe {name!r}; choose from {', '.join(RECIPES)}")
    return RECIPES[name]
