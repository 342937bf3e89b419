"""Files at an address: listed, read, put, and created only where nothing is.

obstore speaks to S3, GCS and Azure; fsspec to https://, hf:// and memory://, which have no conditional put or need none.
What a network does wrong is tried again for a bounded time; what stays wrong is one of our errors, in one line.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from glscl.common.errors import GlsclError, NotFoundError, StorageError, UsageError, first_line

BUCKETS = {"s3": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "abfs"}  # scheme → obstore's
CONDITIONAL = (*BUCKETS, "memory")  # kinds of address where a put can ask that nothing is there, in one step
TRY_FOR_SECONDS = 90.0  # from the first request on
ANSWER_SECONDS = 60.0  # until a request is answered, and between two pieces of an answer
AT_ONCE = 4  # files
_FORBIDDEN = ("Credential", "Permission", "Unauthenticated", "TokenNotFound", "Gated")  # in names of errors
_OF_MEMORY = threading.Lock()  # fsspec's memory:// has one place of reading for all who read a file
_PIECE = 4 << 20  # bytes that a download holds in memory
_EXTRAS = {**BUCKETS, "abfs": "az", "gcs": "gs", "https": "https", "http": "https"}


class Stamp(NamedTuple):
    """Bytes of a file, and a number that another content would not have: when it was put, ns, or from what its store calls it."""

    size: int
    mark: int


class Files(Protocol):
    """The files of one address. Names are below it; "" is the address itself, where that is a file."""

    def sizes(self, below: str) -> dict[str, int]:
        """Name → bytes of all files below a name, or of the file that it is; empty where there is none."""
        ...

    def stamps(self, below: str) -> dict[str, Stamp]:
        """As `sizes`, with what tells whether a file is still the same."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError."""
        ...

    def part(self, name: str, start: int, length: int) -> bytes:
        """Some bytes of a file, which has as many. Raises FileNotFoundError."""
        ...

    def get(self, name: str, target: Path) -> None:
        """Bring a file to a path here, of which the folder is there."""
        ...

    def put(self, name: str, source: Path | bytes) -> None:
        """Put a file, whatever is there."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Put a file unless one is there, in one step; False where one is."""
        ...

    def age(self, name: str) -> float:
        """Seconds since a file was put."""
        ...

    def delete(self, names: list[str]) -> None:
        """Delete files."""
        ...


def files_at(address: str) -> Files:
    """The files of an address, reached when they are asked for. Raises UsageError: a package is missing."""
    with remote_errors(address, "reach"):
        files = _Bucket(address) if address.partition(":")[0] in BUCKETS else _FileSystem(address)
        return cast(Files, _Persistent(files))


def unsafe(name: str) -> bool:
    """Whether a name below an address would lead out of a folder here, or is none that a file here can have."""
    return bool(name) and (not {"", ".", ".."}.isdisjoint(name.split("/")) or "\0" in name or "\\" in name)


@contextlib.contextmanager
def remote_errors(address: str, doing: str) -> Iterator[None]:
    """Turn whatever libraries raise about an address into one of our errors, in one line."""
    try:
        yield
    except (GlsclError, KeyboardInterrupt):
        raise
    except FileNotFoundError as error:
        if type(error).__name__ == "LocalEntryNotFoundError":  # of the Hub, where it cannot be reached
            raise StorageError(
                f"Cannot {doing} {address}: {first_line(error.__cause__ or error)}",
                first="See that the address is right and the network is well",
            ) from error
        raise NotFoundError(f"There is nothing at {address}") from error
    except ImportError as error:
        extra = _EXTRAS.get(address.partition(":")[0], "https")
        raise UsageError(
            f"{address} needs a package that is not installed: {first_line(error)}",
            hint=f"pip install 'glscl[{extra}]'",
        ) from error
    except Exception as error:  # each store has errors of its own
        text, name = first_line(error), type(error).__name__
        status = getattr(getattr(error, "response", None), "status_code", None)
        if name in ("RepositoryNotFoundError", "RevisionNotFoundError") and status == 404:
            raise NotFoundError(f"There is nothing at {address}, or nothing that you may see") from error
        if "NoSuchBucket" in str(error) or "404 Not Found" in text:
            raise NotFoundError(f"There is nothing at {address}") from error
        if status in (401, 403) or isinstance(error, PermissionError) or any(each in name for each in _FORBIDDEN):
            raise StorageError(
                f"Cannot {doing} {address}: {text or name}", first="See that your credentials allow it"
            ) from error
        raise StorageError(
            f"Cannot {doing} {address}: {text or name}",
            first="See that the address is right and the network is well",
        ) from error


def get_all(files: Files, names: Iterable[str], targets: Iterable[Path]) -> None:
    """Bring several files, a few at once."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(files.get, names, targets))


def put_all(files: Files, names: Iterable[str], sources: Iterable[Path]) -> None:
    """Put several files, a few at once."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(files.put, names, sources))


class _Persistent:
    """Files of which each call is made again where it fails as a network does.

    obstore waits and asks again where a server is busy or not there, but not where the list or file that it sends is cut off,
    nor where a conditional put is not answered; fsspec asks once.
    """

    def __init__(self, files: Files) -> None:
        self._files = files

    def __getattr__(self, name: str) -> Any:
        return partial(_again, getattr(self._files, name))


def _again(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call gives, made up to four times within `TRY_FOR_SECONDS`."""
    begun = time.monotonic()
    for waiting in (0.1, 0.4, 1.6, None):
        try:
            return call(*arguments)
        except (FileNotFoundError, PermissionError, GlsclError, ImportError):
            raise
        except Exception as error:
            final = any(each in type(error).__name__ for each in (*_FORBIDDEN, "NotSupported", "NotFound"))
            if final or "404 Not Found" in str(error) or waiting is None:
                raise
            if time.monotonic() - begun + waiting > TRY_FOR_SECONDS:
                raise
            time.sleep(waiting)


class _Bucket:
    """A place in a bucket of S3, GCS or Azure."""

    def __init__(self, address: str) -> None:
        import obstore  # what it raises where it is missing is told with the extra

        scheme, _, rest = address.partition("://")
        bucket, _, self._at = rest.partition("/")
        self._calls = obstore
        self._store: Any = obstore.store.from_url(
            f"{BUCKETS[scheme]}://{bucket}",
            client_options={
                "allow_http": True,
                "read_timeout": timedelta(seconds=ANSWER_SECONDS),
                "timeout": timedelta(hours=6),  # of a whole answer; what stalls is cut by the other
            },
            retry_config={"max_retries": 10, "retry_timeout": timedelta(seconds=TRY_FOR_SECONDS)},
            **_profile(scheme),
        )

    def _path(self, name: str) -> str:
        return f"{self._at}/{name}".strip("/")

    def sizes(self, below: str) -> dict[str, int]:
        return {name: stamp.size for name, stamp in self.stamps(below).items()}

    def stamps(self, below: str) -> dict[str, Stamp]:
        path = self._path(below)
        found = [each for some in self._calls.list(self._store, path or None) for each in some]
        if not found and path:
            with contextlib.suppress(FileNotFoundError):
                found = [self._calls.head(self._store, path)]
        return {each["path"].removeprefix(self._at).lstrip("/"): _stamp(each) for each in found}

    def read(self, name: str) -> bytes:
        return self._calls.get(self._store, self._path(name)).bytes().to_bytes()

    def part(self, name: str, start: int, length: int) -> bytes:
        return self._calls.get_range(self._store, self._path(name), start=start, length=length).to_bytes()

    def get(self, name: str, target: Path) -> None:
        with open(target, "wb") as file:
            for piece in self._calls.get(self._store, self._path(name)).stream(min_chunk_size=_PIECE):
                file.write(piece)

    def put(self, name: str, source: Path | bytes) -> None:
        self._calls.put(self._store, self._path(name), source, max_concurrency=AT_ONCE)

    def create(self, name: str, data: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError

        try:
            self._calls.put(self._store, self._path(name), data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def age(self, name: str) -> float:
        return _seconds_since(self._calls.head(self._store, self._path(name))["last_modified"])

    def delete(self, names: list[str]) -> None:
        self._calls.delete(self._store, [*map(self._path, names)])


def _stamp(about: Mapping[str, Any]) -> Stamp:
    """From what a store tells of a file."""
    for name in ("last_modified", "LastModified", "mtime", "created"):
        when = about.get(name)
        if isinstance(when, datetime):
            return Stamp(about["size"] or 0, int(when.timestamp() * 1e9))
        if isinstance(when, (int, float)):
            return Stamp(about["size"] or 0, int(when * 1e9))
    named = [
        str(about[name]) for name in ("ETag", "etag", "e_tag", "blob_id", "oid", "Last-Modified") if about.get(name)
    ]
    return Stamp(about["size"] or 0, zlib.crc32(named[0].encode()) if named else 0)


def _seconds_since(moment: datetime) -> float:
    return (datetime.now(UTC) - moment.astimezone(UTC)).total_seconds()


def _profile(scheme: str) -> dict[str, Any]:
    """How credentials of S3 are found: obstore knows the environment and the roles of machines, boto3 profiles of ~/.aws too.

    Raises:
        UsageError: there is a profile, and boto3 is missing.
    """
    names = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE")
    if scheme != "s3" or any(os.environ.get(name) for name in names):
        return {}
    home = Path.home() / ".aws"
    file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials")
    config = Path(os.environ.get("AWS_CONFIG_FILE") or home / "config")
    if not os.environ.get("AWS_PROFILE") and not file.exists() and not config.exists():
        return {}
    if importlib.util.find_spec("boto3") is None:
        raise UsageError(
            "Profiles of ~/.aws are read by boto3, which is not installed; expected AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or boto3",
            hint="pip install boto3",
        )
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return {"credential_provider": Boto3CredentialProvider()}
    except ValueError:  # files of settings without credentials: roles of the machine are left
        return {}


class _FileSystem:
    """A place that fsspec reads."""

    def __init__(self, address: str) -> None:
        from fsspec.core import url_to_fs

        self._system, self._at = url_to_fs(address, use_listings_cache=False, skip_instance_cache=True)
        self._at = self._at.rstrip("/")
        self._turn = _OF_MEMORY if address.startswith("memory:") else contextlib.nullcontext()

    def _path(self, name: str) -> str:
        return f"{self._at}/{name}".rstrip("/")

    def sizes(self, below: str) -> dict[str, int]:
        return {name: stamp.size for name, stamp in self.stamps(below).items()}

    def stamps(self, below: str) -> dict[str, Stamp]:
        path = self._path(below)
        if path.startswith("http"):  # a page that lists files, or a file, which must not be read to be listed
            about = self._system.info(path)
            if not str(about.get("mimetype", "")).startswith("text/html"):
                return {below: _stamp(about)}
        found = self._system.find(path, detail=True)
        return {name.removeprefix(self._at).lstrip("/"): _stamp(about) for name, about in found.items()}

    def read(self, name: str) -> bytes:
        with self._turn:
            return self._system.cat_file(self._path(name))

    def part(self, name: str, start: int, length: int) -> bytes:
        with self._turn:
            data = self._system.cat_file(self._path(name), start=start, end=start + length)
        return data if len(data) <= length else data[start : start + length]  # of a server without ranges

    def get(self, name: str, target: Path) -> None:
        with self._turn:
            self._system.get_file(self._path(name), str(target))

    def put(self, name: str, source: Path | bytes) -> None:
        if isinstance(source, bytes):
            self._system.pipe_file(self._path(name), source)
        else:
            self._system.put_file(str(source), self._path(name))

    def create(self, name: str, data: bytes) -> bool:
        try:
            self._system.pipe_file(self._path(name), data, mode="create")
        except OSError:
            if not self._system.exists(self._path(name)):
                raise
            return False
        return True

    def age(self, name: str) -> float:
        return _seconds_since(self._system.modified(self._path(name)))

    def delete(self, names: list[str]) -> None:
        for name in names:
            self._system.rm_file(self._path(name))
