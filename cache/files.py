"""Writing that survives being killed: aside, fsynced, then made visible in one step."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import os
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glscl.common.errors import CacheFormatError, StorageError

_ERRNO = re.compile(r"(?:errno =|os error|\[Errno) (\d+)")  # as HDF5, safetensors and shutil quote the system
_ASIDE = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # as `_write_aside` names them
RESERVED_SECONDS = 1.0  # after which a name that was reserved and not filled is nobody's any more
# What the system says of a file that tells nothing of its content, and what is to be done first.
_UNREAD = {
    "Ask its owner for permission to read it": ("EACCES", "EPERM"),
    "Allow more open files (ulimit -n)": ("EMFILE", "ENFILE"),
    "Free some memory": ("ENOMEM",),
    "See that the disk or the network drive is well": (
        "EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EHOSTDOWN", "EHOSTUNREACH",
        "ENETDOWN", "ENETUNREACH", "ENETRESET", "EREMOTEIO", "ENOLINK", "ENODEV", "ENXIO", "EPIPE",
    ),
}  # fmt: skip
_FIRST = {getattr(errno, name): first for first, names in _UNREAD.items() for name in names if hasattr(errno, name)}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@contextlib.contextmanager
def storage_errors(path: os.PathLike[str] | str, doing: str = "write") -> Iterator[None]:
    """Turn what the operating system (or h5py) says about a failing disk into one StorageError."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise _explain(error, path, doing) from error


def _explain(error: OSError, path: os.PathLike[str] | str, doing: str) -> StorageError:
    text, code = str(error), _code(error)
    told = _ERRNO.search(text)
    reason = os.strerror(int(told[1])) if told else (error.strerror or text or type(error).__name__).splitlines()[0]
    place, elsewhere = f"Cannot {doing} {os.fspath(path)}", "Choose another folder with `out`"
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text:
        return StorageError(f"{place}: the disk is full", first="Free some space")
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"{place}: no permission to write there", hint=elsewhere)
    if lost := next((each for each in (Path(path), *Path(path).parents) if _leads_nowhere(each)), None):
        return StorageError(f"{place}: {lost} is a link to {os.readlink(lost)}, which is not there", hint=elsewhere)
    if code in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return StorageError(f"{place}: a file stands where a folder is expected, or the reverse", hint=elsewhere)
    return StorageError(f"{place}: {reason}", first=_FIRST.get(code or 0, "See that the disk is well"))


def _leads_nowhere(path: Path) -> bool:
    """Whether a link stands there to a folder or file that does not."""
    return os.path.islink(path) and not os.path.exists(path)


def _code(error: BaseException) -> int | None:
    """The system's number of an error, which HDF5 and safetensors tell within lines of their own."""
    told = _ERRNO.search(str(error))
    return int(told[1]) if told else getattr(error, "errno", None)


def refuse_unread(error: BaseException, path: os.PathLike[str] | str) -> None:
    """Raise StorageError where a file could not be read for a reason that says nothing of what is in it.

    Not allowed, too many open files, no memory, a network that is gone: whoever catches all that libraries raise on damaged
    files asks this first.

    Args:
        path: of the file, where the error names none.
    """
    link: BaseException | None = error
    while link is not None:
        code = errno.ENOMEM if isinstance(link, MemoryError) else _code(link)
        if code is not None and code in _FIRST:
            where = getattr(link, "filename", None) or path
            raise StorageError(f"Cannot read {os.fsdecode(where)}: {os.strerror(code)}", first=_FIRST[code]) from error
        link = link.__cause__ or link.__context__


def plain(path: Path) -> Path:
    """The path of a file that is to be read, or of nothing.

    Raises:
        OSError: a pipe or a device stands there, as a stranger may pack them: reading would wait, or go on, for ever.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise OSError(errno.EINVAL, "a pipe or a device stands there, expected a file", os.fspath(path))
    return path


def listed(folder: Path, pattern: str = "*") -> list[Path]:
    """What is in a folder by that pattern, in order of the names; nothing where there is no folder.

    Raises:
        StorageError: it cannot be listed, which `Path.glob` takes for empty.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        refuse_unread(error, folder)
        raise StorageError(f"Cannot list {folder}: {error.strerror or error}") from error
    return [folder / name for name in sorted(fnmatch.filter(names, pattern))]


def links_below(root: Path, *, depth: int = sys.maxsize) -> Iterator[Path]:
    """Symbolic links below a folder, none of them followed; `root` itself may be one.

    Args:
        depth: names from `root` to the deepest that are looked at.

    Raises:
        StorageError: a folder cannot be listed.
    """
    folders = [os.fspath(root)]
    while folders and depth > 0:
        level, folders, depth = folders, [], depth - 1
        for folder in level:
            try:
                with os.scandir(folder) as entries:
                    found = list(entries)
            except (FileNotFoundError, NotADirectoryError):  # gone meanwhile, or a flat file
                continue
            except OSError as error:
                refuse_unread(error, folder)
                raise StorageError(f"Cannot look for links in {folder}: {error.strerror or error}") from error
            yield from (Path(entry.path) for entry in found if entry.is_symlink())
            folders += [entry.path for entry in found if entry.is_dir(follow_symlinks=False)]


def refuse_links(root: Path, *, depth: int = sys.maxsize) -> None:
    """Raise StorageError, before anything is written or deleted below `root`, where a link there could lead elsewhere."""
    for link in links_below(root, depth=depth):
        raise _link_refused(link)


def refuse_link(path: Path) -> None:
    """Raise StorageError where a link stands at `path` itself."""
    if path.is_symlink():
        raise _link_refused(path)


def _link_refused(link: Path) -> StorageError:
    return StorageError(
        f"{link} is a link to {os.readlink(link)}, and nothing is written or deleted where a link leads elsewhere",
        hint="Delete the link, or put in its place what it leads to",
    )


def remove(path: Path, root: Path, *, strict: bool = False) -> None:
    """Delete a file or a link, or a folder with all that can be deleted of it; nothing where there is nothing.

    No link is followed below `root`, not even one that appears meanwhile.

    Args:
        path: below `root`.
        strict: raise OSError where something cannot be deleted, or a link stands on the way to it.
    """
    with contextlib.suppress(FileNotFoundError if strict else OSError), _parent(path, root) as folder:
        if stat.S_ISDIR(os.lstat(path.name, dir_fd=folder).st_mode):
            shutil.rmtree(path.name, ignore_errors=not strict, dir_fd=folder)
        else:
            os.unlink(path.name, dir_fd=folder)


@contextlib.contextmanager
def _parent(path: Path, root: Path) -> Iterator[int]:
    """A descriptor of the folder that holds `path`, reached from `root` without following a link."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in path.relative_to(root).parts[:-1]:
            outer, folder = folder, os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(outer)
        yield folder
    finally:
        os.close(folder)


def sync_directory(path: Path) -> None:
    """Make names in a directory durable; silently nothing where the system cannot (Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(path: Path) -> None:
    """fsync one file, or every file and folder below a folder."""
    if path.is_dir():
        for folder, _, files in os.walk(path):
            for name in files:
                _sync_file(Path(folder, name))
            sync_directory(Path(folder))
    else:
        _sync_file(path)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def half_written(folder: Path, *, name: str | None = None) -> list[Path]:
    """Files in `folder` that somebody was still writing when they were killed, or are writing now; all, or those of a name."""
    found = [path for path in listed(folder, ".*.tmp") if _ASIDE.fullmatch(path.name)]
    return [path for path in found if name is None or path.name[1:-13] == name]


def _write_aside(path: Path, data: bytes, *, durable: bool = True) -> Path:
    refuse_link(path)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(aside, "xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return aside


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace `path` by `data`: a reader sees the old content or the new, never half of it.

    Args:
        durable: wait for the disk, so that it is also there after the power fails.

    Raises:
        StorageError: it cannot be written, or a link stands there.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = _write_aside(path, data, durable=durable)
        try:
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        if durable:
            sync_directory(path.parent)


def put_if_absent(path: Path, data: bytes) -> bool:
    """Create `path` with `data` unless it exists; exactly one of several competing writers gets True.

    An empty file does not count as there: see `written`.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = _write_aside(path, data)
        try:
            won = _take_name(aside, path) if data or not path.exists() else False
        finally:
            aside.unlink(missing_ok=True)
        if won:
            sync_directory(path.parent)
        return won


def written(path: Path) -> bool:
    """Whether `path` is there with something in it.

    Where a file system has neither hard links nor a rename that spares what exists, a name is reserved by an empty file
    before the content takes its place; who is killed in between leaves that.
    """
    try:
        return path.stat().st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        refuse_unread(error, path)
        raise


def _take_name(aside: Path, path: Path) -> bool:
    """Give a complete file its name, unless somebody else's has it."""
    try:
        os.link(aside, path)
        return True
    except FileExistsError:
        if written(path):
            return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    renamed = None if path.exists() else _rename_if_absent(aside, path)
    return _reserve(aside, path) if renamed is None else renamed


def _rename_if_absent(source: Path, target: Path) -> bool | None:
    """Rename unless the target exists (Linux: renameat2); None where the system or the file system cannot."""
    import ctypes

    here, no_replace = -100, 1  # AT_FDCWD, RENAME_NOREPLACE
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return None
    if rename(here, os.fsencode(source), here, os.fsencode(target), no_replace) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        return False
    if code in (*_NO_LINKS, errno.EINVAL):
        return None
    raise OSError(code, os.strerror(code), os.fspath(target))


def _reserve(aside: Path, path: Path) -> bool:
    """Reserve the name with an empty file, then replace that; one that stays empty was left by a writer that was killed."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        deadline = time.monotonic() + RESERVED_SECONDS
        while not written(path) and time.monotonic() < deadline:
            time.sleep(0.01)
        if written(path):
            return False
    os.replace(aside, path)
    return True


@contextlib.contextmanager
def utf8_name(path: Path) -> Iterator[str]:
    """A name to read a file by, for libraries that take no other than UTF-8; the file's own where it is that."""
    name = os.fspath(path)
    if name.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in name):
        yield name
        return
    with open(path, "rb") as file:
        yield f"/proc/self/fd/{file.fileno()}"


def dump_json(value: Any, *, indent: int | None = 1) -> bytes:
    """JSON in UTF-8 with a final newline, on one line with `indent` None. ValueError for NaN and infinity.

    Where text holds half surrogates, as Python has them for bytes of a file name that are not UTF-8, all is written in ASCII.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        return f"{text}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(value, indent=indent, allow_nan=False)}\n".encode()


def load_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; anything else is a CacheFormatError naming the file, a failing disk a StorageError."""
    try:
        value = json.loads(plain(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise CacheFormatError(f"{path} is not {what}: {error}") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        refuse_unread(error, path)
        raise StorageError(f"Cannot read {path}: {error.strerror or error}") from error
    if not isinstance(value, dict):
        raise CacheFormatError(f"{path} is not {what}: found a {type(value).__name__}, expected an object")
    return value
