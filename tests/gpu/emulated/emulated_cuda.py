"""A CUDA device that is not there: its tensors say `cuda:0`, hold data of the CPU, and refuse to meet tensors of the CPU.

`install()` makes torch (a CUDA build, with the stubs beside this file in place of the driver) believe in one device of compute
capability 9.0. Autograd, autocast and the choice of attention kernels are torch's own for CUDA; each operation then runs on the
CPU, after its arguments were looked at. `COUNTS` tells how many there were, and where the host waited. A CUDA graph records
operations without running them and replays them with the numbers of Python as they were. Kernels, memory, time, streams and
NCCL are not emulated.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
CUDA = torch.device("cuda:0")
GIB = 1 << 30


class MeetingError(RuntimeError):
    """Tensors of both devices in one operation, as a GPU refuses them."""


class OnDevice(torch.Tensor):
    """A tensor of the device; `data` is what it holds, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held, requires_grad=False):
        assert not isinstance(held, OnDevice) and held.device.type == "cpu"
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, device=CUDA, requires_grad=requires_grad, **layout
        )

    def __init__(self, held, requires_grad=False):
        self.held = held

    def __repr__(self, *_, **__):
        return f"OnDevice({self.held!r})"

    def __tensor_flatten__(self):
        return ["held"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, *_):
        return cls(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})

    def __array__(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


class Dispatching(TorchDispatchMode):
    """Also what makes tensors from nothing on the device."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        here = any(isinstance(t, OnDevice) for t in tree_flatten((args, kwargs))[0]) or is_cuda(kwargs.get("device"))
        return run(operation, args, kwargs) if here else operation(*args, **kwargs)


def is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def held(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


# "operations", "waits" of the host for the device (each by name, too; a copy from or to the host waits unless it is
# `non_blocking`), other "copies", and as "loose" convolutions and recurrences of float32 in TF32
COUNTS: Counter[str] = Counter()


def run(operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """One operation of aten, with the device's tensors taken in and given back."""
    kind = kind_of(operation, args, kwargs)
    COUNTS[kind] += 1
    if kind == "waits":
        COUNTS[operation.name()] += 1
    if operation.name() in OF_CUDNN and args[0].dtype == torch.float32 and torch.backends.cudnn.allow_tf32:
        COUNTS["loose"] += 1
    if Graph.recording is None:
        return execute(operation, args, kwargs)
    if kind in ("waits", "copies"):
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({operation.name()})")
    return Graph.recording.record(operation, args, kwargs)


OF_CUDNN = {"aten::convolution", "aten::_thnn_fused_lstm_cell"}
FREE = {"aten::empty", "aten::_unsafe_view", "aten::_reshape_alias", "aten::lift_fresh", "aten::is_pinned"}
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::unique_dim"}


def kind_of(operation: Any, args: tuple, kwargs: dict[str, Any]) -> str:
    """What the device or the host has of it: "operations", "waits", "copies" or, of views, "views"."""
    name = operation.name().split(".")[0]
    if name in WAITING or name.startswith("aten::_unique"):
        return "waits"
    if name.startswith(("aten::index", "aten::_index_put")) and isinstance(args[1], (list, tuple)):
        return "waits" if any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]) else "operations"
    if name in ("aten::_to_copy", "aten::copy_"):
        source = args[0] if name == "aten::_to_copy" else args[1]
        target = kwargs.get("device") or args[0].device
        at_once = kwargs.get("non_blocking") or args[2:] == (True,)
        if is_cuda(source.device) == is_cuda(target):
            return "operations"
        return "copies" if at_once else "waits"
    returns = operation._schema.returns
    if name in FREE or name.startswith("aten::empty") or name.startswith("aten::new_empty"):
        return "views"
    if returns and all(each.alias_info and not each.alias_info.is_write for each in returns):
        return "views"
    return "operations"


class Graph:
    """What stands in for `torch.cuda.CUDAGraph`."""

    recording: Graph | None = None

    def __init__(self) -> None:
        self.operations: list[tuple[Any, tuple, dict[str, Any], Any]] = []
        self.changed: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    @contextlib.contextmanager
    def capture(self):
        assert Graph.recording is None
        Graph.recording, random = self, torch.get_rng_state()
        try:
            yield
        finally:
            Graph.recording = None
            torch.set_rng_state(random)
            for storage, before in self.changed.values():  # nothing has run
                storage.copy_(before)
            self.changed.clear()

    def record(self, operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        named = zip(operation._schema.arguments, args)
        by_name = {argument.name: argument for argument in operation._schema.arguments}
        written = [value for argument, value in named if argument.alias_info and argument.alias_info.is_write]
        written += [v for k, v in kwargs.items() if by_name[k].alias_info and by_name[k].alias_info.is_write]
        for tensor in tree_flatten(written)[0]:
            storage = tensor.held.untyped_storage()
            self.changed.setdefault(storage.data_ptr(), (storage, storage.clone()))
        found = execute(operation, args, kwargs)
        self.operations.append((operation, args, dict(kwargs), found))
        return found

    def replay(self) -> None:
        COUNTS["replays"] += 1
        for operation, args, kwargs, before in self.operations:
            after = execute(operation, args, dict(kwargs))
            for old, new in zip(tree_flatten(before)[0], tree_flatten(after)[0]):
                if isinstance(old, OnDevice) and old.held.data_ptr() != new.held.data_ptr():
                    old.held.copy_(new.held)


def execute(operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    name = operation.name()
    if operation is aten._to_copy.default:
        return copied(operation, args[0], kwargs)
    if operation is aten.copy_.default:
        held(args[0]).copy_(held(args[1]), *args[2:])
        return args[0]
    if name in ("aten::pin_memory", "aten::_pin_memory"):
        return args[0]
    if operation is aten.is_pinned.default:
        return False
    require_one_device(name, args, kwargs)
    there = any(isinstance(t, OnDevice) for t in tree_flatten((args, kwargs))[0])
    if "device" in kwargs and kwargs["device"] is not None:
        there = is_cuda(kwargs["device"])
        kwargs = {**kwargs, "device": torch.device("cpu")}
    kwargs.pop("pin_memory", None)
    found = KERNELS.get(name, operation)(*tree_map(held, args), **tree_map(held, kwargs))
    if not there:
        return found
    found = tree_map(lambda value: OnDevice(value) if isinstance(value, torch.Tensor) else value, found)
    return with_written(operation, args, kwargs, found)


def copied(operation: Any, source: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    device = kwargs.get("device")
    there = isinstance(source, OnDevice) if device is None else is_cuda(device)
    options = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    found = operation(held(source), **options, **({} if device is None else {"device": "cpu"}))
    return OnDevice(found) if there else found


def require_one_device(name: str, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raise MeetingError as a GPU would: tensors of the CPU may be numbers (0-d) or indices of a tensor of the device."""
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    there, here = (
        [t for t in tensors if isinstance(t, OnDevice)],
        [t for t in tensors if not isinstance(t, OnDevice)],
    )
    if not there or not here:
        return
    if name.startswith(("aten::index.", "aten::index_put", "aten::_index_put_impl", "aten::_unsafe_index")):
        indices = {id(each) for each in args[1]}
        wrong = [t for t in here if t.ndim and id(t) not in indices] if isinstance(args[0], OnDevice) else there
    elif name.startswith(("aten::cat", "aten::stack", "aten::where.self_out", "aten::_fused_adam", "aten::_foreach")):
        wrong = here
    else:
        wrong = [t for t in here if t.ndim]
    if wrong:
        shapes = [tuple(t.shape) for t in here], [tuple(t.shape) for t in there]
        raise MeetingError(
            f"Expected all tensors to be on the same device: {name} of {shapes[0]} (cpu), {shapes[1]} (cuda:0)"
        )


def with_written(operation: Any, args: tuple, kwargs: dict[str, Any], found: Any) -> Any:
    """What an operation gives, with the very tensors that it wrote in the place of what they hold."""

    def writes(argument: Any) -> bool:
        return argument.alias_info is not None and argument.alias_info.is_write

    arguments, returns = operation._schema.arguments, operation._schema.returns
    named = {argument.name: value for argument, value in zip(arguments, args)} | kwargs
    written = [named[argument.name] for argument in arguments if writes(argument) and argument.name in named]
    if not written:
        return found
    if not returns:
        return None
    several = isinstance(found, (tuple, list))
    left = iter(written)
    given = [next(left) if writes(each) else value for each, value in zip(returns, found if several else (found,))]
    return tuple(given) if several or len(returns) > 1 else given[0]


# --- kernels that torch has for CUDA alone -----------------------------------------------------------------------------


def attended(q, k, v, bias, causal, scale):
    """Output and log of the sum of exponentials of scaled dot-product attention."""
    scores = attention_scores(q, k, bias, causal, scale)
    out = (scores.softmax(-1) @ v.float()).to(q.dtype)
    return out.transpose(1, 2).contiguous().transpose(1, 2), scores.logsumexp(-1)


def attention_scores(q, k, bias, causal, scale):
    scores = (q.float() @ k.float().transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.float()
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), float("-inf"))
    return scores


def attention_gradients(gradient, q, k, v, bias, causal, scale):
    weights = attention_scores(q, k, bias, causal, scale).softmax(-1)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    gradient = gradient.float()
    of_weights = gradient @ v.float().transpose(-1, -2)
    of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True))
    return (
        (of_scores @ k.float() * scale).to(q.dtype),
        (of_scores.transpose(-1, -2) @ q.float() * scale).to(q.dtype),
        (weights.transpose(-1, -2) @ gradient).to(q.dtype),
    )


def zero():
    return torch.zeros((), dtype=torch.int64)


def efficient(q, k, v, bias, lse, dropout_p=0.0, is_causal=False, *, scale=None):
    return (*attended(q, k, v, bias, is_causal, scale), zero(), zero())


def efficient_backward(gradient, q, k, v, bias, out, lse, s, o, p, mask, is_causal=False, *, scale=None):
    return (*attention_gradients(gradient, q, k, v, bias, is_causal, scale), torch.empty(0))


def cudnn(q, k, v, bias, lse, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    sizes = torch.empty(0), torch.empty(0), q.shape[2], k.shape[2]
    return (*attended(q, k, v, bias, is_causal, scale), *sizes, zero(), zero(), torch.empty(0))


def cudnn_backward(gradient, q, k, v, out, lse, s, o, bias, cq, ck, mq, mk, p, is_causal, *, scale=None):
    bias = bias if bias is not None and bias.numel() else None
    return attention_gradients(gradient, q, k, v, bias, is_causal, scale)


def flash(q, k, v, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    return cudnn(q, k, v, None, True, dropout_p, is_causal, scale=scale)


def flash_backward(gradient, q, k, v, out, lse, cq, ck, mq, mk, p, is_causal, s, o, *, scale=None):
    return attention_gradients(gradient, q, k, v, None, is_causal, scale)


def lstm_cell(of_input, of_hidden, cell, input_bias=None, hidden_bias=None):
    gates = of_input + of_hidden
    if input_bias is not None:
        gates = gates + input_bias + hidden_bias
    i, f, c, o = gates.chunk(4, 1)
    i, f, c, o = i.sigmoid(), f.sigmoid(), c.tanh(), o.sigmoid()
    after = f * cell + i * c
    return o * after.tanh(), after, torch.cat([i, f, c, o], 1)


def lstm_cell_backward(of_hidden, of_cell, before, after, gates, has_bias):
    i, f, c, o = gates.chunk(4, 1)
    bounded = after.tanh()
    of_hidden = torch.zeros_like(after) if of_hidden is None else of_hidden
    inner = of_hidden * o * (1 - bounded * bounded) + (0 if of_cell is None else of_cell)
    parts = (
        inner * c * i * (1 - i),
        inner * before * f * (1 - f),
        inner * i * (1 - c * c),
        of_hidden * bounded * o * (1 - o),
    )
    of_gates = torch.cat(parts, 1)
    return of_gates, inner * f, of_gates.sum(0) if has_bias else torch.empty(0)


def softmax(x, dim, half_to_float):  # of CUDA alone: half in, float out
    return aten._softmax(x.float() if half_to_float else x, dim, False)


def softmax_backward(gradient, output, dim, dtype):
    return aten._softmax_backward_data(gradient, output, dim, gradient.dtype).to(dtype)


def log_softmax(x, dim, half_to_float):
    return aten._log_softmax(x.float() if half_to_float else x, dim, False)


def log_softmax_backward(gradient, output, dim, dtype):
    return aten._log_softmax_backward_data(gradient, output, dim, gradient.dtype).to(dtype)


KERNELS = {
    "aten::_scaled_dot_product_efficient_attention": efficient,
    "aten::_scaled_dot_product_efficient_attention_backward": efficient_backward,
    "aten::_scaled_dot_product_cudnn_attention": cudnn,
    "aten::_scaled_dot_product_cudnn_attention_backward": cudnn_backward,
    "aten::_scaled_dot_product_flash_attention": flash,
    "aten::_scaled_dot_product_flash_attention_backward": flash_backward,
    "aten::_thnn_fused_lstm_cell": lstm_cell,
    "aten::_thnn_fused_lstm_cell_backward_impl": lstm_cell_backward,
    "aten::_softmax": softmax,
    "aten::_softmax_backward_data": softmax_backward,
    "aten::_log_softmax": log_softmax,
    "aten::_log_softmax_backward_data": log_softmax_backward,
}


# --- what torch asks the driver --------------------------------------------------------------------------------------------


def apply_by_replacing(self, function, recurse=True):
    """nn.Module._apply; parameters are replaced, since the data of a tensor cannot become one of another class."""
    for child in self.children():
        child._apply(function)
    for key, parameter in self._parameters.items():
        if parameter is not None:
            new = function(parameter.detach())
            if new.device != parameter.device or new.dtype != parameter.dtype:
                self._parameters[key] = torch.nn.Parameter(new, parameter.requires_grad)
                if parameter.grad is not None:
                    self._parameters[key].grad = function(parameter.grad)
    for key, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[key] = function(buffer)
    return self


def moved(make):
    """torch.tensor or torch.as_tensor, which fill a tensor from Python's numbers beside the dispatcher."""

    def made(data, *args, device=None, **options):
        found = data if isinstance(data, torch.Tensor) and make is AS_TENSOR else make(data, *args, **options)
        return found if device is None else found.to(device)

    return made


AS_TENSOR = torch.as_tensor
NUMPY, TOLIST = torch.Tensor.numpy, torch.Tensor.tolist


def numpy_of(self, *args, **options):
    if isinstance(self, OnDevice):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    return NUMPY(self, *args, **options)


def list_of(self):
    COUNTS["waits"] += isinstance(self, OnDevice)
    return TOLIST(held(self))


def install(memory: int = 141 * GIB) -> None:
    """Put the device into this process, to stay.

    Args:
        memory: bytes that it has, all but a GiB of it free.
    """
    torch._C._ensureCUDADeviceGuardSet()
    about = SimpleNamespace(name="made up", major=9, minor=0, total_memory=memory, multi_processor_count=132, uuid="0")
    nothing = {
        name: lambda *_, **__: None
        for name in ("set_device", "_lazy_init", "manual_seed", "manual_seed_all", "empty_cache", "synchronize")
    }
    answers = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "is_bf16_supported": True,
        "mem_get_info": (memory - GIB, memory),
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "reset_peak_memory_stats": None,
        "get_rng_state_all": [],
        "get_device_properties": about,
        "get_device_capability": (9, 0),
        "get_device_name": about.name,
    }

    def always(answer):
        return lambda *_, **__: answer

    told = {name: always(answer) for name, answer in answers.items()}
    for name, function in {**nothing, **told}.items():
        setattr(torch.cuda, name, function)
    nothing_stream = SimpleNamespace(
        device=CUDA, wait_stream=lambda _: None, wait_event=lambda _: None, synchronize=lambda: None
    )
    torch.cuda.Stream = torch.cuda.current_stream = lambda *_, **__: nothing_stream
    torch.cuda.stream = lambda _: contextlib.nullcontext()
    torch.cuda.Event = lambda **_: SimpleNamespace(
        record=lambda *_: None, synchronize=lambda: COUNTS.update(["events"]), wait=lambda *_: None
    )
    torch.cuda.graph_pool_handle = lambda: None
    torch.cuda.CUDAGraph, torch.cuda.graph = Graph, lambda graph, **_: graph.capture()
    torch.utils._foreach_utils._foreach_supported_types.append(OnDevice)
    torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    torch.cuda.device = lambda *_: contextlib.nullcontext()
    torch.backends.cudnn.enabled = False
    torch.inference_mode = lambda *_: torch.no_grad()
    torch.nn.Module._apply = apply_by_replacing
    torch.Tensor.pin_memory = lambda self, *_: self
    torch.Tensor.numpy, torch.Tensor.tolist = numpy_of, list_of
    torch.tensor, torch.as_tensor = moved(torch.tensor), moved(AS_TENSOR)
    Dispatching().__enter__()
    from glscl.train_head import encode_chunks

    note = encode_chunks._Kept._note
    encode_chunks._Kept._note = lambda self, tensor: note(self, held(tensor)) is None or tensor  # it looks at storages
