"""Settings of `glscl train-head`, and how they meet a recipe and what an earlier run was told: one explicit result."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glscl.cache.schema import SAME_VIDEO
from glscl.common.errors import UsageError
from glscl.common.settings import check, setting
from glscl.train_head.heads import HEAD_NAMES, head_class
from glscl.train_head.recipes import RECIPES, recipe

SELECTIONS = ("validation", "last", "test")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train and how. None everywhere means "as the recipe says"; the recipe is the dataset's."""

    head: str | None = setting(None, "Head to train. Default: glscl.", group="Head", choices=HEAD_NAMES)
    option: list[str] | None = setting(
        None, "Option of the head, such as queries=12; repeat for more.", group="Head", metavar="KEY=VALUE"
    )
    adapter: str | None = setting(
        None,
        "Residual feature adapters under the head. Default: none.",
        group="Head",
        choices=("none", "linear", "mlp"),
    )
    recipe: str | None = setting(
        None, "Recipe. Default: that of the cache's dataset.", group="Training", choices=tuple(RECIPES)
    )
    epochs: int | None = setting(None, "Passes over all captions. Default: the recipe's.", group="Training", min=1)
    batch_size: int | None = setting(
        None, "Captions a batch, over all processes. Default: the recipe's.", group="Training", min=1
    )
    lr: float | None = setting(None, "Peak learning rate. Default: the recipe's.", group="Training", min=0)
    weight_decay: float | None = setting(
        None, "Weight decay of matrices. Default: the recipe's.", group="Training", min=0
    )
    warmup: float | None = setting(
        None, "Share of the steps that warm up. Default: the recipe's.", group="Training", min=0, max=1
    )
    clip: float | None = setting(None, "Largest norm of the gradient. Default: the recipe's.", group="Training", min=0)
    precision: str | None = setting(
        None,
        "Arithmetic of the head; auto is bf16 on a GPU, fp32 elsewhere. Default: auto.",
        group="Training",
        choices=("auto", *PRECISIONS),
    )
    max_frames: int | None = setting(
        None, "Frames a video; 0 takes all that are stored. Default: the recipe's.", group="Data", min=0
    )
    frame_position: str | None = setting(
        None,
        "Which frames where there are more. Default: uniform.",
        group="Data",
        choices=("uniform", "first", "last"),
    )
    same_video: str | None = setting(
        None,
        "Captions of one video in a batch: kept separate, masked from the loss, or negatives. Default: separate.",
        group="Data",
        choices=SAME_VIDEO,
    )
    captions_per_video: int | None = setting(
        None, "Draw this many captions of each video an epoch. Default: all.", group="Data", min=1
    )
    validation: float | None = setting(
        None,
        "Videos held out of training: a share below 1, or a number. Default: the split val, else a tenth, 1,000 at most.",
        group="Selection",
        min=0,
    )
    select: str | None = setting(
        None,
        "What `best` means: best on validation, the last epoch, or best on test (which makes its numbers optimistic). "
        "Default: validation where there is one.",
        group="Selection",
        choices=SELECTIONS,
    )
    eval_every: int | None = setting(None, "Epochs between validations. Default: 1.", group="Selection", min=1)
    tracker: str = setting("none", "Also log to.", group="Logging", choices=("none", "tensorboard"))
    resume: bool = setting(False, "Go on where the run in --out stopped.", group="Training", flag="--resume")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """A training run without anything left open; stored in run.json.

    Attributes:
        head, options: what `build_head` takes; an option not named here has its default.
        recipe: where values came from that nobody gave.
        max_frames: None = all.
        validation: videos to hold out: a share below 1, a number from 1, 0 none; None = see `TrainConfig`.
        select: None = validation where there is a validation part, else last.
        The others: see `TrainConfig` and `Recipe`.
    """

    head: str
    options: Mapping[str, Any]
    recipe: str
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    warmup: float
    clip: float
    precision: str
    max_frames: int | None
    frame_position: str
    same_video: str
    captions_per_video: int | None
    validation: float | None
    select: str | None
    eval_every: int
    seed: int

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "betas": list(self.betas), "options": dict(self.options)}


def resolve(
    config: TrainConfig,
    *,
    dataset: str,
    device_type: str = "cpu",
    seed: int | None = None,
    stored: Mapping[str, Any] | None = None,
) -> TrainSettings:
    """Make every setting explicit.

    Args:
        config: what was asked for.
        dataset: recipe to fall back on where it has one, else "default".
        device_type: "cuda", "cpu" or "mps"; decides what the precision "auto" is.
        seed: None = 0.
        stored: the settings of the run that is resumed; nothing that was asked for may differ from them.

    Raises:
        UsageError: a value outside its bounds, an unknown recipe, head or option, or a contradiction with `stored`.
    """
    check(config)
    if stored is not None:
        return _as_stored(config, stored, seed)
    name = config.recipe or (dataset if dataset in RECIPES else "default")
    source = recipe(name)
    head = config.head or "glscl"
    options = {**source.head_options.get(head, {}), **parse_options(head, config.option or ())}
    if config.adapter is not None:
        options["adapter"] = config.adapter

    def pick(given: Any, otherwise: Any) -> Any:
        return otherwise if given is None else given

    frames = pick(config.max_frames, source.frames)
    if config.clip == 0 or config.lr == 0:
        raise UsageError("--lr and --clip must be above 0")
    if config.select == "validation" and config.validation == 0:
        raise UsageError("--select validation needs videos to validate on; --validation is 0")
    return TrainSettings(
        head=head,
        options=options,
        recipe=name,
        epochs=pick(config.epochs, source.epochs),
        batch_size=pick(config.batch_size, source.batch),
        lr=pick(config.lr, source.lr),
        weight_decay=pick(config.weight_decay, source.weight_decay),
        betas=source.betas,
        eps=source.eps,
        warmup=pick(config.warmup, source.warmup),
        clip=pick(config.clip, source.clip),
        precision=_precision(config.precision, device_type),
        max_frames=frames or None,
        frame_position=pick(config.frame_position, "uniform"),
        same_video=pick(config.same_video, "separate"),
        captions_per_video=config.captions_per_video,
        validation=config.validation,
        select=config.select,
        eval_every=pick(config.eval_every, 1),
        seed=pick(seed, 0),
    )


def settings_from(stored: Mapping[str, Any], kind: type[TrainSettings] = TrainSettings) -> TrainSettings:
    """Settings as run.json holds them, of `train-head` or a `kind` that has more. Raises UsageError where they are not complete."""
    from glscl.train_head.run_record import settings_problem

    names = {field.name for field in dataclasses.fields(kind)}
    if set(stored) != names:
        odd = sorted(set(stored) ^ names)
        raise UsageError(f"The stored settings lack or have beside what is known: {', '.join(odd)[:200]}")
    problem = settings_problem(stored, kind)
    if problem:
        raise UsageError(f"The stored settings cannot be: {problem}")
    return kind(**{**stored, "betas": tuple(stored["betas"])})


def parse_options(head: str, pairs: Sequence[str]) -> dict[str, Any]:
    """`["queries=12", "share_queries=false"]` → values of the types the head declares.

    Raises:
        UsageError: not KEY=VALUE, no such option, or a value of another type.
    """
    kinds = option_types(head)
    options = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise UsageError(f"--option is {pair!r}; expected KEY=VALUE")
        if key not in kinds:
            raise UsageError(f"head {head} has no option {key!r}; its options are {', '.join(kinds)}")
        options[key] = parse_value(f"--option {key}", text.strip(), kinds[key])
    return options


def option_types(head: str) -> dict[str, Any]:
    """Name → declared type of every option of a head."""
    from glscl.train_head.heads import head_options
    from glscl.train_head.heads.base import Head

    declared = {**typing.get_type_hints(Head.__init__), **typing.get_type_hints(head_class(head).__init__)}
    return {name: declared[name] for name in head_options(head)}


def parse_value(name: str, text: str, kind: Any) -> Any:
    """`text` as a value of the declared type `kind`, such as `int | None`. Raises UsageError, calling it `name`."""
    admitted = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in admitted and text.lower() == "none":
        return None
    kind = next(k for k in admitted if k is not type(None))
    if kind is bool:
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() in known:
            return known[text.lower()]
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    raise UsageError(f"{name} is {text!r}; expected {kind.__name__}")


def _precision(asked: str | None, device_type: str) -> str:
    if asked not in (None, "auto"):
        if asked == "fp16" and device_type != "cuda":
            raise UsageError("--precision fp16 needs a CUDA device", mend="Use --precision fp32 or bf16")
        return asked
    if device_type != "cuda":
        return "fp32"
    import torch

    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def _as_stored(config: TrainConfig, stored: Mapping[str, Any], seed: int | None) -> TrainSettings:
    settings = settings_from(stored)
    asked: dict[str, Any] = {"seed": seed}
    for field in dataclasses.fields(TrainConfig):
        if hasattr(settings, field.name):
            asked[field.name] = getattr(config, field.name)
    if asked["precision"] == "auto":
        asked["precision"] = None
    if asked["max_frames"] == 0:
        asked["max_frames"] = None
    options = parse_options(settings.head, config.option or ())
    if config.adapter is not None:
        options["adapter"] = config.adapter
    wrong = [(k, v, getattr(settings, k)) for k, v in asked.items() if v is not None and v != getattr(settings, k)]
    wrong += [(f"option {k}", v, settings.options.get(k)) for k, v in options.items() if v != settings.options.get(k)]
    if wrong:
        name, found, begun = wrong[0]
        raise UsageError(
            f"--{name.replace('_', '-')} is {found!r}; the run to resume was begun with {begun!r}",
            mend="Leave the option out, or train into another folder with --out",
        )
    return settings
