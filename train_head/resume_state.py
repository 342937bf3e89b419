"""How far a training is: saved after every epoch and where it is stopped, and restored when it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from glscl.cache.files import half_written
from glscl.common.errors import CheckpointError
from glscl.train_head.checkpoint import (
    Resume,
    check_tensors,
    load_resume,
    save_resume,
    save_weights,
    write_run,
)
from glscl.train_head.learner import Learner
from glscl.train_head.run_record import short, state_problem


@dataclass(kw_only=True)
class TrainingState:
    """How far a loop is. `epoch` and `step` are the next ones to do, from 0; losses and seconds are of this epoch."""

    epochs: int
    steps: int
    batch_size: int
    seed: int
    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    run_id: str = ""
    checkpoints: dict[str, Any] = field(default_factory=dict)  # what run.json says of the best and the last weights,
    saved: dict[str, Any] = field(default_factory=dict)  # and of the backbone of each where that is trained too
    consistent: bool = True  # False between the first and the last change that a step or an end of an epoch makes

    def save(self, out: Path, which: str, learner: Learner) -> None:
        """Write the weights of the epoch that has just ended as "best" or "last"."""
        path = out / f"{which}.safetensors"
        self.checkpoints[which] = save_weights(path, learner.head, run=self.run_id, epoch=self.epoch)
        self.saved[which] = learner.save_backbone(out, which)

    def begin(self, epoch: int) -> None:
        self.epoch, self.step, self.losses, self.seconds = epoch, 0, [], 0.0


_MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what AdamW keeps of a parameter
_SAME = ("epochs", "steps", "batch_size", "seed")
_MOVING = ("epoch", "step", "losses", "seconds", "history", "best", "saved", "checkpoints")


def snapshot(
    state: TrainingState, module: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> Resume:
    """Everything a run needs to go on: weights, moments by the parameter's name, and how far it is."""
    tensors = {f"head.{name}": value for name, value in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
    return Resume(tensors, {**{key: getattr(state, key) for key in ("run_id", *_SAME, *_MOVING)}, "scaler": scaler})


def restore(
    accelerator: Accelerator,
    state: TrainingState,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    out: Path | None,
) -> None:
    """Set weights, moments and state from what `save_resume` wrote; nothing where there is nothing.

    Raises:
        CheckpointError: it is unreadable, or of another training.
    """
    path = None if out is None else out / "resume.safetensors"
    resume = None if out is None else load_resume(out)
    found = -1
    if resume is not None:
        problem = state_problem(resume.state, epochs=state.epochs, steps=state.steps)
        if problem:
            raise CheckpointError(f"{path} does not say where the run stands: {problem}")
        found = resume.state["epoch"] * state.steps + resume.state["step"]
    everywhere = accelerator.gather(torch.tensor([found], device=accelerator.device))
    assert isinstance(everywhere, torch.Tensor)  # as what was gathered
    if len(everywhere.unique()) > 1:
        raise CheckpointError(
            f"The processes do not see the same {path}", hint="Put `out` on a disk that all of them share"
        )
    if resume is None or path is None:
        return
    if resume.state.get("run_id", state.run_id) != state.run_id:  # an earlier version tells none
        found = short(resume.state["run_id"])
        raise CheckpointError(f"{path} is of another training: found {found}, expected {state.run_id}")
    for key in _SAME:
        if resume.state.get(key) != getattr(state, key):
            found = short(resume.state.get(key))
            raise CheckpointError(f"{path} is of another training: {key} is {found}, expected {getattr(state, key)}")
    expected = {f"head.{name}": value.shape for name, value in module.state_dict().items()}
    weights = {name: value for name, value in resume.tensors.items() if name.startswith("head.")}
    check_tensors(path, weights, expected)
    parameters = dict(module.named_parameters())
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in resume.tensors.items():
        kind, _, parameter = name.partition(".")
        if kind == "head":
            continue
        shape = () if kind == "step" else parameters[parameter].shape if parameter in parameters else None
        if parameter not in parameters or kind not in _MOMENTS or value.shape != shape or not value.is_floating_point():
            raise CheckpointError(f"{path} does not fit the head: it has a {name[:200]} of shape {tuple(value.shape)}")
        moments.setdefault(parameter, {})[kind] = value
    for parameter, found_moments in moments.items():
        if len(found_moments) < len(_MOMENTS):
            lacking = ", ".join(kind for kind in _MOMENTS if kind not in found_moments)
            raise CheckpointError(f"{path} lacks {lacking} of {parameter}")
    module.load_state_dict({name.removeprefix("head."): value for name, value in weights.items()})
    for parameter, kinds in moments.items():
        for kind, value in kinds.items():
            optimizer.state[parameters[parameter]][kind] = _laid_out_like(parameters[parameter], value)
    for key in _MOVING:
        setattr(state, key, resume.state.get(key, getattr(state, key)))
    if accelerator.scaler is not None and resume.state.get("scaler"):
        accelerator.scaler.load_state_dict(resume.state["scaler"])


def _laid_out_like(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A moment on the parameter's device and in its order of memory, which fused steps take for granted."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def save_epoch(
    out: Path,
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    state: TrainingState,
    run: Mapping[str, Any],
    *,
    better: bool,
    ended: bool = False,
) -> None:
    """Best and last first, then how far the run is; a finished run needs no resume.safetensors any more.

    Args:
        better: the weights are the best so far.
        ended: training ends with this epoch, whether or not all are done.
    """
    complete = ended or state.epoch == state.epochs
    if better:
        state.save(out, "best", learner)
    state.save(out, "last", learner)
    if not complete:
        save_resume(out, snapshot(state, learner.module, optimizer, accelerator))
    write_run(out, _record(run, state, complete))
    if complete:
        (out / "resume.safetensors").unlink(missing_ok=True)


def save_between_steps(
    out: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    state: TrainingState,
    run: Mapping[str, Any],
) -> None:
    """What a stopped run leaves in the middle of an epoch."""
    save_resume(out, snapshot(state, module, optimizer, accelerator))
    write_run(out, _record(run, state, complete=False))


def clear(out: Path, *, finished: bool) -> None:
    """Remove what a killed training was writing, and how far it was if it has `finished` all the same."""
    for path in half_written(out):
        path.unlink(missing_ok=True)
    if finished:
        (out / "resume.safetensors").unlink(missing_ok=True)


def _record(run: Mapping[str, Any], state: TrainingState, complete: bool) -> dict[str, Any]:
    """run.json; what `Learner.save_backbone` tells stands under `weights`, where it tells something."""
    weights = {"weights": state.saved} if any(state.saved.values()) else {}
    told = {"checkpoints": state.checkpoints} if state.checkpoints else {}
    return {**run, **weights, **told, "history": state.history, "best": state.best, "complete": complete}
