"""What a head is trained with on a dataset (docs/recipes.md has commands, and what was published beside what is here).

A recipe holds what differs from the defaults of `glscl.train_head.settings.TrainSettings`: learning rate 1e-4 for the
head, AdamW with weight decay 0.2, betas 0.9 and 0.98, eps 1e-6, warm-up over a tenth of the steps, cosine to zero,
gradients clipped to norm 1, batches of 128, five epochs. `NAME-published` trains as the head's public program does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from glscl.common.errors import UsageError

CLIP4CLIP = ("mean_pool", "seq_lstm", "seq_transf", "tight_transf")
PUBLISHED = "-published"


@dataclass(frozen=True, kw_only=True)
class HeadRecipe:
    """What is as the recipe says for one head alone: settings of its training and options of its own, by name."""

    training: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one dataset is extracted and trained on.

    Attributes:
        words: tokens kept a caption when extracting, start and end included.
        fps: frames a second when extracting.
        frames: frames a video that training and evaluation look at.
        training: settings of the training that are not as usual, by name.
        heads: what is otherwise for single heads.
        closed: whether there is nothing for heads that `heads` does not name.
        qb_norm_beta: β of QB-Norm on this dataset.
    """

    words: int = 32
    fps: float = 1.0
    frames: int = 12
    training: Mapping[str, Any] = field(default_factory=dict)
    heads: Mapping[str, HeadRecipe] = field(default_factory=dict)
    closed: bool = False
    qb_norm_beta: float = 70.0

    def settings(self, head: str) -> dict[str, Any]:
        """What it says of the settings of a training of `head`, by name; a layer for `glscl.common.settings.build`.

        Raises:
            UsageError: it is closed and `head` is not among its heads.
        """
        if self.closed and head not in self.heads:
            raise UsageError(
                f"No training of {head} on this dataset was published; there is one of {', '.join(self.heads)}",
                hint="Take the recipe of that name without -published",
            )
        own = self.heads.get(head, HeadRecipe())
        return {"max_frames": self.frames, **self.training, **own.training, "options": dict(own.options)}


def _glscl(**changes: Any) -> HeadRecipe:
    published = {
        "queries": 8,
        "temperature": 3.0,
        "alpha": 1e-4,
        "beta": 0.005,
        "decoder_layers": 3,
        "local_weight": 0.5,
        "dropout": 0.1,
    }
    return HeadRecipe(options={**published, **changes})


_OF_128 = {head: HeadRecipe(training={"batch_size": 128}) for head in (*CLIP4CLIP, "dicosa")}

RECIPES: dict[str, Recipe] = {
    "msrvtt": Recipe(heads={"glscl": _glscl()}),
    "msvd": Recipe(heads={"glscl": _glscl()}),
    "lsmdc": Recipe(heads={"glscl": _glscl(temperature=5.0, alpha=0.01)}),
    "didemo": Recipe(words=64, frames=64, training={"batch_size": 32}, heads={"glscl": _glscl(), **_OF_128}),
    "activitynet": Recipe(
        words=64,
        frames=64,
        training={"batch_size": 64, "epochs": 10},
        heads={"glscl": _glscl(queries=12), **_OF_128},
        qb_norm_beta=50.0,
    ),
    # The built-in corpus is small and its features have 128 dimensions: larger steps, fewer of them, shallower heads.
    "demo": Recipe(
        fps=2.0,
        training={"epochs": 3, "lr": 2e-3},
        heads={
            "seq_transf": HeadRecipe(options={"aggregator_layers": 2}),
            "glscl": _glscl(aggregator_layers=1, decoder_layers=1),
        },
    ),
    "default": Recipe(heads={"glscl": _glscl()}),
}

# As CLIP4Clip's program trains, and those that were made of it.
_BERT_ADAM = {"optimizer": "bert_adam", "decay": "weights", "logit_scale_rate": 1e-3}
_PUBLIC = {"same_video": "negative", "select": "test"}
_PIXELS = {"augment": "randaugment"}  # of a second pass; others know nothing of it
_TEN_OF_FIVE = {"epochs": 10, "planned_epochs": 5}  # ActivityNet's schedule is past its end for half of the training


def _published(name: str) -> Recipe:
    """How the public programs train on the dataset `name`."""
    usual, long = RECIPES[name], name in ("didemo", "activitynet")
    past = _TEN_OF_FIVE if name == "activitynet" else {}
    as_public: dict[str, Any] = {"consistency_scale": "queries"}
    if name == "msrvtt":
        as_public["beta"] = 0.02  # its training script; the paper has .005
    glscl = {**usual.training, **_BERT_ADAM, **_PIXELS, **past}
    heads = {"glscl": HeadRecipe(training=glscl, options={**usual.heads["glscl"].options, **as_public})}
    of_128 = {"batch_size": 128, "epochs": 5, **_BERT_ADAM}
    heads |= {head: HeadRecipe(training=of_128) for head in CLIP4CLIP}
    if name != "msvd":
        heads["dicosa"] = HeadRecipe(
            training={**of_128, **_PIXELS, **past}, options={"correlation_divisor": usual.words}
        )
    batch = {"didemo": 64, "activitynet": 112}.get(name, 300)
    heads["xclip"] = HeadRecipe(training={**of_128, "batch_size": batch, "epochs": 20 if long else 5})
    if not long:
        rate = 3e-5 if name == "msrvtt" else 1e-5
        adam = {
            "betas": (0.9, 0.999),
            "decay": "all",
            "logit_scale_rate": 1e-6 / rate,
            "backbone_lr_scale": 1e-6 / rate,
        }
        heads["xpool"] = HeadRecipe(training={"batch_size": 32, "lr": rate, **adam}, options={"dropout": 0.3})
    if name == "msrvtt":
        heads["wti"] = HeadRecipe(training=of_128)
    return replace(usual, training=_PUBLIC, heads=heads, closed=True)


RECIPES |= {name + PUBLISHED: _published(name) for name in ("msrvtt", "msvd", "lsmdc", "didemo", "activitynet")}
AUGMENTED = frozenset(
    head for each in RECIPES.values() for head, own in each.heads.items() if "augment" in own.training
)  # heads whose published trainings change frames at random


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises UsageError where there is none."""
    if name not in RECIPES:
        raise UsageError(f"There is no recipe {name!r}; choose from {', '.join(RECIPES)}")
    return RECIPES[name]
