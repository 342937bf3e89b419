"""What may not be read is not damaged: it is said, nothing is touched, and no reader sends anybody to look for damage."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from glscl.cache.library import open_library
from glscl.cache.reading import read_arrays
from glscl.cache.store import open_store
from glscl.cache.upkeep.merge import merge
from glscl.cache.upkeep.repair import repair
from glscl.cache.upkeep.summary import summarise
from glscl.cache.upkeep.verification import verify
from glscl.commands.caches import inspect
from glscl.commands.options import CommonConfig, Run
from glscl.common.errors import CacheCorruptError, GlsclError, StorageError

NOBODY = 65534
FILES = {  # of somebody else, mode 600
    "hdf5": (
        "shards/video/*.h5",
        "commits/video/*.json",
        "lists/made/*.h5",
        "lists/made/*.json",
        "additions/text/*.txt",
    ),
    "zarr": ("shards/video/*/values/c/0/0", "shards/text/*/pooled/zarr.json", "lists/made/*/text_key/c/0/0"),
}
FOLDERS = {  # that may not be listed
    "hdf5": ("commits/video", "shards/text", "additions/video", "lists/made"),
    "zarr": ("shards/video/*/values/c", "shards/video/*", "commits/text"),
}


@pytest.fixture
def place():
    """A folder that anybody may enter and write to."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


@contextlib.contextmanager
def as_somebody(root: Path):
    """Be a user who owns all below a folder but what may not be read; root is refused nothing."""
    if os.geteuid() != 0:
        yield
        return
    for path in (root, *root.rglob("*")):
        if path.stat().st_mode & 0o077:
            os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Name → size and time of all but locks."""
    found = {path.relative_to(root).as_posix(): path.stat() for path in root.rglob("*")}
    return {name: (at.st_size, at.st_mtime_ns) for name, at in found.items() if not name.startswith("locks")}


def made(small_cache, place: Path, format: str) -> Path:
    """A cache that is whole, and whose readers have imported all that they import."""
    root = place / "cache"
    shutil.copytree(small_cache(format).fill().path, root)
    assert repair(root).clean and verify(open_library(root)) == []
    return root


@pytest.mark.parametrize(
    ("format", "pattern", "mode"),
    [(format, pattern, 0o600) for format, patterns in FILES.items() for pattern in patterns]
    + [(format, pattern, 0o700) for format, patterns in FOLDERS.items() for pattern in patterns],
)
def test_repair_touches_nothing_where_something_may_not_be_read(small_cache, place, format, pattern, mode):
    root = made(small_cache, place, format)
    target, before = sorted(root.glob(pattern))[0], snapshot(root)
    target.chmod(mode if os.geteuid() == 0 else 0)
    try:
        with as_somebody(root):
            for dry_run in (True, False):
                with pytest.raises(StorageError, match="Permission denied") as error:
                    repair(root, dry_run=dry_run)
                assert str(target) in error.value.message or str(target.parent) in error.value.message
    finally:
        target.chmod(0o700)
    assert snapshot(root) == before, "nothing was touched"
    assert repair(root).clean, "nothing was lost"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("format", ["hdf5", "zarr"])
def test_a_pipe_in_the_place_of_any_file_is_not_waited_for(small_cache, format, monkeypatch):
    """Archives may hold pipes, and who opens one to read waits for ever."""
    root, kinds = small_cache(format, videos=4).fill().path, set()
    looks = (
        lambda: verify(open_library(root)),
        lambda: open_store(root).arrays("video"),
        lambda: summarise(open_library(root)),
        lambda: repair(root, dry_run=True),
    )
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)  # who waits is interrupted
    try:
        for file in [path for path in sorted(root.rglob("*")) if path.is_file()]:
            kind = re.sub(r"[0-9a-f]{8,}|-\d{5}|[a-z_]+/(?=c/|zarr)", "", file.relative_to(root).as_posix())
            if kind not in kinds:
                kinds.add(kind)
                aside = file.rename(root.parent / "aside")
                os.mkfifo(file)
                signal.alarm(300)
                for look in looks:
                    with contextlib.suppress(GlsclError):
                        look()
                signal.alarm(0)
                aside.replace(file)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(kinds) > 8 and verify(open_library(root)) == []


@pytest.mark.parametrize("format", ["hdf5", "zarr"])
def test_reading_says_that_it_is_not_allowed_and_sends_nobody_to_look_for_damage(small_cache, place, format):
    root = made(small_cache, place, format)
    target = sorted(root.glob(FILES[format][0]))[0]
    target.chmod(0o600 if os.geteuid() == 0 else 0)
    with as_somebody(root):
        library = open_library(root)
        with pytest.raises(StorageError, match="Permission denied") as error:
            read_arrays(library, "video", ["values"], range(library.stream("video").num_items))
        assert "damage" not in str(error.value) and "Ask its owner" in str(error.value)
        told = verify(open_library(root))
        assert len(told) == 1 and "Permission denied" in told[0], "the other shards are read all the same"
        with pytest.raises(StorageError, match="Cannot read .*Ask its owner"):
            inspect(Run(CommonConfig()), root, verify=True)
        with pytest.raises(
            StorageError, match=f"Cannot read {re.escape(str(target))}: Permission denied. Ask its owner"
        ):
            merge([root], place / "merged", copy=True)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ESTALE, errno.EIO, errno.ENOTCONN])
@pytest.mark.parametrize("format", ["hdf5", "zarr"])
def test_a_network_that_is_gone_and_too_many_open_files_are_no_damage(small_cache, monkeypatch, format, code):
    root = small_cache(format).fill().path
    before = snapshot(root)

    @contextlib.contextmanager
    def fails(path):
        raise OSError(code, os.strerror(code), str(path))
        yield

    monkeypatch.setattr(open_library(root).format, "opened", staticmethod(fails))
    with pytest.raises(StorageError, match=os.strerror(code)):
        repair(root)
    assert snapshot(root) == before


def test_too_little_memory_is_no_damage(small_cache, monkeypatch):
    root = small_cache("hdf5").fill().path

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr("glscl.cache.upkeep.verification._read_back", fails)
    with pytest.raises(StorageError, match="Cannot allocate memory"):
        repair(root)
    assert not (root / "damaged").exists() and open_store(root).complete


def test_what_is_missing_or_cut_short_still_is_damage(small_cache):
    for format, pattern in (("zarr", "shards/video/*/values/c/0/0"), ("hdf5", "shards/video/*.h5")):
        cache = small_cache(format, name=format)
        root = cache.fill().path
        target = sorted(root.glob(pattern))[0]
        target.write_bytes(target.read_bytes()[:-9])
        library = open_library(root)
        with pytest.raises(CacheCorruptError, match="See what is damaged"):
            read_arrays(library, "video", ["values"], range(library.stream("video").num_items))
        assert len(repair(root).damaged) == 1
