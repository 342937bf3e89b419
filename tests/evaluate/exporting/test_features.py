"""Features written by name, in the layouts of other programs, and read back by `import-features`."""

from __future__ import annotations

import csv
import json
import tarfile

import h5py
import numpy as np
import pytest

from glscl.cache.store import open_store
from glscl.common.errors import InputError, UsageError
from glscl.evaluate.exporting.features import FEATURE_FORMATS, export_features
from glscl.extract.datasets import dataset_entry
from glscl.extract.importing.feature_files import open_arrays
from glscl.extract.importing.import_features import FeatureFiles, import_features
from glscl.extract.settings import ImportSettings


@pytest.fixture
def store(small_cache):
    return small_cache(format="hdf5").fill()


def needed(to):
    if to in ("parquet", "lance"):
        pytest.importorskip("pyarrow" if to == "parquet" else "lance", reason=f"pip install 'glscl[{to}]'")


def by_id(store):
    """id → its frames; caption of a video → its feature and tokens."""
    videos, texts = store.arrays("video", ["values", "offsets"]), store.arrays("text", ["values", "offsets", "pooled"])
    frames = {
        id: videos["values"][start:stop]
        for id, start, stop in zip(store.ids("video"), videos["offsets"], videos["offsets"][1:])
        if stop > start
    }
    captions = {}
    for row, (caption, owner) in enumerate(zip(store.captions(), store.list.text_video)):
        if store.ids("video")[owner] in frames:
            tokens = texts["values"][texts["offsets"][row] : texts["offsets"][row + 1]]
            captions[store.ids("video")[owner], caption] = (texts["pooled"][row], tokens)
    return frames, captions


@pytest.mark.parametrize("to", FEATURE_FORMATS)
def test_what_was_exported_is_imported_as_it_was(store, tmp_path, to):
    needed(to)
    out, end = tmp_path / "out", {"h5": ".h5", "parquet": ".parquet", "lance": ".lance"}.get(to, "")
    done = export_features(store, out, to=to)
    frames, captions = by_id(store)
    assert (done.videos, done.texts) == (len(frames), len(captions))
    annotations = dataset_entry("csv").read(out / "captions.csv", None, dry_run=True)
    files = FeatureFiles(out / f"frames{end}", out / f"texts{end}", out / f"tokens{end}")
    import_features(annotations, files, tmp_path / "back", ImportSettings(dtype=store.dtype, format="hdf5"))
    back = open_store(tmp_path / "back")
    frames_back, captions_back = by_id(back)
    assert frames.keys() == frames_back.keys() and captions.keys() == captions_back.keys()
    for id, values in frames.items():
        assert np.array_equal(values, frames_back[id])
    for key, (pooled, tokens) in captions.items():
        assert np.array_equal(pooled, captions_back[key][0]) and np.array_equal(tokens, captions_back[key][1])
    assert {name: len(split.videos) for name, split in back.splits.items()} == {
        name: len(frames.keys() & {*store.ids("video", split.videos)}) for name, split in store.splits.items()
    }


def test_each_layout_has_the_names_that_programs_look_for(store, tmp_path):
    frames, _ = by_id(store)
    id, values = next(iter(frames.items()))
    for to in ("npy-files", "npz", "h5", "webdataset"):
        export_features(store, tmp_path / to, to=to)
    with np.load(tmp_path / "npz/frames" / f"{id}.npz") as file:
        assert np.array_equal(file["features"], values) and len(file["times"]) == len(values)
    assert np.array_equal(np.load(tmp_path / "npy-files/frames" / f"{id}.npy"), values)
    with h5py.File(tmp_path / "h5/frames.h5") as file:
        assert np.array_equal(file[id][:], values)
    with tarfile.open(tmp_path / "webdataset/frames/00000.tar") as archive:
        told = json.load(archive.extractfile(f"{id}.json"))
        assert archive.extractfile(f"{id}.txt").read().decode().split("\n") == told["captions"]
        assert told["video_id"] == id and len(told["times"]) == len(values)


def test_a_table_has_a_row_a_frame_and_is_refused_where_it_is_none(store, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'glscl[parquet]'")
    frames, captions = by_id(store)
    export_features(store, tmp_path / "p", to="parquet")
    table = parquet.read_table(tmp_path / "p/frames.parquet")
    assert table.column_names == ["name", "split", "time", "vector"]
    assert list(dict.fromkeys(table["name"].to_pylist())) == [*frames]
    assert np.array_equal(np.stack(table["vector"].to_numpy()), np.concatenate([*frames.values()]))
    texts = parquet.read_table(tmp_path / "p/texts.parquet")
    assert texts.num_rows == len(captions) and {*texts["text"].to_pylist()} == {caption for _, caption in captions}
    export_features(store, tmp_path / "pooled", to="parquet", pooled=True, names="content")
    pooled = parquet.read_table(tmp_path / "pooled/frames.parquet")
    assert pooled.column_names == ["name", "split", "vector"] and pooled.num_rows == len({*pooled["name"].to_pylist()})
    for columns, words in (
        ({"name": ["a", "b", "a"], "vector": [[1.0, 2.0]] * 3}, "do not stand one after another"),
        ({"name": ["a", None], "vector": [[1.0, 2.0]] * 2}, "a row without a name"),
        ({"id": ["a"], "vector": [[1.0, 2.0]]}, "its columns are id, vector; expected name"),
        ({"name": ["a"], "vector": [["x"]]}, "expected numbers"),
        ({"name": ["a", "a"], "vector": [[1.0, 2.0], None]}, "a row of it is empty"),
        ({"name": ["a", "a"], "vector": [[1.0, 2.0], [1.0]]}, "vectors of one length"),
    ):
        import pyarrow as pa

        parquet.write_table(pa.table(columns), tmp_path / "wrong.parquet")
        with pytest.raises(InputError, match=words), open_arrays(tmp_path / "wrong.parquet") as arrays:
            arrays.read("a")


def test_pooled_is_one_vector_of_length_one_a_video(store, tmp_path):
    export_features(store, tmp_path / "out", to="npy-files", pooled=True, split="test")
    paths = [*(tmp_path / "out/frames").iterdir()]
    assert {path.stem for path in paths} == by_id(store)[0].keys() & {*store.ids("video", store.splits["test"].videos)}
    for path in paths:
        values = np.load(path)
        assert values.shape == (store.embed_dim,) and abs(np.linalg.norm(values.astype(np.float32)) - 1) < 2e-3


@pytest.mark.parametrize("name", ["frames", "captions.csv"])
def test_what_no_export_made_is_not_replaced(store, tmp_path, name):
    own = tmp_path / "data" / name
    if name == "frames":
        own.mkdir(parents=True)
        own = own / "0001.jpg"
    own.parent.mkdir(exist_ok=True)
    own.write_text("years of work")
    with pytest.raises(UsageError, match=f"{name} is there already and is no export"):
        export_features(store, tmp_path / "data", to="npy-files")
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == [own]
    assert own.read_text() == "years of work"
    export_features(store, tmp_path / "out", to="npy-files")
    (tmp_path / "out/frames/left.npy").write_text("of another split")
    export_features(store, tmp_path / "out", to="npy-files", split="test")
    assert not (tmp_path / "out/frames/left.npy").exists()
    assert "complete" not in json.loads((tmp_path / "out/export.json").read_text())


def test_ids_that_are_no_names_of_files_are_refused_and_go_by_content(store, tmp_path):
    id = next(iter(by_id(store)[0]))
    row = store.ids("video").index(id)
    store.list.video_ids[row] = "../a"
    with pytest.raises(InputError, match=r"the id '\.\./a' cannot be the name of a file.*`names=content`"):
        export_features(store, tmp_path / "out", to="npz")
    assert not (tmp_path / "out").exists()
    export_features(store, tmp_path / "out", to="npz", names="content")
    names = {path.stem for path in (tmp_path / "out/frames").iterdir()}
    assert store.list.video_key[row].tobytes().hex() in names and all(len(name) == 32 for name in names)
    with open(tmp_path / "out/captions.csv", newline="") as file:
        assert {row["video"] for row in csv.DictReader(file)} == names
    called = json.loads((tmp_path / "out/export.json").read_text())["video_ids"]
    assert called.keys() == names and ["../a"] in called.values()
