"""Names that are taken once, on file systems with hard links, with a sparing rename alone, and with neither."""

from __future__ import annotations

import errno
import os
import shutil
import threading

import pytest

from glscl.cache import files
from glscl.cache.files import put_if_absent, write_atomically
from glscl.cache.library import open_library
from glscl.cache.store import open_store
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import StorageError


@pytest.fixture(params=["links", "rename", "neither"])
def file_system(request, monkeypatch):
    """What the file system of the test can do; the name of it."""

    def refuse(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if request.param != "links":
        monkeypatch.setattr(os, "link", refuse)
    if request.param == "neither":
        monkeypatch.setattr(files, "_rename_if_absent", lambda *_: None)
    return request.param


def test_one_of_many_writers_wins_and_its_content_is_whole(file_system, tmp_path):
    for number in range(20):
        path, begin, won = tmp_path / f"{number}.json", threading.Barrier(4), []

        def put(writer, path=path, begin=begin, won=won):
            begin.wait()
            won.extend([writer] if put_if_absent(path, bytes([writer]) * 1000) else [])

        writers = [threading.Thread(target=put, args=(w,)) for w in range(1, 5)]
        for each in writers:
            each.start()
        for each in writers:
            each.join()
        assert len(won) == 1 and path.read_bytes() == bytes(won) * 1000
    assert files.half_written(tmp_path) == []


def test_a_name_that_a_killed_writer_reserved_is_given_to_the_next(file_system, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESERVED_SECONDS", 0.02)
    path = tmp_path / "name"
    path.touch()
    assert put_if_absent(path, b"whole") and path.read_bytes() == b"whole"
    assert not put_if_absent(path, b"other") and path.read_bytes() == b"whole"


class Killed(BaseException): ...


def test_a_cache_whose_writer_died_within_any_commit_is_read_and_finished(
    file_system, small_cache, tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "RESERVED_SECONDS", 0.02)
    made, replace, dies = small_cache("hdf5", videos=4, captions=1), os.replace, [True]

    def killed(source, target):
        if dies[0] and file_system == "neither":
            dies[0] = False
            raise Killed
        dies[0] = True
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    for _ in range(40):
        try:
            made.fill()
            break
        except Killed:
            if (made.path / "store.json").stat().st_size:
                assert verify(open_library(made.path)) == []
    assert open_store(made.path).complete and verify(open_library(made.path)) == []
    for pattern in ("commits/*/*.json", "lists/*/*.json", "additions/*/*.txt"):
        assert all(path.stat().st_size for path in made.path.glob(pattern))


def test_what_cannot_take_its_name_leaves_nothing_behind(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(StorageError, match="a file stands where a folder is expected"):
        write_atomically(tmp_path / "run.json", b"{}")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_that_cannot_be_copied_is_told_as_a_file_is(tmp_path, monkeypatch):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "x").write_text("")

    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(StorageError, match="Cannot write there: no permission"), files.storage_errors("there"):
        shutil.copytree(tmp_path / "from", tmp_path / "to", copy_function=refused)


def test_a_link_to_a_disk_that_is_gone_is_named(tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "scratch" / "runs")
    with pytest.raises(StorageError, match=r"runs is a link to .*scratch/runs, which is not there"):
        write_atomically(tmp_path / "runs" / "a" / "run.json", b"{}")
