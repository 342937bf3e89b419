"""A run folder: what was trained, on what, how it went, and the weights. safetensors and JSON, nothing pickled.

    run.json             head, options, settings, cache and fingerprint, selection, history, versions, command
    history.jsonl        one line an epoch
    best.safetensors     weights of the head, of the selected epoch
    last.safetensors     weights of the head, of the last epoch
    backbone.safetensors, backbone-last.safetensors    the same of the backbone, where `finetune` trained it
    progress.json        how far it is, for scripts that watch (`glscl.train_head.heartbeat`)
    resume.safetensors   while training: weights, optimizer moments, and (as its metadata) how far the run is

Every file is replaced in one step, so a killed run leaves the files of its last finished epoch. Weights name the training
they are of and their epoch, run.json tells the hash of their tensors, and `load_run` takes none that it does not tell of.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from glscl.cache.files import dump_json, refuse_unread, utf8_name, write_atomically
from glscl.common.errors import CheckpointError, Hint, NotFoundError
from glscl.train_head.heads import build_head, recorded_head_class
from glscl.train_head.heads.base import Head
from glscl.train_head.run_record import run_problem, short

RUN_SCHEMA = "glscl.run/1"
WHICH = ("best", "last")
MOST_LAYERS = 100  # of an option that may not be used; more than there are tensors would take long to build
_HEADER = (
    8  # bytes at the head of a file of tensors that tell how long its JSON is; what follows stands at multiples of them
)


# What of run.json decides the weights.
_DECIDING = (
    "head", "options", "embed_dim", "settings", "cache_fingerprint", "list_hash", "training", "start", "imported"
)  # fmt: skip


class Resume(NamedTuple):
    """What resume.safetensors holds: tensors by name and the rest as JSON."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


# --- run.json ----------------------------------------------------------------------------------------------------------


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Write run.json and history.jsonl. Raises StorageError."""
    write_atomically(folder / "history.jsonl", b"".join(dump_json(row, indent=None) for row in run["history"]))
    write_atomically(folder / "run.json", dump_json({"schema": RUN_SCHEMA, **run}))
    _date_last(folder / "run.json")


def run_id(run: Mapping[str, Any]) -> str:
    """What tells trainings apart, in run.json and in all weights of a run: a hash of what decides them. 16 hex digits."""
    decided = {name: run.get(name) for name in _DECIDING}
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:16]


def _date_last(path: Path) -> None:
    """Make this the youngest run of its folder, as it is, where the clock was set back since another was written."""
    with contextlib.suppress(OSError):
        others = [other.stat().st_mtime_ns for other in path.parent.parent.glob(f"*/{path.name}") if other != path]
        if others and max(others) >= path.stat().st_mtime_ns:
            youngest = max(others) + 10**6
            os.utime(path, ns=(youngest, youngest))


def read_run(folder: Path) -> dict[str, Any]:
    """The content of run.json.

    Raises:
        NotFoundError: there is no run.
        CheckpointError: run.json is not what `write_run` writes.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise NotFoundError(
            f"No run at {folder}: it has no run.json", hint=Hint("Train one", "train-head", {"out": folder})
        )
    try:
        run = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        refuse_unread(error, path)
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    found = run.get("schema") if isinstance(run, dict) else type(run).__name__
    if found != RUN_SCHEMA:
        raise CheckpointError(f"{path} has schema {short(found)}; this version reads {RUN_SCHEMA!r}")
    problem = run_problem(run)
    if problem:
        raise CheckpointError(f"{path}: {problem}")
    return run


# --- weights -----------------------------------------------------------------------------------------------------------


def save_weights(path: Path, head: Head, *, run: str = "", epoch: int = 0) -> dict[str, Any]:
    """Write the state dict of a head.

    Args:
        run: the training it is of, from `run_id`.
        epoch: after which it is, counted from 1.

    Returns:
        What run.json is to say of it, for `load_run` to compare. The same weights give the same bytes.

    Raises:
        StorageError: it cannot be written.
    """
    from safetensors.torch import save

    data = memoryview(save(_ready(head.state_dict()), {"format": "pt"}))
    start = _HEADER + int.from_bytes(data[:_HEADER], "little")
    header = json.loads(bytes(data[_HEADER:start]))
    header["__metadata__"] |= {"run": run, "epoch": str(epoch)}  # here: safetensors writes several in any order
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER)
    write_atomically(path, b"".join((len(text).to_bytes(_HEADER, "little"), text, data[start:])))
    return {"epoch": epoch, "sha256": hashlib.sha256(data[start:]).hexdigest()}


def load_weights(path: Path, head: Head) -> None:
    """Set all weights of a head from a file.

    Raises:
        NotFoundError: there is no such file.
        CheckpointError: it cannot be read, or its names and shapes are not the head's.
    """
    tensors, _ = _load(path)
    check_tensors(path, tensors, {name: value.shape for name, value in head.state_dict().items()})
    head.load_state_dict(tensors)


def load_run(
    folder: Path | str, which: str = "best", *, device: torch.device | str = "cpu"
) -> tuple[Head, dict[str, Any]]:
    """A trained head in evaluation mode, and its run.json.

    Args:
        which: "best" or "last".

    Raises:
        NotFoundError: no run, or none with such weights yet.
        CheckpointError: files that cannot be read, or weights that run.json does not tell of.
        UsageError: a head from outside this package that nobody asked for; see `recorded_head_class`.
    """
    if which not in WHICH:
        raise ValueError(f"which is {which!r}, expected one of {', '.join(WHICH)}")
    folder = Path(folder)
    run = read_run(folder)
    if ":" in run["head"]:
        recorded_head_class(run["head"], folder)
    path = folder / f"{which}.safetensors"
    tensors, metadata = _load(path)
    _check_told(path, metadata, run, which)
    for name, value in run["options"].items():
        if name.endswith("layers") and isinstance(value, int) and value > max(len(tensors), MOST_LAYERS):
            raise CheckpointError(
                f"{path} does not fit the head: {name} is {value}, but it holds {len(tensors)} tensors"
            )
    try:
        with torch.device("meta"), _Unfilled():  # sizes alone: what run.json claims may not fit into any memory
            shapes = build_head(run["head"], embed_dim=run["embed_dim"], **run["options"]).state_dict()
        check_tensors(path, tensors, {name: value.shape for name, value in shapes.items()})
        head = build_head(run["head"], embed_dim=run["embed_dim"], **run["options"])
    except CheckpointError:
        raise
    except Exception as error:  # torch raises nearly anything for sizes that cannot be
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(f"{folder / 'run.json'} describes no head of this version: {reason}") from error
    head.load_state_dict(tensors)
    return head.to(device).eval(), run


def _check_told(path: Path, metadata: Mapping[str, str], run: Mapping[str, Any], which: str) -> None:
    """Refuse weights that run.json does not tell of: of another training or epoch, or changed since.

    A training that was killed may have written the weights of an epoch and not yet what tells of it. A run of an earlier
    version tells nothing.
    """
    told = run.get("checkpoints", {}).get(which)
    if told is None:
        return
    record, epoch = path.with_name("run.json"), metadata.get("epoch", "")
    if metadata.get("run", "") != run.get("run_id", ""):
        raise CheckpointError(
            f"{path} is of another training than {record} tells of: found {short(metadata.get('run'))}, expected "
            f"{short(run.get('run_id'))}",
            hint="Put back the file that belongs there, or train again into another folder with `out`",
        )
    if epoch != str(told["epoch"]):
        newer = epoch.isdecimal() and len(epoch) < 10 and int(epoch) > told["epoch"]
        if run.get("complete") or not newer:
            raise CheckpointError(f"{path} is of epoch {short(epoch)}; {record} tells of epoch {told['epoch']}")
    elif _tensors_hash(path) != told["sha256"]:
        raise CheckpointError(
            f"{path} is damaged: its tensors are not those that {record} tells of",
            hint="Train again into another folder with `out`, or put back a copy of the file",
        )


def _tensors_hash(path: Path) -> str:
    """SHA-256 of what follows the header of a file of tensors."""
    with open(path, "rb") as file:
        file.seek(_HEADER + int.from_bytes(file.read(_HEADER), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_tensors(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    """Raise a CheckpointError unless `found` has exactly the names and shapes `expected`."""
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        parts = [
            f"{what} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            for what, names in (("lacks", missing), ("has unknown", unknown))
            if names
        ]
        raise CheckpointError(f"{path} does not fit the head: it {' and '.join(parts)}")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise CheckpointError(f"{path}: {name} has shape {tuple(found[name].shape)}, expected {tuple(shape)}")


# --- how far a run is --------------------------------------------------------------------------------------------------


def save_resume(folder: Path, resume: Resume) -> None:
    """Write resume.safetensors, tensors and state in one file, so that they cannot be of different moments."""
    _save(folder / "resume.safetensors", resume.tensors, {"state": json.dumps(resume.state, allow_nan=False)})


def load_resume(folder: Path) -> Resume | None:
    """What `save_resume` wrote, None where there is nothing. Raises CheckpointError for a file that cannot be read."""
    path = folder / "resume.safetensors"
    if not path.exists():
        return None
    tensors, metadata = _load(path)
    try:
        state = json.loads(metadata["state"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} does not say where the run stands: {error!r}") from error
    return Resume(tensors, state)


class _Unfilled(TorchFunctionMode):
    """Leaves out the starting values of modules built within.

    Nothing can be filled on the meta device, where trying makes torch import its compiler, for longer than an evaluation
    of a small head takes.
    """

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        if getattr(function, "__module__", None) == "torch.nn.init" or function in (
            torch.Tensor.normal_,
            torch.Tensor.uniform_,
        ):
            return named["tensor"] if "tensor" in named else arguments[0]
        if function is torch.randn:
            return torch.empty(*arguments)
        if function is torch.eye:
            return named["out"] if "out" in named else torch.empty(arguments[0], arguments[-1])
        return function(*arguments, **named)


# --- files -------------------------------------------------------------------------------------------------------------


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    write_atomically(path, save(_ready(tensors), metadata))


def _ready(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    if not path.is_file():
        raise NotFoundError(f"There is no {path}", hint="Train until the first epoch is done, or name another run")
    try:
        with open(path, "rb"), utf8_name(path) as name, safe_open(name, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except Exception as error:  # safetensors raises its own, undocumented type
        refuse_unread(error, path)
        raise CheckpointError(f"{path} cannot be read: {str(error)[:200]}") from error
