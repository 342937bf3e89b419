"""After any history, in any order: what is merged, converted or repaired reads as before, and nothing usable is made again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_library import FORMATS, ROWS, Encoder, annotations, require_reads

from glscl.cache.files import written
from glscl.cache.library import open_library
from glscl.cache.store import open_store
from glscl.cache.upkeep.convert import convert
from glscl.cache.upkeep.merge import merge
from glscl.cache.upkeep.repair import repair
from glscl.cache.upkeep.verification import verify

# of each step: what a list asks for, after how many commits its first attempt is killed, items a shard, and whose part it is
STEPS = st.lists(st.tuples(ROWS, st.integers(0, 6), st.integers(1, 3), st.integers(0, 2)), min_size=1, max_size=4)


def histories(few, many, *drawn):
    """A test of a function of a folder and what is drawn: with `few` examples, in `make test-all` with `many` too."""

    def test_of(body):
        @pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.exhaustive)])
        def test(tmp_path_factory, examples):
            settings(max_examples=examples)(
                given(st.tuples(*drawn))(lambda found: body(tmp_path_factory.mktemp("history"), *found))
            )()

        return test  # pytest knows it by the name under which it stands

    return test_of


def filled(folder, steps, format):
    """Parts with the histories of `steps`; their folders, and name of each list → what it asked for."""
    lists = {}
    for number, (rows, killed, shard, part) in enumerate(steps):
        wanted, files = annotations(*(row[:3] for row in rows)), {row[0]: row[3] for row in rows}
        for commits in (killed, 10**6):
            options = {"name": f"list{number}", "shard": shard, "format": format, "commits": commits}
            Encoder().extract(folder / f"part{part}", wanted, files, **options)
        lists[f"list{number}"] = wanted, files
    return sorted(folder.glob("part*")), lists


def require_all(root, lists, format):
    """Every list reads as what it was made from, and no command that made one has anything to encode."""
    assert verify(open_library(root)) == []
    encoder = Encoder()
    for name, (wanted, files) in lists.items():
        require_reads(open_store(root, name), wanted, files)
        require_reads(encoder.extract(root, wanted, files, name=name, format=format), wanted, files)
    assert (encoder.videos, encoder.texts) == ([], [])


@histories(3, 50, STEPS, st.randoms(use_true_random=False), st.sampled_from(FORMATS))
def test_parts_merged_in_any_order(folder, steps, random, format):
    parts, lists = filled(folder, steps, format)
    random.shuffle(parts)
    first = random.randint(1, len(parts))
    merge(parts[:first], folder / "out")
    done = merge(parts, folder / "out", copy=True)
    assert (done.pending, done.notes, sorted(done.lists)) == ([], [], sorted(lists))
    require_all(folder / "out", lists, format)
    assert merge(parts, folder / "out").shards == 0


@histories(3, 50, STEPS, st.sampled_from(FORMATS), st.sampled_from(FORMATS))
def test_caches_converted_to_either_format(folder, steps, format, other):
    parts, lists = filled(folder, [(*step[:3], 0) for step in steps], format)
    convert(open_library(parts[0]), folder / "out", format=other)
    require_all(folder / "out", lists, other)
    name, (wanted, files) = next(iter(lists.items()))
    for suffix in (".h5", ".zarr"):
        flat = open_store(convert(open_library(folder / "out"), folder / f"flat{suffix}", lists=[name]))
        require_reads(flat, wanted, files)
        assert verify(flat.library) == []


@histories(6, 100, STEPS, st.randoms(use_true_random=False), st.sampled_from(FORMATS))
def test_caches_with_a_damaged_file(folder, steps, random, format):
    parts, lists = filled(folder, [(*step[:3], 0) for step in steps], format)
    root = parts[0]
    if random.random() < 0.5:  # as after a kill between the last commit and what gathers them
        for path in [*root.glob("commits/*/????????????????.json")]:
            path.unlink()
    victims = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "store.json"]
    victim = random.choice(victims)
    data = bytearray(victim.read_bytes())
    how = random.choice(["flip", "cut", "delete"])
    if how == "delete":
        victim.unlink()
    elif data:
        at = random.randrange(len(data))
        victim.write_bytes(
            data[:at] if how == "cut" else data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
        )
    before = {path.relative_to(root) for path in root.glob("shards/*/*") if path.name != "zarr.json"}
    orphaned = 0
    if (
        "commits" in victim.parts
        and "-" in victim.name
        and not victim.with_name(f"{victim.name[:16]}.json").exists()
        and not written(victim)
    ):
        # a shard without any commit is what a writer leaves that was killed before it: nobody waits for it
        before, orphaned = {path for path in before if not path.name.startswith(victim.stem)}, 3
    report = repair(root)
    assert verify(open_library(root)) == [] and repair(root).clean
    moved = {Path(*path.relative_to(root).parts[2:]) for path in root.glob("damaged/*/shards/*/*")}
    there = {path.relative_to(root) for path in root.glob("shards/*/*") if path.name != "zarr.json"}
    assert there | moved >= before, "no shard is deleted"
    encoder = Encoder()
    for name, (wanted, files) in lists.items():
        require_reads(encoder.extract(root, wanted, files, name=name, format=format), wanted, files)
    lost = sum(entry["items"][1] - entry["items"][0] for entry in report.damaged if entry["items"])
    assert len(encoder.videos) + len(encoder.texts) <= lost + orphaned
    assert len(report.damaged) <= 1 or victim.parent.parent.name == "additions"
    shutil.rmtree(root / "damaged", ignore_errors=True)
    require_all(root, lists, format)
