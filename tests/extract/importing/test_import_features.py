"""Features that others extracted: every shape of file gives the same cache, and what cannot be one is refused by name.

T texts, V videos, F frames, L tokens, D embed_dim.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import pickle
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from formats import EITHER

from glscl import cli
from glscl.cache.library import Library
from glscl.cache.schema import Annotations, Status, TextItem, VideoItem
from glscl.cache.store import Store, open_store
from glscl.cache.upkeep.verification import verify
from glscl.commands.options import main
from glscl.common.errors import (
    CacheIncompleteError,
    FingerprintError,
    GlsclError,
    InputError,
    NotFoundError,
    UsageError,
)
from glscl.extract.backbone.encoder import load_backbone
from glscl.extract.importing import import_features as importing
from glscl.extract.importing.feature_files import open_arrays
from glscl.extract.importing.import_features import FeatureFiles
from glscl.extract.importing.pairing import match, without_zeros
from glscl.extract.settings import ImportSettings

DIM = 16
VIDEOS = ["-abc_1_5", "clip.one.mov", "vidéo3", "v_xyz", "last"]
LENGTHS = [3, 1, 7, 2, 4]


def import_features(annotations, features, out, *, text_features=None, token_features=None, backbone=None, **settings):
    files = FeatureFiles(features, text_features, token_features)
    return importing.import_features(annotations, files, out, ImportSettings(**settings), backbone=backbone)


@pytest.fixture
def annotations():
    """Five videos, three of them train, two captions each."""
    split = ["train" if i < 3 else "test" for i in range(len(VIDEOS))]
    return Annotations(
        dataset="csv",
        videos=[VideoItem(id, s, None) for id, s in zip(VIDEOS, split)],
        texts=[TextItem(f"{id}#{k}", id, s, f"caption {k} of {id}") for id, s in zip(VIDEOS, split) for k in (0, 1)],
        notes=["a note of the reader"],
    )


@pytest.fixture
def frames():
    rng = np.random.default_rng(0)
    return {id: rng.standard_normal((n, DIM)).astype(np.float32) for id, n in zip(VIDEOS, LENGTHS)}


@pytest.fixture
def texts():
    return np.random.default_rng(1).standard_normal((2 * len(VIDEOS), DIM)).astype(np.float32)


def folder(path: Path, arrays: dict[str, np.ndarray], suffix: str = ".npy") -> Path:
    path.mkdir(parents=True)
    for name, array in arrays.items():
        target = path / f"{name}{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".pt":
            torch.save(torch.from_numpy(array), target)
        elif suffix == ".npz":
            np.savez(target, features=array, other=np.zeros(3, np.float32))
        elif suffix == ".pkl":
            target.write_bytes(pickle.dumps(array))
        elif suffix == ".h5":
            with h5py.File(target, "w") as file:
                file["frames"] = array
        else:
            np.save(target, array)
    (path / "README.txt").write_text("features of a friend")
    return path


def one_file(path: Path, arrays: dict[str, np.ndarray], *, protocol: int = 4) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    elif path.suffix == ".pt":
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    else:
        path.write_bytes(pickle.dumps(arrays, protocol=protocol))
    return path


def frames_of(store: Store) -> dict[str, np.ndarray]:
    video = store.arrays("video")
    return {id: video["values"][a:b] for id, a, b in zip(store.ids("video"), video["offsets"], video["offsets"][1:])}


# --- what is accepted -------------------------------------------------------------------------------------------------

SHAPES = {
    "as it is": lambda x: x,
    "(F, 1, D)": lambda x: x[:, None],
    "(1, F, D)": lambda x: x[None],
    "float16": lambda x: x.astype(np.float16),
    "float64": lambda x: x.astype(np.float64),
    "big endian": lambda x: x.astype(">f4"),
    "Fortran order": np.asfortranarray,
    "padded with zeros": lambda x: np.concatenate([x, np.zeros((9 - len(x), DIM), np.float32)]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_frames_come_in_every_shape_and_type_people_have(annotations, frames, texts, tmp_path, shape):
    given = folder(tmp_path / "given", {id: SHAPES[shape](x) for id, x in frames.items()})
    np.save(tmp_path / "texts.npy", texts)
    summary = import_features(
        annotations, given, tmp_path / "cache", text_features=tmp_path / "texts.npy", fps=2.0, dtype="float32"
    )
    store = open_store(tmp_path / "cache")
    tolerance = 2e-3 if shape == "float16" else 0
    for id, array in frames_of(store).items():
        np.testing.assert_allclose(array, frames[id], atol=tolerance, err_msg=id)
    video = store.arrays("video")
    assert video["times"].tolist() == [i / 2 for n in LENGTHS for i in range(n)]
    assert video["duration"].tolist() == [n / 2 for n in LENGTHS] and (video["fps"] == 2).all()
    np.testing.assert_array_equal(store.arrays("text")["pooled"], texts)
    assert (summary.videos, summary.frames, summary.texts, summary.failed) == (5, sum(LENGTHS), 10, [])
    padding = "took 28 all-zero frames at the end of 5 videos for padding: -abc_1_5, clip.one.mov, vidéo3, ..."
    assert (padding in summary.notes) == (shape == "padded with zeros")
    assert not store.has_tokens and verify(store.library) == []


def containers(tmp_path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Path]:
    """The same arrays in every kind of file."""
    nested = {f"features/{name}": array for name, array in arrays.items()}
    grouped = {f"{name}/frames": array for name, array in arrays.items()}
    old = tmp_path / "old.pkl"
    old.write_bytes(pickle.dumps(arrays, protocol=2).replace(b"numpy._core", b"numpy.core"))
    by_frame = tmp_path / "lists.pickle"
    by_frame.write_bytes(pickle.dumps({name: list(array) for name, array in arrays.items()}))
    tree = tmp_path / "tree.pt"
    torch.save({"frames": {name: torch.from_numpy(array) for name, array in arrays.items()}}, tree)
    suffixes = (".npy", ".npz", ".pt", ".pkl", ".h5")
    return {
        **{suffix: folder(tmp_path / f"folder{suffix}", arrays, suffix) for suffix in suffixes},
        "sub-folders": folder(tmp_path / "sub", {f"part{i % 2}/{id}": x for i, (id, x) in enumerate(arrays.items())}),
        "npz": one_file(tmp_path / "all.npz", arrays),
        "h5": one_file(tmp_path / "all.h5", arrays),
        "h5 with a group around": one_file(tmp_path / "nested.h5", nested),
        "h5 with a group a video": one_file(tmp_path / "grouped.h5", grouped),
        "pt": one_file(tmp_path / "all.pt", arrays),
        "pt in a dictionary": tree,
        **{f"pickle {p}": one_file(tmp_path / f"all{p}.pkl", arrays, protocol=p) for p in (0, 2, 3, 4, 5)},
        "pickle of an old numpy": old,
        "pickle of lists of frames": by_frame,
    }


def test_every_kind_of_file_gives_the_same_cache(annotations, frames, texts, tmp_path):
    np.save(tmp_path / "texts.npy", texts)
    marks = {}
    for kind, path in containers(tmp_path, frames).items():
        out = tmp_path / "caches" / kind
        import_features(annotations, path, out, text_features=tmp_path / "texts.npy", dtype="float32")
        for id, array in frames_of(open_store(out)).items():
            np.testing.assert_array_equal(array, frames[id], err_msg=f"{kind}, {id}")
        marks[kind] = open_store(out).fingerprint
    assert len(set(marks.values())) == 1, marks


def test_bfloat16_tensors_are_read(tmp_path):
    torch.save({"a": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)}, tmp_path / "x.pt")
    with open_arrays(tmp_path / "x.pt") as arrays:
        assert arrays.read("a").tolist() == [[1.5, -2.0]]


def test_caption_features_are_found_by_caption_by_video_or_by_order(annotations, frames, texts, tmp_path):
    given = folder(tmp_path / "frames", frames)
    ids = [text.id for text in annotations.texts]
    ways = {
        "by caption.npz": dict(zip(ids, texts)),
        "by caption, rows.npz": {id: row[None] for id, row in zip(ids, texts)},
        "by video.h5": {id: texts[2 * i : 2 * i + 2] for i, id in enumerate(VIDEOS)},
        "in order.npz": {"arr_0": texts},
        "in order.pt": {"text": texts},
    }
    for name, arrays in ways.items():
        path = one_file(tmp_path / name, arrays)
        import_features(annotations, given, tmp_path / "out" / name, text_features=path, dtype="float32")
        np.testing.assert_array_equal(open_store(tmp_path / "out" / name).arrays("text")["pooled"], texts, err_msg=name)
    path = folder(tmp_path / "by caption", dict(zip(ids, texts)))
    import_features(annotations, given, tmp_path / "out" / "folder", text_features=path, dtype="float32")
    np.testing.assert_array_equal(open_store(tmp_path / "out" / "folder").arrays("text")["pooled"], texts)


def test_an_array_in_order_follows_the_reader_where_splits_are_mixed(annotations, frames, texts, tmp_path):
    mixed = dataclasses.replace(annotations, texts=annotations.texts[::-1], videos=annotations.videos[::-1])
    np.save(tmp_path / "texts.npy", texts[::-1])
    import_features(
        mixed, folder(tmp_path / "f", frames), tmp_path / "c", text_features=tmp_path / "texts.npy", dtype="float32"
    )
    store = open_store(tmp_path / "c")
    pooled = dict(zip(store.ids("text"), store.arrays("text")["pooled"]))
    for text, row in zip(annotations.texts, texts):
        np.testing.assert_array_equal(pooled[text.id], row)


def test_token_features_are_stored_with_their_own_lengths(annotations, frames, texts, tmp_path):
    rng = np.random.default_rng(2)
    lengths = rng.integers(2, 6, len(texts))
    ids = [text.id for text in annotations.texts]
    tokens = {id: rng.standard_normal((n, DIM)).astype(np.float32) for id, n in zip(ids, lengths)}
    padded = np.zeros((len(ids), 8, DIM), np.float32)
    for row, id in zip(padded, ids):
        row[: len(tokens[id])] = tokens[id]
    np.save(tmp_path / "texts.npy", texts)
    np.save(tmp_path / "padded.npy", padded)
    given = folder(tmp_path / "frames", frames)
    marks = []
    for path in (one_file(tmp_path / "tokens.h5", tokens), tmp_path / "padded.npy"):
        out = tmp_path / "caches" / path.stem
        import_features(
            annotations, given, out, text_features=tmp_path / "texts.npy", token_features=path, dtype="float32"
        )
        text = open_store(out).arrays("text")
        assert np.diff(text["offsets"]).tolist() == lengths.tolist()
        np.testing.assert_array_equal(text["values"], np.concatenate(list(tokens.values())))
        marks.append(open_store(out).fingerprint)
    assert marks[0] == marks[1]
    lost = one_file(tmp_path / "lost.npz", {id: tokens[id] for id in ids[1:]})
    with pytest.raises(InputError, match="no token features of 1 caption, for example '-abc_1_5#0'"):
        import_features(annotations, given, tmp_path / "x", text_features=tmp_path / "texts.npy", token_features=lost)


def test_without_captions_a_cache_to_search_is_made(annotations, frames, tmp_path):
    alone = dataclasses.replace(annotations, texts=[])
    summary = import_features(alone, folder(tmp_path / "f", frames), tmp_path / "cache")
    assert (summary.videos, summary.texts) == (5, 0)


def test_clips_of_long_videos_keep_their_place_in_time(tmp_path):
    clips = [VideoItem("talk.mp4@12.5-17", "test", None, 12.5, 17.0), VideoItem("talk.mp4@20-", "test", None, 20.0)]
    given = one_file(tmp_path / "x.npz", {clip.id: np.ones((2, DIM), np.float32) for clip in clips})
    import_features(Annotations(dataset="csv", videos=clips, texts=[]), given, tmp_path / "cache", fps=0.5)
    assert open_store(tmp_path / "cache").arrays("video")["times"].tolist() == [12.5, 14.5, 20.0, 22.0]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "ids", "found"),
    [
        (["a", "b"], ["a", "c"], {"a": "a"}),
        (["x.mp4"], ["x"], {"x": "x.mp4"}),
        (["x"], ["x.mov"], {"x.mov": "x"}),
        (["x.mp4"], ["x.mov"], {"x.mov": "x.mp4"}),
        (["x", "y"], ["x.null", "y."], {"x.null": "x", "y.": "y"}),
        (["x.mov", "x"], ["x", "x.mov"], {"x": "x", "x.mov": "x.mov"}),
        (["x"], ["x", "x.mov"], {"x": "x"}),
        (["QOl"], ["v_QOl"], {"v_QOl": "QOl"}),
        (["v_QOl"], ["QOl"], {"QOl": "v_QOl"}),
        (["3086_UGLY_00.23.23.000-00.23.28.886"], ["3086_UGLY_00.23.23.000-00.23.28"], {}),
        (["train/a", "test/b"], ["a", "b"], {"a": "train/a", "b": "test/b"}),
        (["egg"], ["kitchen/egg.mp4"], {"kitchen/egg.mp4": "egg"}),
        (["deep/kitchen/egg"], ["kitchen/egg.mp4"], {"kitchen/egg.mp4": "deep/kitchen/egg"}),
        (["garden/egg"], ["kitchen/egg.mp4"], {}),
        (["a/frames", "b/frames"], ["a", "b"], {"a": "a/frames", "b": "b/frames"}),
        (["vide\u0301o"], ["vidéo"], {"vidéo": "vide\u0301o"}),
        (["-x"], ["x"], {}),
    ],
)
def test_entries_are_found_under_the_names_people_give_them(names, ids, found):
    assert match(names, ids, Path("f")) == found


@pytest.mark.parametrize(
    ("names", "ids", "words"),
    [
        (["train/a", "test/a"], ["a"], "2 entries fit 'a': 'train/a', 'test/a'"),
        (["a/clip", "a/audio"], ["a"], "2 entries fit 'a'"),
        (["x"], ["x.mov", "x.avi"], "the entry 'x' fits both 'x.mov' and 'x.avi'"),
        (["egg"], ["kitchen/egg.mp4", "garden/egg.mp4"], "the entry 'egg' fits both"),
    ],
)
def test_what_fits_two_ways_is_refused(names, ids, words):
    with pytest.raises(InputError, match=words):
        match(names, ids, Path("f"))


def test_rows_that_are_zero_everywhere_are_no_frames_wherever_they_stand():
    rows = np.array([[0, 0], [1, 0], [0, 0], [0, 2], [0, 0], [0, 0]], np.float32)
    assert without_zeros(rows).tolist() == [[1, 0], [0, 2]]
    assert without_zeros(np.zeros((3, 2))).shape == (0, 2)


# --- what is missing --------------------------------------------------------------------------------------------------


def test_missing_videos_and_captions_are_recorded_and_foreign_entries_counted(annotations, frames, texts, tmp_path):
    del frames["vidéo3"]
    frames["v_xyz"] = np.zeros_like(frames["v_xyz"])
    given = folder(tmp_path / "frames", frames | {"stranger": frames["last"], "odd": frames["last"]})
    ids = [text.id for text in annotations.texts]
    keyed = one_file(tmp_path / "t.npz", {id: row for id, row in zip(ids, texts) if id != "last#1"})
    summary = import_features(annotations, given, tmp_path / "cache", text_features=keyed)
    assert (summary.videos, summary.texts, summary.texts_without_video) == (3, 7, 4)
    reasons = {failure["id"]: (failure["status"], failure["reason"]) for failure in summary.failed}
    assert reasons == {
        "vidéo3": ("missing", "no features for this id"),
        "v_xyz": ("decode_error", "its 2 frame features are zero everywhere, as for a video that could not be read"),
    }
    assert summary.notes[0] == "a note of the reader"
    assert any(line.startswith("2 of 6 entries of ") and line.endswith("no video that is listed: odd, stranger")
               for line in summary.notes)  # fmt: skip
    assert "left out 1 of 10 captions that have no features: last#1" in summary.notes
    store = open_store(tmp_path / "cache")
    assert store.list.notes == summary.notes
    assert store.arrays("video")["status"].tolist() == [0, 0, Status.MISSING, Status.DECODE_ERROR, 0]


def test_features_of_no_listed_video_are_an_error(annotations, texts, tmp_path):
    np.save(tmp_path / "texts.npy", texts)
    given = folder(tmp_path / "f", {"one": np.ones((2, DIM), np.float32)})
    with pytest.raises(NotFoundError, match=r"none of the 5 videos of csv, for example '-abc_1_5'; it has 'one'"):
        import_features(annotations, given, tmp_path / "cache", text_features=tmp_path / "texts.npy")
    assert not (tmp_path / "cache").exists()


def test_the_sources_of_caption_features_must_be_one(annotations, frames, tmp_path):
    given = folder(tmp_path / "f", frames)
    with pytest.raises(UsageError, match=r"The 10 captions need features\. Give `text_features=PATH`, or `backbone"):
        import_features(annotations, given, tmp_path / "cache")
    with pytest.raises(UsageError, match="`token_features` needs `text_features`"):
        import_features(annotations, given, tmp_path / "cache", token_features=given)
    alone = dataclasses.replace(annotations, texts=[])
    with pytest.raises(UsageError, match="csv lists no caption that it could belong to"):
        import_features(alone, given, tmp_path / "cache", text_features=given)
    with pytest.raises(UsageError, match="`fps` is 0"):
        import_features(alone, given, tmp_path / "cache", fps=0)


# --- what is refused --------------------------------------------------------------------------------------------------


class Dangerous:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle ran code')",)


def spoiled(value):
    """The frames with one array replaced."""

    def make(path: Path, frames: dict[str, np.ndarray]) -> Path:
        folder(path, {id: x for id, x in frames.items() if id != "last"})
        np.save(path / "last.npy", value(frames["last"]), allow_pickle=True)
        return path

    return make


def written(suffix: str, data: bytes | object):
    """One file with given bytes, or a pickled value."""

    def make(path: Path, frames: dict[str, np.ndarray]) -> Path:
        path = path.with_suffix(suffix)
        path.write_bytes(data if isinstance(data, bytes) else pickle.dumps(data))
        return path

    return make


def saved(value):
    def make(path: Path, frames: dict[str, np.ndarray]) -> Path:
        torch.save(value, path.with_suffix(".pt"))
        return path.with_suffix(".pt")

    return make


def h5(fill):
    def make(path: Path, frames: dict[str, np.ndarray]) -> Path:
        with h5py.File(path.with_suffix(".h5"), "w") as file:
            fill(file, frames)
        return path.with_suffix(".h5")

    return make


def with_nan(x):
    x = x.copy()
    x[1, 3] = np.nan
    return x


REFUSED = {
    "wrong D": (spoiled(lambda x: x[:, :7]), "video features of 'last' are 7-d, expected 16-d"),
    "transposed": (
        spoiled(lambda x: x.T),
        r"'last' have the shape \(16, 4\), expected \(F, 16\); perhaps they are transposed",
    ),
    "NaN": (spoiled(with_nan), "last.npy: 1 of 64 values are NaN or infinite"),
    "infinite": (spoiled(lambda x: x / 0), "last.npy: 64 of 64 values are NaN or infinite"),
    "too large for float32": (spoiled(lambda x: x.astype(np.float64) * 1e60), "last.npy: 64 of 64 values are NaN"),
    "too large for float16": (spoiled(lambda x: x * 1e6), "'last' reach .* more than float16 can .*`dtype=float32`"),
    "integers": (spoiled(lambda x: x.astype(np.int64)), "last.npy: an array of int64, expected numbers in float16"),
    "strings": (spoiled(lambda x: np.array(["a", "b"])), "last.npy: an array of <U1, expected numbers"),
    "objects": (spoiled(lambda x: np.array([x, None], object)), "last.npy: .*Python objects, expected an array"),
    "complex": (spoiled(lambda x: x + 1j), "last.npy: an array of complex64"),
    "empty": (spoiled(lambda x: x[:0]), r"last.npy: the array is empty, its shape is \(0, 16\)"),
    "four axes": (spoiled(lambda x: x.reshape(2, 2, 2, 8)), r"last.npy: the shape is \(2, 2, 2, 8\), expected"),
    "a number": (spoiled(lambda x: np.float32(3)), r"last.npy: the shape is \(\)"),
    "not an array": (written(".npy", b"hello"), "f.npy: cannot be read"),
    "a pickle named npy": (written(".npy", {"last": 1}), "f.npy: cannot be read"),
    "cut short": (written(".npz", b"PK\x03\x04hello"), "f.npz: cannot be read"),
    "no h5": (written(".h5", b"hello"), "f.h5: cannot be read"),
    "no pickle": (written(".pkl", b"hello"), "f.pkl: not a pickle of plain containers"),
    "empty file": (written(".pt", b""), "f.pt: cannot be read"),
    "empty dictionary": (written(".pkl", {}), "f.pkl: holds no array"),
    "unknown kind": (written(".mat", b"hello"), "f.mat: a file of an unknown kind; known are .npy, .npz"),
    "pickle that runs code": (written(".pkl", {"last": Dangerous()}), "asks for 'builtins.exec', which could run code"),
    "pickled date": (written(".pkl", {"last": datetime.date(2020, 1, 1)}), "asks for 'datetime.date', which could"),
    "pickled tensor": (written(".pkl", {"last": torch.ones(2)}), "asks for 'torch._utils._rebuild_tensor_v2'"),
    "pickled objects": (written(".pkl", {"last": np.array([None, 1])}), "entry 'last': .*array of Python objects"),
    "pickled dates": (written(".pkl", {"last": np.zeros(2, "M8[s]")}), "entry 'last': .*array of type 'M8'"),
    "pickled strings": (written(".pkl", {"last": "words"}), "entry 'last': .*found 'words', expected an array"),
    "ragged lists": (written(".pkl", {"last": [np.ones(2), np.ones(3)]}), "entry 'last': .*different shapes"),
    "odd keys": (written(".pkl", {(1, 2): np.ones(3)}), r"the key \(1, 2\) is not a string"),
    "code in a pt": (saved({"last": Dangerous()}), "f.pt: not a file of tensors alone: .*which could run code"),
    "numpy in a pt": (saved({"last": np.ones((2, DIM))}), "f.pt: not a file of tensors alone"),
    "integers in a pt": (saved({"last": torch.ones(2, DIM, dtype=torch.int32)}), "entry 'last': an array of int32"),
    "strings in h5": (
        h5(lambda f, x: f.create_dataset("last", data=["a"])),
        "entry 'last': .*expected an array of numbers",
    ),
    "two arrays in a group": (
        h5(lambda f, x: [f.create_dataset(f"last/{k}", data=x["last"]) for k in ("rgb", "audio")]),
        "2 entries fit 'last': 'last/audio', 'last/rgb'; expected one",
    ),
    "an array without names": (
        lambda path, frames: np.save(path, frames["last"]) or path.with_suffix(".npy"),
        "f.npy holds one array without a name, expected one for each video",
    ),
    "empty h5": (h5(lambda f, x: None), "f.h5: holds no array"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_feature_is_refused_by_name_before_anything_is_written(annotations, frames, texts, tmp_path, case):
    make, words = REFUSED[case]
    np.save(tmp_path / "texts.npy", texts)
    with np.errstate(all="ignore"):
        given = make(tmp_path / "f", frames)
    with pytest.raises(GlsclError, match=words) as caught:
        import_features(annotations, given, tmp_path / "cache", text_features=tmp_path / "texts.npy")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_folders_that_are_not_of_features_are_refused(annotations, frames, texts, tmp_path):
    np.save(tmp_path / "texts.npy", texts)
    given = folder(tmp_path / "f", frames)
    torch.save(torch.ones(2, DIM), given / "last.pt")
    with pytest.raises(InputError, match=r"last.npy and last.pt are of one name; expected one file"):
        import_features(annotations, given, tmp_path / "c", text_features=tmp_path / "texts.npy")
    with pytest.raises(NotFoundError, match="nowhere: no such file or folder"):
        import_features(annotations, tmp_path / "nowhere", tmp_path / "c", text_features=tmp_path / "texts.npy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: none of its files is of a known kind"):
        import_features(annotations, tmp_path / "empty", tmp_path / "c", text_features=tmp_path / "texts.npy")
    several = tmp_path / "several"
    several.mkdir()
    np.savez(several / "last.npz", rgb=frames["last"], audio=frames["last"])
    with pytest.raises(InputError, match=r"last.npz: 2 arrays \('rgb', 'audio'\); expected one"):
        import_features(annotations, several, tmp_path / "c", text_features=tmp_path / "texts.npy")
    zeros = one_file(tmp_path / "zeros.npz", {id: x * 0 for id, x in frames.items()})
    with pytest.raises(InputError, match=r"zeros.npz: the features of all of 5 videos are zero everywhere"):
        import_features(annotations, zeros, tmp_path / "c", text_features=tmp_path / "texts.npy")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t[:9],
            r"texts.npy: the shape is \(9, 16\), expected \(10, D\): the captions in the order of their files",
        ),
        (lambda t: t[:, :8], "video features of '-abc_1_5' are 16-d, expected 8-d: .* one model"),
        (lambda t: t * np.where(np.arange(10) == 4, np.nan, 1)[:, None], "texts.npy: 16 of 160 values are NaN"),
        (lambda t: t * (np.arange(10) != 4)[:, None], "text feature of 'vidéo3#0' is zero everywhere"),
        (lambda t: t.astype(int), "texts.npy: an array of int64"),
    ],
)
def test_caption_features_that_are_none_are_refused(annotations, frames, texts, tmp_path, change, words):
    np.save(tmp_path / "texts.npy", change(texts))
    with pytest.raises(InputError, match=words):
        import_features(
            annotations, folder(tmp_path / "f", frames), tmp_path / "cache", text_features=tmp_path / "texts.npy"
        )
    assert not (tmp_path / "cache").exists()


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "after"), [("zarr", 3), ("hdf5", 1), ("hdf5", 3), ("hdf5", 5)])
def test_a_killed_import_goes_on_and_asking_again_changes_nothing(
    annotations, frames, texts, tmp_path, monkeypatch, format, after
):
    np.save(tmp_path / "texts.npy", texts)
    given = folder(tmp_path / "f", frames)

    def again(out):
        options = {"format": format, "shard_videos": 2, "shard_texts": 4}
        return import_features(annotations, given, out, text_features=tmp_path / "texts.npy", **options)

    again(tmp_path / "whole")
    original, commits = Library.commit, []

    def stop_soon(self, *args, **options):
        commits.append(args)
        if len(commits) > after:
            raise KeyboardInterrupt
        return original(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Library, "commit", stop_soon)
        with pytest.raises(KeyboardInterrupt):
            again(tmp_path / "cut")
    with pytest.raises(CacheIncompleteError):
        open_store(tmp_path / "cut")
    assert not again(tmp_path / "cut").already_complete
    a, b = open_store(tmp_path / "whole"), open_store(tmp_path / "cut")
    for stream in ("video", "text"):
        for name, array in a.arrays(stream).items():
            np.testing.assert_array_equal(array, b.arrays(stream)[name])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut").rglob("*")}
    assert again(tmp_path / "cut").already_complete
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cut").rglob("*")} == before


def test_a_finished_import_of_which_nothing_changed_opens_no_features(
    annotations, frames, texts, tmp_path, monkeypatch
):
    from glscl.extract.importing import import_features as module

    np.save(tmp_path / "texts.npy", texts)
    given, opened = folder(tmp_path / "f", frames), []
    original = module.open_arrays
    monkeypatch.setattr(module, "open_arrays", lambda path: opened.append(path) or original(path))

    def looked(annotations=annotations, **options):
        opened.clear()
        options |= {"name": "ours", "text_features": tmp_path / "texts.npy"}
        done = import_features(annotations, given, tmp_path / "c", **options)
        return len(opened), done

    first = looked()[1]
    times, done = looked()
    assert times == 0 and done.already_complete and done.encoded == {"videos": 0, "texts": 0}
    assert done.reused == first.encoded and (done.notes, done.frames, done.failed) == (
        first.notes,
        first.frames,
        first.failed,
    )
    fewer = dataclasses.replace(annotations, texts=annotations.texts[:-1], written=[t.id for t in annotations.texts])
    assert looked(list="fewer", annotations=fewer)[0] == 2  # other captions
    assert looked()[0] == 2 and looked()[0] == 0  # the last request alone is known
    next(given.rglob("*.npy")).touch()
    assert looked()[0] == 2
    for damaged in (tmp_path / "c" / "commits" / "text").iterdir():
        damaged.unlink()
    assert looked()[0] == 2  # what is not there any more is made again
    assert open_store(tmp_path / "c", first.list).complete
    np.save(given / "last.npy", frames["last"] + 1)
    assert looked()[1].encoded["videos"] == 1


def test_other_features_never_enter_the_cache_of_some(annotations, frames, texts, tmp_path):
    np.save(tmp_path / "texts.npy", texts)
    import_features(annotations, folder(tmp_path / "f", frames), tmp_path / "c", text_features=tmp_path / "texts.npy")
    frames["last"] = frames["last"] + 1
    other = folder(tmp_path / "g", frames)
    with pytest.raises(FingerprintError, match="backbone.weights") as refused:
        import_features(annotations, other, tmp_path / "c", text_features=tmp_path / "texts.npy")
    assert "`name`" in str(refused.value.hint)


def test_imports_of_one_name_join_and_bring_only_what_is_not_there(annotations, frames, texts, tmp_path):
    np.save(tmp_path / "texts.npy", texts)
    few = Annotations(dataset="csv", videos=annotations.videos[:3], texts=annotations.texts[:6])
    np.save(tmp_path / "few.npy", texts[:6])

    def into(out, given, features, captions, **options):
        options = {"text_features": captions, "name": "ViT-B-16", "list": "all"} | options
        return import_features(given, folder(tmp_path / f"f{len(list(tmp_path.iterdir()))}", features), out, **options)

    into(tmp_path / "c", few, {id: frames[id] for id in VIDEOS[:3]}, tmp_path / "few.npy", list="few")
    done = into(tmp_path / "c", annotations, frames, tmp_path / "texts.npy")
    assert (done.encoded, done.reused) == ({"videos": 2, "texts": 4}, {"videos": 3, "texts": 6})
    frames["last"] = frames["last"] + 1
    done = into(tmp_path / "c", annotations, frames, tmp_path / "texts.npy")
    assert (done.encoded, done.reused) == ({"videos": 1, "texts": 0}, {"videos": 4, "texts": 10})
    into(tmp_path / "fresh", annotations, frames, tmp_path / "texts.npy")
    a, b = open_store(tmp_path / "c", "all"), open_store(tmp_path / "fresh")
    for stream in ("video", "text"):
        for name, array in a.arrays(stream).items():
            np.testing.assert_array_equal(array, b.arrays(stream)[name], err_msg=name)
    assert open_store(tmp_path / "c", "few").num_items == {"video": 3, "text": 6}
    wider = {id: np.pad(rows, ((0, 0), (0, 1))) for id, rows in frames.items()}
    np.save(tmp_path / "wide.npy", np.pad(texts, ((0, 0), (0, 1))))
    with pytest.raises(FingerprintError, match="embed_dim"):
        into(tmp_path / "c", annotations, wider, tmp_path / "wide.npy")


def test_videos_whose_features_are_not_given_again_keep_those_that_are_there(annotations, frames, texts, tmp_path):
    np.save(tmp_path / "texts.npy", texts)
    options = {"text_features": tmp_path / "texts.npy", "name": "x"}
    import_features(annotations, folder(tmp_path / "f", frames), tmp_path / "c", **options)
    done = import_features(annotations, folder(tmp_path / "g", {"last": frames["last"]}), tmp_path / "c", **options)
    assert done.videos == len(VIDEOS) and done.encoded == {"videos": 0, "texts": 0}


# --- the whole way ----------------------------------------------------------------------------------------------------


@pytest.fixture
def glscl(capsys, monkeypatch):
    """Run a command in this process with --json: → (status, the object, standard error)."""

    def run(*arguments):
        arguments = [*map(str, arguments), "--json"]
        monkeypatch.setattr(sys, "argv", ["glscl", *arguments])
        status = main(cli.app, arguments)
        captured = capsys.readouterr()
        return status, json.loads(captured.out), captured.err

    return run


@pytest.fixture
def extracted(glscl, tmp_path, make_video, tiny_clip):
    """Twelve clips with two captions each through a tiny CLIP, and its frame features exported one file a video."""
    lines = ["video,caption,split"]
    for i in range(12):
        split = "train" if i < 8 else "val" if i < 10 else "test"
        make_video(tmp_path / "videos" / f"clip{i}.mp4", frames=8, seed=i)
        lines += [f"clip{i}.mp4,a picture of thing {i} {word},{split}" for word in ("moving", "turning")]
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    status, _, err = glscl(
        *("extract", "--dataset", "csv", "--annotations", tmp_path / "captions.csv", "--videos", tmp_path / "videos"),
        *("--backbone", f"local-dir:{tiny_clip()}", "--out", tmp_path / "extracted"),
    )
    assert status == 0, err
    frames = frames_of(open_store(tmp_path / "extracted"))
    folder(tmp_path / "exported", {id.removesuffix(".mp4"): array for id, array in frames.items()})
    return tmp_path


@pytest.mark.parametrize("format", EITHER)
def test_exported_features_come_back_as_they_were_and_serve_every_command(glscl, undrawn, extracted, tiny_clip, format):
    base = ("import-features", "--dataset", "csv", "--annotations", extracted / "captions.csv")
    base = (*base, "--features", extracted / "exported", "--name", "tiny", "--format", format)
    backbone = ("--backbone", f"local-dir:{tiny_clip()}")
    status, done, err = glscl(*base, *backbone, "--out", extracted / "cache")
    assert status == 0, err
    assert (done["videos"], done["texts"], done["failed"], done["already_complete"]) == (12, 24, [], False)
    assert not any("looked for" in note for note in done["notes"])
    store, source = open_store(extracted / "cache"), open_store(extracted / "extracted")
    for stream, names in {"video": ("values", "offsets", "times"), "text": ("values", "pooled", "token_ids")}.items():
        for name in names:
            np.testing.assert_array_equal(store.arrays(stream)[name], source.arrays(stream)[name], err_msg=name)
    pooled = [s.arrays("video", ["pooled"])["pooled"] for s in (store, source)]  # here of frames rounded to float16
    np.testing.assert_allclose(*pooled, atol=1e-3)
    assert glscl(*base, *backbone, "--out", extracted / "cache")[1]["already_complete"]

    status, report, _ = glscl("inspect", extracted / "cache", "--verify")
    assert status == 0 and report["complete"] and report["problems"] == []
    assert report["configuration"]["backbone"]["name"] == "tiny"
    status, _, err = glscl(
        *("train-head", "--cache", extracted / "cache", "--out", extracted / "run", "--epochs", 1, "--batch-size", 4)
    )
    assert status == 0, err
    status, result, err = glscl("eval", "--run", extracted / "run")
    assert status == 0, err
    assert (result["backbone"], result["pretrained"], result["counts"]["videos"]) == ("tiny", "imported", 2)
    status, page, err = glscl("report", extracted / "run", "--out", extracted / "report.html")
    assert status == 0 and "clip10.mp4" in (extracted / "report.html").read_text(), err
    status, found, _ = glscl("search", "a picture of thing 3", "--cache", extracted / "cache", "--top", 2)
    assert status == 0 and len(found["hits"]) == 2
    status, found, _ = glscl("search", "--video", extracted / "videos" / "clip2.mp4", "--cache", extracted / "cache")
    assert status == 2 and "imported frame features" in found["error"]
    status, refused, _ = glscl("eval", "--run", extracted / "run", "--cache", extracted / "extracted")
    assert status == 1 and "expects tiny/imported" in refused["error"]


def test_with_captions_from_arrays_no_backbone_is_needed(glscl, extracted):
    store = open_store(extracted / "extracted")
    np.save(extracted / "texts.npy", store.arrays("text", ["pooled"])["pooled"])
    status, done, err = glscl(
        *("import-features", "--dataset", "csv", "--annotations", extracted / "captions.csv"),
        *("--features", extracted / "exported", "--text-features", extracted / "texts.npy"),
        *("--out", extracted / "cache"),
    )
    assert status == 0, err
    pooled = open_store(extracted / "cache").arrays("text", ["pooled"])["pooled"]
    np.testing.assert_array_equal(pooled, store.arrays("text", ["pooled"])["pooled"])
    judged = [glscl("eval", "--zero-shot", "--cache", extracted / name)[1] for name in ("cache", "extracted")]
    assert judged[0]["text_to_video"] == judged[1]["text_to_video"]
    status, refused, _ = glscl("search", "a picture", "--cache", extracted / "cache")
    assert status == 2 and "no backbone is known" in refused["error"]
    status, refused, _ = glscl("train-head", "--cache", extracted / "cache", "--out", extracted / "run")
    assert status != 0 and "without token features" in refused["error"]
    assert "Import with --token-features" in refused["error"]


def test_a_backbone_of_another_size_is_refused(annotations, frames, tmp_path, tiny_clip):
    backbone = load_backbone(f"local-dir:{tiny_clip()}", words=12)
    with pytest.raises(InputError, match="video features of '-abc_1_5' are 16-d, expected 64-d"):
        import_features(annotations, folder(tmp_path / "f", frames), tmp_path / "cache", backbone=backbone)
