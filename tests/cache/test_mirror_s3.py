"""Caches in a bucket of a real S3 server, which runs in this process: reading, extracting, two writers, a server in trouble."""

from __future__ import annotations

import shutil
import time

import made_library
import pytest
import test_mirror
from faulty_server import faulty

from glscl.cache import mirror
from glscl.cache.creation import create_library
from glscl.cache.filling import filling
from glscl.cache.library import open_library
from glscl.cache.mirror import Mirror
from glscl.cache.store import open_store
from glscl.cache.upkeep.repair import repair
from glscl.cache.upkeep.transfer import push
from glscl.common import remote
from glscl.common.errors import NotFoundError, StorageError, UsageError

obstore = pytest.importorskip("obstore", reason="obstore is not installed: pip install 'glscl[s3]'")
moto_server = pytest.importorskip(
    "moto.server", reason="moto is not installed: pip install 'moto[s3]' flask flask-cors"
)
ADDRESS = "s3://bucket/some/cache"


@pytest.fixture(scope="module")
def server():
    found = moto_server.ThreadedMotoServer(port=0, verbose=False)
    found.start()
    host, port = found.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    found.stop()


@pytest.fixture(autouse=True)
def bucket(server, tmp_path, monkeypatch):
    """An empty bucket, by the variables that every client of S3 knows."""
    import urllib.request

    for name, value in {
        "GLSCL_HOME": tmp_path / "home",
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, str(value))
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST"))
    urllib.request.urlopen(urllib.request.Request(f"{server}/bucket", method="PUT"))


def test_a_cache_is_extracted_into_a_bucket_and_read_from_another_machine(tmp_path):
    encoder = made_library.Encoder()
    with pytest.raises(KeyboardInterrupt):
        test_mirror.extract_there(ADDRESS, stop=2, encoder=encoder)
    shutil.rmtree(tmp_path / "home")
    test_mirror.extract_there(ADDRESS, encoder=encoder)
    assert len(encoder.videos) == len(set(encoder.videos)) == 3
    shutil.rmtree(tmp_path / "home")
    made_library.require_reads(open_store(ADDRESS), made_library.PLAIN, made_library.FILES)


def test_of_several_puts_of_one_name_exactly_one_wins():
    first, second = Mirror.at(ADDRESS), Mirror.at(ADDRESS)
    assert first.put_if_absent("commits/x.json", b"1") and not second.put_if_absent("commits/x.json", b"2")
    assert first.put_if_absent("commits/x.json", b"1")  # its own, of which the answer was lost
    first.require_conditional_puts()
    assert list(second.listing()) == ["commits/x.json"]


def test_a_pushed_cache_reads_from_the_bucket(tmp_path):
    made_library.Encoder().extract(tmp_path / "cache", made_library.PLAIN, made_library.FILES, shard=2, format="hdf5")
    assert push(tmp_path / "cache", ADDRESS).shards == 4
    assert push(tmp_path / "cache", ADDRESS).bytes == 0
    made_library.require_reads(open_store(ADDRESS), made_library.PLAIN, made_library.FILES)


@pytest.mark.parametrize("address", ["s3://nobodys/cache", "s3://bucket/other"])
def test_a_bucket_or_cache_that_is_not_there_is_one_line(address):
    with pytest.raises(NotFoundError, match=f"^There is (nothing|no cache) at {address}"):
        open_store(address)


def test_a_server_that_is_gone_is_one_line_and_loses_nothing(tmp_path, monkeypatch, server):
    made_library.Encoder().extract(tmp_path / "cache", made_library.PLAIN, made_library.FILES, shard=2)
    push(tmp_path / "cache", ADDRESS)
    store = open_store(ADDRESS)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(remote, "TRY_FOR_SECONDS", 0.5)
    with pytest.raises(StorageError, match=f"^Cannot list {ADDRESS}: .*network") as told:
        open_store(ADDRESS)
    assert "\n" not in str(told.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    made_library.require_reads(store, made_library.PLAIN, made_library.FILES)


def test_a_store_that_ignores_the_condition_is_refused(monkeypatch):
    put = obstore.put
    monkeypatch.setattr(obstore, "put", lambda *args, mode="overwrite", **more: put(*args, **more))
    with pytest.raises(UsageError, match="expected conditional puts"):
        create_library(ADDRESS, made_library.SPEC)
    assert Mirror.at(ADDRESS).listing() == {}


# --- a network that is not well ----------------------------------------------------------------------------------------


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(remote, "TRY_FOR_SECONDS", 8.0)
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 1.5)


def rarely(*values):
    return pytest.param(*values, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(
    ("kind", "every"),
    [("lost", 3), ("half", 3), *(rarely(*case) for case in (("503", 3), ("slow", 2), ("cut", 3), ("silent", 17)))],
)
def test_what_a_network_does_wrong_now_and_then_loses_nothing(server, tmp_path, monkeypatch, hurried, kind, every):
    encoder = made_library.Encoder()
    with faulty(server, lambda number, *_: kind if number % every == every - 1 else None) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        _, outcome = test_mirror.extract_there(ADDRESS, encoder=encoder, format="hdf5")
        shutil.rmtree(tmp_path / "home")
        made_library.require_reads(open_store(ADDRESS), made_library.PLAIN, made_library.FILES)
    assert outcome.finished and len(encoder.videos) == len(set(encoder.videos)) == 3


@pytest.mark.parametrize(
    ("method", "kind"),
    [("PUT", "lost"), ("GET", "500"), *(rarely("PUT", kind) for kind in ("500", "cut", "silent"))]
    + [rarely("GET", kind) for kind in ("lost", "cut", "silent")],
)
def test_a_network_that_stays_away_is_one_line_in_time_and_the_rest_is_made_later(
    server, tmp_path, monkeypatch, hurried, kind, method
):
    monkeypatch.setattr(remote, "TRY_FOR_SECONDS", 0.5)
    encoder = made_library.Encoder()
    started = time.monotonic()

    def after_a_shard(number: int, asked: str, path: str) -> str | None:
        return kind if asked == method and len(encoder.videos) > 1 else None

    with faulty(server, after_a_shard) as address, pytest.raises(StorageError) as told:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        test_mirror.extract_there(ADDRESS, encoder=encoder, format="hdf5")
    assert time.monotonic() - started < 40
    assert (
        ADDRESS in told.value.message
        and "\n" not in str(told.value)
        and "run the same command again" in str(told.value)
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    test_mirror.extract_there(ADDRESS, encoder=encoder, format="hdf5")
    shutil.rmtree(tmp_path / "home")
    made_library.require_reads(open_store(ADDRESS), made_library.PLAIN, made_library.FILES)
    assert len(encoder.videos) <= 3 + 2  # the shard under way, of two, may be made again


def test_one_writer_needs_no_conditional_puts(tmp_path, monkeypatch):
    put = obstore.put
    monkeypatch.setattr(obstore, "put", lambda *args, mode="overwrite", **more: put(*args, **more))
    made = made_library.list_of(made_library.PLAIN, made_library.FILES).made
    library = create_library(ADDRESS, made_library.SPEC, "hdf5", single_writer=True)
    with pytest.raises(UsageError, match="`single_writer`"), filling(library, made):
        pass
    encoder = made_library.Encoder()
    with pytest.raises(KeyboardInterrupt):
        test_mirror.extract_there(ADDRESS, stop=2, encoder=encoder, format="hdf5", single_writer=True)
    test_mirror.extract_there(ADDRESS, encoder=encoder, format="hdf5", single_writer=True)
    assert len(encoder.videos) == len(set(encoder.videos)) == 3
    shutil.rmtree(tmp_path / "home")
    made_library.require_reads(open_store(ADDRESS), made_library.PLAIN, made_library.FILES)


def test_shards_of_killed_writers_are_deleted_by_repair_unless_they_are_new(monkeypatch):
    create = Mirror.put_if_absent

    def killed(self, name, data):
        if name.startswith("commits/video"):
            raise KeyboardInterrupt
        return create(self, name, data)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Mirror, "put_if_absent", killed)
        test_mirror.extract_there(ADDRESS, format="hdf5")
    test_mirror.extract_there(ADDRESS, format="hdf5")
    root = open_library(ADDRESS).path
    assert repair(root).clean
    monkeypatch.setattr(mirror, "LATEST_SECONDS", -5.0)
    before = Mirror.at(ADDRESS).listing()
    (left,) = repair(root, dry_run=True).unreferenced
    assert push(root, ADDRESS).forgotten == 1
    done = repair(root)
    assert done.unreferenced == [left] and done.freed_bytes == before[left] and done.cache == ADDRESS
    assert Mirror.at(ADDRESS).listing() == {name: size for name, size in before.items() if name != left}
    assert repair(root).clean
    made_library.require_reads(open_store(ADDRESS), made_library.PLAIN, made_library.FILES)
