"""One batch over several processes: where it runs, in what arithmetic, and how the processes see each other's negatives.

W processes, N items a process.

Every process encodes its share of the batch, gathers the encodings of all, and computes the loss of the whole batch. The
gradient of a gathered encoding is summed over the processes and Accelerate averages the gradients of the parameters, so
what a step does to the weights does not depend on how many processes share it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.nn.functional import all_gather

from glscl.common.errors import UsageError
from glscl.common.launch import launch

Encoded = TypeVar("Encoded", bound=tuple)

_PATIENCE = timedelta(hours=4)  # the others wait while the first process validates


def make_accelerator(device: torch.device | str, precision: str) -> Accelerator:
    """The Accelerate side of a training run.

    Args:
        device: where to run; under `accelerate launch` only its kind counts, each process has its own.
        precision: "fp32", "tf32" (which is for the caller to switch on), "bf16" or "fp16".

    Raises:
        UsageError: two processes share a GPU.
    """
    device = torch.device(device)
    if launch().world == 1:
        # Accelerate keeps device and precision for the life of the process; a second run may want others.
        if PartialState._shared_state:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    accelerator = Accelerator(
        mixed_precision=precision if precision in ("bf16", "fp16") else "no",
        cpu=device.type == "cpu",
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=_PATIENCE),
        ],
    )
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        gpu = torch.cuda.get_device_properties(accelerator.device)
        own = f"{gpu.name} {getattr(gpu, 'uuid', accelerator.device.index)} of {socket.gethostname()}"
        store = dist.distributed_c10d._get_default_store()
        refuse_shared_gpus(store, accelerator.process_index, accelerator.num_processes, own)
        # By it Accelerate numbers the GPU that gradients are summed on: another one where a process sees its own alone.
        state: Any = accelerator.state  # it gets its attributes at run time
        state.local_process_index = accelerator.device.index
    return accelerator


def wait_for_all() -> None:
    """Until every process has come here. On a GPU by the one that a process uses, whatever its number."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier(device_ids=[torch.cuda.current_device()] if dist.get_backend() == "nccl" else None)


def refuse_shared_gpus(store: Store, rank: int, world: int, own: str) -> None:
    """Let each process see which GPU the others use; collective.

    Args:
        store: that all of them reach.
        own: machine and identity of this process's GPU.

    Raises:
        UsageError: two use the same, where NCCL would stop with an error of its own.
    """
    store.set(f"gpu of {rank}", own)
    sharing = [other for other in range(world) if store.get(f"gpu of {other}").decode() == own]
    if len(sharing) > 1:
        raise UsageError(
            f"processes {', '.join(map(str, sharing))} share one GPU ({own})", hint="Start one process a GPU"
        )


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Give every process the mean of all processes' gradients, for a backward pass that Accelerate did not see."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
        work.wait()
    for gradient in gradients:
        gradient.div_(dist.get_world_size())


def gather_items(encoded: Encoded) -> Encoded:
    """The encodings of all processes, in their order: each field (N, ...) becomes (W·N, ...), with gradients."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return encoded
    return type(encoded)(*(_gather(field) for field in encoded))


def _gather(field: Tensor) -> Tensor:
    if field.dtype is torch.bool:
        return torch.cat(all_gather(field.to(torch.uint8))).bool()
    return torch.cat(all_gather(field.contiguous()))
