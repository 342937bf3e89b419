"""Repair: remains go, damaged shards become pending, good ones are left as they are, and the next writer completes it."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from glscl import cli
from glscl.cache.lock import hold, locks
from glscl.cache.store import open_store
from glscl.cache.upkeep.repair import repair
from glscl.cache.upkeep.verification import verify
from glscl.commands.options import main
from glscl.common.errors import CacheBusyError, UsageError

FORMATS = pytest.mark.parametrize("format", ["zarr", "hdf5"])


def files(root):
    """Every file below a folder with its content."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def damage(store, stream, shard):
    """Flip one bit in the feature data of a shard."""
    where = store.path / store.commits(stream)[shard].path
    target = where / "values" / "c" / "0" / "0" if where.is_dir() else where
    data = bytearray(target.read_bytes())
    with store.format.opened(where) as shard:
        values = shard.read("values").tobytes()
    data[bytes(data).index(values) + len(values) // 2] ^= 4
    target.write_bytes(bytes(data))


def litter(store):
    """What killed writers leave: a half-written shard, a whole one without commit, a half-written file, a dead lock."""
    root = store.path
    (root / "partial").mkdir(exist_ok=True)
    (root / "partial" / "00001-0123abcd.h5").write_bytes(b"half")
    lonely = root / "shards" / "video" / ("00001-deadbeef" + store.format.suffix)
    committed = root / store.commits("video")[1].path
    if committed.is_dir():
        shutil.copytree(committed, lonely)
    else:
        shutil.copy(committed, lonely)
    (root / "commits" / "text" / ".00000.json.0123abcd.tmp").write_bytes(b"{")
    with hold(root, part=(2, 2)) as file:
        told = json.loads(file.read_text()) | {"boot": "another"}
    file.write_text(json.dumps(told))
    return lonely


@FORMATS
def test_a_good_cache_is_not_touched(small_cache, format):
    cache = small_cache(format)
    cache.fill()
    before = files(cache.path)
    assert repair(cache.path).clean
    assert files(cache.path) == before


@FORMATS
def test_remains_are_dropped_and_nothing_else(small_cache, format):
    cache = small_cache(format)
    store = cache.fill()
    before = files(cache.path)
    lonely = litter(store)
    report = repair(cache.path)
    assert files(cache.path) == before
    assert report.partial == ["partial/00001-0123abcd.h5"]
    assert report.unreferenced == [lonely.relative_to(cache.path).as_posix()]
    assert report.temporary == ["commits/text/.00000.json.0123abcd.tmp"]
    assert len(report.locks) == 1 and locks(cache.path) == []
    assert (report.freed_bytes > 1000, report.damaged, report.manifest) == (True, [], "kept")


@FORMATS
def test_damaged_shards_become_pending_and_the_next_writer_makes_the_same_cache(small_cache, format):
    cache = small_cache(format)
    store = cache.fill()
    whole = {stream: store.arrays(stream, raw=True) for stream in ("video", "text")}
    damage(store, "video", 1)
    damage(store, "text", 0)
    good = {name: data for name, data in files(cache.path).items() if "/00002-" in name or "/00000-" in name}
    assert len(verify(store)) >= 2

    report = repair(cache.path)
    assert report.requeued == {"video": [1], "text": [0]}
    assert [(entry["stream"], entry["items"]) for entry in report.damaged] == [("text", [0, 7]), ("video", [4, 8])]
    assert all("values" in entry["problems"][0] for entry in report.damaged)
    assert report.manifest == "withdrawn"
    now = files(cache.path)
    assert all(now[name] == data for name, data in good.items() if "text/00000" not in name)
    assert any(name.startswith("damaged/") and "video/00001" in name for name in now), "set aside, not deleted"

    begun = cache.create()
    assert (begun.pending("video"), begun.pending("text"), verify(begun)) == ([1], [0], [])
    cache.commit(begun, "video", 1)
    cache.commit(begun, "text", 0)
    begun.finish()
    opened = open_store(cache.path)
    for stream, arrays in whole.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(opened.arrays(stream, raw=True)[name], array)
    assert repair(cache.path).clean


@FORMATS
@pytest.mark.parametrize("loss", ["deleted", "truncated"])
def test_a_shard_that_is_gone_or_cut_short_is_made_again(small_cache, format, loss):
    cache = small_cache(format)
    store = cache.fill()
    where = cache.path / store.commits("video")[2].path
    victims = [p for p in where.rglob("*") if p.is_file()] if where.is_dir() else [where]
    if loss == "deleted":
        shutil.rmtree(where) if where.is_dir() else where.unlink()
    else:
        for victim in victims:
            victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    assert repair(cache.path).requeued == {"video": [2], "text": []}
    assert cache.create().pending("video") == [2]


@FORMATS
def test_a_dry_run_says_the_same_and_writes_nothing(small_cache, format):
    cache = small_cache(format)
    store = cache.fill()
    litter(store)
    damage(store, "video", 0)
    before = files(cache.path)
    said = repair(cache.path, dry_run=True)
    assert files(cache.path) == before
    done = repair(cache.path)
    assert said.as_dict() | {"dry_run": False} == done.as_dict()
    assert not done.clean and repair(cache.path).clean


@FORMATS
def test_a_damaged_revision_gives_way_to_the_one_before(small_cache, format):
    cache = small_cache(format)
    store = cache.fill()
    cache.commit(store, "video", 0, revision=1)
    store.finish()
    damage(open_store(cache.path), "video", 0)
    report = repair(cache.path)
    assert [(entry["shard"], entry["revision"]) for entry in report.damaged] == [(0, 1)]
    assert report.requeued == {"video": [], "text": []}
    assert report.manifest == "written"
    opened = open_store(cache.path)
    assert opened.complete and opened.commits("video")[0].revision == 0 and verify(opened) == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"fingerprint": "0"}', b"[]", b'{"streams": 3}'])
def test_a_broken_manifest_is_written_again_from_the_commits(small_cache, content):
    cache = small_cache("hdf5")
    cache.fill()
    whole = json.loads((cache.path / "manifest.json").read_bytes())
    (cache.path / "manifest.json").write_bytes(content)
    assert repair(cache.path).manifest == "written"
    assert json.loads((cache.path / "manifest.json").read_bytes()) == whole


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"stream": "video", "shard": 1, "items": [0, 4]}'])
def test_a_lost_commit_is_known_from_the_manifest(small_cache, content):
    cache = small_cache("hdf5")
    cache.fill()
    commit = cache.path / "commits" / "video" / "00001.json"
    commit.unlink() if content is None else commit.write_bytes(content)
    report = repair(cache.path)
    assert report.restored == ["commits/video/00001.json"]
    assert (report.damaged, report.manifest) == ([], "kept")
    (cache.path / "manifest.json").unlink()
    opened = open_store(cache.path)
    assert opened.complete and verify(opened) == []


def test_a_commit_that_nobody_knows_is_set_aside_with_its_shard(small_cache):
    cache = small_cache("hdf5")
    cache.fill()
    (cache.path / "manifest.json").unlink()
    commit = cache.path / "commits" / "video" / "00001.json"
    commit.write_bytes(b"\x00" * 30)
    report = repair(cache.path)
    assert report.requeued == {"video": [1], "text": []} and report.unreferenced == []
    aside = [name.split("/", 2)[2] for name in files(cache.path) if name.startswith("damaged/")]
    assert aside[0] == "commits/video/00001.json" and aside[1].startswith("shards/video/00001-") and len(aside) == 2
    assert cache.create().pending("video") == [1]


def test_a_commit_that_points_outside_the_cache_cannot_make_repair_move_files_there(small_cache, tmp_path):
    cache = small_cache("hdf5")
    cache.fill()
    precious = tmp_path / "precious.h5"
    precious.write_bytes(b"precious")
    (cache.path / "manifest.json").unlink()
    commit = cache.path / "commits" / "video" / "00000.json"
    commit.write_text(json.dumps(json.loads(commit.read_text()) | {"path": "../precious.h5"}))
    assert repair(cache.path).requeued["video"] == [0]
    assert precious.read_bytes() == b"precious"


def test_a_cache_that_is_not_finished_stays_so(small_cache):
    cache = small_cache("zarr")
    store = cache.create()
    cache.commit(store, "video", 0)
    (cache.path / "partial").mkdir(exist_ok=True)
    (cache.path / "partial" / "00001-0123abcd").mkdir()
    report = repair(cache.path)
    assert (report.manifest, report.partial) == ("none", ["partial/00001-0123abcd"])
    assert cache.create().pending("video") == [1, 2]


def test_a_cache_that_is_being_written_is_left_alone(small_cache):
    cache = small_cache("zarr")
    cache.fill()
    with hold(cache.path):
        for dry_run in (False, True):
            with pytest.raises(CacheBusyError, match=f"process {os.getpid()}"):
                repair(cache.path, dry_run=dry_run)


def test_a_flat_file_is_refused(small_cache, tmp_path):
    from glscl.cache.upkeep.convert import convert

    flat = convert(small_cache("zarr").fill(), tmp_path / "flat.h5")
    with pytest.raises(UsageError, match="convert"):
        repair(flat)


def test_the_command_says_what_it_did_and_how_to_go_on(small_cache, capsys):
    cache = small_cache("hdf5")
    damage(cache.fill(), "video", 1)
    assert main(cli.app, ["inspect", str(cache.path), "--verify"]) == 1
    assert "glscl repair" in capsys.readouterr().err
    assert main(cli.app, ["repair", str(cache.path)]) == 0
    said = capsys.readouterr().out
    assert "set aside video shard 1 (items 4 to 7)" in said and "glscl extract --dataset made" in said
    assert main(cli.app, ["repair", str(cache.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clean"] is True


PIECES = {"logit_scale": np.array([2.5], np.float32), "weight": np.arange(64, dtype=np.float32).reshape(8, 8)}


@pytest.mark.parametrize(
    ("file", "find", "put"),
    [
        ("plan/text.jsonl", b"caption 1 of", b"caption 7 of"),
        ("plan/video.jsonl", b'"train"', b'"brain"'),
        ("plan/video.jsonl", b"\n", b"\xff"),
        ("backbone/pieces.safetensors", np.float32(9).tobytes(), np.float32(-9).tobytes()),
        ("backbone/pieces.safetensors", b'"__metadata__', b'"__netadata__'),
    ],
)
def test_a_damaged_plan_or_backbone_is_found_and_the_next_extraction_writes_it_again(
    small_cache, file, find, put, capsys
):
    cache = small_cache("zarr")
    cache.fill().write_backbone_tensors(PIECES)
    before, path = files(cache.path), cache.path / file
    assert verify(open_store(cache.path)) == []
    path.write_bytes(path.read_bytes().replace(find, put, 1))
    problems = verify(open_store(cache.path))
    assert any(line.startswith(f"{file}: ") for line in problems)
    assert main(cli.app, ["inspect", str(cache.path), "--verify"]) == 1
    capsys.readouterr()

    assert main(cli.app, ["repair", str(cache.path)]) == 0
    said = capsys.readouterr().out
    assert f"set aside {file}: " in said and "glscl extract --dataset made" in said
    assert repair(cache.path).clean and verify(open_store(cache.path)) == []
    store = cache.create()
    assert store.complete and not (cache.path / "manifest.json").exists(), "the extraction has something to do"
    store.write_backbone_tensors(PIECES)
    store.finish()
    assert {name: data for name, data in files(cache.path).items() if not name.startswith("damaged/")} == before


def test_a_plan_that_is_gone_from_a_finished_cache_is_missed(small_cache):
    cache = small_cache("zarr")
    store = cache.fill()
    (cache.path / "plan" / "text.jsonl").unlink()
    assert verify(open_store(cache.path)) == ["plan/text.jsonl: is missing"]
    assert repair(store.path).aside == {"plan/text.jsonl": "is missing"}
    assert repair(store.path).clean


def test_pieces_of_earlier_versions_have_no_checksum_and_are_no_damage(small_cache):
    from safetensors.numpy import save_file

    cache = small_cache("zarr")
    cache.fill()
    (cache.path / "backbone").mkdir()
    save_file(PIECES, cache.path / "backbone" / "pieces.safetensors")
    assert verify(open_store(cache.path)) == []
