"""Features of other extractors: every layout gives the same frames at the same times, and zero rows are never frames.

F frames, D embed_dim.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from glscl.cache.schema import Annotations, TextItem, VideoItem
from glscl.cache.store import open_store
from glscl.common.errors import InputError, NotFoundError
from glscl.common.tables import amount
from glscl.extract.importing import feature_files
from glscl.extract.importing.feature_files import open_arrays
from glscl.extract.importing.import_features import FeatureFiles, import_features
from glscl.extract.importing.pairing import frame_readers
from glscl.extract.settings import ImportSettings

DIM, IDS = 8, ("a", "b.mp4", "c d")
FRAMES = {id: np.random.default_rng(i).standard_normal((2 + i, DIM)).astype(np.float32) for i, id in enumerate(IDS)}
TIMES = {id: np.arange(len(rows)) * 0.4 + 0.1 for id, rows in FRAMES.items()}
LIST = Annotations(
    dataset="csv",
    videos=[VideoItem(id, "test", None) for id in IDS],
    texts=[TextItem(f"{id}#0", id, "test", f"of {id}") for id in IDS],
)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def tar(path: Path, members: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, value in members.items():
            out = io.BytesIO()
            if isinstance(value, np.ndarray):
                np.save(out, value)
            elif name.endswith(".npz"):
                np.savez(out, **value)
            else:
                out.write(json.dumps(value).encode())
            info = tarfile.TarInfo(name)
            info.size = len(out.getvalue())
            archive.addfile(info, io.BytesIO(out.getvalue()))
    return path


def padded() -> np.ndarray:
    block = np.zeros((len(IDS), 6, DIM), np.float32)
    for row, frames in zip(block, FRAMES.values()):
        row[: len(frames)] = frames
    return block


def video_features(root: Path) -> Path:
    for id, rows in FRAMES.items():
        save(root / f"{id}_clip.npy", rows)
        save(root / f"{id}_fps.npy", np.array(25.0))
        save(root / f"{id}_timestamps_ms.npy", TIMES[id] * 1000)
    return root


def groups(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        for id, rows in FRAMES.items():
            file[f"{id}/features"], file[f"{id}/timestamps"] = rows, TIMES[id]
    return path


def one_array(path: Path, *, texts: str, lengths: bool = False) -> Path:
    with h5py.File(path, "w") as file:
        file["features"] = padded()
        file["video_ids"] = np.array(IDS, "S9") if texts == "fixed" else list(IDS)
        if lengths:
            file["lengths"] = [len(rows) for rows in FRAMES.values()]
    return path


def one_array_with_times(path: Path) -> Path:
    shown = np.zeros(padded().shape[:2])
    for row, times in zip(shown, TIMES.values()):
        row[: len(times)] = times
    lengths = [len(rows) for rows in FRAMES.values()]
    np.savez(path, features=padded(), ids=np.array(IDS), lengths=np.array(lengths), timestamps_ms=shown * 1000)
    return path


def packed_names(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["features"] = padded()
        file.create_dataset("video_ids", data=list(IDS), dtype=h5py.string_dtype(), chunks=(2,), compression="gzip")
    return path


def npz_array(path: Path) -> Path:
    np.savez(path, features=padded(), ids=np.array(IDS))
    return path


def files_with_times(root: Path) -> Path:
    root.mkdir()
    for id, rows in FRAMES.items():
        np.savez(root / f"{id}.npz", features=rows, timestamps=TIMES[id])
    return root


def dictionary(path: Path) -> Path:
    np.save(path, FRAMES, allow_pickle=True)  # type: ignore[arg-type]
    return path


def tensors(path: Path) -> Path:
    torch.save({"features": torch.from_numpy(padded()), "names": list(IDS)}, path)
    return path


def shards(root: Path) -> Path:
    for i, (id, rows) in enumerate(FRAMES.items()):
        tar(root / f"{i:05}_clip_embeddings.tar", {f"{id}.npy": rows, f"{id}.json": {"caption": "x"}})
    return root


def shards_by_number(root: Path) -> Path:
    members = {f"{i:09}.{end}": value for i, (id, rows) in enumerate(FRAMES.items())
               for end, value in (("npy", rows), ("json", {"caption": "x", "duration": 3, "videoID": id}))}  # fmt: skip
    return tar(root / "0.tar", members)


def packed_folder(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features/README.txt", "by us")
        archive.writestr("__MACOSX/features/._a.npy", "of a Mac")
        for id, rows in FRAMES.items():
            with archive.open(f"features/{id}.npy", "w") as file:
                np.save(file, rows)
    return path


LAYOUTS = {
    "a packed folder of .npy": (packed_folder, "f.zip", False),
    "NAME_clip.npy with times in ms": (video_features, "d", True),
    "a group a video with timestamps": (groups, "g.h5", True),
    "a file a video with timestamps": (files_with_times, "t", True),
    "one array beside fixed strings": (lambda path: one_array(path, texts="fixed"), "o.h5", False),
    "one array beside names, lengths and times": (one_array_with_times, "t.npz", True),
    "one array beside strings in chunks": (packed_names, "p.h5", False),
    "one array beside strings and lengths": (lambda path: one_array(path, texts="free", lengths=True), "l.h5", False),
    "one array in .npz": (npz_array, "n.npz", False),
    "one tensor beside names": (tensors, "n.pt", False),
    "a saved dictionary": (dictionary, "d.npy", False),
    "archives of clip-video-encode": (shards, "s", False),
    "an archive whose .json has the names": (shards_by_number, "k", False),
    "an archive of .npz": (
        lambda path: tar(path, {f"{id}.npz": {"clip_embeddings": r, "fps": np.ones(1)} for id, r in FRAMES.items()}),
        "z.tar",
        False,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_frames_at_the_times_that_it_says(tmp_path, layout):
    make, name, has_times = LAYOUTS[layout]
    notes: list[str] = []
    with open_arrays(make(tmp_path / name)) as arrays:
        readers = frame_readers(arrays, LIST, notes)
        for id, rows in FRAMES.items():
            found = readers[id]()
            np.testing.assert_array_equal(found.rows, rows, err_msg=id)
            if has_times:
                np.testing.assert_allclose(found.times, TIMES[id])
            else:
                assert found.times is None
    assert not any("belong to no video" in note for note in notes), notes
    assert any("called by 'videoID'" in note for note in notes) == (name == "k")


def imported(tmp_path, features, annotations=LIST, **settings):
    np.savez(tmp_path / "texts.npz", **{text.id: np.ones(DIM, np.float32) for text in annotations.texts})
    files = FeatureFiles(features, tmp_path / "texts.npz")
    done = import_features(annotations, files, tmp_path / "cache", ImportSettings(dtype="float32", **settings))
    return done, open_store(tmp_path / "cache").arrays("video")


def test_times_of_the_file_become_those_of_the_cache(tmp_path):
    _, video = imported(tmp_path, video_features(tmp_path / "d"))
    np.testing.assert_allclose(video["times"], np.concatenate(list(TIMES.values())), atol=1e-6)
    np.testing.assert_allclose(video["duration"], [0.4 * len(rows) for rows in FRAMES.values()], atol=1e-5)


@pytest.mark.parametrize("damage", ["a circle", "repeated"])
def test_names_in_a_damaged_hdf5_file_are_refused(tmp_path, monkeypatch, damage):
    """The HDF5 library follows an object without a size for ever; and of one long name a small file makes many."""
    monkeypatch.setattr(feature_files, "TEXTS_SECONDS", 1.0)
    names = ["n" * 60_000, *map(str, range(2000))]
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["video_ids"], file["features"] = names, np.ones((len(names), 1, DIM), "f4")
        where = file["video_ids"].id.get_offset()
    data = bytearray((tmp_path / "f.h5").read_bytes())
    if damage == "repeated":
        data[where : where + 16 * len(names)] = data[where : where + 16] * len(names)
    else:
        first = data.index(b"GCOL") + 16
        data[first : first + 16] = bytes(16)
    (tmp_path / "f.h5").write_bytes(data)
    with pytest.raises(InputError, match="not done after 1 s|repeat each other|cannot be read"):
        imported(tmp_path, tmp_path / "f.h5")


@pytest.mark.parametrize("length", [7, -1, 1.5, np.nan])
def test_lengths_that_are_no_number_of_rows_are_refused(tmp_path, length):
    np.savez(tmp_path / "f.npz", features=padded(), ids=np.array(IDS), lengths=np.array([2, length, 4]))
    with pytest.raises(InputError, match=r"the length of 'b.mp4' in lengths is .*, expected a number of its 6 rows"):
        imported(tmp_path, tmp_path / "f.npz")


def test_times_that_do_not_fit_are_refused(tmp_path):
    root = video_features(tmp_path / "d")
    save(root / "a_timestamps_ms.npy", np.arange(5.0))
    with pytest.raises(InputError, match="5 times .* of 2 frames"):
        imported(tmp_path, root)
    save(root / "a_timestamps_ms.npy", np.array([1.0, 0.0]))
    with pytest.raises(InputError, match="not finite numbers from 0 that rise"):
        imported(tmp_path, root)


@pytest.mark.parametrize("zeros", [(0,), (0, 1), (2,), (1, 3), (0, 2, 5)])
def test_zero_rows_are_no_frames_wherever_they_stand_and_the_others_keep_their_times(tmp_path, zeros):
    rows = np.random.default_rng(9).standard_normal((6, DIM)).astype(np.float32)
    rows[list(zeros)] = 0
    np.savez(tmp_path / "f.npz", **{**FRAMES, "a": rows})
    done, video = imported(tmp_path, tmp_path / "f.npz", fps=2.0)
    kept = [i for i in range(6) if i not in zeros]
    count = video["offsets"][1]
    np.testing.assert_array_equal(video["values"][:count], rows[kept])
    assert video["times"][:count].tolist() == [i / 2 for i in kept]
    front = [i for i in zeros if i < kept[-1]]
    assert any(note.startswith(f"left out {amount(len(front), 'all-zero frame')} before or between others of 1 video")
               for note in done.notes)  # fmt: skip


@pytest.mark.parametrize("shape", [(3, 8, 1, 1), (1, 3, 8), (3, 1, 8), (1, 3, 1, 8, 1)])
def test_axes_of_length_one_stand_anywhere(tmp_path, shape):
    np.savez(tmp_path / "f.npz", **{**FRAMES, "b.mp4": FRAMES["b.mp4"].reshape(shape)})
    _, video = imported(tmp_path, tmp_path / "f.npz")
    np.testing.assert_array_equal(video["values"], np.concatenate(list(FRAMES.values())))


@pytest.mark.parametrize("shape", [(8,), (1, 8), (1, 8, 1), (8, 1, 1)])
def test_one_frame_is_one_frame_whatever_its_axes(tmp_path, shape):
    one = FRAMES["a"][:1].reshape(shape)
    np.savez(tmp_path / "f.npz", **{**FRAMES, "a": one})
    _, video = imported(tmp_path, tmp_path / "f.npz")
    assert video["offsets"].tolist() == [0, 1, 4, 8]


def test_a_shape_that_is_refused_is_not_the_one_that_is_expected(tmp_path):
    np.savez(tmp_path / "f.npz", **{**FRAMES, "a": np.ones((2, 3, DIM), np.float32)})
    with pytest.raises(
        InputError, match=r"'a': the shape is \(2, 3, 8\), expected \(F, D\), or that with axes of length 1"
    ):
        imported(tmp_path, tmp_path / "f.npz")


def test_features_with_frames_and_dimensions_exchanged_are_said_to_be_transposed(tmp_path):
    np.savez(tmp_path / "f.npz", **{id: rows.T for id, rows in FRAMES.items()})
    with pytest.raises(
        InputError, match=r"of 'a' have the shape \(8, 2\), expected \(F, 8\); perhaps they are transposed"
    ):
        imported(tmp_path, tmp_path / "f.npz")
    np.savez(tmp_path / "n.npz", features=padded().transpose(0, 2, 1), ids=np.array(IDS))
    with pytest.raises(InputError, match="transposed"):
        imported(tmp_path, tmp_path / "n.npz")


def test_a_zip_without_arrays_says_what_to_do(tmp_path):
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        archive.writestr("a.txt", "nothing")
    with pytest.raises(InputError, match="none of its members is an .npy file") as refused:
        imported(tmp_path, tmp_path / "f.zip")
    assert refused.value.hint is not None and refused.value.hint.text == "Unpack it, and name the folder"


def test_names_beside_an_array_must_be_one_a_video_and_different(tmp_path):
    np.savez(tmp_path / "f.npz", features=padded(), ids=np.array(["a", "b.mp4"]))
    with pytest.raises(InputError, match="2 names in ids beside an array of 3 videos"):
        imported(tmp_path, tmp_path / "f.npz")
    np.savez(tmp_path / "f.npz", features=padded(), ids=np.array(["a", "b.mp4", "a"]))
    with pytest.raises(InputError, match="the name 'a' stands 2 times in ids"):
        imported(tmp_path, tmp_path / "f.npz")


def test_names_of_samples_in_no_field_are_said_to_be_missing(tmp_path):
    path = tar(tmp_path / "s.tar", {"0.npy": FRAMES["a"], "0.json": {"video": "other"}, "1.npy": FRAMES["a"]})
    with pytest.raises(NotFoundError, match="has features of none of the 3 videos .* it has '0', '1'"):
        imported(tmp_path, path)


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_a_saved_dictionary_cannot_run_code(tmp_path, capsys):
    np.save(tmp_path / "f.npy", {"a": Evil()}, allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="could run code"):
        imported(tmp_path, tmp_path / "f.npy")
    np.save(tmp_path / "f.npy", np.array([FRAMES["a"], 1], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="Python objects"):
        imported(tmp_path, tmp_path / "f.npy")
    assert capsys.readouterr().out == ""
