"""Arrays that other programs wrote (`.npy`, `.npz`, `.zip`, `.pt`, `.h5`, `.parquet`, `.pkl`, `.lance`, `.tar`), read as input nobody vouches for.

Nothing that is read can run code: numpy's files are read without pickles, `.pt` by torch's weights-only reader, and
pickles by an unpickler that knows containers, strings, numbers and numpy arrays, whose bytes it puts together itself.
"""

from __future__ import annotations

import codecs
import io
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from glscl.common.archive_limits import check_torch_file, check_unpacked, check_zip
from glscl.common.errors import InputError, NotFoundError, UsageError
from glscl.extract.datasets.text_files import check_memo, read_bytes, show
from glscl.extract.datasets.video_files import VideoFiles
from glscl.extract.decode.jobs import JobPool
from glscl.extract.importing.layouts import NamedReaders, Times, arrange, only
from glscl.extract.importing.samples import TARS, open_samples

TEXTS_SECONDS = 60.0  # for the names in an HDF5 file


@dataclass(frozen=True)
class Arrays:
    """Arrays by name, each read when it is asked for. Obtain it from `open_arrays`.

    Attributes:
        files: of a folder: name → file.
        clocks: name → when its rows are shown, of the entries whose file says so.
        named: of samples in archives: field of their .json → name of the entry → what the sample is called there.
    """

    path: Path
    entries: NamedReaders
    files: dict[str, Path]
    clocks: dict[str, Times] = field(default_factory=dict)
    named: dict[str, dict[str, str]] = field(default_factory=dict)

    def where(self, name: str) -> str:
        """How messages call an entry."""
        if name in self.files:
            return str(self.files[name])
        return f"{self.path}, entry {show(name)}" if name else str(self.path)

    def read(self, name: str) -> np.ndarray:
        """The numbers of one entry as float32, in the shape they have.

        Raises:
            InputError: it cannot be read, holds no floating point numbers, is empty, or has NaN or infinite values.
        """
        array = self._array(name, self.entries[name])
        if array.dtype.kind != "f" or array.itemsize > 8:
            found = "Python objects" if array.dtype.kind == "O" else str(array.dtype)
            raise InputError(
                f"{self.where(name)}: an array of {found}, expected numbers in float16, float32 or float64",
                hint="Save it as one float array a video.",
            )
        if not array.size:
            raise InputError(f"{self.where(name)}: the array is empty, its shape is {array.shape}")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
            array = np.asarray(array, np.float32)
        if not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise InputError(f"{self.where(name)}: {bad} of {array.size} values are NaN or infinite")
        return array

    def times(self, name: str, rows: int) -> np.ndarray | None:
        """Seconds at which the rows of an entry are shown, (rows,) rising; None where its file does not say.

        Raises:
            InputError: they cannot be read, are of another number, or are not numbers from 0 that rise.
        """
        clock = self.clocks.get(name)
        if clock is None:
            return None
        array = self._array(name, clock.read)
        if not array.size and name in self.files:  # a file of features alone
            return None
        if array.dtype.kind not in "fiu" or array.size != rows:
            raise InputError(f"{self.where(name)}: {array.size} times ({array.dtype}) of {rows} frames")
        times = array.reshape(-1).astype(np.float64) * clock.seconds
        if not np.isfinite(times).all() or (times < 0).any() or (np.diff(times) <= 0).any():
            raise InputError(f"{self.where(name)}: its times are not finite numbers from 0 that rise")
        return times

    def _array(self, name: str, read: Callable[[], Any]) -> np.ndarray:
        try:
            value = read()
            return value if isinstance(value, np.ndarray) else _array(value, Budget(self.files.get(name, self.path)))
        except InputError:
            raise
        except Exception as error:  # damaged files raise nearly anything, in five libraries
            raise InputError(f"{self.where(name)}: cannot be read: {_reason(error)}") from None


@contextmanager
def open_arrays(path: Path) -> Iterator[Arrays]:
    """The arrays of one file, or of all files below a folder, which is named as they are (without their extension).

    Nested dictionaries and HDF5 groups give names with slashes, as sub-folders and archives do. Layouts of other extractors
    are read as `arrange` says.

    Raises:
        NotFoundError: nothing is there.
        InputError: the file cannot be read, holds nothing, or is of none of the known kinds.
    """
    if not path.exists():
        raise NotFoundError(f"{path}: no such file or folder", hint=f"Name a file ({_KNOWN}), or a folder of them.")
    with ExitStack() as stack:
        if path.is_dir() and path.suffix.lower() != ".lance":
            yield _of_folder(path, stack)
        elif _is_tar(path.name):
            samples = open_samples(path, stack)
            yield Arrays(path, samples.entries, {}, named=samples.named)
        else:
            entries, clocks = _arranged(path, _entries(path, stack))
            yield Arrays(path, entries, {}, clocks)


def _of_folder(folder: Path, stack: ExitStack) -> Arrays:
    files, shards = _files(folder)
    read: NamedReaders = {name: partial(_only_array, file) for name, file in files.items()}
    entries, clocks = _arranged(folder, read)
    there = {name: files[name] for name in entries if name in files}
    for name, file in there.items():
        if file.suffix.lower() != ".npy" and name not in clocks:
            clocks[name] = Times(partial(_own_times, file), 1.0)
    named: dict[str, dict[str, str]] = {}
    for stem, shard in shards.items():
        samples = open_samples(shard, stack)
        entries |= {f"{stem}/{name}": value for name, value in samples.entries.items()}
        there |= {f"{stem}/{name}": shard for name in samples.entries}
        for key, names in samples.named.items():
            named.setdefault(key, {}).update({f"{stem}/{name}": value for name, value in names.items()})
    return Arrays(folder, entries, there, clocks, named)


def _arranged(path: Path, entries: NamedReaders) -> tuple[NamedReaders, dict[str, Times]]:
    try:
        return arrange(entries, lambda value: _array(value, Budget(path)))
    except InputError:
        raise
    except Exception as error:  # what is in a damaged file shows when it is read
        raise InputError(f"{path}: cannot be read: {_reason(error)}") from None


def _is_tar(name: str) -> bool:
    return name.lower().endswith(TARS)


def _files(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """name → file: relative paths without extension; those of arrays, and those of archives."""
    files: dict[str, Path] = {}
    shards: dict[str, Path] = {}
    for relative in VideoFiles(folder).names:
        if _is_tar(relative):
            end = next(end for end in TARS if relative.lower().endswith(end))
            shards[relative[: -len(end)].removesuffix("_clip_embeddings")] = folder / relative
            continue
        name, dot, suffix = relative.rpartition(".")
        if not dot or f".{suffix.lower()}" not in _READERS:
            continue
        if name in files:
            both = f"{files[name].name} and {Path(relative).name}"
            raise InputError(f"{folder}: {both} are of one name; expected one file")
        files[name] = folder / relative
    if not files and not shards:
        raise InputError(f"{folder}: none of its files is of a known kind: {_KNOWN}")
    return files, shards


def _only_array(path: Path) -> np.ndarray:
    """The one array of a file; with several, the one named `features`."""
    with ExitStack() as stack:
        entries, _ = _arranged(path, _entries(path, stack))
        try:
            return _array(entries[only(entries)](), Budget(path))
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None


def _own_times(path: Path) -> np.ndarray:
    """Seconds of the frames of a file of one video; (0,) where it holds features alone."""
    with ExitStack() as stack:
        _, clocks = _arranged(path, _entries(path, stack))
        clock = next(iter(clocks.values()), None)
        return np.zeros(0) if clock is None else _array(clock.read(), Budget(path)) * clock.seconds


def _entries(path: Path, stack: ExitStack) -> NamedReaders:
    reader = _table if path.suffix.lower() == ".lance" else _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: a file of an unknown kind; known are {_KNOWN}")
    try:
        entries = reader(path, stack)
    except (InputError, UsageError):
        raise
    except Exception as error:  # damaged files raise nearly anything, in five libraries
        raise InputError(f"{path}: cannot be read: {_reason(error)}") from None
    if not entries:
        raise InputError(f"{path}: holds no array")
    return entries


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    if "allow_pickle" in str(error):
        return "it holds Python objects, expected an array of numbers"
    return lines[0][:200] if lines else type(error).__name__


# --- kinds of files ---------------------------------------------------------------------------------------------------


def _npy(path: Path, stack: ExitStack) -> NamedReaders:
    """An array, or what `numpy.save` makes of a dictionary: a pickle behind a header."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)  # np.load would also take other kinds of files
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        dtype = read_header(file)[2]
        if not dtype.hasobject:
            return {"": lambda: np.load(path, allow_pickle=False)}
        return _flat(_unpickled(path, file.read()), Budget(path))


def _unpickled(path: Path, data: bytes) -> Any:
    """The dictionary in an array of one Python object. Raises ValueError for other objects."""
    found = _unpickle(path, data)
    if isinstance(found, PickledArray) and found.shape == () and isinstance(found.data, list) and len(found.data) == 1:
        found = found.data[0]
    if not isinstance(found, dict):
        raise ValueError("it holds Python objects, expected an array of numbers, or a dictionary of arrays")
    return found


def _npz(path: Path, stack: ExitStack) -> NamedReaders:
    check_zip(path)
    archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("it is not an .npz archive")
    stack.enter_context(archive)
    return {name: lambda name=name: archive[name] for name in archive.files}


def _zip(path: Path, stack: ExitStack) -> NamedReaders:
    """A folder of .npy files that was packed; what else is in it is not looked at, as in a folder."""
    check_zip(path)
    archive = stack.enter_context(np.load(path, allow_pickle=False))
    packed = [name for name in archive.zip.namelist() if name.endswith(".npy")]
    names = [name for name in packed if not name.startswith("__MACOSX/")]  # which has one of each
    if not names:
        raise InputError(f"{path}: none of its members is an .npy file", hint="Unpack it, and name the folder")
    return {name.removesuffix(".npy"): lambda name=name: archive[name] for name in names}


def _h5(path: Path, stack: ExitStack) -> NamedReaders:
    import h5py

    objects: Any = import_module("h5py.h5o")  # typed stubs leave it out
    file = stack.enter_context(h5py.File(path, "r"))
    entries: NamedReaders = {}

    def visit(name: bytes, about: Any) -> None:
        if about.type == objects.TYPE_DATASET:  # opened when it is read: an open one takes 15 kB
            text = name.decode("utf-8", "surrogateescape")
            entries[text] = _Dataset(file, text)

    objects.visit(file.id, visit, info=True)
    return entries


@dataclass(frozen=True, slots=True)
class _Dataset:
    """A dataset of an HDF5 file, to be read; there may be a million of them."""

    file: Any
    name: str

    def __call__(self) -> Any:
        return _dataset(self.file, self.name.encode("utf-8", "surrogateescape"))


def _dataset(file: Any, name: bytes) -> Any:
    """The numbers or strings of an HDF5 dataset, if the library may be asked for them; of others only the type."""
    import h5py

    from glscl.cache.formats.hdf5_checks import check_dataset

    found = h5py.h5d.open(file.id, name)  # not h5py.Dataset, which takes as long to make as reading a short video
    dtype = found.dtype
    if dtype.kind == "O" and h5py.check_string_dtype(dtype) is not None:
        return _texts(file, name)
    if dtype.kind not in "fiuS":
        return np.empty(0, dtype)
    check_dataset(found, texts=True)
    space = found.get_space()
    if space.get_simple_extent_type() == h5py.h5s.NULL:
        return np.empty(0, dtype)
    array = np.empty(space.shape, dtype)
    found.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return array


def _texts(file: Any, name: bytes) -> list[bytes]:
    """Strings of variable length, read by a process of their own: the library follows a damaged heap of them in a circle."""
    with JobPool(1, preload=["h5py"]) as pool:
        return pool.submit(_read_texts, file.filename, name, limit=TEXTS_SECONDS).result()


def _read_texts(path: str, name: bytes) -> list[bytes]:
    import h5py

    with h5py.File(path, "r") as file:
        texts = [bytes(text) for text in h5py.Dataset(h5py.h5d.open(file.id, name))[:]]
    if sum(map(len, texts)) > 64 * Path(path).stat().st_size:
        raise ValueError("its names repeat each other to far more than the file holds")
    return texts


class _Rows:
    """The rows of a table of Parquet that belong to each name, which stand one after another; a group is kept at a time."""

    def __init__(self, path: Path, parquet: Any) -> None:
        self._file = parquet.ParquetFile(path)
        groups = [self._file.metadata.row_group(i) for i in range(self._file.num_row_groups)]
        check_unpacked(sum(group.total_byte_size for group in groups), path.stat().st_size)
        self._first = np.cumsum([0, *(group.num_rows for group in groups)])
        self._kept: tuple[int, dict[str, np.ndarray]] = (-1, {})

    def column(self, name: str) -> list[Any]:
        return self._file.read([name]).column(0).to_pylist()

    def __call__(self, column: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of a column of numbers or vectors."""
        parts = []
        for group in range(len(self._first) - 1):
            low, high = max(start, self._first[group]), min(stop, self._first[group + 1])
            if low < high:
                parts.append(self._group(group, column)[low - self._first[group] : high - self._first[group]])
        return np.concatenate(parts)

    def _group(self, group: int, column: str) -> np.ndarray:
        if self._kept[0] != group:
            self._kept = group, {}
        if column not in self._kept[1]:
            self._kept[1][column] = _numbers(self._file.read_row_group(group, columns=[column]).column(0))
        return self._kept[1][column]


class _LanceRows:
    """As `_Rows`, of a data set of Lance."""

    def __init__(self, path: Path, lance: Any) -> None:
        self._data = lance.dataset(str(path))

    def column(self, name: str) -> list[Any]:
        return self._data.to_table(columns=[name]).column(0).to_pylist()

    def __call__(self, column: str, start: int, stop: int) -> np.ndarray:
        return _numbers(self._data.take([*range(start, stop)], columns=[column]).column(0))


def _numbers(column: Any) -> np.ndarray:
    """A column of Arrow as (n,) or (n, D). Raises ValueError for anything else."""
    if column.null_count:
        raise ValueError("a row of it is empty")
    whole, kind = column.combine_chunks(), str(column.type)
    if kind.startswith("struct"):
        raise ValueError(f"a column of {kind}, expected numbers or vectors")
    values = (whole.flatten() if "list" in kind else whole).to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "fiu" or (len(whole) and len(values) % len(whole)):
        raise ValueError(f"a column of {kind}, expected numbers, or vectors of one length")
    return values.reshape(len(whole), -1) if "list" in kind else values


def _table(path: Path, stack: ExitStack) -> NamedReaders:
    """A table whose columns are `name`, `vector`, and perhaps `time` in seconds: what `export` writes."""
    kind = "lance" if path.suffix.lower() == ".lance" else "parquet"
    try:
        module: Any = import_module("lance" if kind == "lance" else "pyarrow.parquet")
    except ImportError as error:
        raise UsageError(
            f"{path} needs {error.name}, which is not installed", hint=f"pip install 'glscl[{kind}]'"
        ) from error
    rows = _LanceRows(path, module) if kind == "lance" else _Rows(path, module)
    columns = {*module.dataset(str(path)).schema.names} if kind == "lance" else {*module.read_schema(path).names}
    if not {"name", "vector"} <= columns:
        raise ValueError(f"its columns are {', '.join(sorted(columns))}; expected name, vector, and perhaps time")
    names = rows.column("name")
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("it has no rows, or a row without a name")
    starts = [0, *(i for i in range(1, len(names)) if names[i] != names[i - 1]), len(names)]
    if len({names[start] for start in starts[:-1]}) < len(starts) - 1:
        raise ValueError("the rows of a name do not stand one after another")
    entries: NamedReaders = {}
    for start, stop in zip(starts, starts[1:]):
        if "time" in columns:
            entries[f"{names[start]}/features"] = partial(rows, "vector", start, stop)
            entries[f"{names[start]}/times"] = partial(rows, "time", start, stop)
        else:
            entries[names[start]] = partial(rows, "vector", start, stop)
    return entries


def _torch(path: Path, stack: ExitStack) -> NamedReaders:
    import torch

    check_torch_file(path)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"(?:GLOBAL|global) ?:? ?([\w.]+)", str(error))
        found = f"it asks for {asked[1]}, which could run code" if asked else _reason(error)
        raise InputError(
            f"{path}: not a file of tensors alone: {found}",
            hint="Save tensors, or a dictionary of tensors, by torch.save",
        ) from None
    return _flat(value, Budget(path))


def _pickle(path: Path, stack: ExitStack) -> NamedReaders:
    return _flat(_unpickle(path, read_bytes(path)), Budget(path))


def _unpickle(path: Path, data: bytes) -> Any:
    try:
        check_memo(data)
        return _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(
            f"{path}: not a pickle of plain containers and numpy arrays: {_reason(error)}",
            hint="Save it as .npz where you trust it: numpy.savez(FILE, **arrays).",
        ) from None


_READERS: dict[str, Callable[[Path, ExitStack], NamedReaders]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".zip": _zip,
    ".pt": _torch,
    ".pth": _torch,
    ".h5": _h5,
    ".hdf5": _h5,
    ".parquet": _table,
    ".pkl": _pickle,
    ".pickle": _pickle,
}
_KNOWN = ", ".join([*_READERS, ".lance", ".tar"])


class Budget:
    """What may be made of a file: containers that refer to each other can claim more than any memory holds.

    Args:
        path: the file; a budget is a multiple of its size.
    """

    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size
        self.left = 64 * self.size + (8 << 20)

    def spend(self, size: int) -> None:
        """Take off one value of `size` bytes. Raises ValueError where nothing is left."""
        self.left -= 64 + size
        if self.left < 0:
            raise ValueError(f"its containers repeat each other to far more than its {self.size} bytes")


def _flat(value: Any, budget: Budget, prefix: str = "") -> NamedReaders:
    """The leaves of nested dictionaries, their keys joined by slashes."""
    budget.spend(len(prefix))
    if not isinstance(value, dict):
        return {prefix: lambda: value}
    entries: NamedReaders = {}
    for key, inner in value.items():
        if isinstance(key, bool) or not isinstance(key, (str, int)):
            raise ValueError(f"the key {show(key)} is not a string")
        entries.update(_flat(inner, budget, f"{prefix}/{key}" if prefix else str(key)))
    return entries


def _array(value: Any, budget: Budget) -> np.ndarray:
    """numpy arrays, torch tensors, pickled arrays, and lists of them, as one array.

    Raises:
        ValueError: anything else, and lists of different shapes.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, PickledArray):
        array = value.array()
        budget.spend(array.nbytes)
        return array
    budget.spend(8)
    if isinstance(value, (list, tuple)):
        parts = [_array(part, budget) for part in value]
        shapes = sorted({part.shape for part in parts})
        if len(shapes) > 1:
            raise ValueError(f"a list of arrays of different shapes, {shapes[0]} and {shapes[-1]}")
        return np.stack(parts) if parts else np.zeros(0)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return np.asarray(float(value))
    if hasattr(value, "is_floating_point"):
        return _of_tensor(value)
    raise ValueError(f"found {show(value)}, expected an array of numbers")


def _of_tensor(value: Any) -> np.ndarray:
    """A torch tensor; numpy knows no bfloat16."""
    _check_tensor(value)
    dense = value.detach().to_dense() if value.is_sparse else value.detach()
    return (dense.float() if dense.is_floating_point() else dense).numpy()


def _check_tensor(value: Any) -> None:
    """Raise ValueError for a tensor that claims far more numbers than it stores: expanded, or sparse."""
    parts = [value._indices(), value._values()] if value.is_sparse else [value]
    stored = sum(part.untyped_storage().nbytes() for part in parts)
    check_unpacked(value.numel() * value.element_size(), stored)


# --- pickles ----------------------------------------------------------------------------------------------------------


class PickledDtype:
    """`numpy.dtype` as a pickle describes it, understood for numbers only."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype:
        if not isinstance(self.code, str) or not re.fullmatch(r"[<>=|]?[fiu]\d", self.code):
            kind = "Python objects" if str(self.code).lstrip("|").startswith("O") else f"type {show(self.code)}"
            raise ValueError(f"an array of {kind}, expected numbers")
        dtype = np.dtype(self.code)
        return dtype.newbyteorder(self.order) if self.order in ("<", ">") else dtype


class PickledArray:
    """`numpy.ndarray` as a pickle describes it: shape, type and bytes."""

    def __init__(self, *_: object) -> None:
        self.shape: Any = ()
        self.dtype: Any = None
        self.data: Any = b""
        self.fortran = False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.shape, self.dtype, self.fortran, self.data = state[-4:]

    def array(self) -> np.ndarray:
        if not isinstance(self.dtype, PickledDtype):
            raise ValueError("a damaged array")
        dtype = self.dtype.numpy()
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        return np.frombuffer(data, dtype).reshape(self.shape, order="F" if self.fortran else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str, *_: object) -> PickledArray:
    array = PickledArray()
    array.shape, array.dtype, array.fortran, array.data = shape, dtype, order == "F", data
    return array


def _scalar(dtype: Any, data: Any) -> PickledArray:
    return _from_buffer(data, dtype, (), "C")


def _latin1(text: str, encoding: str) -> bytes:
    """How old protocols write bytes."""
    if codecs.lookup(encoding).name != "iso8859-1":
        raise pickle.UnpicklingError(f"bytes as {show(encoding)}")
    return text.encode("latin1")


class _Call:
    """A function that a pickle may call and, unlike the function itself, not set attributes of."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("it changes what reads it")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledDtype,
    ("_codecs", "encode"): _Call(_latin1),
    ("collections", "OrderedDict"): dict,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", PickledArray),
            ("multiarray", "scalar", _Call(_scalar)),
            ("numeric", "_frombuffer", _Call(_from_buffer)),
        )
    },
}


class _ArrayUnpickler(pickle.Unpickler):
    """Admits containers, strings, numbers and numpy arrays; whatever else would be imported is refused."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        known = _ADMITTED.get((module_name, global_name))
        if known is None:
            raise pickle.UnpicklingError(f"it asks for {show(f'{module_name}.{global_name}')}, which could run code")
        return known

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside the file")
