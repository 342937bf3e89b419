"""A run folder has one writer, and weights that its record does not tell of are never taken for its own."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open

from glscl.cache.files import half_written
from glscl.cache.lock import hold_file, hold_folder
from glscl.cache.upkeep.convert import convert
from glscl.common.errors import BusyError, CheckpointError, StorageError
from glscl.evaluate.exporting.vectors import export_vectors
from glscl.train_head.checkpoint import load_run, read_run, save_weights, write_run
from glscl.train_head.heads import build_head
from glscl.train_head.settings import TrainSettings, resolve
from glscl.train_head.sweeping.sweep import parse_sweep, sweep_points, train_sweep
from glscl.train_head.train import Reporter, train

SETTINGS = TrainSettings(head="projection", epochs=2, batch_size=2, lr=1e-2)
IN_USE = rf"is being written by glscl train-head \(process {os.getpid()} on .*, since \d"


@pytest.fixture
def store(small_cache):
    return small_cache().fill()


@pytest.fixture
def two_seeds(store, tmp_path):
    """Two runs that differ in their seed alone."""
    runs = [tmp_path / f"seed{seed}" for seed in (1, 2)]
    for seed, run in enumerate(runs, 1):
        train(store, run, TrainSettings(**{**vars(SETTINGS), "seed": seed}))
    return runs


# --- one writer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_in_use_is_refused_with_who_and_since_when_and_not_touched(store, tmp_path, resume):
    out, seen = tmp_path / "run", []

    class Second(Reporter):
        """Begins another training in the same folder, in the middle of the first."""

        def step(self, report):
            before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
            with pytest.raises(BusyError, match=IN_USE):
                train(store, out, TrainSettings(**{**vars(SETTINGS), "seed": 2}), resume=resume)
            seen.append(before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()})

    train(store, out, SETTINGS, reporter=Second())
    assert seen and all(seen)
    assert read_run(out)["settings"]["seed"] == SETTINGS.seed
    assert sorted(path.name for path in out.iterdir()) == [
        "best.safetensors",
        "history.jsonl",
        "last.safetensors",
        "progress.json",
        "run.json",
    ], "nothing of the lock stays behind"


def test_what_was_refused_leaves_no_folder_behind(store, tmp_path):
    with pytest.raises(ValueError, match="nonsense"):
        train(store, tmp_path / "new", TrainSettings(**{**vars(SETTINGS), "options": {"nonsense": 1}}))
    assert not (tmp_path / "new").exists()


def test_a_sweep_is_the_one_writer_of_its_folder(store, tmp_path):
    asked = {"head": "projection", "epochs": 1, "batch_size": 2}
    points = sweep_points(asked, parse_sweep(["lr=0.1,0.2"]), device_type="cpu", dataset="default", embed_dim=8)
    with hold_folder(tmp_path / "sweep", what="train-head"), pytest.raises(BusyError, match=IN_USE):
        train_sweep(store, tmp_path / "sweep", points)


def test_an_export_is_the_one_writer_of_its_folder(planted, tmp_path):
    head = build_head("mean_pool", embed_dim=16)
    with hold_folder(tmp_path, what="export"), pytest.raises(BusyError, match=r"written by glscl export \(process"):
        export_vectors(head, planted(videos=4), tmp_path)
    assert export_vectors(head, planted(videos=4), tmp_path).videos == 4
    assert not (tmp_path / "locks").exists()


def test_what_a_killed_writer_was_writing_goes_when_the_next_one_begins(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    ours = [".ids.json.0badcafe.tmp", ".page.html.0badcafe.tmp", ".page.html.0badf00d.tmp"]
    kept = [".page.html.tmp", ".mine.0badcafe", "page.html"]
    for name in (*ours, *kept):
        (tmp_path / name).write_text("half of it")
    (tmp_path / ".link.0badcafe.tmp").symlink_to(tmp_path / "page.html")
    with hold_file(tmp_path / "page.html", what="report"):
        assert not any((tmp_path / name).exists() for name in ours[1:]) and (tmp_path / ours[0]).exists()
    with hold_folder(tmp_path / "link", what="export"):
        assert not (tmp_path / ours[0]).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "link", ".link.0badcafe.tmp"])


def test_a_second_conversion_to_a_file_leaves_alone_what_the_first_is_writing(store, tmp_path):
    library, out = store.library, tmp_path / "flat.h5"
    writing = tmp_path / ".flat.h5.0123abcd.tmp"
    with hold_file(out, what="convert"):
        writing.write_bytes(b"half of it")
        with pytest.raises(BusyError, match=r"flat\.h5 is being written by glscl convert \(process"):
            convert(library, out)
        assert half_written(tmp_path) == [writing]
    convert(library, out)
    assert sorted(path.name for path in tmp_path.glob("*flat*")) == ["flat.h5"] and not half_written(tmp_path)


# --- weights and their record -----------------------------------------------------------------------------------------


def test_a_run_and_its_weights_are_of_one_training(two_seeds):
    ids = {read_run(run)["run_id"] for run in two_seeds}
    assert len(ids) == 2
    for run in two_seeds:
        for which in ("best", "last"):
            load_run(run, which)
            with safe_open(run / f"{which}.safetensors", "pt") as file:
                assert file.metadata() == {"format": "pt", "run": read_run(run)["run_id"], "epoch": "2"}


def test_weights_of_another_training_are_refused(two_seeds):
    one, two = two_seeds
    shutil.copyfile(one / "best.safetensors", two / "best.safetensors")
    with pytest.raises(CheckpointError, match=r"best\.safetensors is of another training than .*run\.json tells of"):
        load_run(two)
    load_run(two, "last")


def test_weights_without_a_name_are_refused_where_the_record_has_one(two_seeds):
    head, _ = load_run(two_seeds[0])
    save_weights(two_seeds[0] / "best.safetensors", head)
    with pytest.raises(CheckpointError, match="is of another training"):
        load_run(two_seeds[0])


def test_weights_that_changed_since_are_refused(two_seeds):
    path = two_seeds[0] / "last.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"last\.safetensors is damaged"):
        load_run(two_seeds[0], "last")


def test_weights_that_may_not_be_read_are_not_taken_for_lost(two_seeds, monkeypatch):
    """safetensors says of any file that it cannot open that it is not there."""

    def refused(path, *arguments, **named):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))

    monkeypatch.setattr("glscl.train_head.checkpoint.open", refused, raising=False)
    with pytest.raises(StorageError, match=r"Cannot read .*best\.safetensors: Permission denied"):
        load_run(two_seeds[0])


def test_weights_of_another_epoch_are_taken_only_where_the_training_was_stopped_before_it_told(two_seeds):
    run = two_seeds[0]
    record = read_run(run)
    behind = {"epoch": 1, "sha256": "0" * 64}
    write_run(run, record | {"checkpoints": {"best": behind, "last": behind}, "complete": False})
    load_run(run)
    write_run(run, record | {"checkpoints": {"best": behind, "last": behind}})
    with pytest.raises(CheckpointError, match="is of epoch '2'; .* tells of epoch 1"):
        load_run(run)
    ahead = {"epoch": 3, "sha256": "0" * 64}
    write_run(run, record | {"checkpoints": {"best": ahead}, "complete": False})
    with pytest.raises(CheckpointError, match="is of epoch '2'; .* tells of epoch 3"):
        load_run(run)


def test_a_run_of_an_earlier_version_tells_nothing_and_is_read(two_seeds):
    path = two_seeds[0] / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in record.items() if key not in ("run_id", "checkpoints")}))
    load_run(two_seeds[0])


def test_where_another_training_was_stopped_is_not_gone_on_from(store, tmp_path):
    class Stop(Reporter):
        def step(self, report):
            raise KeyboardInterrupt

    for seed in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            train(store, tmp_path / f"seed{seed}", TrainSettings(**{**vars(SETTINGS), "seed": seed}), reporter=Stop())
    shutil.copyfile(tmp_path / "seed1/resume.safetensors", tmp_path / "seed2/resume.safetensors")
    with pytest.raises(CheckpointError, match=r"resume\.safetensors is of another training"):
        train(store, tmp_path / "seed2", TrainSettings(**{**vars(SETTINGS), "seed": 2}), resume=True)


def test_the_same_weights_give_the_same_bytes(tmp_path):
    head = build_head("glscl", embed_dim=8, queries=2, decoder_layers=1, aggregator_layers=1)
    told = [save_weights(tmp_path / f"{i}.safetensors", head, run="0" * 16, epoch=3) for i in range(8)]
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(8)}) == 1
    assert told == told[:1] * 8
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(name), value) for name, value in head.state_dict().items())


def test_resolved_settings_are_taken_up_under_the_same_name(store, tmp_path):
    """What `run_id` is of may be told otherwise when a run goes on; its name stays."""
    settings = resolve({"head": "projection", "epochs": 2, "batch_size": 2}, dataset="default", device_type="cpu")

    class Stop(Reporter):
        def epoch(self, row, *, best):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path / "run", settings, reporter=Stop())
    begun = read_run(tmp_path / "run")
    again = TrainSettings(**{**vars(settings), "log_every": settings.log_every + 1})  # changes no result
    train(store, tmp_path / "run", again, resume=True)
    assert read_run(tmp_path / "run")["run_id"] == begun["run_id"]
    load_run(tmp_path / "run")
