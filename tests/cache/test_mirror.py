"""Caches at addresses: read shard by shard, written by conditional puts, pushed and merged; in a store in memory."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import made_library
import pytest
from formats import BOTH, EITHER

from glscl.cache import mirror
from glscl.cache.creation import create_library
from glscl.cache.filling import filling
from glscl.cache.library import open_library
from glscl.cache.mirror import MARK, Mirror
from glscl.cache.planning import begin, work_for
from glscl.cache.store import open_store
from glscl.cache.upkeep.merge import merge
from glscl.cache.upkeep.transfer import push
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import (
    CacheCorruptError,
    CacheIncompleteError,
    FingerprintError,
    NotFoundError,
    StorageError,
    UsageError,
)

ADDRESS = "memory://bucket/cache"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "home"))
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


@pytest.fixture(params=EITHER)
def made(request, tmp_path) -> Path:
    """A cache here, of two shards a stream and more."""
    made_library.Encoder().extract(
        tmp_path / "cache", made_library.PLAIN, made_library.FILES, shard=2, format=request.param
    )
    return tmp_path / "cache"


def shards_here(home: Path) -> list[Path]:
    return sorted((home / "mirror").glob("*/shards/*/*-*-*"))


@pytest.mark.parametrize("made", BOTH, indirect=True)
def test_what_was_pushed_reads_as_the_original(made, tmp_path):
    done = push(made, ADDRESS)
    assert done.shards == 4 and done.there == 0 and list(done.lists) == ["made"]
    library = open_library(ADDRESS)
    assert shards_here(tmp_path / "home") == []  # opening brings no shard
    store = open_store(ADDRESS)
    made_library.require_reads(store, made_library.PLAIN, made_library.FILES)
    assert len(shards_here(tmp_path / "home")) == 4 and verify(library) == []


def test_only_the_shards_that_are_read_are_brought(made, tmp_path):
    push(made, ADDRESS)
    open_store(ADDRESS).arrays("video", ["values", "offsets"], items=range(1))
    (only,) = shards_here(tmp_path / "home")
    assert only.parent.name == "video"
    again = open_store(only.parents[2])  # a mirror is a cache folder that knows where the rest is
    made_library.require_reads(again, made_library.PLAIN, made_library.FILES)


def test_pushing_again_sends_nothing_and_after_a_kill_only_the_rest(made, place, monkeypatch):
    calls = 0
    put = Mirror.put

    def killed(self, name, *source):
        nonlocal calls
        calls += name.startswith("shards/video/") and "-0" in name
        if calls == 2:
            raise KeyboardInterrupt
        put(self, name, *source)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Mirror, "put", killed)
        push(made, ADDRESS)
    with pytest.raises(CacheIncompleteError, match="was never finished"):
        open_store(ADDRESS)
    rest = push(made, ADDRESS)
    assert (rest.shards, rest.there) == (3, 1)
    again = push(made, ADDRESS)
    assert (again.shards, again.there, again.bytes) == (0, 4, 0)
    assert not [name for name in place.store if "partial" in name or "locks" in name or "files.jsonl" in name]


@pytest.mark.parametrize("folder", [*"abc"])
def test_what_a_link_in_a_cache_leads_to_is_not_sent(made, place, tmp_path, folder):
    """At the top, among the lists, within a shard."""
    (tmp_path / "secret").write_text("years of work")
    shard = min((made / "shards" / "video").iterdir())
    found = {"a": made / "backbone", "b": made / "lists" / "more", "c": shard if shard.is_file() else shard / "more"}
    found[folder].unlink(missing_ok=True)
    found[folder].symlink_to(tmp_path / "secret")
    with pytest.raises(StorageError, match="is a link to"):
        push(made, ADDRESS)
    assert not place.find("memory://bucket")


def test_two_caches_pushed_to_one_address_are_both_there(made, tmp_path):
    format = open_library(made).header["format"]
    other = made_library.annotations(("z", "test", ["snow", "rain"]))
    files = {"z": b"four"}
    made_library.Encoder().extract(tmp_path / "other", other, files, name="other", format=format)
    push(made, ADDRESS)
    push(tmp_path / "other", ADDRESS)
    made_library.require_reads(open_store(ADDRESS, "other"), other, files)
    made_library.require_reads(open_store(ADDRESS, "made"), made_library.PLAIN, made_library.FILES)


def test_what_failed_at_the_address_and_went_well_here_in_the_very_same_shard_is_there_afterwards(
    made, place, tmp_path
):
    format = open_library(made).header["format"]
    same = made_library.annotations(*((name, "test", [f"a {name}"]) for name in "abcde"))
    files = {name: name.encode() * 3 for name in "abcde"}
    busy = made_library.Encoder()
    busy.failing = frozenset({files["b"], files["d"], files["e"]})
    busy.extract(tmp_path / "busy", same, files, shard=2, format=format)
    made_library.Encoder().extract(tmp_path / "idle", same, files, shard=2, format=format)
    push(tmp_path / "busy", ADDRESS)
    first = {name: file.getvalue() for name, file in place.store.items()}
    done = push(tmp_path / "idle", ADDRESS)
    assert (done.shards, done.there) == (3, 3)
    assert all(place.store[name].getvalue() == told for name, told in first.items())  # nothing was replaced
    made_library.require_reads(open_store(ADDRESS), same, files)
    assert verify(open_library(ADDRESS)) == []
    assert push(tmp_path / "idle", ADDRESS).shards == push(tmp_path / "busy", ADDRESS).shards == 0
    assert merge([ADDRESS], tmp_path / "busy").shards == 3
    made_library.require_reads(open_store(tmp_path / "busy"), same, files)


def test_a_cache_of_another_encoder_is_not_mixed_in(made, tmp_path):
    push(made, ADDRESS)
    spec = made_library.StoreSpec(
        configuration={"backbone": {"name": "b", "pretrained": "c"}}, embed_dim=4, dtype="float32"
    )
    create_library(tmp_path / "foreign", spec, open_library(made).header["format"])
    with pytest.raises(FingerprintError, match=f"cache at {ADDRESS} was made by another encoder"):
        push(tmp_path / "foreign", ADDRESS)


def test_merging_from_an_address_brings_it_whole(made, tmp_path):
    push(made, ADDRESS)
    done = merge([ADDRESS], tmp_path / "pulled")
    assert done.shards == 4 and not (tmp_path / "pulled" / MARK).exists()
    shutil.rmtree(tmp_path / "home")
    fsspec.filesystem("memory").store.clear()
    made_library.require_reads(open_store(tmp_path / "pulled"), made_library.PLAIN, made_library.FILES)


def test_several_that_bring_one_cache_at_once_all_read_it_whole(made, tmp_path):
    push(made, ADDRESS)
    together = threading.Barrier(4)

    def read(_: int) -> None:
        together.wait()
        made_library.require_reads(open_store(ADDRESS), made_library.PLAIN, made_library.FILES)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    assert len(shards_here(tmp_path / "home")) == 4
    assert not [*(tmp_path / "home" / "mirror" / ".incoming").iterdir()]


def test_what_a_killed_download_left_goes_after_an_hour_and_one_under_way_stays(made, tmp_path):
    push(made, ADDRESS)
    incoming = tmp_path / "home" / "mirror" / ".incoming"
    for name, age in (("killed", 2 * mirror.LATEST_SECONDS), ("slow", 60)):
        file = incoming / name / "shards" / "half"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"half")
        for path in (file, file.parent, incoming / name):
            os.utime(path, (time.time() - age,) * 2)
    os.utime(incoming / "slow", (0, 0))
    open_store(ADDRESS)
    assert [path.name for path in incoming.iterdir()] == ["slow"]


def test_a_shard_that_came_otherwise_than_committed_is_refused_and_not_kept(made, place, tmp_path):
    push(made, ADDRESS)
    start = open_store(made).arrays("video")["values"][0].tobytes()
    (name,) = [name for name, file in place.store.items() if start in file.getvalue()]
    place.pipe_file(name, place.store[name].getvalue().replace(start, start[::-1]))
    with pytest.raises(CacheCorruptError, match="checksum|cannot be read"):
        open_store(ADDRESS).arrays("video")
    assert len(shards_here(tmp_path / "home")) < 2
    place.pipe_file(name, place.store[name].getvalue().replace(start[::-1], start))
    made_library.require_reads(open_store(ADDRESS), made_library.PLAIN, made_library.FILES)


def test_mirrors_stay_within_their_bound(made, tmp_path, monkeypatch):
    push(made, ADDRESS)
    push(made, f"{ADDRESS}-2")
    open_store(ADDRESS).arrays("video")
    old = shards_here(tmp_path / "home")
    used = sum(f.stat().st_size for s in old for f in (s, *s.rglob("*")) if f.is_file())
    monkeypatch.setenv("GLSCL_MIRROR_GB", str(used / 1e9))
    with pytest.raises(StorageError, match="do not fit.* GB are in use; expected room for"):
        open_store(f"{ADDRESS}-2").arrays("video")
    assert shards_here(tmp_path / "home") == old
    monkeypatch.setattr(mirror, "_IN_USE", set())
    for path in old:  # long ago, by another process
        os.utime(path, (1e9, 1e9))
    open_store(f"{ADDRESS}-2").arrays("video")
    assert len(old) == len(shards_here(tmp_path / "home")) and old != shards_here(tmp_path / "home")
    monkeypatch.setenv("GLSCL_MIRROR_GB", "much")
    with pytest.raises(UsageError, match="GLSCL_MIRROR_GB is 'much'; expected gigabytes"):
        open_store(ADDRESS).arrays("video")


def test_a_cache_that_was_replaced_at_its_address_is_read_anew(made, place, tmp_path):
    push(made, ADDRESS)
    open_store(ADDRESS).arrays("video")
    place.store.clear()
    other = made_library.annotations(("z", "test", ["snow"]))
    made_library.Encoder().extract(tmp_path / "new", other, {"z": b"four"}, format=open_library(made).header["format"])
    header = json.loads((tmp_path / "new/store.json").read_bytes()) | {"created": "later"}
    (tmp_path / "new/store.json").write_text(json.dumps(header))
    push(tmp_path / "new", ADDRESS)
    made_library.require_reads(open_store(ADDRESS), other, {"z": b"four"})


def test_nothing_there_is_one_line_and_leaves_nothing_here(tmp_path):
    with pytest.raises(NotFoundError, match=f"^There is no cache at {ADDRESS}"):
        open_store(ADDRESS)
    fsspec.filesystem("memory").pipe_file("/bucket/cache/readme.md", b"x")
    with pytest.raises(NotFoundError, match=f"^{ADDRESS} is not a glscl cache: it has no store.json"):
        open_store(ADDRESS)
    assert not (tmp_path / "home").exists()


def test_names_that_lead_elsewhere_are_not_brought(made, place, tmp_path):
    push(made, ADDRESS)
    place.pipe_file("/bucket/cache/lists/made/..\\..\\x.json", b"{}")
    open_store(ADDRESS)
    assert not list(tmp_path.rglob("*x.json"))


def test_commands_and_what_they_record_name_the_address(made, glscl, tmp_path):
    push(made, ADDRESS)
    for command in ("inspect", "repair"):
        _, text, _ = glscl(command, ADDRESS)
        assert ADDRESS in text and "mirror" not in text
    assert json.loads(glscl("inspect", ADDRESS, "--json")[1])["path"] == ADDRESS
    glscl("eval", "--zero-shot", "--cache", ADDRESS, "--out", tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text())["cache"] == ADDRESS


# --- writing ---------------------------------------------------------------------------------------------------------


def extract_there(address=ADDRESS, *, stop=None, format="zarr", encoder=None, before_commit=lambda: None, **how):
    """What extraction does, with the made-up encoder: list, additions, shards, the list counts."""
    encoder = encoder or made_library.Encoder()
    library = create_library(address, made_library.SPEC, format, **how)
    wanted = made_library.list_of(made_library.PLAIN, made_library.FILES)
    with filling(library, wanted.made, **how) as outcome:
        for stream in ("text", "video"):
            for where in begin(library, work_for(library, stream, wanted.keys[stream]), stream, shard_items=2):
                if stop is not None and stop <= 0:
                    raise KeyboardInterrupt
                before_commit()
                encoder.commit(library, where.addition, where.shard, wanted.files, wanted.texts)
                stop = None if stop is None else stop - 1
    return library, outcome


@pytest.mark.parametrize("format", made_library.FORMATS)
def test_extracting_into_an_address_puts_every_shard_there(tmp_path, format):
    _, outcome = extract_there(format=format)
    assert outcome.finished
    shutil.rmtree(tmp_path / "home")  # another machine
    made_library.require_reads(open_store(ADDRESS), made_library.PLAIN, made_library.FILES)
    assert verify(open_library(ADDRESS)) == []


@pytest.mark.parametrize(
    "elsewhere",
    [pytest.param(False, marks=pytest.mark.exhaustive, id="here"), pytest.param(True, id="on another machine")],
)
@pytest.mark.parametrize("stop", range(4))
def test_killed_anywhere_it_goes_on_and_encodes_nothing_twice(tmp_path, stop, elsewhere):
    encoder = made_library.Encoder()
    with pytest.raises(KeyboardInterrupt):
        extract_there(stop=stop, encoder=encoder)
    if elsewhere:
        shutil.rmtree(tmp_path / "home")
    extract_there(encoder=encoder)
    assert len(encoder.videos) == len(set(encoder.videos)) and len(encoder.texts) == len(set(encoder.texts))
    made_library.require_reads(open_store(ADDRESS), made_library.PLAIN, made_library.FILES)


def test_of_two_writers_the_first_commit_stands(tmp_path, monkeypatch):
    def other_machine():
        if os.environ["GLSCL_HOME"] == str(tmp_path / "home"):
            monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "second"))
            extract_there()
            monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "home"))

    library, _ = extract_there(before_commit=other_machine)
    commits = {name for name in fsspec.filesystem("memory").store if "/commits/" in name and "-0" in name}
    assert len(commits) == 4
    assert verify(library) == []
    made_library.require_reads(open_store(ADDRESS), made_library.PLAIN, made_library.FILES)


def test_a_store_without_conditional_puts_is_refused_before_anything_is_written(monkeypatch, place):
    memory = type(place)
    monkeypatch.setattr(
        memory,
        "pipe_file",
        lambda self, path, value, mode="overwrite", **_: place.store.__setitem__(
            path, fsspec.implementations.memory.MemoryFile(place, path, value)
        ),
    )
    with pytest.raises(UsageError, match=f"^{ADDRESS} cannot be extracted into.*expected conditional puts"):
        create_library(ADDRESS, made_library.SPEC)
    assert list(place.store) == []


@pytest.mark.parametrize("address", ["https://127.0.0.1:9/cache", "hf://datasets/nobody/nothing"])
def test_what_cannot_be_written_or_reached_is_one_line(address):
    with pytest.raises((UsageError, StorageError, NotFoundError)) as told:
        create_library(address, made_library.SPEC)
    assert address in told.value.message and "\n" not in str(told.value)
