"""The training loop: plain, on Accelerate.

B captions a batch, S steps an epoch.

A step is two gathers from tensors that lie on the device, the head, the loss, the update. The host waits for the device
only where something is reported. All that is random in a step follows from (seed, epoch, step, process), so a training
that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, reduce

from glscl.cache.sampler import CaptionSampler
from glscl.cache.table import FeatureTable
from glscl.common.devices import arithmetic
from glscl.common.errors import GlsclError, OutOfMemoryError, UsageError, first_line
from glscl.common.memory import is_full, keep_freed_memory
from glscl.common.signals import Deferred, interrupts_deferred
from glscl.common.tables import amount
from glscl.train_head.determinism import deterministic, step_seed
from glscl.train_head.distributed import make_accelerator, wait_for_all
from glscl.train_head.divergence import check_losses, check_weights
from glscl.train_head.doubts import loss_doubt
from glscl.train_head.heads.base import Head
from glscl.train_head.heartbeat import Heartbeat
from glscl.train_head.learner import Learner
from glscl.train_head.optim import (
    build_optimizer,
    clamp_logit_scale,
    public_cosine,
    set_learning_rate,
    warmup_cosine,
)
from glscl.train_head.recording import RecordedStep, why_not_recorded
from glscl.train_head.reports import FitResult, Reporter, StepReport
from glscl.train_head.resume_state import TrainingState, clear, restore, save_between_steps, save_epoch
from glscl.train_head.settings import TrainSettings, precision_on

# metrics of a head on what validates: {"text_to_video": {"R@1", …, "MnR"}, "video_to_text": {…}}
Judge = Callable[[Head], Mapping[str, Mapping[str, float]]]


def fit(
    head: Head,
    table: FeatureTable,
    settings: TrainSettings,
    *,
    device: torch.device | str = "cpu",
    validate: Judge | None = None,
    reporter: Reporter | None = None,
    out: Path | None = None,
    resume: bool = False,
) -> FitResult:
    """Train a head in place on the features of a table; it ends with the weights of the last epoch. See `fit_learner`.

    Args:
        head: where to start; `settings.head` and its options are not looked at.
        table: what to train on.

    Raises:
        UsageError: the settings name a teacher, which needs the cache: see `glscl.train_head.train.train`.
        Others: see `fit_learner`.
    """
    if settings.teacher is not None:
        raise UsageError("`teacher` is compared with a cache, and a table is of none", hint="Use `train`")
    learner = Learner(head, table, loss=settings.loss, compile=settings.compile)
    return fit_learner(learner, settings, device=device, validate=validate, reporter=reporter, out=out, resume=resume)


def fit_learner(
    learner: Learner,
    settings: TrainSettings,
    *,
    device: torch.device | str = "cpu",
    validate: Judge | None = None,
    reporter: Reporter | None = None,
    out: Path | None = None,
    record: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> FitResult:
    """Train a learner in place.

    Best is the epoch with the highest mean R@1 of both directions, on ties the lower mean rank, on ties the earlier;
    without `validate` it is the last.

    Args:
        learner: what is trained, and where its batches come from.
        settings: how. Its recipe, head, options, frames and choice of a validation part are done with before.
        device: where to train.
        validate: metrics of the head; called every `eval_every` epochs and after the last.
        reporter: hears how it goes.
        out: run folder for checkpoints; None keeps none.
        record: what run.json says but for history, best and complete.
        resume: go on from `out/resume.safetensors` if it is there.

    Raises:
        NonFiniteError: the loss became NaN or infinite; names epoch, step and captions. Checkpoints stay as they were.
        CheckpointError: what is to be resumed is unreadable or of another training.
        OutOfMemoryError: a step does not fit; names the batch and what to lower.
        KeyboardInterrupt: on SIGINT, SIGTERM and SIGHUP, after the step under way and after saving how far the run is.
    """
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    precision = precision_on(torch.device(device).type, settings.precision, large=learner.large)
    accelerator = make_accelerator(device, precision)
    main, table = accelerator.is_main_process, learner.table
    reporter = reporter if reporter is not None and main else Reporter()
    learner.module.to(accelerator.device).train()
    video_of_text = table.video_of_text.cpu().numpy()
    sampler = CaptionSampler(
        video_of_text,
        settings.batch_size,
        seed=settings.seed,
        same_video=settings.same_video,
        captions_per_video=settings.captions_per_video,
        multiple_of=accelerator.num_processes,
    )
    if sampler.batch_size < settings.batch_size:
        reporter.note(
            f"batches have {amount(sampler.batch_size, 'caption')}, not {settings.batch_size}: there are {amount(table.num_texts, 'caption')} "
            f"of {amount(len(np.unique(video_of_text)), 'video')}"
        )
    optimizer = build_optimizer(
        learner.groups(
            weight_decay=settings.weight_decay, decay=settings.decay, logit_scale_rate=settings.logit_scale_rate
        ),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        kind=settings.optimizer,
    )
    state = TrainingState(
        epochs=settings.epochs,
        steps=sampler.steps,
        batch_size=sampler.batch_size,
        seed=settings.seed,
        run_id=(record or {}).get("run_id", ""),
    )
    if (
        main and out is not None
    ):  # a training that was killed before its first epoch has nothing to go on with, but remains
        clear(out, finished=False)
    if resume:
        restore(accelerator, state, learner.module, optimizer, out)
    training = _Training(
        settings=settings,
        accelerator=accelerator,
        precision=precision,
        learner=learner,
        sampler=sampler,
        optimizer=optimizer,
        state=state,
        reporter=reporter,
        folder=out if main else None,
        record=record or {},
        validate=validate,
    )
    return training.run()


@dataclass(kw_only=True)
class _Training:
    """A training under way.

    Attributes:
        precision: "fp32", "tf32", "bf16" or "fp16".
        folder: of the run; None in all processes but the first, and where nothing is kept.
        Others: see `fit_learner`.
    """

    settings: TrainSettings
    accelerator: Accelerator
    precision: str
    learner: Learner
    sampler: CaptionSampler
    optimizer: torch.optim.Optimizer
    state: TrainingState
    reporter: Reporter
    folder: Path | None
    record: Mapping[str, Any]
    validate: Judge | None

    def __post_init__(self) -> None:
        accelerator, size = self.accelerator, self.sampler.batch_size // self.accelerator.num_processes
        self.device = accelerator.device
        self.share = slice(size * accelerator.process_index, size * (accelerator.process_index + 1))
        self.result = FitResult(history=self.state.history, best=self.state.best)
        self._losses = torch.empty(0)  # of the epoch under way
        self._parts: torch.Tensor | None = None  # sums over the steps since the last report, of losses of several parts
        self._interrupted = Deferred()
        self._heartbeat = Heartbeat(
            self.folder,
            epochs=self.state.epochs,
            steps=self.state.steps,
            done=self.state.epoch * self.state.steps + self.state.step,
            batch_size=self.state.batch_size,
        )
        self._step_module, self._updates = accelerator.prepare(self.learner.begin(self.device), self.optimizer)
        self._recorded: RecordedStep | None = None
        self._recording = self.settings.cuda_graphs and self._can_record()

    def run(self) -> FitResult:
        """All epochs that are left, or as many as patience, an interrupt or a broken loss allow."""
        finished = False
        self.reporter.begin()
        try:
            self._epochs()
            self._beat("finished")
            if self.accelerator.is_main_process:
                self.result.doubts = self._doubts()
            finished = True
        finally:
            self.reporter.end(finished=finished)
        return self.result

    def _epochs(self) -> None:
        state, ended = self.state, False
        computing = arithmetic(self.device, tf32=self.precision == "tf32")
        with interrupts_deferred() as self._interrupted, deterministic(self.device), computing:
            try:
                while state.epoch < state.epochs and not ended:
                    self._epoch()
                    ended = self._end_epoch()
                    if not ended:
                        self._heed_interrupts(agreed=True)
            except KeyboardInterrupt:
                self._save_interrupted()
                self._beat("stopped", reason="it was asked to stop")
                raise
            except Exception as error:
                self._beat("failed", reason=error.message if isinstance(error, GlsclError) else first_line(error))
                raise

    def _beat(self, state: str, *, loss: float | None = None, reason: str | None = None) -> None:
        self._heartbeat.beat(state, epoch=self.state.epoch, step=self.state.step, loss=loss, reason=reason)

    def _doubts(self) -> list[str]:
        """What there is to doubt in the run as a whole, each with the numbers that show it."""
        loss = loss_doubt(self.state.history, self.result.losses, self.state.batch_size)
        return [*([loss] if loss else []), *self.learner.doubts(self.state.batch_size)]

    def _epoch(self) -> None:
        """The steps of an epoch that are left."""
        state, steps = self.state, self.state.steps
        rows = self.sampler.epoch(state.epoch)
        batches = self.learner.batches(
            rows, start=state.step, share=self.share, mask=self.settings.same_video == "mask"
        )
        self._parts = None
        self._losses = torch.full((steps,), torch.nan, device=self.device)
        self._losses[: state.step] = torch.tensor(state.losses, device=self.device)
        reported, clock = state.step, time.perf_counter()
        while state.step < steps:
            self._guarded_step(batches)
            last = state.step == steps
            every = self.settings.checkpoint_every
            keep = every is not None and state.step % every == 0
            if (state.step - reported) % self.settings.log_every == 0 or last or keep:
                self._report(rows, since=reported, clock=clock)
                if keep and not last:
                    check_weights(self.learner.module, self.learner.table, rows, state, out=self.folder)
                    self._save_between_steps()
                reported, clock = state.step, time.perf_counter()
                self._heed_interrupts(agreed=True)
            self._beat("training")
            self._heed_interrupts()
        check_weights(self.learner.module, self.learner.table, rows, state, out=self.folder)

    def _guarded_step(self, batches: Any) -> None:
        """A step; where memory does not suffice for it, what was tried and what to lower are said."""
        state, device = self.state, self.device
        try:
            self._step(batches)
        except Exception as error:
            if not is_full(error) or isinstance(error, GlsclError):
                raise
            where = "This machine" if device.type == "cpu" else f"The device {device}"
            raise OutOfMemoryError(
                f"{where} has not enough memory for step {state.step + 1} of {state.steps} in epoch {state.epoch + 1}: "
                f"{state.batch_size} captions with {self.learner.table.frame_features.shape[1]} frames a video",
                hint=self.learner.smaller(),
            ) from None  # the frames of the error hold the tensors of the step

    def _can_record(self) -> bool:
        """Whether the steps may be recorded; where that was asked for and cannot be, why is said."""
        reason = why_not_recorded(
            self.device,
            processes=self.accelerator.num_processes,
            precision=self.precision,
            optimizer=self.settings.optimizer,
            compiled=self.settings.compile,
        )
        reason = reason or self.learner.why_not_recorded()
        if reason is not None:
            self.reporter.note(f"`cuda_graphs` is left out: {reason}")
        return reason is None

    def _step(self, batches: Any) -> None:
        """One batch: loss, gradients, update. The loss stays on the device."""
        state, step = self.state, self.state.step
        state.consistent = False
        learning_rate = self._learning_rate(step)
        for group in self.optimizer.param_groups:
            set_learning_rate(group, learning_rate * group.get("lr_scale", 1.0), in_place=self._recording)
        torch.manual_seed(step_seed(state.seed, state.epoch, step, self.accelerator.process_index))
        if not self._recording:
            losses = self._update(batches.on(self.device, step))
        else:
            if self._recorded is None:
                gather = batches.gather
                self._recorded = RecordedStep(
                    lambda width, *rows: self._update(gather(self.device, width, *rows)),
                    self.device,
                    note=self.reporter.note,
                )
            losses = self._recorded(*batches.picked(step))
        self._losses[step] = losses[0]
        if len(losses) > 1:
            self._parts = losses[1:].clone() if self._parts is None else self._parts.add_(losses[1:])
        state.step, state.consistent = step + 1, True

    def _update(self, batch: tuple[Any, ...]) -> torch.Tensor:
        """Move the weights by the gradients of a batch; its loss, and behind it the parts it is the sum of, if several."""
        loss = self.learner.backward(self.accelerator, self._step_module, batch)
        self.accelerator.clip_grad_norm_(self.learner.module.parameters(), self.settings.clip)
        self._updates.step()
        self._updates.zero_grad(set_to_none=True)
        clamp_logit_scale(self.learner.head.logit_scale)
        parts = self.learner.step.latest
        self._part_names = list(parts)
        return torch.stack([loss, *parts.values()]) if len(parts) > 1 else loss[None]

    def _learning_rate(self, step: int) -> float:
        """Of a step of the epoch under way, counted from 0."""
        settings, steps = self.settings, self.state.steps
        planned = (settings.planned_epochs or self.state.epochs) * steps
        schedule = public_cosine if settings.optimizer == "bert_adam" else warmup_cosine
        return settings.lr * schedule(self.state.epoch * steps + step, total=planned, warmup=settings.warmup)

    def _report(self, rows: np.ndarray, *, since: int, clock: float) -> None:
        """Wait for the device, look at the losses from step `since` on, which began at `clock`, and tell of them."""
        state = self.state
        fresh = self._losses[since : state.step].tolist()
        check_losses(fresh, self.learner.table, rows, state, first=since, out=self.folder)
        state.losses += fresh
        self.result.losses += fresh
        seconds = time.perf_counter() - clock
        state.seconds += seconds
        report = StepReport(
            epoch=state.epoch + 1,
            epochs=state.epochs,
            step=state.step,
            steps=state.steps,
            loss=sum(fresh) / len(fresh),
            learning_rate=self._learning_rate(state.step - 1),
            captions_per_second=len(fresh) * state.batch_size / max(seconds, 1e-9),
            losses={} if self._parts is None else dict(zip(self._part_names, (self._parts / len(fresh)).tolist())),
        )
        self._parts = None
        self.reporter.step(report)
        self._beat("training", loss=report.loss)

    def _end_epoch(self) -> bool:
        """Validate, keep what is to be kept; whether the training ends for want of anything better."""
        state = self.state
        row = self._row()
        due = (state.epoch + 1) % self.settings.eval_every == 0 or state.epoch + 1 == state.epochs
        if self.validate and due and self.accelerator.is_main_process:
            self._try_to_validate(self.validate, row)
        wait_for_all()
        better = self.validate is None or ("validation" in row and _is_better(row, state.best))
        if state.epoch + 1 == state.epochs and self.validate and state.best is None and not better:
            self.reporter.note("no validation succeeded, so the last epoch is kept as the best")
            better, self.record = True, {**self.record, "selection": "last"}
        state.consistent = False
        if "validation" in row and better:
            state.best = row
        state.history.append(row)
        state.begin(state.epoch + 1)
        self.result.best = state.best
        patience = self.settings.patience
        ended = patience is not None and self.validate is not None and self._out_of_patience(patience)
        if self.folder is not None:
            save_epoch(
                self.folder,
                self.learner,
                self.optimizer,
                self.accelerator,
                state,
                self.record,
                better=better,
                ended=ended,
            )
        state.consistent = True
        self.reporter.epoch(row, best=better)
        if ended and state.epoch < state.epochs:
            note = f"stopped after epoch {state.epoch}: {patience} validations without a better one"
            self.reporter.note(note)
        return ended

    def _row(self) -> dict[str, Any]:
        """The row of the epoch that has just ended, but for its validation."""
        state = self.state
        return {
            "epoch": state.epoch + 1,
            "step": (state.epoch + 1) * state.steps,
            "loss": sum(state.losses) / len(state.losses),
            "learning_rate": self._learning_rate(state.steps - 1),
            "logit_scale": self.learner.head.logit_scale.item(),
            "seconds": state.seconds,
            "captions_per_second": state.steps * state.batch_size / max(state.seconds, 1e-9),
        }

    def _try_to_validate(self, validate: Judge, row: dict[str, Any]) -> None:
        """Metrics of the epoch into its row; a validation that fails is said, and the training goes on without it.

        It may take long, so it is given up at once where the training is to stop: it is done anew when that goes on.
        """
        self._beat("validating")
        try:
            with self._interrupted.at_once():
                row["validation"] = self._validated(validate)
        except Exception as error:
            reason = error.message if isinstance(error, GlsclError) else f"{type(error).__name__}: {first_line(error)}"
            row["validation_failed"] = reason
            self.learner.module.train()
            self.reporter.note(f"the validation of epoch {row['epoch']} failed, and the training goes on: {reason}")

    def _validated(self, validate: Judge) -> dict[str, dict[str, float]]:
        metrics = validate(self.learner.head)
        found = {direction: dict(metrics[direction]) for direction in ("text_to_video", "video_to_text")}
        self.learner.module.train()
        return found

    def _out_of_patience(self, patience: int) -> bool:
        """Whether so many validations brought nothing better, as the first process sees it, which validates."""
        best = 0 if self.state.best is None else self.state.best["epoch"]
        since = sum("validation" in row for row in self.state.history if row["epoch"] > best)
        return bool(broadcast(torch.tensor([since >= patience], device=self.device).int())[0])

    def _heed_interrupts(self, *, agreed: bool = False) -> None:
        """Stop where that was asked for; several processes together, where all of them are (`agreed`)."""
        asked = self._interrupted.is_set()
        if self.accelerator.num_processes > 1:
            if not agreed:
                return
            asked = bool(reduce(torch.tensor([int(asked)], device=self.device), "sum")[0])
        if asked:
            raise KeyboardInterrupt

    def _save_interrupted(self) -> None:
        """Save how far an interrupted training is, if it is between two steps."""
        state = self.state
        if not state.consistent or state.epoch == state.epochs:
            return
        if self.folder is None:
            return
        rows, first = self.sampler.epoch(state.epoch), len(state.losses)
        fresh = self._losses[first : state.step].tolist()
        check_losses(fresh, self.learner.table, rows, state, first=first, out=self.folder)
        check_weights(self.learner.module, self.learner.table, rows, state, out=self.folder)
        state.losses += fresh
        self._save_between_steps()

    def _save_between_steps(self) -> None:
        if self.folder is not None:
            save_between_steps(
                self.folder, self.learner.module, self.optimizer, self.accelerator, self.state, self.record
            )


def _is_better(row: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
    def merit(epoch: Mapping[str, Any]) -> tuple[float, float]:
        directions = epoch["validation"].values()
        return sum(d["R@1"] for d in directions), -sum(d["MnR"] for d in directions)

    return best is None or merit(row) > merit(best)
