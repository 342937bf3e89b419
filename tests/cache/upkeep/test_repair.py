"""Repair: remains go, damaged files are set aside, good ones are left as they are, and the next writer completes it."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from formats import BOTH, EITHER
from made_library import FILES, PLAIN, Encoder, annotations, require_reads

from glscl import cli
from glscl.cache.commits import all_commits_file, commit_file
from glscl.cache.library import open_library
from glscl.cache.lock import hold, locks
from glscl.cache.store import open_store
from glscl.cache.upkeep.convert import convert
from glscl.cache.upkeep.merge import merge
from glscl.cache.upkeep.repair import repair
from glscl.cache.upkeep.verification import verify
from glscl.commands.options import main
from glscl.common.errors import CacheBusyError, CacheIncompleteError, UsageError

FORMATS = pytest.mark.parametrize("format", EITHER)


def files(root):
    """Every file below a folder with its content."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def kept(root):
    return {name: data for name, data in files(root).items() if not name.startswith("damaged/")}


def shard_file(cache, stream, shard):
    addition = cache.addition(stream)
    return cache.path / open_library(cache.path).stream(stream).commits[addition.name, shard].path


def damage(cache, stream, shard):
    """Flip one bit in the feature data of a shard."""
    where = shard_file(cache, stream, shard)
    target = where / "values" / "c" / "0" / "0" if where.is_dir() else where
    data = bytearray(target.read_bytes())
    with open_library(cache.path).format.opened(where) as opened:
        values = opened.read("values").tobytes()
    data[bytes(data).index(values) + len(values) // 2] ^= 4
    target.write_bytes(bytes(data))


def single(cache, stream, shard):
    return commit_file(cache.path, stream, cache.addition(stream).name, shard)


def gathered(cache, stream):
    return all_commits_file(cache.path, stream, cache.addition(stream).name)


def name_of(cache, path):
    return path.relative_to(cache.path).as_posix()


def litter(cache):
    """What killed writers leave: half a shard, a whole one without commit, arrays of a list, half a file, a dead lock."""
    root, suffix = cache.path, open_library(cache.path).format.suffix
    (root / "partial").mkdir(exist_ok=True)
    (root / "partial" / "00001-0123abcd.h5").write_bytes(b"half")
    committed = shard_file(cache, "video", 1)
    lonely = committed.with_name(committed.name[:22] + "-deadbeef" + suffix)
    arrays = root / "lists" / "made" / f"0123456789abcdef{suffix}"
    for source, target in ((committed, lonely), (root / "lists" / "made" / f"{cache.list.hash}{suffix}", arrays)):
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    (root / "commits" / "text" / ".00000.json.0123abcd.tmp").write_bytes(b"{")
    (root / "lists" / "made" / ".current.0123abcd.tmp").write_bytes(b"01")
    (root / "additions" / "text" / "0123456789abcdef.txt").write_bytes(b"")  # a name that was taken and not filled
    with hold(root, part=(2, 2)) as file:
        told = json.loads(file.read_text()) | {"boot": "another"}
    file.write_text(json.dumps(told))
    return lonely, arrays


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
    cache.fill()
    before = files(cache.path)
    lonely, arrays = litter(cache)
    report = repair(cache.path)
    assert files(cache.path) == before
    assert report.partial == ["partial/00001-0123abcd.h5"]
    assert report.unreferenced == [name_of(cache, lonely), name_of(cache, arrays)]
    assert sorted(report.temporary) == [
        "additions/text/0123456789abcdef.txt",
        "commits/text/.00000.json.0123abcd.tmp",
        "lists/made/.current.0123abcd.tmp",
    ]
    assert len(report.locks) == 1 and locks(cache.path) == []
    assert (report.freed_bytes > 1000, report.damaged, report.withdrawn, report.resume) == (True, [], [], [])


@pytest.mark.parametrize("format", BOTH)
def test_damaged_shards_become_pending_and_the_next_writer_makes_the_same_cache(small_cache, format):
    cache = small_cache(format)
    store = cache.fill()
    whole = {stream: store.arrays(stream, raw=True) for stream in ("video", "text")}
    damage(cache, "video", 1)
    damage(cache, "text", 0)
    moved = {stream: cache.addition(stream).name for stream in ("video", "text")}
    good = {name: data for name, data in files(cache.path).items() if "-00002" in name or "lists/" in name}
    assert len(verify(open_library(cache.path))) == 2

    report = repair(cache.path)
    assert report.requeued == {"video": [f"{moved['video']}-00001"], "text": [f"{moved['text']}-00000"]}
    assert [(entry["stream"], entry["items"]) for entry in report.damaged] == [("text", [0, 7]), ("video", [4, 8])]
    assert all("values" in entry["problems"][0] for entry in report.damaged)
    assert report.withdrawn == sorted(name_of(cache, gathered(cache, stream)) for stream in moved)
    now = files(cache.path)
    assert all(now[name] == data for name, data in good.items())
    aside = {name.split("/", 2)[2] for name in now if name.startswith("damaged/")}
    assert any(name.startswith(f"shards/video/{moved['video']}-00001") for name in aside), "set aside, not deleted"
    assert {*report.withdrawn, f"commits/video/{moved['video']}-00001.json"} <= aside
    assert [hint.command for hint in report.resume] == [cache.command]
    with pytest.raises(CacheIncompleteError, match="7 of 11 video items of the list made"):
        open_store(cache.path).require_complete()

    begun = cache.create()
    assert (cache.pending(begun, "video"), cache.pending(begun, "text"), verify(begun)) == ([1], [0], [])
    cache.commit(begun, "video", 1)
    cache.commit(begun, "text", 0)
    opened = cache.finish(begun)
    for stream, arrays in whole.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(opened.arrays(stream, raw=True)[name], array)
    assert repair(cache.path).clean


@FORMATS
@pytest.mark.parametrize("loss", ["deleted", "truncated"])
def test_a_shard_that_is_gone_or_cut_short_is_made_again(small_cache, format, loss):
    cache = small_cache(format)
    cache.fill()
    where = shard_file(cache, "video", 2)
    victims = [p for p in where.rglob("*") if p.is_file()] if where.is_dir() else [where]
    if loss == "deleted":
        shutil.rmtree(where) if where.is_dir() else where.unlink()
    else:
        for victim in victims:
            victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    assert repair(cache.path).requeued == {"video": [f"{cache.addition('video').name}-00002"], "text": []}
    assert cache.pending(cache.create(), "video") == [2]


@FORMATS
def test_a_dry_run_says_the_same_and_writes_nothing(small_cache, format):
    cache = small_cache(format)
    cache.fill()
    litter(cache)
    damage(cache, "video", 0)
    single(cache, "text", 1).unlink()
    gathered(cache, "video").write_bytes(b"{}")
    before = files(cache.path)
    said = repair(cache.path, dry_run=True)
    assert files(cache.path) == before
    done = repair(cache.path)
    assert said.as_dict() | {"dry_run": False} == done.as_dict() and said.resume == done.resume
    assert not done.clean and repair(cache.path).clean


@FORMATS
def test_what_was_tried_again_gives_way_to_what_was_there_before(tmp_path, format):
    """A shard that held the better item of a key is set aside: the other item counts again."""
    encoder, root = Encoder(), tmp_path / "cache"
    encoder.extract(root, PLAIN, FILES, format=format)
    extra = annotations(("a", "train", ["a dog", "new"]), ("z", "train", []))
    encoder.extract(tmp_path / "other", extra, {"a": b"one", "z": b"zzz"}, format=format)
    merge([tmp_path / "other"], root)
    library = open_library(root)
    first = min(a.name for a in library.stream("video").additions)
    for commit in library.stream("video").commits.values():
        if commit.addition == first:
            path = root / commit.path
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert repair(root).requeued["video"]
    store = open_store(root, "made")
    row = store.ids("video").index("a")
    assert store.status()[row] == 0 and store.numbers["video"][row] >= 0, "a stands in the other addition too"


@pytest.mark.parametrize("content", [b"{", b'{"addition": "0"}', b"[]", b'{"commits": 3}'])
def test_broken_gathered_commits_are_written_again(small_cache, content):
    cache = small_cache("hdf5")
    cache.fill()
    path = gathered(cache, "video")
    whole = path.read_bytes()
    path.write_bytes(content)
    report = repair(cache.path)
    assert (report.restored, report.withdrawn, report.damaged) == ([name_of(cache, path)], [], [])
    assert path.read_bytes() == whole and repair(cache.path).clean


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"stream": "video", "shard": 1, "items": [0, 4]}'])
def test_a_lost_commit_is_known_from_the_gathered_ones(small_cache, content):
    cache = small_cache("hdf5")
    cache.fill()
    commit = single(cache, "video", 1)
    commit.unlink() if content is None else commit.write_bytes(content)
    report = repair(cache.path)
    assert report.restored == [name_of(cache, commit)]
    assert (report.damaged, report.withdrawn) == ([], [])
    gathered(cache, "video").unlink()
    opened = open_store(cache.path)
    assert opened.complete and verify(opened.library) == []


def test_a_commit_that_nobody_knows_is_set_aside_with_its_shard(small_cache):
    cache = small_cache("hdf5")
    cache.fill()
    gathered(cache, "video").unlink()
    commit = single(cache, "video", 1)
    commit.write_bytes(b"\x00" * 30)
    report = repair(cache.path)
    addition = cache.addition("video").name
    assert report.requeued == {"video": [f"{addition}-00001"], "text": []} and report.unreferenced == []
    aside = [name.split("/", 2)[2] for name in files(cache.path) if name.startswith("damaged/")]
    assert aside[0] == name_of(cache, commit) and aside[1].startswith(f"shards/video/{addition}-00001-")
    assert len(aside) == 2 and cache.pending(cache.create(), "video") == [1]


def test_no_shard_that_was_committed_is_deleted_when_all_that_names_it_is_lost(small_cache):
    cache = small_cache("hdf5")
    cache.fill()
    gathered(cache, "video").write_bytes(b"{")
    single(cache, "video", 1).unlink()
    shard = next((cache.path / "shards" / "video").glob(f"{cache.addition('video').name}-00001-*"))
    report = repair(cache.path)
    assert report.requeued["video"] == [f"{cache.addition('video').name}-00001"] and report.unreferenced == []
    assert any(name.endswith(shard.name) for name in files(cache.path) if name.startswith("damaged/"))


def test_a_commit_that_points_outside_the_cache_cannot_make_repair_move_files_there(small_cache, tmp_path):
    cache = small_cache("hdf5")
    cache.fill()
    precious = tmp_path / "precious.h5"
    precious.write_bytes(b"precious")
    gathered(cache, "video").unlink()
    commit = single(cache, "video", 0)
    for path in ("../precious.h5", "lists/made/current", f"shards/text/{cache.addition('video').name}-00000-x.h5"):
        told = json.loads(commit.read_text()) | {"path": path}
        (cache.path / "kept").mkdir(exist_ok=True)
        commit.write_text(json.dumps(told))
        report = repair(cache.path, dry_run=True)
        assert report.requeued["video"] == [f"{cache.addition('video').name}-00000"]
    assert repair(cache.path).requeued["video"] == [f"{cache.addition('video').name}-00000"]
    assert precious.read_bytes() == b"precious" and (cache.path / "lists" / "made" / "current").exists()


@FORMATS
@pytest.mark.parametrize("loss", ["deleted", "changed"])
@pytest.mark.parametrize("shards", ["one", "several"])
def test_a_lost_addition_is_written_again_from_its_shards(small_cache, format, loss, shards):
    cache = small_cache(format)
    if shards == "one":
        cache.shard_items = {"video": 128, "text": 2048}
    cache.fill()
    before = files(cache.path)
    for stream in ("video", "text"):
        path = cache.path / "additions" / stream / f"{cache.addition(stream).name}.txt"
        path.unlink() if loss == "deleted" else path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    assert len(verify(open_library(cache.path))) >= 2
    report = repair(cache.path)
    assert report.restored == [f"additions/{stream}/{cache.addition(stream).name}.txt" for stream in ("text", "video")]
    assert (report.damaged, report.aside, report.withdrawn) == ([], {}, [])
    assert kept(cache.path) == before and verify(open_library(cache.path)) == [] and repair(cache.path).clean


@FORMATS
def test_of_an_addition_that_cannot_be_written_again_all_is_set_aside(tmp_path, format):
    encoder, root = Encoder(), tmp_path / "cache"
    wanted = annotations(*((f"v{n}", "train", []) for n in range(7)))
    contents = {f"v{n}": b"%d" % n for n in range(7)}
    encoder.extract(root, wanted, contents, commits=2, format=format)  # a shard is pending, so not all keys are known
    (addition,) = (root / "additions" / "video").iterdir()
    addition.write_bytes(addition.read_bytes()[:-33])
    before = files(root)
    report = repair(root)
    assert report.requeued["video"] == [f"{addition.stem}-00000", f"{addition.stem}-00001"]
    assert list(report.aside) == [f"additions/video/{addition.name}"] and report.unreferenced == []
    aside = {name.split("/", 2)[2] for name in files(root) if name.startswith("damaged/")}
    assert {*kept(root), *aside} == before.keys(), "nothing is deleted"
    require_reads(encoder.extract(root, wanted, contents, format=format), wanted, contents)
    assert repair(root).clean


@FORMATS
@pytest.mark.parametrize("what", ["record", "arrays", "current"])
def test_a_damaged_list_is_set_aside_and_written_again_by_its_command(small_cache, format, what):
    cache = small_cache(format)
    cache.fill()
    before, folder = files(cache.path), cache.path / "lists" / "made"
    if what == "record":
        path = folder / f"{cache.list.hash}.json"
        path.write_bytes(path.read_bytes().replace(b'"crc32": 1', b'"crc32": 2').replace(b'"crc32": 3', b'"crc32": 4'))
    elif what == "current":
        (folder / "current").write_bytes(b"0123456789abcdef\n")
    else:
        path = next(p for p in sorted(folder.glob(f"{cache.list.hash}*")) if p.suffix != ".json")
        path = path / "text_bytes" / "c" / "0" if path.is_dir() else path
        path.write_bytes(path.read_bytes().replace(b"caption 1 of", b"caption 7 of", 1))
    problems = verify(open_library(cache.path))
    assert problems and all(line.startswith("lists/made/") for line in problems)
    report = repair(cache.path)
    assert report.aside and all(name.startswith("lists/made/") for name in report.aside)
    assert (report.damaged, report.withdrawn) == ([], []), "no shard suffers"
    assert [hint.command for hint in report.resume] == [cache.command]
    assert repair(cache.path).clean and verify(open_library(cache.path)) == []
    cache.create()
    cache.finish(open_library(cache.path))
    assert {name: data for name, data in kept(cache.path).items() if not name.endswith(".h5")} == {
        name: data for name, data in before.items() if not name.endswith(".h5")
    }


def test_a_cache_that_is_not_finished_stays_so(small_cache):
    cache = small_cache("zarr")
    library = cache.create()
    cache.commit(library, "video", 0)
    (cache.path / "partial" / "00001-0123abcd").mkdir()
    report = repair(cache.path)
    assert (report.withdrawn, report.partial, report.resume) == ([], ["partial/00001-0123abcd"], [])
    assert cache.pending(cache.create(), "video") == [1, 2]


def test_a_cache_that_is_being_written_is_left_alone(small_cache):
    cache = small_cache("zarr")
    cache.fill()
    with hold(cache.path):
        for dry_run in (False, True):
            with pytest.raises(CacheBusyError, match=f"process {os.getpid()}"):
                repair(cache.path, dry_run=dry_run)


def test_a_flat_file_is_refused(small_cache, tmp_path):
    flat = convert(small_cache("zarr").fill().library, tmp_path / "flat.h5")
    with pytest.raises(UsageError, match="convert"):
        repair(flat)


def test_the_command_says_what_it_did_and_how_to_go_on(small_cache, capsys):
    cache = small_cache("hdf5")
    cache.fill()
    damage(cache, "video", 1)
    assert main(cli.app, ["inspect", str(cache.path), "--verify"]) == 1
    assert "glscl repair" in capsys.readouterr().err
    assert main(cli.app, ["repair", str(cache.path)]) == 0
    said = capsys.readouterr().out
    addition = cache.addition("video").name
    assert f"set aside video shard 1 of addition {addition} (items 4 to 7)" in said
    assert f"to do so: glscl extract --dataset made --out {cache.path} --format hdf5" in said
    assert main(cli.app, ["repair", str(cache.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clean"] is True


PIECES = {"logit_scale": np.array([2.5], np.float32), "weight": np.arange(64, dtype=np.float32).reshape(8, 8)}


@pytest.mark.parametrize(
    ("find", "put"),
    [(np.float32(9).tobytes(), np.float32(-9).tobytes()), (b'"__metadata__', b'"__netadata__')],
)
def test_a_damaged_backbone_is_found_and_the_next_extraction_writes_it_again(small_cache, find, put, capsys):
    cache, file = small_cache("zarr"), "backbone/pieces.safetensors"
    cache.fill().library.write_backbone_tensors(PIECES)
    before, path = files(cache.path), cache.path / file
    assert verify(open_library(cache.path)) == []
    path.write_bytes(path.read_bytes().replace(find, put, 1))
    problems = verify(open_library(cache.path))
    assert any(line.startswith(f"{file}: ") for line in problems)
    assert main(cli.app, ["inspect", str(cache.path), "--verify"]) == 1
    capsys.readouterr()

    assert main(cli.app, ["repair", str(cache.path)]) == 0
    said = capsys.readouterr().out
    assert f"set aside {file}: " in said and "glscl extract --dataset made" in said
    assert repair(cache.path).clean and verify(open_library(cache.path)) == []
    open_library(cache.path).write_backbone_tensors(PIECES)
    assert kept(cache.path) == before


def test_pieces_of_earlier_versions_have_no_checksum_and_are_no_damage(small_cache):
    from safetensors.numpy import save_file

    cache = small_cache("zarr")
    cache.fill()
    (cache.path / "backbone").mkdir()
    save_file(PIECES, cache.path / "backbone" / "pieces.safetensors")
    assert verify(open_library(cache.path)) == []
