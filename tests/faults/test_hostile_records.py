"""What the long runs over hostile files have found, one by one: each is refused in a line that says what is wrong."""

from __future__ import annotations

import contextlib
import json
import math
import zipfile
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
from glscl.cache.library import open_library
from glscl.cache.lists import write_list
from glscl.cache.lock import FOLDER, hold, locks
from glscl.cache.store import open_store
from glscl.cache.table import FeatureTable
from glscl.commands.options import main
from glscl.common.errors import CacheCorruptError, CacheFormatError, CheckpointError, InputError, UsageError
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
            place = place[name]
        place[last] = new
    path.write_text(json.dumps(value))


def put(cache: Path, stream: str, name: str, index: int, value: int) -> None:
    """Change a number of a committed array of the first shard."""
    about = open_library(cache).stream(stream)
    where = cache / about.commits[about.additions[0].name, 0].path
    with h5py.File(where, "r+") as file:
        file[name][index] = value


# --- caches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "tar"}, "format: invalid enum value 'tar'"),
        ({"format": []}, "format"),
        ({"fingerprint": 1}, "does not give its fingerprint"),
        ({"configuration": None}, "does not give its fingerprint"),
        ({"stored_frames": []}, r"stored_frames: expected object . null, got array"),
        ({"stored_frames": {"encoding": "uint8", "size": [0, 8]}}, r"size.*expected int >= 1"),
        ({"stored_frames": {"encoding": "jpeg", "size": [8, 8], "quality": 200}}, "quality: expected int <= 100"),
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
        ({"backbone": 1}, "backbone: expected object, got int"),
        ({"backbone__name": None}, r"backbone\.name: expected str, got null"),
        ({"backbone__preprocessing": {"method": 2}}, "method: expected str, got int"),
        ({"backbone__words": "7"}, "words: expected int, got str"),
        ({"text_backbone": []}, "text_backbone"),
        ({"sampling": 3}, "sampling: expected object, got int"),
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path": "../../elsewhere.h5"}, "expected one below the cache"),
        ({"path": "/etc/passwd"}, "expected one below the cache"),
        ({"path": "shards/\0"}, "expected one below the cache"),
        ({"items": [0, 3]}, r"items of shard 0 are \(0, 3\), expected 0 to 4"),
        ({"shard": 1}, "items of shard 1"),
        ({"shard": 1.5}, "shard: expected int, got float"),
        ({"stream": "text"}, "it is of 'text'"),
        ({"addition": "0" * 16}, f"it is of 'video', '{'0' * 16}'"),
        ({"arrays": {}}, "arrays: values is not among them"),
        ({"arrays__values__shape": [-1, 8]}, "shape"),
        ({"arrays__values__shape": [3]}, "shape"),
        ({"arrays__times__shape": [1]}, "expected"),
        ({"arrays__values__dtype": "float64"}, "dtype 'float64'"),
        ({"failures": [{}]}, "failures"),
        ({"failures": [{"key": "../x", "reason": None, "status": "missing"}]}, "failures.*key"),
        ({"failures": "x"}, "failures"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_commit_is_checked_field_by_field_alone_and_among_all(cache, changes, words):
    name = open_library(cache).stream("video").additions[0].name
    together, alone = (cache / "commits" / "video" / f"{name}{shard}.json" for shard in ("", "-00000"))
    change(alone, **changes)
    open_store(cache)  # those together say it
    about = json.loads(together.read_text())
    together.unlink()
    with pytest.raises(CacheCorruptError, match=words):
        open_store(cache)
    about["commits"][0] = json.loads(alone.read_text())
    together.write_text(json.dumps(about))
    with pytest.raises(CacheCorruptError, match=words):
        open_store(cache)


@pytest.mark.parametrize(
    "changes",
    [{"schema": "glscl.commits/9"}, {"addition": "0" * 16}, {"commits": []}, {"commits": {}}, {"commits": [1]}],
)
def test_commits_of_something_else_are_refused(cache, changes):
    name = open_library(cache).stream("video").additions[0].name
    change(cache / "commits" / "video" / f"{name}.json", **changes)
    with pytest.raises(CacheCorruptError, match=rf"{name}\.json cannot be read: .*Delete it: the single commits"):
        open_store(cache)


@pytest.mark.parametrize(("index", "value"), [(0, 5), (1, 10**15), (2, -1), (-1, 3)])
def test_boundaries_that_do_not_rise_lead_nowhere(cache, index, value):
    put(cache, "video", "offsets", index, value)
    with pytest.raises(CacheCorruptError, match="offsets does not rise from 0 to"):
        FeatureTable.load(open_store(cache), "train", tokens=False)


def test_a_caption_of_a_video_of_another_split_is_refused(small_cache):
    made = small_cache("hdf5")
    cache, first = made.fill().path, made.annotations.texts[0]
    made.annotations.texts[0] = structs.replace(first, video=made.annotations.videos[10].id)
    write_list(cache, made.list, "hdf5")
    with pytest.raises(CacheCorruptError, match="captions of split train name video 10 of another split"):
        FeatureTable.load(open_store(cache, made.list.hash), "train")


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
    with pytest.raises(CheckpointError, match=r"unknown keys: x+ \[\.\.\.\] x+") as error:
        head_from_state_dict({"x" * 100_000: torch.zeros(1)}, "clip4clip", embed_dim=64)
    assert len(str(error.value)) < 2000


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
