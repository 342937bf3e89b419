"""The training loop: plain, on Accelerate.

B captions a batch, S steps an epoch.

A step is two gathers from tensors that lie on the device, the head, the loss, the update. The host waits for the device
only where something is reported. All that is random in a step follows from (seed, epoch, step, process), so a training
that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast

from glscl.cache.sampler import CaptionSampler
from glscl.cache.table import FeatureTable
from glscl.train_head.deferred_signals import interrupts_deferred
from glscl.train_head.determinism import deterministic, step_seed
from glscl.train_head.distributed import make_accelerator
from glscl.train_head.divergence import check_losses, check_weights
from glscl.train_head.heads.base import Head
from glscl.train_head.learner import Learner
from glscl.train_head.optim import build_optimizer, clamp_logit_scale, warmup_cosine
from glscl.train_head.reports import FitResult, Reporter, StepReport
from glscl.train_head.resume_state import TrainingState, clear, save_epoch, save_between_steps, restore


def fit(
    head: Head,
    table: FeatureTable,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 1e-4,
    weight_decay: float = 0.2,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-6,
    warmup: float = 0.1,
    clip: float = 1.0,
    seed: int = 0,
    same_video: str = "separate",
    captions_per_video: int | None = None,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    validate: Callable[[Head], Mapping[str, Mapping[str, float]]] | None = None,
    eval_every: int = 1,
    log_every: int = 50,
    out: Path | None = None,
    run: Mapping[str, Any] | None = None,
    resume: bool = False,
    tracker: str = "none",
    reporter: Reporter | None = None,
    learner: Learner | None = None,
    compile: bool = False,
    checkpoint_every: int | None = None,
    patience: int | None = None,
) -> FitResult:
    """Train a head in place; it ends with the weights of the last epoch.

    Best is the epoch with the highest mean R@1 of both directions, on ties the lower mean rank, on ties the earlier;
    without `validate` it is the last.

    Args:
        head: where to start.
        table: what to train on.
        epochs, …, captions_per_video: see `glscl.train_head.settings.TrainConfig`.
        precision: "fp32", "bf16" or "fp16".
        device: where to train.
        validate: metrics of the head; called every `eval_every` epochs and after the last.
        log_every: steps between reports.
        out: run folder for checkpoints; None keeps none.
        run: what run.json says beside history, best and complete.
        resume: go on from `out/resume.safetensors` if it is there.
        tracker: "none" or "tensorboard".
        reporter: hears how it goes.
        learner: what else is trained, and where its batches come from; None trains `head` on the features of `table`.
        compile: see `Learner`; a learner that is given knows by itself.
        checkpoint_every: also save where the run stands after so many steps; None only after an epoch.
        patience: stop after so many validations in a row without a better one; None never does.

    Raises:
        NonFiniteError: the loss became NaN or infinite; names epoch, step and captions. Checkpoints stay as they were.
        CheckpointError: what is to be resumed is unreadable or of another training.
        KeyboardInterrupt: on SIGINT, SIGTERM and SIGHUP, after the step under way and after saving where the run stands.
    """
    accelerator = make_accelerator(device, precision, tracker=tracker, folder=out)
    device = accelerator.device
    main = accelerator.is_main_process
    reporter = Reporter() if reporter is None or not main else reporter
    learner = learner or Learner(head, table, compile=compile)
    learner.module.to(device).train()
    video_of_text = table.video_of_text.cpu().numpy()
    sampler = CaptionSampler(
        video_of_text,
        batch_size,
        seed=seed,
        same_video=same_video,
        captions_per_video=captions_per_video,
        multiple_of=accelerator.num_processes,
    )
    if sampler.batch_size < batch_size:
        reporter.note(
            f"batches have {sampler.batch_size} captions, not {batch_size}: there are {table.num_texts} captions "
            f"of {len(np.unique(video_of_text))} videos"
        )
    optimizer = build_optimizer(
        learner.module, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, groups=learner.groups(weight_decay)
    )
    state = TrainingState(epochs=epochs, steps=sampler.steps, batch_size=sampler.batch_size, seed=seed)
    if resume:
        if main and out is not None:
            clear(out, finished=False)
        restore(accelerator, state, learner.module, optimizer, out)
    training = _Training(
        accelerator=accelerator,
        learner=learner,
        sampler=sampler,
        optimizer=optimizer,
        state=state,
        reporter=reporter,
        folder=out if main else None,
        record=run or {},
        lr=lr,
        warmup=warmup,
        clip=clip,
        mask=same_video == "mask",
        validate=validate,
        eval_every=eval_every,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        patience=patience,
        tracked=tracker != "none",
    )
    return training.run()


@dataclass(kw_only=True)
class _Training:
    """A training under way.

    Attributes:
        folder: of the run; None in all processes but the first, and where nothing is kept.
        record: what run.json says beside how it goes.
        mask: leave other captions of a caption's video out of its negatives.
        tracked: Accelerate's trackers hear of it.
        Others: see `fit`.
    """

    accelerator: Any
    learner: Learner
    sampler: CaptionSampler
    optimizer: torch.optim.Optimizer
    state: TrainingState
    reporter: Reporter
    folder: Path | None
    record: Mapping[str, Any]
    lr: float
    warmup: float
    clip: float
    mask: bool
    validate: Callable[[Head], Mapping[str, Mapping[str, float]]] | None
    eval_every: int
    log_every: int
    checkpoint_every: int | None
    patience: int | None
    tracked: bool

    def __post_init__(self) -> None:
        accelerator, size = self.accelerator, self.sampler.batch_size // self.accelerator.num_processes
        self.device = accelerator.device
        self.share = slice(size * accelerator.process_index, size * (accelerator.process_index + 1))
        self.result = FitResult(history=self.state.history, best=self.state.best)
        self._losses = torch.empty(0)  # of the epoch under way
        self._interrupted = threading.Event()
        self._step_module, self._updates = accelerator.prepare(self.learner.begin(self.device), self.optimizer)
        if self.tracked:
            accelerator.init_trackers("logs")

    def run(self) -> FitResult:
        """All epochs that are left, or as many as patience, an interrupt or a broken loss allow."""
        state, ended = self.state, False
        with interrupts_deferred() as self._interrupted, deterministic(self.device):
            try:
                while state.epoch < state.epochs and not ended:
                    self._epoch()
                    ended = self._end_epoch()
                    if not ended:
                        self._heed_interrupts()
            except KeyboardInterrupt:
                self._save_interrupted()
                raise
        if self.tracked:
            self.accelerator.end_training()
        return self.result

    def _epoch(self) -> None:
        """The steps of an epoch that are left."""
        state, steps = self.state, self.state.steps
        rows = self.sampler.epoch(state.epoch)
        batches = self.learner.batches(rows, start=state.step, share=self.share, mask=self.mask)
        self._losses = torch.full((steps,), torch.nan, device=self.device)
        self._losses[: state.step] = torch.tensor(state.losses, device=self.device)
        reported, clock = state.step, time.perf_counter()
        while state.step < steps:
            self._step(batches)
            last = state.step == steps
            keep = self.checkpoint_every is not None and state.step % self.checkpoint_every == 0
            if (state.step - reported) % self.log_every == 0 or last or keep:
                self._report(rows, since=reported, clock=clock)
                if keep and not last:
                    check_weights(self.learner.module, self.learner.table, rows, state, out=self.folder)
                    self._save_between_steps()
                reported, clock = state.step, time.perf_counter()
            self._heed_interrupts()
        check_weights(self.learner.module, self.learner.table, rows, state, out=self.folder)

    def _step(self, batches: Any) -> None:
        """One batch: loss, gradients, update. The loss stays on the device."""
        state, step = self.state, self.state.step
        state.consistent = False
        learning_rate = self._learning_rate(step)
        for group in self._updates.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        torch.manual_seed(step_seed(state.seed, state.epoch, step, self.accelerator.process_index))
        loss = self.learner.backward(self.accelerator, self._step_module, batches.on(self.device, step))
        self.accelerator.clip_grad_norm_(self.learner.module.parameters(), self.clip)
        self._updates.step()
        self._updates.zero_grad(set_to_none=True)
        clamp_logit_scale(self.learner.head.logit_scale)
        self._losses[step] = loss
        state.step, state.consistent = step + 1, True

    def _learning_rate(self, step: int) -> float:
        """Of a step of the epoch under way, counted from 0."""
        total = self.state.epochs * self.state.steps
        return self.lr * warmup_cosine(self.state.epoch * self.state.steps + step, total=total, warmup=self.warmup)

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
        )
        if self.tracked:
            values = {"loss": report.loss, "learning_rate": report.learning_rate}
            self.accelerator.log(values, step=state.epoch * state.steps + state.step)
        self.reporter.step(report)

    def _end_epoch(self) -> bool:
        """Validate, keep what is to be kept; whether the training ends for want of anything better."""
        state = self.state
        row = self._row()
        last = state.epoch + 1 == state.epochs
        if self.validate and self.accelerator.is_main_process and ((state.epoch + 1) % self.eval_every == 0 or last):
            row["validation"] = self._validated(row["step"])
        self.accelerator.wait_for_everyone()
        better = self.validate is None or ("validation" in row and _is_better(row, state.best))
        state.consistent = False
        if better and self.validate:
            state.best = row
        state.history.append(row)
        state.begin(state.epoch + 1)
        self.result.best = state.best
        ended = self.patience is not None and self.validate is not None and self._out_of_patience(self.patience)
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
            note = f"stopped after epoch {state.epoch}: {self.patience} validations without a better one"
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

    def _validated(self, step: int) -> dict[str, dict[str, float]]:
        metrics = self.validate(self.learner.head)
        found = {name: dict(of) for name, of in metrics.items() if name in ("text_to_video", "video_to_text")}
        self.learner.module.train()
        if self.tracked:
            self.accelerator.log({f"validation/{name} R@1": of["R@1"] for name, of in found.items()}, step=step)
        return found

    def _out_of_patience(self, patience: int) -> bool:
        """Whether so many validations brought nothing better, as the first process sees it, which validates."""
        best = 0 if self.state.best is None else self.state.best["epoch"]
        since = sum("validation" in row for row in self.state.history if row["epoch"] > best)
        return bool(broadcast(torch.tensor([since >= patience], device=self.device).int())[0])

    def _heed_interrupts(self) -> None:
        if self._interrupted.is_set():
            raise KeyboardInterrupt

    def _save_interrupted(self) -> None:
        """Save where an interrupted training stands, if it stands between two steps."""
        state = self.state
        if not state.consistent or self.accelerator.num_processes > 1 or state.epoch == state.epochs:
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
            save_between_steps(self.folder, self.learner.module, self.optimizer, self.accelerator, self.state, self.record)


def _is_better(row: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
    def merit(of: Mapping[str, Any]) -> tuple[float, float]:
        directions = of["validation"].values()
        return sum(d["R@1"] for d in directions), -sum(d["MnR"] for d in directions)

    return best is None or merit(row) > merit(best)
