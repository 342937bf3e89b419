"""What an experiment tracker gets of a training: tensorboard, wandb, mlflow and whatever else Accelerate knows.

Settings, sizes, fingerprint and list of the run at first; losses by name on the way; metrics of every validation with
their intervals; a page about the validated epoch in the end. A tracker that fails on the way ends no training.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from glscl.cache.files import dump_json, plain, write_atomically
from glscl.common.errors import GlsclError, InputError, first_line
from glscl.common.launch import launch
from glscl.train_head.reports import Reporter, StepReport
from glscl.train_head.settings import TrainSettings, tracker_names

PROJECT = "glscl"  # what trackers file the runs under
_IDS = "tracked.json"  # in the run folder: what each tracker calls the run, for a training that goes on


class Documented(Protocol):
    """What judges a validation and can say more of it than metrics; `glscl.evaluate.validating.validation` has one."""

    @property
    def intervals(self) -> Mapping[str, Mapping[str, list[float]]]:
        """Direction → metric → [low, high] of the latest validation."""
        ...

    def keep(self) -> None:
        """Remember the latest validation as the best."""

    def page(self) -> Path | None:
        """Write a page about the best validation; None where there was none."""


def _nothing(*_: Any) -> Any:
    return None


class _Service(NamedTuple):
    """How a tracker takes what is ours: how a run is named and goes on (keywords of its class), and how it takes a file."""

    begin: Callable[[Path], dict[str, Any]] = lambda folder: {}
    id: Callable[[Any], str | None] = _nothing
    again: Callable[[str], dict[str, Any]] = lambda id: {}
    attach: Callable[[Any, Path], Any] | None = None


def _to_mlflow(_: Any, file: Path) -> None:
    import mlflow  # type: ignore[import-not-found]

    mlflow.log_artifact(str(file))


_SERVICES = {
    "wandb": _Service(
        lambda folder: {"name": folder.name, "dir": str(folder)},
        lambda run: run.id,
        lambda id: {"id": id, "resume": "allow"},
        lambda run, file: run.save(str(file), base_path=str(file.parent), policy="now"),
    ),
    "mlflow": _Service(
        lambda folder: {"run_name": folder.name}, lambda run: run.info.run_id, lambda id: {"run_id": id}, _to_mlflow
    ),
    "comet_ml": _Service(
        id=lambda experiment: experiment.get_key(),
        again=lambda id: {"experiment_key": id},
        attach=lambda experiment, file: experiment.log_asset(str(file)),
    ),
    "clearml": _Service(
        lambda folder: {"task_name": folder.name},
        lambda task: task.id,
        lambda id: {"continue_last_task": id},
        lambda task, file: task.upload_artifact("report", artifact_object=str(file)),
    ),
    "aim": _Service(id=lambda run: run.hash, again=lambda id: {"run_hash": id}),
    "dvclive": _Service(
        lambda folder: {"dir": str(folder / "dvclive")}, lambda live: live.dir, lambda id: {"resume": True}
    ),
    "swanlab": _Service(lambda folder: {"experiment_name": folder.name, "logdir": str(folder / "swanlab")}),
    "trackio": _Service(
        lambda folder: {"name": folder.name}, lambda run: run.name, lambda id: {"name": id, "resume": "allow"}
    ),
}


def tracked(
    reporter: Reporter, settings: TrainSettings, out: Path, record: Mapping[str, Any], validate: Any
) -> Reporter:
    """The reporter, which where `settings.tracker` names trackers tells them as well. Of several processes the first does.

    Args:
        out: the run folder, below which trackers that need a folder log.
        record: what run.json says but for how the training went.
        validate: what judges; where it is `Documented`, intervals and a page are logged too.
    """
    names = tracker_names(settings.tracker)
    return Tracking(reporter, names, out, record, validate) if names and launch().speaks else reporter


class Tracking(Reporter):
    """Passes on what another reporter hears, and logs it."""

    def __init__(
        self, reporter: Reporter, names: list[str], out: Path, record: Mapping[str, Any], validate: Any
    ) -> None:
        self._reporter, self._names, self._out, self._record = reporter, names, out, record
        self._document: Documented | None = validate if hasattr(validate, "page") else None
        self._trackers: dict[str, Any] = {}

    def begin(self) -> None:
        """Start the trackers, or go on with the runs that they have of this training.

        Raises:
            InputError: one does not start; says why.
        """
        self._reporter.begin()
        known, config = _known(self._out), _flat(self._record)
        for name in self._names:
            try:
                with _silent():
                    tracker = self._trackers[name] = _started(name, self._out, known.get(name))
                    tracker.store_init_configuration(config)
                    known[name] = _service(name).id(tracker.tracker)
            except Exception as error:
                self._finish()
                raise InputError(
                    f"The tracker {name} does not start: {first_line(error)}",
                    hint="Set it up as its own manual says, or leave `tracker` out",
                ) from error
        write_atomically(self._out / _IDS, dump_json({name: id for name, id in known.items() if isinstance(id, str)}))

    def note(self, text: str) -> None:
        self._reporter.note(text)

    def step(self, report: StepReport) -> None:
        self._reporter.step(report)
        values = {"loss": report.loss, **{f"loss_{name}": value for name, value in report.losses.items()}}
        values |= {"learning_rate": report.learning_rate, "captions_per_second": report.captions_per_second}
        values = {f"train/{name}": value for name, value in values.items()}
        self._log(values, (report.epoch - 1) * report.steps + report.step)

    def epoch(self, row: Mapping[str, Any], *, best: bool) -> None:
        self._reporter.epoch(row, best=best)
        values = {f"epoch/{name}": row[name] for name in ("epoch", "loss", "logit_scale")}
        for direction, metrics in row.get("validation", {}).items():
            intervals = self._document.intervals.get(direction, {}) if self._document else {}
            for metric, value in metrics.items():
                name = f"validation/{direction}/{metric.replace('@', '')}"  # mlflow admits no @ in a name
                values[name] = value
                values |= dict(zip((f"{name}_low", f"{name}_high"), intervals.get(metric, ())))
        self._log(values, row["step"])
        if best and "validation" in row and self._document:
            self._document.keep()

    def end(self, *, finished: bool) -> None:
        """Attach the page about the best validation to a training that is finished; close the trackers."""
        self._reporter.end(finished=finished)
        page = None
        if finished and self._document:
            try:
                page = self._document.page()
            except (GlsclError, OSError) as error:
                self.note(f"there is no page about the validation: {first_line(error)}")
        if page is not None:
            for name in [*self._trackers]:
                attach = _service(name).attach
                if attach is not None:
                    self._guarded(name, lambda tracker, attach=attach: attach(tracker.tracker, page))
            self.note(f"a page about the validated epoch is {page}")
        self._finish()

    def _log(self, values: Mapping[str, float], step: int) -> None:
        for name in [*self._trackers]:
            self._guarded(name, lambda tracker: tracker.log(dict(values), step=step))

    def _finish(self) -> None:
        for name in [*self._trackers]:
            self._guarded(name, lambda tracker: tracker.finish())
        self._trackers = {}

    def _guarded(self, name: str, act: Callable[[Any], Any]) -> None:
        """A tracker's act; where it fails that is said once, and the tracker is left out from there."""
        try:
            with _silent():
                act(self._trackers[name])
        except Exception as error:
            failed = self._trackers.pop(name)
            with contextlib.suppress(Exception), _silent():
                failed.finish()
            self.note(
                f"the tracker {name} fails and is left out from here: {type(error).__name__}: {first_line(error)}"
            )


def _known(out: Path) -> dict[str, Any]:
    """Tracker → what it calls this training, of an earlier process; nothing where that cannot be read."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(plain(out / _IDS).read_bytes(), type=dict[str, str])
    return {}


def _service(name: str) -> _Service:
    return _SERVICES.get(name, _Service())


def _started(name: str, out: Path, id: str | None) -> Any:
    """A tracker of Accelerate's, running; it goes on with the run `id` of its own where there is one."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind, service = LOGGER_TYPE_TO_CLASS[name], _service(name)
    keywords = {**service.begin(out), **(service.again(id) if id else {})}
    if kind.requires_logging_directory:
        tracker = kind("logs" if name == "tensorboard" else PROJECT, str(out), **keywords)
    else:
        tracker = kind(PROJECT, **keywords)
    if hasattr(tracker, "start"):  # Accelerate before 1.8 starts in the constructor
        tracker.start()
    return tracker


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Whatever a tracker prints goes to standard error: standard output is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as numbers, truths and texts under names with slashes, which every tracker takes."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (bool, int, float, str)):
            found[prefix + name] = value
        else:
            found[prefix + name] = "none" if value is None else str(value)
    return found
