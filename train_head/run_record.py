"""What run.json and resume.safetensors hold, as types: these files may be damaged, or anybody's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from glscl.cache.records import check_backbones, checked
from glscl.cache.schema import FramePosition

MAX_DIM = 10**6  # of features; more is no model

Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]
Dim = Annotated[int, Meta(ge=1, le=MAX_DIM)]


class HistoryRow(Struct):
    """An epoch: its loss, and by direction the metrics of its validation."""

    epoch: int | None = None
    loss: Finite | None = None
    validation: dict[str, dict[str, Finite]] | None = None


class StoredSettings(Struct):
    """Of the settings what is read before the settings themselves are."""

    max_frames: Dim | None = None
    frame_position: FramePosition = "uniform"


class TrainedOn(Struct):
    texts: int = 0
    videos: int = 0


class ImportRecord(Struct, frozen=True):
    notes: list[str] = []


class BackboneFile(Struct):
    """A backbone that a second pass left: the name of its file in the run folder, and the hash of its weights."""

    backbone: Annotated[str, Meta(pattern="^[^/]*$")]
    weights: str


class Checkpoint(Struct):
    """Weights that were saved: their epoch, and the hash of their tensors."""

    epoch: Annotated[int, Meta(ge=0)]
    sha256: str


class RunRecord(Struct):
    """The fields of run.json that a reader uses."""

    head: str
    options: dict[str, Any]
    embed_dim: Annotated[int, Meta(le=MAX_DIM)]
    cache: str
    cache_fingerprint: str
    settings: StoredSettings
    history: Sequence[HistoryRow]
    selection: Literal["validation", "last", "test"] = "last"
    versions: dict[str, Any] = {}
    training: TrainedOn | None = None
    imported: ImportRecord = ImportRecord()
    cache_configuration: dict[str, Any] | None = None
    command: str = ""
    list: str = ""  # name of the list it was trained on, the version of it, and the hash of its annotations alone
    list_hash: str = ""
    annotations: str = ""
    best: HistoryRow | None = None
    weights: dict[str, BackboneFile] = {}
    run_id: str = ""
    checkpoints: dict[str, Checkpoint] = {}
    teacher: dict[str, str] = {}
    complete: bool = True


class StateRecord(Struct):
    """How far a training is that was stopped."""

    epoch: Annotated[int, Meta(ge=0)]
    step: Annotated[int, Meta(ge=0)]
    losses: list[Finite]
    seconds: Finite
    history: list[HistoryRow]
    best: HistoryRow | None
    scaler: dict[str, Any] | None
    saved: dict[str, Any] = {}
    checkpoints: dict[str, Checkpoint] = {}
    run_id: str = ""


def run_problem(run: Mapping[str, Any]) -> str | None:
    """What in a run.json is not as it should be, in words; None where nothing is."""
    try:
        record = _checked(RunRecord, run)
        trained = record.cache_configuration or {}
        if "backbone" in trained:
            check_backbones(trained)
    except ValueError as error:
        return str(error)
    lacking = {"name", "words", "preprocessing"} - trained.get("backbone", {}).keys()
    if record.weights and lacking:  # after a second pass the backbone must be known whole
        return f"cache_configuration lacks {', '.join(sorted(lacking))} of its backbone"
    return None


def history_problem(rows: list[Any]) -> str | None:
    """What in the rows of a history is not as it should be; None where nothing is."""
    try:
        _checked(list[HistoryRow], rows)
    except ValueError as error:
        return str(error)
    return None


def state_problem(state: Any, *, epochs: int, steps: int) -> str | None:
    """What in the state of a resume file is not as it should be; None where nothing is."""
    try:
        record = _checked(StateRecord, state)
    except ValueError as error:
        return str(error)
    for name, found, last in (("epoch", record.epoch, epochs), ("step", record.step, steps)):
        if found > last:
            return f"{name} is {short(found)}, expected 0 to {last}"
    return None


def _checked(kind: type[Any], value: Any) -> Any:
    try:
        return checked(kind, value)
    except (OverflowError, RecursionError, msgspec.MsgspecError) as error:  # of numbers of hundreds of digits
        raise ValueError(f"it holds what no run has: {error}") from None


def short(value: Any) -> str:
    """A value as it may stand in a message."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = ascii(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}..."
