"""Caches in a bucket of a real S3 server, which runs in this process: reading, extracting, two writers, a server in trouble."""

from __future__ import annotations

import shutil

import made_library
import pytest
import test_mirror

from glscl.cache.creation import create_library
from glscl.cache.mirror import Mirror
from glscl.cache.store import open_store
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
