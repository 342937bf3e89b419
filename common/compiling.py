"""The setting `compile`: a step of training or a tower as compiled code, and whether this machine can make it."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from glscl.common.errors import UsageError


def compiled(function: Callable[..., Any], device: torch.device, *, replayed: bool = False) -> Callable[..., Any]:
    """The same function, compiled when it is first called, for few shapes.

    Args:
        function: takes and gives tensors.
        device: where it will run, a CPU or a CUDA device.
        replayed: on a GPU, record its kernels once and replay them as CUDA graphs: a step of a small head is bound by
            launching them. What a call gives is then overwritten by the next.

    Raises:
        UsageError: there is no compiler for this device.
    """
    require_compiler(device)
    replayed = replayed and device.type == "cuda"
    step = torch.compile(function, dynamic=False, mode="reduce-overhead" if replayed else None)
    if not replayed:
        return step

    def replay(*arguments: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # what the last step gave may be overwritten
        return step(*arguments)

    return replay


def require_compiler(device: torch.device) -> None:
    """Raises UsageError where `missing_compiler` names something."""
    problem = missing_compiler(device)
    if problem is not None:
        raise UsageError(f"`compile`: {problem}", hint="Install it, or leave `compile` out")


def missing_compiler(device: torch.device) -> str | None:
    """What `torch.compile` lacks on this machine for a device; None where nothing."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "there is no C++ compiler here (g++ or clang++)"
        return None
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return "Triton is not installed, or does not know this GPU"
        asked = os.environ.get("CC")  # and no other, where it is set
        if not any(map(shutil.which, ["gcc", "clang"] if asked is None else [asked])):
            found = "gcc or clang" if asked is None else f"CC is {asked!r}"
            return f"there is no C compiler here ({found}), with which Triton builds what starts its kernels"
        scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton asks Debian's Python
        if not (Path(sysconfig.get_path("include", scheme)) / "Python.h").is_file():
            return "Python.h is not here (Debian's python3-dev), with which Triton builds what starts its kernels"
        return None
    return f"it runs on a CPU or a CUDA device, found {device.type}"
