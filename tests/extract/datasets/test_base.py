"""Ids, splits, the registry, and the summary of a dry run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glscl.cache.schema import Annotations, Expected, TextItem, VideoItem
from glscl.common.errors import InputError, NotFoundError, UsageError
from glscl.extract.datasets import DATASETS
from glscl.extract.datasets.benchmark import AnnotationFolder
from glscl.extract.datasets.builder import AnnotationBuilder, summary
from glscl.extract.datasets.splits import carve, choose_protocol, choose_splits
from glscl.extract.datasets.text_files import check_id, check_relative_path, clip_id, fold

BENCHMARKS = [
    "msrvtt",
    "msvd",
    "didemo",
    "didemo_captions",
    "lsmdc",
    "activitynet",
    "activitynet_captions",
    "charades_sta",
    "tvr",
    "vatex",
    "youcook2",
]


@pytest.mark.parametrize(
    "id", ["", " ", ".", "..", "a/b", "../a", "a\\b", "a\nb", "a\x00", "a\u2028b", "\ud800", 7, None]
)
def test_an_id_that_could_leave_the_folder_or_break_a_line_is_refused(id):
    with pytest.raises(InputError, match=r"list.txt, line 3: ") as error:
        check_id(id, "list.txt", 3)
    assert "\n" not in str(error.value) and "\x00" not in str(error.value)


@pytest.mark.parametrize(
    "id", ["-a", "_b", "x.", "x..y", "1_F_00.1.000-00.2.000", "a b", "é", "日本", "#1", "10@N01_2.null"]
)
def test_odd_but_harmless_ids_pass_unchanged(id):
    assert check_id(id, "list.txt", 3) == id


@given(st.text(max_size=20))
def test_a_relative_path_that_passes_stays_below_its_folder(value):
    try:
        path = check_relative_path(value, "t.csv", 1)
    except InputError:
        return
    assert Path("/root", path).resolve().is_relative_to("/root")
    assert check_relative_path(path, "t.csv", 1) == path


@given(st.text())
def test_folding_leaves_single_spaces_and_is_idempotent(text):
    folded = fold(text)
    assert folded == folded.strip() and "  " not in folded and "\n" not in folded
    assert fold(folded) == folded


def test_clip_ids_say_the_seconds():
    assert clip_id("talk.mp4", 12.5, 17.0) == "talk.mp4@12.5-17"
    assert clip_id("a", None, None) == "a"
    assert clip_id("a", None, 3.0) == "a@0-3"
    assert clip_id("a", 100000.125, 1e6) == "a@100000.125-1000000"


@given(st.sets(st.text(max_size=5), min_size=20, max_size=60), st.text(min_size=6, max_size=9))
def test_carving_fills_three_splits_and_does_not_depend_on_order(names, another):
    carved = carve(sorted(names))
    assert set(carved.values()) == {"train", "val", "test"}
    assert carve(sorted(names, reverse=True)) == carved


def test_carving_more_videos_moves_none():
    names = [f"video{i}" for i in range(300)]
    assert carve(names[:200]).items() <= carve(names).items()


def test_splits_are_chosen_in_order_and_unknown_ones_refused():
    assert choose_splits(["test", "train", "test"], ("train", "test"), "x") == ["train", "test"]
    assert choose_splits(None, ("train", "test"), "x") == ["train", "test"]
    assert choose_splits("test", ("train", "test"), "x") == ["test"]
    with pytest.raises(UsageError, match="x has no split 'val'; it has train, test"):
        choose_splits(["val"], ("train", "test"), "x")
    with pytest.raises(UsageError, match="no split was chosen"):
        choose_splits([], ("train", "test"), "x")


def test_protocols_default_to_the_first_and_unknown_ones_are_refused():
    assert choose_protocol(None, ("9k", "7k"), "x") == "9k"
    with pytest.raises(UsageError, match="x has no protocol '8k'; expected one of 9k, 7k"):
        choose_protocol("8k", ("9k", "7k"), "x")


def test_a_video_in_two_splits_is_refused(tmp_path):
    builder = AnnotationBuilder("x", ["train", "test"])
    builder.video("a", split="train", path="l.txt", row=1)
    builder.video("a", split="train", path="l.txt", row=2)
    with pytest.raises(InputError, match=r"l.txt, line 3: the video 'a' is in split test, but also in train"):
        builder.video("a", split="test", path="l.txt", row=3)


def test_annotation_files_are_found_one_folder_below_but_not_guessed(files):
    root = files("a", {"MSVD/list.txt": "", "other/x.txt": "", ".git/y.txt": ""})

    def look() -> AnnotationFolder:
        return AnnotationFolder(root, dataset="x", source="Ask.", files=("list.txt",))

    folder = look()
    assert folder.find("list.txt") == root / "MSVD/list.txt"
    assert folder.find("y.txt") is None
    assert folder.find("gone.txt", "x.txt") == root / "other/x.txt"
    files("a", {"DiDeMo/list.txt": ""})
    with pytest.raises(InputError, match=r"list.txt is there 2 times"):
        look().find("list.txt")
    files("a", {"list.txt": ""})
    assert look().find("list.txt") == root / "list.txt"


def test_the_summary_counts_each_split_beside_the_published_sizes():
    annotations = Annotations(
        dataset="x",
        videos=[VideoItem(f"v{i}", "test", None if i else "/v0.mp4") for i in range(8)],
        texts=[TextItem("v0#0", "v0", "test", "a")],
        expected={"test": Expected(2, 8), "train": Expected(None, 5)},
        notes=["a note"],
    )
    assert summary(annotations) == {
        "splits": {
            "train": {
                "captions": 0,
                "videos": 0,
                "found": 0,
                "missing": 0,
                "expected_captions": None,
                "expected_videos": 5,
            },
            "test": {
                "captions": 1,
                "videos": 8,
                "found": 1,
                "missing": 7,
                "expected_captions": 2,
                "expected_videos": 8,
            },
        },
        "missing_examples": {"test": ["v1", "v2", "v3", "v4", "v5"]},
        "notes": ["a note"],
    }
    assert list(summary(annotations)["splits"]) == ["train", "test"]


def test_importing_the_registry_and_every_reader_loads_no_heavy_package():
    code = (
        "import sys; from importlib import import_module; from glscl.extract.datasets import DATASETS\n"
        "assert not [m for m in sys.modules if m.startswith('glscl.extract.datasets.')], 'readers are loaded at once'\n"
        "[import_module(e.module).read for name, e in DATASETS.items() if name != 'demo']\n"
        "print([m for m in ('torch', 'numpy', 'av', 'decord', 'open_clip', 'h5py', 'zarr') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", DATASETS)
def test_every_entry_has_a_reader_with_the_one_signature(name, tmp_path):
    entry = DATASETS[name]
    assert entry.help.endswith(".") and "\n" not in entry.help
    assert 2 <= entry.max_words <= 77 and entry.fps > 0
    if entry.protocols:
        assert set(entry.expected) == set(entry.protocols)
    with pytest.raises(UsageError):
        entry.read(tmp_path, tmp_path, protocol="no such protocol")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_without_its_files_a_benchmark_says_which_it_wants_and_where_they_are(name, tmp_path):
    for folder in (None, tmp_path / "gone", tmp_path):
        with pytest.raises(NotFoundError) as error:
            DATASETS[name].read(folder, None)
        message = str(error.value)
        assert "docs/datasets.md" in message and "\n" not in message
        assert folder is None or str(folder) in message
        assert any(suffix in message for suffix in (".json", ".csv", ".txt"))
    (tmp_path / "file.json").write_text("{}")
    with pytest.raises(NotFoundError, match="is a file, not a folder"):
        DATASETS[name].read(tmp_path / "file.json", None)
