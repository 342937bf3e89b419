"""What the long runs over hostile files have found, one by one: each is refused in a line that says what is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import zipfile
import zlib
from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from msgspec import structs
from safetensors.torch import save_file

from glscl import cli
from glscl.cache.fingerprint import fingerprint
from glscl.cache.keys import content_of
from glscl.cache.known_files import KnownFiles
from glscl.cache.library import open_library
from glscl.cache.lists import read_list, write_list
from glscl.cache.lock import FOLDER, hold, locks
from glscl.cache.store import Store, open_store
from glscl.cache.table import FeatureTable
from glscl.cache.upkeep.convert import convert
from glscl.cache.upkeep.summary import summarise
from glscl.cache.upkeep.verification import verify
from glscl.commands.options import main
from glscl.common.errors import CacheCorruptError, CacheFormatError, CheckpointError, GlsclError, InputError, UsageError
from glscl.common.settings import as_dict
from glscl.evaluate.evaluated_run import read_evaluated
from glscl.extract.importing.feature_files import open_arrays
from glscl.train_head.checkpoint import Resume, load_run, save_resume, save_weights, write_run
from glscl.train_head.heads import build_head
from glscl.train_head.importing.foreign_weights import head_from_state_dict
from glscl.train_head.importing.import_checkpoint import read_state_dict
from glscl.train_head.run_record import state_problem
from glscl.train_head.settings import TrainSettings, resolve, settings_from


@pytest.fixture
def cache(small_cache) -> Path:
    return small_cache("hdf5").fill().path


def change(path: Path, /, **changes: object) -> None:
    """Replace fields of a JSON object; `a__b` is field b of a."""
    value = json.loads(path.read_text())
    for key, new in changes.items():
        *outer, last = key.split("__")
        place = value
        for name in outer:
            place = place[int(name) if isinstance(place, list) else name]
        place[last] = new
    path.write_text(json.dumps(value))


def put(cache: Path, stream: str, name: str, index: int, value: int) -> None:
    """Change a number of a committed array of the first shard."""
    about = open_library(cache).stream(stream)
    with h5py.File(cache / about.commit_of(about.places[0]).path, "r+") as file:
        file[name][index] = value


# --- caches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "parquet"}, "format: invalid enum value 'parquet'"),
        ({"format": 1}, "format: expected str, got int"),
        ({"fingerprint": "0" * 16}, "its configuration does not give its fingerprint"),
        ({"fingerprint": None}, "its configuration does not give its fingerprint"),
        ({"configuration": []}, "its configuration does not give its fingerprint"),
        ({"stored_frames": 1}, "stored_frames"),
        ({"stored_frames": {"encoding": "png", "size": [1, 1]}}, "encoding"),
        ({"stored_frames": {"encoding": "uint8", "size": [0, 8]}}, r"size.*expected int >= 1"),
        ({"stored_frames": {"encoding": "jpeg", "size": [8, 8], "quality": 200}}, "quality: expected int <= 100"),
        ({"schema": "glscl.cache/3"}, "has schema 'glscl.cache/3'; this version reads 'glscl.cache/2'"),
        ({"schema": "glscl.cache/1"}, "made by an earlier version. Extract again"),
        ({"schema": ["glscl.cache/2"]}, "has schema"),
        ({"commits": {}}, "missing required field items"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_head_of_a_cache_is_checked_field_by_field(cache, changes, words):
    change(cache / "store.json", **changes)
    with pytest.raises(CacheFormatError, match=words):
        open_store(cache)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"items__video": 10**15}, r"items\.video: expected int <= 1000000000"),
        ({"items__text": True}, "items.text: expected int, got bool"),
        ({"items": None}, "items: expected object, got null"),
        ({"commits": []}, "its head lists no commits"),
        ({"schema": "glscl.cache/1"}, "made by an earlier version. Extract again"),
        ({"items__video": 10}, "The keys in .* cannot be read|The head of"),
        ({"commits__video__items": [0, 10]}, "items of shard 0"),
        ({"commits__text": 1}, "The head of .* cannot be read"),
        ({"list": None}, "The list in .* cannot be read"),
        ({"list__hash": "0" * 16}, "its content is that of"),
        ({"backbone": ["none"]}, "backbone's tensors"),
        ({"ledger": "x"}, ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_head_of_a_flat_file_is_checked_field_by_field(cache, tmp_path, changes, words):
    flat, told = convert(open_library(cache), tmp_path / "flat.h5"), tmp_path / "head.json"
    with h5py.File(flat, "r+") as file:
        told.write_bytes(file["head"][...].tobytes())
        change(told, **changes)
        del file["head"]
        file["head"] = np.frombuffer(told.read_bytes(), np.uint8)

    def read():
        store = open_store(flat)
        store.backbone_tensors(), FeatureTable.load(store, "train"), summarise(store.library)

    with pytest.raises((CacheFormatError, CacheCorruptError), match=words) if words else contextlib.nullcontext():
        read()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": 1}, "backbone: expected object, got int"),
        ({"backbone__name": None}, r"backbone\.name: expected str, got null"),
        ({"backbone__preprocessing": {"method": 2}}, "method: expected str, got int"),
        ({"backbone__words": "7"}, "words: expected int, got str"),
        ({"text_backbone": []}, "text_backbone"),
        ({"sampling": None}, "sampling: expected object, got null"),
        ({"embed_dim": 10**15}, "embed_dim: expected int <= 1000000"),
        ({"dtype": "float64"}, "dtype: invalid enum value 'float64'"),
        ({"tokens": "yes"}, "tokens: expected bool, got str"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_configuration_is_checked_too_where_the_fingerprint_was_made_to_fit(cache, changes, words):
    head = cache / "store.json"
    change(head, **{f"configuration__{key}": value for key, value in changes.items()})
    change(head, fingerprint=fingerprint(json.loads(head.read_text())["configuration"]))
    with pytest.raises(CacheFormatError, match=words):
        open_store(cache)


@pytest.mark.parametrize("gathered", [False, True], ids=["single", "gathered"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path": "../../elsewhere.h5"}, "expected one below the cache"),
        ({"path": "/etc/passwd"}, "expected one below the cache"),
        ({"path": "shards/\0"}, "expected one below the cache"),
        ({"items": [0, 3]}, "items of shard 0"),
        ({"shard": 1.5}, "shard: expected int, got float"),
        ({"shard": 10**6}, "items of shard 1000000|not each of 3 shards"),
        ({"stream": "text"}, "it is of 'text'"),
        ({"addition": "0" * 16}, "it is of 'video', '0000000000000000'"),
        ({"arrays": {}}, "arrays: values is not among them"),
        ({"arrays__values__shape": [-1, 8]}, "shape"),
        ({"arrays__values__shape": [3]}, "shape"),
        ({"arrays__times__shape": [1]}, "expected"),
        ({"arrays__values__dtype": "float64"}, "dtype 'float64'"),
        ({"failures": [{}]}, "failures"),
        ({"failures": "x"}, "failures"),
        ({"failures": [{"key": "../x", "reason": None, "status": "missing"}]}, "failures"),
        ({"failures": [{"key": "0" * 32, "reason": None, "status": "ok"}]}, "failures"),
        ({"attempt": -1}, "attempt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_commit_is_checked_field_by_field(cache, changes, words, gathered):
    (all_of_them,) = (path for path in (cache / "commits" / "video").glob("*.json") if "-" not in path.name)
    if gathered:
        change(all_of_them, **{f"commits__0__{key}": value for key, value in changes.items()})
    else:
        change(all_of_them.with_name(f"{all_of_them.stem}-00000.json"), **changes)
        assert open_store(cache).complete, "those gathered say it too"
        all_of_them.unlink()
    with pytest.raises(CacheCorruptError, match=words) as caught:
        summarise(open_store(cache).library)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"commits": {}}, {"commits": [1]}, {"commits": []}, {"schema": 1}, {"addition": None}], ids=str
)
def test_gathered_commits_of_other_things_are_refused(cache, changes):
    (path,) = (path for path in (cache / "commits" / "video").glob("*.json") if "-" not in path.name)
    change(path, **changes)
    with pytest.raises(CacheCorruptError, match=rf"{path.name} cannot be read.*Delete it"):
        summarise(open_store(cache).library)
    path.unlink()
    assert summarise(open_store(cache).library)["complete"]


@pytest.mark.parametrize("name", ["additions", "commits", "lists", "shards"])
def test_a_file_in_the_place_of_a_folder_is_one_line(cache, name):
    shutil.rmtree(cache / name)
    (cache / name).touch()
    with pytest.raises(GlsclError) as caught:
        FeatureTable.load(open_store(cache), "train")
    assert "\n" not in str(caught.value)


def checked(line: bytes) -> bytes:
    """A line of the memo with the checksum that it should have, as whoever means harm writes it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return line
    return json.dumps([*row, f"{zlib.crc32(repr(tuple(row)).encode()):08x}"]).encode()


@pytest.mark.parametrize(
    "line",
    [
        b'["/etc/passwd", 1, 2, "%s"]',
        b'["../../x", -1, 1e400, "%s"]',
        b'["a\\u0000b", 1, 2, "%s"]',
        b'["%s", 1, 2, "%s"]' % (b"x" * 100_000, b"%s"),
        b'["\\ud800", 1, 2, "%s"]',
        b'["", 1, 2, "%s"]',
        b"[" * 100_000,
        b"\xff\x00",
    ],
    ids=lambda line: ascii(line[:20]),
)
def test_the_memo_of_files_may_hold_anything(cache, line):
    store = open_store(cache)
    content = store.list.video_content[0].tobytes().hex().encode()
    (cache / "files.jsonl").write_bytes(checked(line % content if b"%s" in line else line) + b"\n")
    assert all(video.path is None for video in store.plan.videos)
    assert KnownFiles.read(cache).contents([cache / "store.json"])[0] == content_of(cache / "store.json")[1]


@pytest.mark.parametrize(("index", "value"), [(0, 5), (1, 10**15), (2, -1), (-1, 3)])
def test_boundaries_that_do_not_rise_lead_nowhere(cache, index, value):
    put(cache, "video", "offsets", index, value)
    with pytest.raises(CacheCorruptError, match="offsets does not rise from 0 to"):
        FeatureTable.load(open_store(cache), "train", tokens=False)


def test_a_caption_of_a_video_of_another_split_is_refused(small_cache):
    made = small_cache("hdf5")
    library = made.fill().library
    texts = [structs.replace(text, video="-v_9.mov") for text in made.annotations.texts[:1]]
    made.annotations = dataclasses.replace(made.annotations, texts=[*texts, *made.annotations.texts[1:]])
    write_list(made.path, made.list, "hdf5")  # as nobody who sorts entries by split writes it
    store = Store(library, read_list(made.path, "made", made.list.hash, "hdf5"))
    with pytest.raises(CacheCorruptError, match="captions of split train name video 9 of another split"):
        FeatureTable.load(store, "train")


def test_captions_that_are_no_text_are_a_problem_of_their_shard(cache):
    put(cache, "text", "text_bytes", 0, 0xFF)
    (problem,) = verify(open_library(cache))
    assert "text_bytes does not have the checksum" in problem


@pytest.mark.parametrize(
    "holder", [{"pid": 10**30, "host": "x"}, {"pid": -1, "host": "x"}, {"pid": "1", "host": 1}, [], "x"]
)
def test_a_lock_of_a_process_that_cannot_be_is_still_a_lock(cache, holder):
    with hold(cache, what="a test"):
        (path,) = (cache / FOLDER).iterdir()
        good = path.read_bytes()
        path.write_text(json.dumps(holder))
        assert [lock.holder for lock in locks(cache)] == [None]
        path.write_bytes(good)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Path:
    head = build_head("seq_transf", embed_dim=64, aggregator_layers=1, frame_positions=4)
    record = {
        "head": "seq_transf",
        "options": head.options,
        "embed_dim": 64,
        "cache": "cache",
        "cache_fingerprint": "0",
        "settings": {"max_frames": 4},
        "history": [],
    }
    save_weights(tmp_path / "run" / "best.safetensors", head)
    write_run(tmp_path / "run", record)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options__aggregator_layers": 10**9}, "aggregator_layers is 1000000000, but it holds"),
        ({"options__frame_positions": 10**13}, "shape"),
        ({"embed_dim": 64 * 10**13}, "embed_dim: expected int <= 1000000"),
        ({"embed_dim": True}, "embed_dim: expected int, got bool"),
        ({"options__aggregator_heads": 7}, "describes no head"),
        ({"settings__max_frames": "4"}, "max_frames"),
        ({"settings__max_frames": 0}, "max_frames"),
        ({"settings__frame_position": []}, "frame_position"),
        ({"history": [1]}, r"history\[0\]: expected object, got int"),
        ({"history": [{"validation": {"x": {"R@1": []}}}]}, "validation"),
        ({"versions": []}, "versions"),
        ({"cache": None}, "cache: expected str, got null"),
        ({"imported": {"notes": "x"}}, "notes"),
        ({"selection": "nothing"}, "selection: invalid enum value 'nothing'"),
        (
            {"cache_configuration": {"backbone": 1}},
            "backbone: expected object, got int",
        ),
        ({"cache_configuration": {"backbone": {"name": "b", "pretrained": 1}}}, "pretrained: expected str, got int"),
        (
            {"weights": {"best": {"backbone": "b", "weights": "f00"}}},
            "cache_configuration lacks name, preprocessing, words",
        ),
        ({"training": {"texts": "x", "videos": 3}}, "training.texts: expected int, got str"),
        ({"list_hash": 3}, "list_hash: expected str, got int"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_is_checked_field_by_field_before_its_head_takes_memory(run, changes, words):
    change(run / "run.json", **changes)
    with pytest.raises(CheckpointError, match=words):
        load_run(run)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 3}, "epoch is 3, expected 0 to 2"),
        ({"epoch": 1.5}, "epoch: expected int, got float"),
        ({"step": -1}, "step: expected int >= 0"),
        ({"losses": ["x"]}, "losses"),
        ({"losses": [10**400]}, "losses"),
        ({"history": None}, "history"),
        ({"best": []}, "best"),
        ({"scaler": 1}, "scaler"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_standing_is_checked_field_by_field(changes, words):
    good = {"epoch": 1, "step": 0, "losses": [1.0], "seconds": 1.0, "history": [], "best": None, "scaler": None}
    assert state_problem(good, epochs=2, steps=4) is None
    assert words in state_problem(good | changes, epochs=2, steps=4)
    assert state_problem([], epochs=2, steps=4) == "Expected object, got array"


def test_a_standing_without_a_moment_is_refused(tmp_path):
    from accelerate import Accelerator

    from glscl.train_head.resume_state import TrainingState, restore

    head = build_head("projection", embed_dim=8)
    state = TrainingState(epochs=2, steps=2, batch_size=2, seed=0)
    moving = {"epoch": 1, "step": 0, "losses": [], "seconds": 0.0, "history": [], "best": None, "scaler": None}
    tensors = {f"head.{name}": value for name, value in head.state_dict().items()}
    name, parameter = next((n, p) for n, p in head.named_parameters() if p.ndim)
    for extra, words in (
        ({f"exp_avg.{name}": torch.zeros_like(parameter)}, f"lacks exp_avg_sq, step of {name}"),
        ({f"momentum.{name}": torch.zeros_like(parameter)}, "does not fit the head"),
        ({f"exp_avg.{name}": torch.zeros(())}, "does not fit the head"),
        ({f"step.{name}": torch.zeros((), dtype=torch.int64)}, "does not fit the head"),
    ):
        same = {"epochs": 2, "steps": 2, "batch_size": 2, "seed": 0}
        save_resume(tmp_path, Resume({**tensors, **extra}, {**same, **moving}))
        with pytest.raises(CheckpointError, match=words):
            restore(Accelerator(cpu=True), state, head, torch.optim.AdamW(head.parameters()), tmp_path)


def test_stored_settings_of_other_types_are_refused():
    good = as_dict(resolve({"seed": 0}, dataset="msrvtt", device_type="cpu"))
    assert as_dict(settings_from(good)) == good
    for field in fields(TrainSettings):
        if field.metadata.get("affects_result", True):
            for value in ([[]], 10**400, -(10**30), "\ud800", math.nan, {"": {}}):
                with contextlib.suppress(UsageError):
                    json.dumps(as_dict(settings_from({**good, field.name: value})), allow_nan=False)
            with pytest.raises(UsageError, match=f"cannot be: `{field.name}`"):
                settings_from({**good, field.name: [[]]})


def test_layers_of_foreign_weights_are_counted_not_believed():
    key = "transformerClip.resblocks.{}.ln_1.weight"
    for layers in (["0", "999999999"], ["1"], ["00"]):
        with pytest.raises(CheckpointError, match="each once"):
            head_from_state_dict({key.format(n): torch.zeros(64) for n in layers}, "clip4clip", embed_dim=64)


def test_a_head_of_safetensors_that_goes_on_and_on_is_cut(run):
    save_file({"x" * 50_000: torch.zeros(1)}, run / "best.safetensors")
    data = (run / "best.safetensors").read_bytes().replace(b'"F32"', b'"' + b"y" * 3 + b'"')
    (run / "best.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        load_run(run)
    assert len(str(error.value)) < 1000


def test_an_archive_that_claims_several_disks_cannot_be_checked_and_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    data = bytearray((tmp_path / "x.pt").read_bytes())
    locator = data.rfind(b"PK\x05\x06") - 20
    data[locator : locator + 20] = (
        b"PK\x06\x07" + (1).to_bytes(4, "little") + (0).to_bytes(8, "little") + (9).to_bytes(4, "little")
    )
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(InputError, match="span multiple disks"):
        read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("pickled", [b"cos\n%b\n.", b"X\x7f\x84\x1e\x00%bQ."], ids=["class", "identity"])
def test_a_name_of_megabytes_is_refused_before_torch_searches_it(tmp_path, zipped, pickled):
    """torch would take hours: the time grows with the square of the length."""
    hostile, file = b"\x80\x02" + pickled % (b"x" * 1_999_999), tmp_path / "x.pt"
    torch.save({"a": torch.zeros(1)}, file, _use_new_zipfile_serialization=zipped)
    if zipped:
        with zipfile.ZipFile(file) as good:
            entries = {name: good.read(name) for name in good.namelist()}
        with zipfile.ZipFile(file, "w") as bad:
            for name, data in entries.items():
                bad.writestr(name, hostile if name.endswith("data.pkl") else data)
    else:
        file.write_bytes(hostile)
    with pytest.raises(InputError, match="name of 1999999 characters"):
        read_state_dict(file)
    with pytest.raises(InputError, match="name of 1999999 characters"), open_arrays(file):
        pass


def test_names_of_foreign_weights_that_go_on_and_on_are_cut():
    with pytest.raises(CheckpointError, match="unknown keys: x{100} …") as error:
        head_from_state_dict({"x" * 100_000: torch.zeros(1)}, "clip4clip", embed_dim=64)
    assert len(str(error.value)) < 400


# --- results ----------------------------------------------------------------------------------------------------------

METRICS = {"R@1": 50.0, "R@5": 60.0, "R@10": 70.0, "R@50": 80.0, "MdR": 1.0, "MnR": 2.0, "queries": 4}
RESULT = {
    "dataset": "made",
    "split": "test",
    "head": "mean_pool",
    "backbone": "b",
    "selection": "last",
    "frozen_backbone": True,
    "counts": {"texts": 4, "videos": 4},
    "text_to_video": METRICS,
    "video_to_text": METRICS,
}


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": []},
        {"frozen_backbone": 1},
        {"selection": "nothing"},
        {"counts": []},
        {"counts": {"texts": 4}},
        {"counts": {"texts": 4, "videos": 0}},
        {"counts": {"texts": 4, "videos": 4, "expected_videos": "x"}},
        {"text_to_video": METRICS | {"R@1": True}},
        {"text_to_video": METRICS | {"R@1": float("nan")}},
        {"text_to_video": METRICS | {"MnR": 10**400}},
        {"video_to_text": METRICS | {"queries": 4.5}},
        {"video_to_text_caption": {}},
        {"confidence_95": {"text_to_video": {"R@1": [1]}}},
        {"confidence_95": []},
        {"normalised": {"dsl": []}},
        {"normalised": {"dsl": {"text_to_video": {"R@1": "x"}}}},
        {"tags": {"x": {}}},
        {"seconds": {"load": "x"}},
        {"versions": {"torch": 2}},
        {"runs": [1]},
        {"cache": 1},
    ],
    ids=lambda changes: json.dumps(changes)[:50],
)
def test_a_result_is_checked_field_by_field(tmp_path, changes):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    assert read_evaluated(tmp_path / "result.json").result == RESULT
    (tmp_path / "result.json").write_text(json.dumps(RESULT | changes))
    with pytest.raises(InputError, match="is not a result of an evaluation"):
        read_evaluated(tmp_path / "result.json")


@pytest.mark.parametrize("ids", [np.arange(4), np.array([b"a"] * 4)])
def test_ranks_of_something_else_are_left_out_with_a_note(tmp_path, ids):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    ranks = dict.fromkeys(("text_to_video", "video_to_text", "video_to_text_caption"), np.full(4, 2.0))
    np.savez(tmp_path / "result.ranks.npz", **ranks, text_ids=ids, video_ids=ids, video_of_text=np.arange(4))
    found = read_evaluated(tmp_path / "result.json")
    assert found.ranks is None and "not strings" in found.notes[0]


# --- the last net -----------------------------------------------------------------------------------------------------


def test_what_the_system_refuses_is_one_line_about_the_path(capsys):
    assert main(cli.app, ["inspect", "x" * 5000]) == 1
    err = capsys.readouterr().err
    assert err.startswith("glscl: Cannot use xxx") and err.endswith("File name too long\n") and len(err) < 300
