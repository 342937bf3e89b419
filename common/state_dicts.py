"""Names and tensors of a checkpoint, whoever wrote it: the one reader for backbones and heads.

Nothing but tensors is ever unpickled, and no code that a file brings is compiled or run. What torch wrote is read by torch with
`weights_only`. A TorchScript archive, as OpenAI published its weights, is never given to `torch.jit.load`, which compiles its
code and lets its classes restore themselves: its pickle is read here, with stand-ins for its classes, and its code is not opened.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glscl.common.archive_limits import check_torch_file
from glscl.common.errors import InputError, NotFoundError

# Where programs put the state dict when they save more than it, in the order in which it is looked for.
_NESTED = ("state_dict", "model_state_dict", "model", "module")
_SCRIPT_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # what OpenAI's archives hold beside weights
_MOST_NAMES = 100_000
# What files that are no checkpoint begin with, what they are, and what to do about it.
_BEGINNINGS = (
    (
        b"version https://git-lfs",
        "a pointer of Git LFS: the weights themselves were not downloaded",
        "Run git lfs pull",
    ),
    (b"PK\x03\x04", "cut short: it begins as a checkpoint of torch and has no end", "Copy or download it again"),
    (b"\x1f\x8b", "packed by gzip", "Unpack it"),
    (b"GGUF", "a GGUF file, which is not read", None),
    (b"\x89HDF", "an HDF5 file, which is not read", None),
    (b"\x93NUMPY", "an array of NumPy, not weights by name", None),
    (b"<", "a web page or XML, not weights", "Download the file itself"),
)
# Names of weights in a folder, as open_clip and transformers write them; a folder of others may hold one file.
FOLDER_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.pth",
    "model.pth",
)
_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_state_dict(path: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """Names and tensors of a checkpoint, on the CPU, in the precision they were saved in.

    Read are what torch saved, zipped or not, safetensors, TorchScript archives, and folders with one of these, in shards or
    whole. A state dict inside a training checkpoint is found; `module.`, `_orig_mod.` and a `model.` before all names are
    taken off.

    Args:
        mapped: read from a file what is looked at alone, and then, where its kind allows it.

    Raises:
        NotFoundError: there is no such file, or none with weights in a folder.
        InputError: it is no checkpoint, is damaged, or holds more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        found: Any = _read_folder(path)
    elif path.is_file():
        found = _read_file(path, mapped=mapped)
    else:
        raise NotFoundError(f"There is no checkpoint {path}")
    found = _unwrapped(found)
    if not isinstance(found, Mapping):
        raise InputError(f"{path} holds a {type(found).__name__}, expected a state dict: names and tensors")
    odd = next((key for key, value in found.items() if not (isinstance(key, str) and isinstance(value, Tensor))), None)
    if any("_packed_params" in str(key) for key in found):
        raise InputError(
            f"{path} holds quantised weights, which are not read", hint="Give the weights in full precision"
        )
    if "optimizer" in found or "param_groups" in found:
        raise InputError(f"{path} holds the state of an optimiser and no weights")
    if odd is not None:
        raise InputError(
            f"{path} is not a state dict: {ascii(odd)[:80]} is a {type(found[odd]).__name__}, expected a tensor"
        )
    if not found:
        raise InputError(f"{path} holds no tensors")
    for key, value in found.items():
        if value.layout is not torch.strided or value.is_quantized:
            raise InputError(f"{path}: {key[:80]} is no plain tensor")
        if value.is_floating_point() and value.element_size() < 2:
            raise InputError(
                f"{path} has {key[:80]} in {value.dtype}: quantised weights are not read",
                hint="Give the weights in full precision",
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(f"{path}: {key[:80]} claims {value.numel()} numbers, more than are stored")
    return plain_names(found)


def plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without what distributed and compiled training put into their names."""
    names = {key: re.sub(r"(^|\.)_orig_mod\.", r"\1", key) for key in weights}
    names = {key: re.sub(r"^(module\.)+", "", name) for key, name in names.items()}
    while all(name.startswith("model.") for name in names.values()):
        names = {key: name.removeprefix("model.") for key, name in names.items()}
    return {names[key]: value for key, value in weights.items()}


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 bytes of all weights: the same for every file they may come in."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        array = value.detach().float().cpu().contiguous().numpy()
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()[:16]


def weights_file(folder: Path) -> Path | None:
    """The file with the weights in a folder: of the usual names the first, else the only one that could be; None if none."""
    usual = next((folder / name for name in FOLDER_FILES if (folder / name).is_file()), None)
    others = [path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt")]
    return usual or (others[0] if len(others) == 1 else None)


def is_script(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
    return any("/code/" in name for name in names) and any(name.endswith("/data.pkl") for name in names)


def _unwrapped(found: Any) -> Any:
    for _ in range(3):
        nested = (found[key] for key in _NESTED if isinstance(found, Mapping) and isinstance(found.get(key), Mapping))
        inner = next(nested, None)
        if inner is None:
            return found
        found = inner
    return found


def _read_folder(folder: Path) -> Any:
    path = weights_file(folder)
    if path is None:
        raise NotFoundError(
            f"{folder} holds no weights", hint=f"Expected is a file such as {', '.join(FOLDER_FILES[:5])}"
        )
    if path.suffix != ".json":
        return _read_file(path)
    try:
        names = set(json.loads(path.read_bytes())["weight_map"].values())
        shards = [folder / name for name in sorted(names) if Path(name).name == name]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} does not say where the weights are: {type(error).__name__}") from error
    missing = next((shard for shard in shards if not shard.is_file()), None)
    if missing or not shards:
        raise NotFoundError(f"There is no {missing or folder / 'shard'}, which {path.name} names")
    return {key: value for shard in shards for key, value in _read_file(shard).items()}


def _read_file(path: Path, *, mapped: bool = False) -> Any:
    if is_script(path):
        return _read_script(path)
    return _read_pickle(path, mapped=mapped) if _is_pickle(path) else _read_safetensors(path)


def _is_pickle(path: Path) -> bool:
    """Whether torch wrote it: a zip archive, or a bare pickle as before torch 1.6.

    One file of safetensors in 32 begins as a pickle does: with the length of its header, of which this is the lowest byte.
    """
    try:
        if zipfile.is_zipfile(path):
            return True
    except zipfile.BadZipFile:  # damaged, but nothing else
        return True
    with open(path, "rb") as opened:
        head = opened.read(9)
    return head[:1] == b"\x80" and not (head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size)


def _read_pickle(path: Path, *, mapped: bool) -> Any:
    try:
        check_torch_file(path)
        zipped = zipfile.is_zipfile(path)
        if zipped and not _has_pickle(path):
            raise InputError(f"{path} is a zip archive, but no checkpoint of torch")
        options = torch.serialization.safe_globals([argparse.Namespace])  # of a program
        with warnings.catch_warnings(action="ignore"), options:  # it reads it or it raises
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipped)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        text = " ".join(str(error).split())
        name = re.search(r"(?:GLOBAL|global) ([\w.]+)", text)
        raise _refused(path, name[1] if name else "") from error
    except Exception as error:  # torch raises whatever it likes on damaged archives
        raise InputError(f"{path} cannot be read as a checkpoint: {first_words(error)}") from error


def _has_pickle(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())


def _refused(path: Path, name: str) -> InputError:
    what = f" ({name[:100]})" if name else ""
    return InputError(
        f"{path} cannot be read as tensors alone: it is damaged or holds other Python objects{what}, and unpickling those "
        "can run any code",
        hint="Save its weights alone, where it was made: torch.save(model.state_dict(), FILE)",
    )


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own, undocumented type
        what, hint = _what_it_is(path)
        raise InputError(f"{path} is {what}", hint=hint) from error


def _what_it_is(path: Path) -> tuple[str, str | None]:
    """What a file is that neither torch nor safetensors reads, by what it begins with; and what to do about it."""
    size = path.stat().st_size
    with open(path, "rb") as opened:
        head = opened.read(1 << 12)
    if not head:
        return "empty: nothing was written or downloaded", None
    for beginning, what, hint in _BEGINNINGS:
        if head.lstrip().startswith(beginning):
            return what, hint
    if head[8:9] == b"{":  # safetensors: the length of its header, and that
        return (
            f"damaged or cut short: safetensors of {size} bytes that do not fit its header",
            "Copy or download it again",
        )
    if b"\0" not in head and head.decode(errors="replace").count("\ufffd") < 2:  # one may be cut at the end
        return "text, not weights", None
    return "neither a torch checkpoint nor safetensors", None


def first_words(error: BaseException) -> str:
    """What a foreign error says first, without colours and control characters, cut between words."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    line = "".join(letter for letter in line if letter.isprintable())
    return line if len(line) <= 200 else f"{line[:200].rpartition(' ')[0] or line[:200]} …"


# --- TorchScript -------------------------------------------------------------------------------------------------------


def _read_script(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of a TorchScript archive, as `torch.jit.load(path).state_dict()` names them.

    Its data.pkl is read by an unpickler that knows tensors, lists and stand-ins for modules; every other name is refused.
    """
    try:
        check_torch_file(path)
        with zipfile.ZipFile(path) as archive:
            (pickled,) = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
            module = _script_module(archive, pickled)
        found = _tensors_of(module)
    except pickle.UnpicklingError as error:
        name = re.search(r"name ([\w.]+)", str(error))
        raise _refused(path, name[1] if name else "") from error
    except Exception as error:  # a damaged pickle makes Python raise nearly anything
        raise InputError(f"{path} cannot be read as a TorchScript archive: {first_words(error)}") from error
    return {key: value for key, value in found.items() if key not in _SCRIPT_NUMBERS}


def _script_module(archive: zipfile.ZipFile, pickled: str) -> Any:
    """The root module as a stand-in that holds its attributes. All it is made of is new for each archive."""
    folder = pickled.removesuffix("data.pkl")

    class Module:
        """Stands for a class of the archive: takes its attributes and does nothing."""

        attributes: Mapping[str, Any] | None = None

        def __setstate__(self, state: Any) -> None:
            self.attributes = state if isinstance(state, dict) else None

    def tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
        return storage.as_strided(tuple(size), tuple(stride), offset)

    def same(value: Any, *_: Any) -> Any:
        return value

    storages: dict[str, Tensor] = {}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module.split(".")[0] == "__torch__":
                return Module
            if module == "torch.jit._pickle" and (name.startswith("build_") or name == "restore_type_tag"):
                return same
            known = {
                ("torch._utils", "_rebuild_tensor_v2"): tensor,
                ("collections", "OrderedDict"): OrderedDict,
                **{("torch", storage): storage for storage in _STORAGES},
            }
            if (module, name) not in known:
                raise pickle.UnpicklingError(f"unknown name {module}.{name}")
            return known[module, name]

        def persistent_load(self, pid: Any) -> Tensor:
            kind, storage, key, *_ = pid
            if kind != "storage" or not re.fullmatch(r"\w+", key):
                raise pickle.UnpicklingError("unknown name persistent")
            if key not in storages:
                data = bytearray(archive.read(f"{folder}data/{key}"))
                dtype = _STORAGES[storage]
                storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            return storages[key]

    with archive.open(pickled) as stream:
        return Unpickler(stream).load()


def _tensors_of(module: Any) -> dict[str, Tensor]:
    """Every tensor below a stand-in, by its dotted name. Raises ValueError for graphs that are no tree of a usual size."""
    found: dict[str, Tensor] = {}
    waiting = [("", module)]
    for _ in range(_MOST_NAMES):
        if not waiting:
            return found
        above, here = waiting.pop()
        for name, value in (getattr(here, "attributes", None) or {}).items():
            if isinstance(value, Tensor):
                found[f"{above}{name}"] = value
            elif hasattr(value, "attributes"):
                waiting.append((f"{above}{name}.", value))
        if len(found) + len(waiting) > _MOST_NAMES:
            break
    raise ValueError(f"its modules are no tree, or more than {_MOST_NAMES}")
