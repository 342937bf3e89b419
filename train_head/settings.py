"""Settings of a training: one object with a value for everything, made of defaults, a recipe and what was asked for."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from glscl.cache.schema import SAME_VIDEO, FramePosition
from glscl.common.errors import UsageError, first_line
from glscl.common.settings import Settings, build, differences, setting
from glscl.train_head.heads import HEAD_NAMES, full_name, head_class, recorded_head_class
from glscl.train_head.recipes import RECIPES, recipe

SELECTIONS = ("validation", "last", "test")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
LOSS_NAMES = ("infonce", "sigmoid", "hard_negatives")  # of `glscl.train_head.losses.LOSSES`, which imports torch

Kind = TypeVar("Kind", bound="TrainSettings")


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainSettings(Settings):
    """What to train and how; stored in run.json. `resolve` makes one by a recipe, the class alone one by the defaults."""

    head: str = setting(
        "glscl",
        f"Head to train: {', '.join(HEAD_NAMES)}, or package.module:Class for one of your own.",
        group="Head",
        metavar="NAME",
        parse=full_name,
        default_from="glscl",
    )
    options: Mapping[str, Any] = setting(dict, "Options of the head by name; others have its defaults.", option=False)
    recipe: str = setting(
        "default",
        "Recipe.",
        group="Training",
        choices=tuple(RECIPES),
        default_from="that of the cache's dataset",
    )
    epochs: int = setting(5, "Passes over all captions.", group="Training", min=1, default_from="the recipe's")
    batch_size: int = setting(
        128, "Captions a batch, over all processes.", group="Training", min=1, default_from="the recipe's"
    )
    lr: float = setting(1e-4, "Peak learning rate.", group="Training", min=0, default_from="the recipe's")
    weight_decay: float = setting(
        0.2, "Weight decay of matrices.", group="Training", min=0, default_from="the recipe's"
    )
    betas: tuple[float, float] = setting((0.9, 0.98), "Betas of AdamW.", option=False)
    eps: float = setting(1e-6, "Eps of AdamW.", min=0, option=False)
    warmup: float = setting(
        0.1, "Share of the steps that warm up.", group="Training", min=0, max=1, default_from="the recipe's"
    )
    clip: float = setting(1.0, "Largest norm of the gradient.", group="Training", min=0, default_from="the recipe's")
    loss: str | None = setting(
        None,
        "Loss of a batch: InfoNCE, the sigmoid loss of SigLIP, or InfoNCE that weighs negatives by how hard they are.",
        group="Training",
        choices=LOSS_NAMES,
        default_from="the head's, mostly infonce",
    )
    teacher: Path | None = setting(
        None,
        "Run on the same features whose scores the head learns beside the pairs.",
        group="Training",
        metavar="RUN",
        default_from="none",
    )
    teacher_weight: float = setting(1.0, "Weight of what the teacher says.", group="Training", min=0, default_from="1")
    optimizer: str = setting(
        "adamw",
        "AdamW with warm-up and cosine, or BERT's Adam with its schedule, as the public programs train.",
        choices=("adamw", "bert_adam"),
        option=False,
    )
    decay: str = setting(
        "matrices",
        "What decays: matrices, all but biases, or all.",
        choices=("matrices", "weights", "all"),
        option=False,
    )
    logit_scale_rate: float = setting(
        1.0, "Learning rate of the logit scale, in times that of the head.", min=0, option=False
    )
    planned_epochs: int | None = setting(
        None, "Epochs that the schedule is planned for.", min=1, option=False, default_from="`epochs`"
    )
    precision: str = setting(
        "auto",
        "Arithmetic; auto is tf32 for heads on a GPU, bf16 where products are large, fp32 elsewhere.",
        group="Training",
        choices=("auto", *PRECISIONS),
        default_from="auto",
    )
    max_frames: int | None = setting(
        12, "Frames a video; 0 takes all that are stored.", group="Data", min=0, default_from="the recipe's"
    )
    frame_position: FramePosition = setting(
        "uniform",
        "Which frames where there are more.",
        group="Data",
        choices=typing.get_args(FramePosition),
        default_from="uniform",
    )
    same_video: str = setting(
        "separate",
        "Captions of one video in a batch: kept separate, masked from the loss, or negatives.",
        group="Data",
        choices=SAME_VIDEO,
        default_from="separate",
    )
    captions_per_video: int | None = setting(
        None, "Draw this many captions of each video an epoch.", group="Data", min=1, default_from="all"
    )
    validation: float | None = setting(
        None,
        "Videos held out of training: a share below 1, or a number.",
        group="Selection",
        min=0,
        default_from="the split val, else a tenth, 1,000 at most",
    )
    select: str | None = setting(
        None,
        "What `best` means: best on validation, the last epoch, or best on test (which makes its numbers optimistic).",
        group="Selection",
        choices=SELECTIONS,
        default_from="validation where there is one",
    )
    eval_every: int = setting(1, "Epochs between validations.", group="Selection", min=1, default_from="1")
    seed: int = setting(0, "Seed of everything random.", min=0, option=False)
    patience: int | None = setting(
        None, "Stop after N validations in a row without a better one.", min=1, option=False, default_from="never"
    )
    tracker: str = setting(
        "none",
        "Also log to tensorboard, wandb, mlflow, comet, aim, clearml, dvclive, swanlab, trackio, or several by commas.",
        group="Logging",
        metavar="NAME",
        parse=lambda text: tracker_names(text),
        affects_result=False,
    )
    compile: bool = setting(
        False,
        "Compile the step (on a GPU into CUDA graphs): a slower start, faster steps. Needs a compiler.",
        group="Training",
        affects_result=False,
    )
    cuda_graphs: bool = setting(
        False,
        "Record the step on a GPU and replay it: one launch instead of a thousand. Needs no compiler.",
        group="Training",
        affects_result=False,
    )
    log_every: int = setting(50, "Steps between reports.", min=1, option=False, affects_result=False)
    checkpoint_every: int | None = setting(
        None,
        "Steps after which the run can be resumed; None after epochs alone.",
        min=1,
        option=False,
        affects_result=False,
    )

    @property
    def large_products(self) -> bool:
        """Whether a step's products are so large that halves pay: those of a head with a network on every pair."""
        return head_class(self.head).autocast_pairs


# Not in the settings of runs of before; their default is what those did.
_LATER = (
    "patience",
    "loss",
    "teacher",
    "teacher_weight",
    "optimizer",
    "decay",
    "logit_scale_rate",
    "planned_epochs",
)


def resolve(
    asked: Mapping[str, Any],
    *,
    dataset: str,
    device_type: str = "cpu",
    stored: Mapping[str, Any] | None = None,
) -> TrainSettings:
    """The settings of a training: what was asked for, over a recipe, over the defaults.

    Args:
        asked: settings by name. Options of the head may be texts. `max_frames` 0 or None takes all frames.
        dataset: recipe to fall back on where it has one, else "default".
        device_type: "cuda", "cpu" or "mps"; decides what the precision "auto" is.
        stored: the settings of the run that is resumed; nothing that was asked for may contradict them.

    Raises:
        UsageError: a value outside its bounds, an unknown setting, recipe, head or option, or a contradiction with `stored`.
    """
    if stored is not None:
        return resolve_stored(TrainSettings, asked, stored)
    return resolve_fresh(TrainSettings, asked, dataset=dataset, device_type=device_type)


def resolve_fresh(
    kind: type[Kind],
    asked: Mapping[str, Any],
    *,
    dataset: str,
    device_type: str,
    options: Mapping[str, Any] | None = None,
) -> Kind:
    """`resolve` of a run that begins, for a `kind` of settings that may have more.

    Args:
        options: of a head that is trained already, instead of the recipe's and those that are asked for.
    """
    name = asked.get("recipe") or (dataset if dataset in RECIPES else "default")
    head = full_name(asked.get("head") or "glscl")
    known = {field.name for field in dataclasses.fields(kind)}
    usual = {key: value for key, value in recipe(name).settings(head).items() if key in known}  # some are of pixels
    if options is None:
        options = {**usual["options"], **typed_options(head, asked.get("options") or {})}
    frames = asked.get("max_frames") or 0 if "max_frames" in asked else None
    settings = build(kind, usual, asked, {"recipe": name, "head": head, "options": dict(options), "max_frames": frames})
    if settings.clip == 0 or settings.lr == 0:
        raise UsageError("`lr` and `clip` must be above 0")
    if settings.select == "validation" and settings.validation == 0:
        raise UsageError("`select=validation` needs videos to validate on; `validation` is 0")
    return dataclasses.replace(
        settings,
        max_frames=settings.max_frames or None,
        precision=precision_on(
            device_type, settings.precision, large=device_type == "cuda" and settings.large_products
        ),
    )


def resolve_stored(kind: type[Kind], asked: Mapping[str, Any], stored: Mapping[str, Any]) -> Kind:
    """`resolve` of a run that goes on, for a `kind` of settings that may have more."""
    settings = settings_from(stored, kind)
    told = {name: value for name, value in asked.items() if value is not None}
    head = full_name(told.pop("head", settings.head))
    _require_same("`head`", head, settings.head)
    if asked.get("head") is None:
        recorded_head_class(head, "the run to resume")
    for name, value in typed_options(head, told.pop("options", {})).items():
        _require_same(f"`option={name}`", value, settings.options.get(name))
    if told.get("precision") == "auto":
        del told["precision"]
    found = build(kind, dataclasses.asdict(settings), told)
    if "max_frames" in asked:
        found = dataclasses.replace(found, max_frames=asked["max_frames"] or None)
    for name, begun, value in differences(settings, found):
        _require_same(f"`{name}`", value, begun)
    return found


def _require_same(name: str, asked: Any, begun: Any) -> None:
    if asked != begun:
        raise UsageError(
            f"{name} is {asked!r}; the run to resume was begun with {begun!r}",
            hint="Leave the option out, or train into another folder with `out`",
        )


def settings_from(stored: Mapping[str, Any], kind: type[Kind] = TrainSettings) -> Kind:
    """Settings as run.json holds them, of `train-head` or of a `kind` that has more.

    What gives the same result whatever its value is has its default: a run that goes on is told it again.

    Raises:
        UsageError: some are missing, unknown, of another type or not finite.
    """
    fields = dataclasses.fields(kind)
    needed = {field.name for field in fields if field.metadata.get("affects_result", True)}
    odd = sorted((needed - stored.keys() - {*_LATER}) | (stored.keys() - {field.name for field in fields}))
    if odd:
        raise UsageError(f"The stored settings lack or have beside what is known: {', '.join(odd)[:200]}")
    try:
        settings = build(kind, {name: stored[name] for name in needed & stored.keys()})
    except (ValueError, OverflowError) as error:  # UsageErrors, and what half surrogates and huge numbers are
        raise UsageError(f"The stored settings cannot be: {first_line(error)}") from error
    for name in sorted(needed):
        value = getattr(settings, name)
        if any(isinstance(each, float) and not math.isfinite(each) for each in (value if name == "betas" else [value])):
            raise UsageError(f"The stored settings cannot be: `{name}` is {value}")
    return settings


def precision_on(device_type: str, asked: str = "auto", *, large: bool = True) -> str:
    """ "fp32", "tf32", "bf16" or "fp16" for a precision that may be "auto".

    Args:
        large: whether the products are so large that halves pay. Where they are not, casting costs more operations than it
            saves time, and TF32 keeps more digits of what is added.

    Raises:
        UsageError: fp16 or tf32 without a CUDA device.
    """
    if asked != "auto":
        if asked in ("fp16", "tf32") and device_type != "cuda":
            raise UsageError(f"`precision={asked}` needs a CUDA device", hint="Use `precision=fp32` or bf16")
        return asked
    if device_type != "cuda":
        return "fp32"
    import torch

    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return "fp16"  # of a card that has no TF32 either
    return "bf16" if large else "tf32"


def tracker_names(text: str) -> list[str]:
    """What `tracker` names, as Accelerate calls it; nothing for "none".

    Raises:
        UsageError: Accelerate does not know it, or it is not installed.
    """
    if text == "none":
        return []
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    asked = [name.strip() for name in text.split(",")]
    names = list(dict.fromkeys("comet_ml" if name == "comet" else name for name in asked))
    built_in, there = LoggerType.list(), [str(each) for each in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UsageError(f"`tracker` is {name!r}; Accelerate knows {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
        if name in built_in and name not in there:
            extra = {"comet_ml": "comet"}.get(name, name)
            raise UsageError(f"`tracker={name}`: {name} is not installed", hint=f"pip install 'glscl[{extra}]'")
    return names


def typed_options(head: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a head as the types it declares; `{"queries": "12", "share_queries": "false"}` → 12, False.

    Raises:
        UsageError: no such option, or a value of another type.
    """
    declared = head_class(head).declared_options() if options else {}
    found = {}
    for given, value in options.items():
        name = given.replace("-", "_")
        if name not in declared:
            raise UsageError(f"head {head} has no option {name!r}; its options are {', '.join(declared)}")
        found[name] = parse_value(f"`option={name}`", value, declared[name].kind) if isinstance(value, str) else value
    return found


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
    elif kind in (Any, str):
        return text
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    raise UsageError(f"{name} is {text!r}; expected {kind.__name__}")
