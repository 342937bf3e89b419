"""The training loop: plain, on Accelerate.

B captions and as many videos a batch, L tokens, F frames, S steps an epoch.

A step is two gathers from tensors that lie on the device, the head, the loss, the update. The host waits for the device
only where something is reported. All that is random in a step follows from (seed, epoch, step, process), so a training
that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from glscl.cache.feature_table import FeatureTable
from glscl.cache.sampler import CaptionSampler
from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.errors import NonFiniteError
from glscl.train_head.checkpoint import save_weights
from glscl.train_head.compiling import compiled
from glscl.train_head.heads.base import Head
from glscl.train_head.losses import contrastive_loss
from glscl.train_head.optim import build_optimizer, clamp_logit_scale, parameter_groups, warmup_cosine
from glscl.train_head.parallel import gather_items, make_accelerator
from glscl.train_head.pieces import encode_in_pieces, piece_that_fits
from glscl.train_head.standing import Standing, clear, save_epoch, save_standing, take_up

_RESIDENT_SHARE = 0.6  # of a GPU's free memory that features may take


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The steps since the last report. Epochs and steps count from 1; the loss is their mean."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    learning_rate: float
    captions_per_second: float


class Reporter:
    """Hears how training goes. This one says nothing; override what is wanted."""

    def note(self, text: str) -> None:
        """A line that people should read."""

    def step(self, report: StepReport) -> None:
        """Some steps are done."""

    def epoch(self, row: Mapping[str, Any], *, best: bool) -> None:
        """An epoch is done; `row` is what stands in history.jsonl, `best` says whether its weights were kept as best."""


@dataclass(kw_only=True)
class FitResult:
    """What came of a loop.

    Attributes:
        losses: of every step made in this process.
        history: one row an epoch: epoch, step, loss, learning_rate, logit_scale, seconds, captions_per_second, and
            where it was validated "validation" with both directions.
        best: the row whose weights are the best; None where nothing was validated.
    """

    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None


class ContrastiveStep(nn.Module):
    """The loss of one batch. A module, so that Accelerate can wrap it for several processes.

    Args:
        head: what is trained.
        piece: texts and videos encoded at once, see `glscl.train_head.pieces`; None is the whole batch.

    Attributes:
        compute: what `forward` calls, `loss` or a compiled version of it.
    """

    def __init__(self, head: Head, *, piece: int | None = None) -> None:
        super().__init__()
        self.head = head
        self.piece = piece
        self.compute: Callable[..., Tensor] = self.loss

    def forward(self, text: TextFeatures, video: VideoFeatures, exclude: Tensor | None = None) -> Tensor:
        """Scalar loss of this process' share of a batch against the whole batch; `exclude` as in `contrastive_loss`."""
        return self.compute(text, video, exclude)

    def loss(self, text: TextFeatures, video: VideoFeatures, exclude: Tensor | None = None) -> Tensor:
        """As `forward`, never compiled."""
        encoded_text = gather_items(encode_in_pieces(self.head.encode_text, text, self.piece))
        encoded_video = gather_items(encode_in_pieces(self.head.encode_video, video, self.piece))
        similarity = self.head.score(encoded_text, encoded_video)  # (B, B)
        loss = contrastive_loss(similarity * self.head.logit_scale.exp(), exclude=exclude)
        for auxiliary in self.head.auxiliary_losses(encoded_text, encoded_video).values():
            loss = loss + auxiliary
        return loss


class Learner:
    """What the loop trains and where its batches come from: here a head, and the features of a table.

    Args:
        head: where to start.
        table: what to train on.
        compile: make compiled code of the step, with captions padded to the table's longest, so that shapes stay.

    Attributes:
        head: scores; its logit scale is clamped after every step.
        module: everything that is trained and taken up again; the head is part of it.
        table: captions, videos and which belong together.
    """

    def __init__(self, head: Head, table: FeatureTable, *, compile: bool = False) -> None:
        self.head, self.table = head, table
        self.module: nn.Module = head
        self._compile = compile

    def begin(self, device: torch.device) -> nn.Module:
        """Move to the device; what gives the loss of a batch, for Accelerate to wrap."""
        lengths = self.table.token_offsets
        self._lengths = None if lengths is None else lengths.diff().cpu().numpy()
        longest = 1 if self._lengths is None else max(1, int(self._lengths.max(initial=1)))
        self.table = resident(self.table, device)
        piece = piece_that_fits(self.head, words=longest, frames=self.table.frame_features.shape[1])
        step = ContrastiveStep(self.head, piece=piece)
        if self._compile:
            step.compute = compiled(step.loss, device, processes=int(os.environ.get("WORLD_SIZE", "1")))
            if self._lengths is not None:
                self._lengths = np.full_like(self._lengths, longest)
        return step

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups of parameters; one with an `lr_scale` has that many times the learning rate."""
        return parameter_groups(self.module, weight_decay=weight_decay)

    def batches(self, rows: np.ndarray, *, start: int, share: slice, mask: bool) -> Any:
        """The batches of an epoch, taken from step `start` on by `.on(device, step)`; rows (S, B) of captions."""
        return _Batches(self.table, rows, self._lengths, share=share, mask=mask)

    def backward(self, accelerator: Any, step_module: nn.Module, batch: tuple[Any, ...]) -> Tensor:
        """Add the gradients of a batch; its loss."""
        loss = step_module(*batch)
        accelerator.backward(loss)
        return loss.detach()

    def save(self, folder: Path, which: str) -> dict[str, Any]:
        """Write the weights as "best" or "last"; what run.json is to say of them."""
        save_weights(folder / f"{which}.safetensors", self.head)
        return {}


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
        epochs, …, captions_per_video: see `glscl.train_head.config.TrainConfig`.
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
        KeyboardInterrupt: on SIGINT and SIGTERM, after the step under way and after saving where the run stands.
    """
    reporter = reporter or Reporter()
    accelerator = make_accelerator(device, precision, tracker=tracker, folder=out)
    device = accelerator.device
    main = accelerator.is_main_process
    folder = out
    if not main:
        out, reporter = None, Reporter()
    processes = accelerator.num_processes
    learner = learner or Learner(head, table, compile=compile)
    learner.module.to(device).train()
    video_of_text = table.video_of_text.cpu().numpy()
    sampler = CaptionSampler(
        video_of_text,
        batch_size,
        seed=seed,
        same_video=same_video,
        captions_per_video=captions_per_video,
        multiple_of=processes,
    )
    if sampler.batch_size < batch_size:
        reporter.note(
            f"batches have {sampler.batch_size} captions, not {batch_size}: there are {table.num_texts} captions "
            f"of {len(np.unique(video_of_text))} videos"
        )
    optimizer = build_optimizer(
        learner.module, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, groups=learner.groups(weight_decay)
    )
    state = Standing(epochs=epochs, steps=sampler.steps, batch_size=sampler.batch_size, seed=seed)
    if resume:
        if out is not None:
            clear(out, finished=False)
        take_up(accelerator, state, learner.module, optimizer, folder)
    step_module, wrapped = accelerator.prepare(learner.begin(device), optimizer)
    table = learner.table
    if tracker != "none":
        accelerator.init_trackers("logs")
    total = epochs * sampler.steps
    share = slice(*(sampler.batch_size // processes * (accelerator.process_index + i) for i in (0, 1)))
    result = FitResult(history=state.history, best=state.best)
    losses = torch.empty(0)

    with _interrupts_deferred() as interrupted, _deterministic(device):
        try:
            for epoch in range(state.epoch, epochs):
                rows = sampler.epoch(epoch)
                batches = learner.batches(rows, start=state.step, share=share, mask=same_video == "mask")
                losses = torch.full((sampler.steps,), torch.nan, device=device)
                losses[: state.step] = torch.tensor(state.losses, device=device)
                reported, clock = state.step, time.perf_counter()
                for step in range(state.step, sampler.steps):
                    state.consistent = False
                    factor = warmup_cosine(epoch * sampler.steps + step, total=total, warmup=warmup)
                    for group in wrapped.param_groups:
                        group["lr"] = lr * factor * group.get("lr_scale", 1.0)
                    torch.manual_seed(_step_seed(seed, epoch, step, accelerator.process_index))
                    loss = learner.backward(accelerator, step_module, batches.on(device, step))
                    accelerator.clip_grad_norm_(learner.module.parameters(), clip)
                    wrapped.step()
                    wrapped.zero_grad(set_to_none=True)
                    clamp_logit_scale(head.logit_scale)
                    losses[step] = loss
                    state.step, state.consistent = step + 1, True
                    keep = checkpoint_every is not None and (step + 1) % checkpoint_every == 0
                    if (step + 1 - reported) % log_every == 0 or step + 1 == sampler.steps or keep:
                        fresh = losses[reported : step + 1].tolist()  # waits for the device
                        _require_finite(fresh, table, rows, state, first=reported, out=out)
                        state.losses += fresh
                        result.losses += fresh
                        now = time.perf_counter()
                        rate = (step + 1 - reported) * sampler.batch_size / max(now - clock, 1e-9)
                        state.seconds += now - clock
                        report = StepReport(
                            epoch=epoch + 1,
                            epochs=epochs,
                            step=step + 1,
                            steps=sampler.steps,
                            loss=sum(fresh) / len(fresh),
                            learning_rate=lr * factor,
                            captions_per_second=rate,
                        )
                        if tracker != "none":
                            values = {"loss": report.loss, "learning_rate": report.learning_rate}
                            accelerator.log(values, step=epoch * sampler.steps + step + 1)
                        reporter.step(report)
                        if keep and step + 1 < sampler.steps:
                            _require_finite_weights(learner, table, rows, state, out=out)
                        if keep and out is not None and step + 1 < sampler.steps:
                            save_standing(out, learner.module, optimizer, accelerator, state, run or {})
                        reported, clock = step + 1, time.perf_counter()
                    if interrupted.is_set():
                        raise KeyboardInterrupt
                _require_finite_weights(learner, table, rows, state, out=out)
                row = _epoch_row(
                    state, learner, lr * warmup_cosine((epoch + 1) * sampler.steps - 1, total=total, warmup=warmup)
                )
                if validate is not None and main and ((epoch + 1) % eval_every == 0 or epoch + 1 == epochs):
                    row["validation"] = {
                        name: dict(of)
                        for name, of in validate(head).items()
                        if name in ("text_to_video", "video_to_text")
                    }
                    learner.module.train()
                    if tracker != "none":
                        r1 = {f"validation/{name} R@1": of["R@1"] for name, of in row["validation"].items()}
                        accelerator.log(r1, step=row["step"])
                accelerator.wait_for_everyone()
                better = validate is None or ("validation" in row and _is_better(row, state.best))
                state.consistent = False
                if better and validate is not None:
                    state.best = row
                state.history.append(row)
                state.begin(epoch + 1)
                result.best = state.best
                ended = patience is not None and validate is not None and _ended(accelerator, state, patience)
                if out is not None:
                    save_epoch(out, learner, optimizer, accelerator, state, run or {}, better=better, ended=ended)
                state.consistent = True
                reporter.epoch(row, best=better)
                if ended:
                    if state.epoch < epochs:
                        reporter.note(f"stopped after epoch {state.epoch}: {patience} validations without a better one")
                    break
                if interrupted.is_set():
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            if out is not None and state.consistent and processes == 1 and state.epoch < epochs:
                first = len(state.losses)
                fresh = losses[first : state.step].tolist()
                rows = sampler.epoch(state.epoch)
                _require_finite(fresh, table, rows, state, first=first, out=out)
                _require_finite_weights(learner, table, rows, state, out=out)
                state.losses += fresh
                save_standing(out, learner.module, optimizer, accelerator, state, run or {})
            raise
    if tracker != "none":
        accelerator.end_training()
    return result


def resident(table: FeatureTable, device: torch.device) -> FeatureTable:
    """The table on the device, or as it is where a GPU has no room for it beside the training."""
    if device.type == "cuda":
        needed = sum(t.numel() * t.element_size() for t in vars(table).values() if isinstance(t, Tensor))
        free, _ = torch.cuda.mem_get_info(device)
        if needed > _RESIDENT_SHARE * free:
            return table
    return table.to(device)


def _ended(accelerator: Any, state: Standing, patience: int) -> bool:
    """Whether the last `patience` validations brought nothing better, as the first process sees it, which validates."""
    best = 0 if state.best is None else state.best["epoch"]
    since = sum("validation" in row for row in state.history if row["epoch"] > best)
    return bool(broadcast(torch.tensor([since >= patience], device=accelerator.device).int())[0])


def _epoch_row(state: Standing, learner: Learner, learning_rate: float) -> dict[str, Any]:
    """The row of the epoch that has just ended, but for its validation."""
    return {
        "epoch": state.epoch + 1,
        "step": (state.epoch + 1) * state.steps,
        "loss": sum(state.losses) / len(state.losses),
        "learning_rate": learning_rate,
        "logit_scale": learner.head.logit_scale.item(),
        "seconds": state.seconds,
        "captions_per_second": state.steps * state.batch_size / max(state.seconds, 1e-9),
    }


def _is_better(row: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
    def merit(of: Mapping[str, Any]) -> tuple[float, float]:
        directions = of["validation"].values()
        return sum(d["R@1"] for d in directions), -sum(d["MnR"] for d in directions)

    return best is None or merit(row) > merit(best)


def _require_finite(
    losses: list[float], table: FeatureTable, rows: np.ndarray, state: Standing, *, first: int, out: Path | None
) -> None:
    """Raise for the first loss that is not finite, naming the batch, or the item whose features are to blame.

    Args:
        losses: of the steps from `first` (counted from 0) of the epoch under way.
        rows: (S, B) captions of all steps of the epoch.
    """
    bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if bad is None:
        return
    batch = torch.from_numpy(rows[first + bad])
    message = f"The loss is {losses[bad]} in epoch {state.epoch + 1}, step {first + bad + 1} of {state.steps}"
    culprit = _non_finite_features(table, batch)
    if culprit:
        raise NonFiniteError(
            f"{message}: {culprit} has features that are NaN or infinite", mend="See: glscl inspect CACHE --verify"
        )
    raise _broken(message, table, batch, state, out)


def _require_finite_weights(
    learner: Learner, table: FeatureTable, rows: np.ndarray, state: Standing, *, out: Path | None
) -> None:
    """Raise where the last step, of a finite loss, made a weight NaN or infinite, so that it is never saved."""
    if not torch.stack([p.detach().isfinite().all() for p in learner.module.parameters()]).all():
        message = f"The weights became NaN or infinite in epoch {state.epoch + 1}, step {state.step} of {state.steps}"
        raise _broken(message, table, torch.from_numpy(rows[state.step - 1]), state, out)


def _broken(message: str, table: FeatureTable, batch: Tensor, state: Standing, out: Path | None) -> NonFiniteError:
    ids = [table.text_ids[row] for row in batch.tolist()]
    shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    kept = f"; {out} keeps the weights of epoch {state.epoch}" if out is not None and state.epoch else ""
    return NonFiniteError(f"{message}, on the captions {shown}{kept}", mend="Try a lower --lr")


def _non_finite_features(table: FeatureTable, rows: Tensor) -> str | None:
    text, video = table.texts(rows), table.videos(table.video_of_text[rows.to(table.device)])
    for row, i in zip(rows.tolist(), range(len(rows))):
        if not all(f[i].isfinite().all() for f in (text.text_features, text.token_features) if f is not None):
            return f"caption {table.text_ids[row]!r}"
        if not video.frame_features[i].isfinite().all():
            return f"video {table.video_ids[int(table.video_of_text[row])]!r}"
    return None


class _Batches:
    """The batches of one epoch, with their row numbers beside the features already.

    Attributes:
        rows: (S, B) int64, captions of each step.
    """

    def __init__(
        self, table: FeatureTable, rows: np.ndarray, lengths: np.ndarray | None, *, share: slice, mask: bool
    ) -> None:
        self.rows, self._table, self._share, self._mask = rows, table, share, mask
        self._texts = torch.from_numpy(rows).to(table.device)
        self._videos = table.video_of_text[self._texts]  # (S, B)
        self._widths = [None] * len(rows) if lengths is None else lengths[rows].max(1).tolist()

    def on(self, device: torch.device, step: int) -> tuple[TextFeatures, VideoFeatures, Tensor | None]:
        """What `ContrastiveStep` takes; all processes pad their share to the longest caption of the whole batch."""
        videos = self._videos[step]
        text = self._table.texts(self._texts[step, self._share], width=self._widths[step])
        video = self._table.videos(videos[self._share])
        exclude = (videos[:, None] == videos).to(device) if self._mask else None  # (B, B)
        return _to(text, device), _to(video, device), exclude


def _step_seed(seed: int, epoch: int, step: int, process: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, step, process]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _to(features: Any, device: torch.device) -> Any:
    """The features on the device; from the host to a GPU through pinned memory, beside the step that it is at."""

    def moved(field: Tensor) -> Tensor:
        if device.type == "cuda" and field.device.type == "cpu":
            field = field.pin_memory()
        return field.to(device, non_blocking=True)

    return type(features)(*(field if field is None else moved(field) for field in features))


@contextlib.contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On a CPU, ask torch for its deterministic kernels: they cost nothing measurable there."""
    if device.type != "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill


@contextlib.contextmanager
def _interrupts_deferred() -> Iterator[threading.Event]:
    """The first SIGINT or SIGTERM only sets the event, so that a step ends before the run stops; a second one acts."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    names = [getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in names}

    def note(number: int, frame: Any) -> None:
        event.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in names:
        if before[number] is not None:  # None: installed outside Python, and not ours to touch
            signal.signal(number, note)
    try:
        yield event
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
