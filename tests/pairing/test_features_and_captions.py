"""Features meet captions and videos by name; rows of an array without names are the captions as they stand in the file."""

from __future__ import annotations

import numpy as np
import pytest

from glscl.common.errors import InputError
from glscl.extract.datasets import DATASETS
from glscl.extract.importing.feature_files import open_arrays
from glscl.extract.importing.pairing import frame_readers, text_readers

DIM = 8


def vector(text: str) -> np.ndarray:
    """(D,) that tells its text."""
    return np.random.default_rng(list(text.encode())).standard_normal(DIM).astype(np.float32)


def table(files, rows, name="captions.csv", **options):
    text = "".join(f"{','.join(row)}\n" for row in rows)
    return DATASETS["csv"].read(files("annotations", {name: text}) / name, None, **options)


def given(tmp_path, array, name="texts.npy"):
    if isinstance(array, dict):
        np.savez(tmp_path / "texts.npz", **array)
        return tmp_path / "texts.npz"
    np.save(tmp_path / name, array)
    return tmp_path / name


def read_texts(path, annotations, axes=1):
    """id of a caption → its rows, and the notes."""
    notes: list[str] = []
    with open_arrays(path) as arrays:
        readers = text_readers(arrays, annotations, axes, notes)
        return {id: read() for id, read in readers.items()}, notes


def assert_right(found, annotations, texts=None):
    expected = {text.id: vector(text.text) for text in texts or annotations.texts}
    assert found.keys() == expected.keys()
    for id, rows in found.items():
        np.testing.assert_array_equal(rows, expected[id][None], err_msg=id)


ROWS = [(f"v{i % 40}.mp4", f"caption {i}") for i in range(80)]


def test_rows_of_an_array_are_rows_of_the_file_though_splits_are_made_up(files, tmp_path):
    annotations = table(files, [("video", "caption"), *ROWS])
    assert len({text.split for text in annotations.texts}) == 3
    found, notes = read_texts(given(tmp_path, np.stack([vector(caption) for _, caption in ROWS])), annotations)
    assert_right(found, annotations)
    assert any(note.endswith("the first that is used is v0.mp4#0") for note in notes)


def test_rows_of_an_array_are_rows_of_the_file_though_splits_are_mixed(files, tmp_path):
    splits = ["test", "train", "val"]
    rows = [(f"v{i % 6}", f"caption {i}", splits[i % 3]) for i in range(12)]
    array = given(tmp_path, np.stack([vector(caption) for _, caption, _ in rows]))
    annotations = table(files, [("video", "caption", "split"), *rows])
    assert_right(read_texts(array, annotations)[0], annotations)
    chosen = table(files, [("video", "caption", "split"), *rows], splits=["val"])
    assert len(chosen.texts) == 4
    assert_right(read_texts(array, chosen)[0], chosen)


@pytest.mark.parametrize("order", [["train", "test"], ["test", "train"]])
def test_rows_follow_the_tables_of_the_splits_in_their_order(files, tmp_path, order):
    lists = {
        f"{split}.csv": "video,caption\n" + "".join(f"{split}{i},{split} {i}\n" for i in range(3)) for split in order
    }
    annotations = DATASETS["csv"].read(files("annotations", lists), None)
    array = np.stack([vector(f"{split} {i}") for split in sorted(order) for i in range(3)])  # files are read by name
    assert_right(read_texts(given(tmp_path, array), annotations)[0], annotations)


GAPS = [("a", "one"), ("a", ""), ("b", "two"), ("a", "three"), ("b", ""), ("b", "four")]


def test_an_empty_caption_shifts_nothing_behind_it(files, tmp_path):
    annotations = table(files, [("video", "caption"), *GAPS])
    assert [text.id for text in annotations.texts] == ["a#0", "b#0", "a#2", "b#2"]
    whole = np.stack([vector(caption or "empty") for _, caption in GAPS])
    without = np.stack([vector(caption) for _, caption in GAPS if caption])
    by_video = {video: np.stack([vector(text or "empty") for v, text in GAPS if v == video]) for video in "ab"}
    short = {video: np.stack([vector(text) for v, text in GAPS if v == video and text]) for video in "ab"}
    by_caption = {text.id: vector(text.text) for text in annotations.texts}
    for array in (whole, without, by_video, short, by_caption):
        assert_right(read_texts(given(tmp_path, array), annotations)[0], annotations)
    with pytest.raises(
        InputError, match=r"\(5, 8\), expected \(6, D\): .* order of their files, or \(4, D\): .* not empty"
    ):
        read_texts(given(tmp_path, whole[:5]), annotations)


def test_captions_of_a_video_that_stands_in_several_ways_are_counted_together(files, tmp_path):
    videos = files("videos", ["a.mp4", "b.mp4"])
    rows = [("a", "one"), ("b.mp4", "two"), ("a.mp4", "three")]
    text = "video,caption\n" + "".join(f"{','.join(row)}\n" for row in rows)
    annotations = DATASETS["csv"].read(files("annotations", {"c.csv": text}) / "c.csv", videos)
    array = np.stack([vector(caption) for _, caption in rows])
    assert_right(read_texts(given(tmp_path, array), annotations)[0], annotations)


def test_rows_of_a_benchmark_follow_its_splits_and_files(files, tmp_path):
    lists = {
        "train_list.txt": "b\na\n", "test_list.txt": "c\n", "val_list.txt": "d\n",
        "captions_msvd.json": {id: [f"{id} {i}" for i in range(2)] for id in "abcd"},
    }  # fmt: skip
    annotations = DATASETS["msvd"].read(files("annotations", lists), None)
    array = np.stack([vector(f"{id} {i}") for id in "badc" for i in range(2)])
    assert_right(read_texts(given(tmp_path, array), annotations)[0], annotations)


def test_tokens_follow_the_same_rows(files, tmp_path):
    annotations = table(files, [("video", "caption"), *GAPS])
    tokens = np.stack([np.stack([vector(caption or "empty")] * 3) for _, caption in GAPS])
    found, _ = read_texts(given(tmp_path, tokens), annotations, axes=2)
    assert {id: rows.shape for id, rows in found.items()} == dict.fromkeys(["a#0", "b#0", "a#2", "b#2"], (3, DIM))
    for text in annotations.texts:
        np.testing.assert_array_equal(found[text.id][0], vector(text.text))


def test_features_of_captions_that_are_not_used_are_counted(files, tmp_path):
    annotations = table(files, [("video", "caption"), *GAPS])
    arrays = {text.id: vector(text.text) for text in annotations.texts} | {"a#7": vector("x"), "a": vector("y")[None]}
    _, notes = read_texts(given(tmp_path, arrays), annotations)
    assert any(
        "2 of 6 entries" in note and note.endswith("belong to no caption that is listed: a#7, a") for note in notes
    )


@pytest.mark.parametrize("other", ["a.mp4", "train/a", "v_a", "a/frames"])
def test_a_second_entry_of_a_listed_video_is_refused_though_one_is_called_exactly(files, tmp_path, other):
    annotations = table(files, [("video", "caption"), ("a", "x")])
    np.savez(tmp_path / "f.npz", **{"a": vector("x")[None], other: vector("y")[None]})
    with (
        open_arrays(tmp_path / "f.npz") as arrays,
        pytest.raises(InputError, match=f"2 entries fit 'a': 'a', '{other}'"),
    ):
        frame_readers(arrays, annotations, [])
