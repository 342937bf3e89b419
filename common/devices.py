"""Cores, which device a process takes, why not the GPU that is there, and how a GPU computes.

torch is imported when something is asked, not before.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from glscl.common.errors import UsageError, first_line
from glscl.common.launch import Launch

if TYPE_CHECKING:
    import torch

_OF_NVIDIA = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")  # where a machine has such a GPU


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_matrix_tiles() -> bool:
    """Whether the processor multiplies bfloat16 in tiles (AMX), several times as fast as float32; without it bfloat16 is slower."""
    import torch

    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def choose_device(name: str, place: Launch) -> torch.device:
    """The torch device of a name; each process of a launch gets a GPU of its own.

    Args:
        name: "auto", "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        UsageError: it is not there, or more processes than GPUs are on this machine.
    """
    gpus = _gpus()
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if name == "cuda" and place.world > 1 and gpus:
        if place.local_world > gpus > 1:
            raise UsageError(
                f"{place.local_world} processes on this machine, which has {gpus} GPUs", hint="Start one process a GPU"
            )
        name = f"cuda:{place.local_rank if gpus > 1 else 0}"  # a batch system may show each process its own alone
    return require_device(name)


def require_device(name: str) -> torch.device:
    """The torch device of a name. Raises UsageError where it names none, or one that is not there."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"`device` is {name!r}; expected cpu, cuda, cuda:N or mps") from None
    gpus = _gpus() if device.type == "cuda" else 0
    number = int(name.partition(":")[2] or 0)  # torch keeps a byte of it
    there = {"cuda": number < gpus, "mps": torch.backends.mps.is_available(), "cpu": True, "meta": True}
    if not there.get(device.type, False):
        lost = lost_gpu() if device.type == "cuda" and not gpus else None
        reason = f": {lost}" if lost else ""
        other = "cuda" if gpus else "cpu"
        raise UsageError(
            f"`device` is {name!r}, which this machine does not have{reason}", hint=f"Use `device={other}`"
        )
    return device


def _gpus() -> int:
    import torch

    with warnings.catch_warnings():  # `lost_gpu` says it
        warnings.simplefilter("ignore")
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def lost_gpu() -> str | None:
    """Why torch cannot use the NVIDIA GPU of this machine; None where it can, where there is none, or where it is hidden."""
    import torch

    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None and shown.split(",")[0].strip() in ("", "-1", "NoDevFiles"):  # the last as Slurm says it
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if torch.cuda.is_available() or not any(map(os.path.exists, _OF_NVIDIA)):
            return None
        if not torch.backends.cuda.is_built():
            return f"torch {torch.__version__} is built without CUDA"
        try:
            torch.cuda.init()
        except Exception as error:  # of the driver, in its words
            return first_line(error)
    return "CUDA finds no device"


CUDNN_ATTENTION = False  # it builds a plan for every new shape, for tenths of a second; the other kernels do not


@contextmanager
def arithmetic(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """How a GPU computes inside the block; as before afterwards, and nothing elsewhere.

    Attention never takes cuDNN's kernels.

    Args:
        tf32: products, convolutions and recurrences of float32 keep three digits (TF32); in full where not.
    """
    if device.type != "cuda":
        yield
        return
    import torch

    before = (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.cudnn_sdp_enabled(),
    )
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.enable_cudnn_sdp(CUDNN_ATTENTION and before[2])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        torch.backends.cuda.enable_cudnn_sdp(before[2])
