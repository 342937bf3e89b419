"""Train-head, its sweeps, finetune and import-checkpoint, as a user meets them."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from glscl import cli
from glscl.cache.lists import CacheList, make_current, write_list
from glscl.cache.store import open_store
from glscl.commands import training
from glscl.commands.options import main
from glscl.commands.printing import TrainingLines
from glscl.train_head.doubts import ScoreSummary
from glscl.train_head.heads import build_head

QUICK = ("--epochs", 1, "--batch-size", 8, "--validation", 4)


def test_a_sweep_prints_one_table_and_its_best_run_is_judged(glscl, cache, tmp_path):
    arguments = ("train-head", "--head", "projection", *QUICK, "--sweep", "lr=1e-2,1e-4", "--sweep", "adapter=none,mlp")
    status, out, err = glscl(*arguments, "--out", tmp_path / "sweep")
    assert status == 0, err
    assert "point 4 of 4" in out and "sorted by validation R@1; judge the best: glscl eval --run" in out
    best = out.strip().splitlines()[-1].split("--run ")[1]
    status, out, err = glscl("eval", "--run", best)
    assert status == 0 and "selected on validation" in out, err

    status, out, _ = glscl(*arguments, "--out", tmp_path / "sweep", "--json")
    found = json.loads(out)
    assert status == 0 and all(row["skipped"] for row in found["rows"]) and found["rows"][0]["run"] == best
    r1 = [row["validation"]["text_to_video"]["R@1"] for row in found["rows"]]
    assert len(r1) == 4 and r1 == sorted(r1, reverse=True)


def test_a_sweep_has_a_folder_of_its_own_by_default(glscl, cache, tmp_path):
    assert glscl("train-head", "--head", "projection", *QUICK, "--sweep", "lr=1e-2")[0] == 0
    (folder,) = (tmp_path / "home" / "runs").glob("sweep-projection-*")
    assert (folder / "sweep.json").is_file() and (folder / "lr=0.01" / "run.json").is_file()


@pytest.fixture
def newer_list(cache):
    """`newer_list(name)`: a list of the cache without its last clip, which counts from now on."""

    def make(name: str) -> CacheList:
        last = cache.annotations.videos[-1].id
        videos = [video for video in cache.annotations.videos if video.id != last]
        texts = [text for text in cache.annotations.texts if text.video != last]
        cache.annotations = replace(cache.annotations, videos=videos, texts=texts)
        made = replace(cache.list, name=name)
        write_list(cache.path, made, cache.format)
        make_current(cache.path, made)
        return made

    return make


def trained_on(run: Path) -> tuple[str, str]:
    record = json.loads((run / "run.json").read_text())
    return record["list"], record["list_hash"]


def test_of_several_lists_one_must_be_named_and_a_run_keeps_its_own(glscl, cache, newer_list, tmp_path, one_line):
    first, second = cache.list, newer_list("second")
    arguments = ("train-head", "--head", "projection", *QUICK)
    one_line(glscl(*arguments), "several lists: made, second", "--list")
    one_line(glscl(*arguments, "--list", "third"), "no list third", "made, second")
    assert glscl(*arguments, "--list", "second", "--out", tmp_path / "a")[0] == 0
    assert trained_on(tmp_path / "a") == ("second", second.hash)
    status, out, _ = glscl(*arguments, "--list", "made", "--out", tmp_path / "b")
    assert status == 0 and f"training projection on list made of {cache.path}" in out
    newest = newer_list("made")

    status, out, err = glscl("train-head", "--resume", "--out", tmp_path / "b")
    assert status == 0 and "is finished already" in out, err
    one_line(
        glscl("train-head", "--resume", "--out", tmp_path / "b", "--list", "made"),
        f"found made@{newest.hash}, expected made@{first.hash}",
        f"--list made@{first.hash}",
    )
    one_line(glscl(*arguments, "--list", f"made@{'0' * 16}"), f"no list made@{'0' * 16}")
    assert glscl(*arguments, "--list", first.hash, "--out", tmp_path / "c")[0] == 0
    assert trained_on(tmp_path / "c") == ("made", first.hash)


def test_a_sweep_goes_on_with_the_version_that_it_began_on(glscl, cache, newer_list, tmp_path):
    first = cache.list
    arguments = ("train-head", "--head", "projection", *QUICK, "--out", tmp_path / "sweep", "--sweep")
    assert glscl(*arguments, "lr=1e-2")[0] == 0
    assert newer_list("made").hash != first.hash
    assert glscl(*arguments, "lr=1e-2,1e-3")[0] == 0
    assert trained_on(tmp_path / "sweep" / "lr=0.001") == trained_on(tmp_path / "sweep" / "lr=0.01")
    about = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert (about["list"], about["list_hash"]) == ("made", first.hash)


def test_a_bad_key_ends_before_anything_trains(glscl, cache, tmp_path, one_line):
    one_line(glscl("train-head", "--sweep", "querries=4"), "querries", "queries", status=2)
    one_line(glscl("train-head", "--sweep", "lr=1e-3", "--tracker", "tensorboard"), "--tracker", status=2)
    assert not (tmp_path / "home" / "runs").exists()


def test_an_adapter_is_saved_with_the_run_and_found_again(glscl, cache, tmp_path):
    run = tmp_path / "run"
    assert glscl("train-head", "--head", "projection", "--adapter", "linear", *QUICK, "--out", run)[0] == 0
    assert json.loads((run / "run.json").read_text())["options"]["adapter"] == "linear"
    assert glscl("eval", "--run", run)[0] == 0


@pytest.mark.parametrize("more", [[], ["--sweep", "queries=4,8"]], ids=["one", "sweep"])
def test_training_says_nothing_of_a_cache_with_nothing_to_learn_from_but_the_error(more, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    store = SimpleNamespace(splits={"test": None}, place="searched", recipe="default", embed_dim=64)
    monkeypatch.setattr(training, "open_cache", lambda *_, **__: store)
    assert main(cli.app, ["train-head", *more]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "searched has no split train" in said.err and "glscl search" in said.err


def test_training_without_the_tokens_a_head_needs_says_so_alone(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    library = SimpleNamespace(path=Path("c"), place="c", has_tokens=False, configuration={})
    store = SimpleNamespace(splits={"train": None}, path=library.path, place="c", recipe="default", library=library)
    monkeypatch.setattr(training, "open_cache", lambda *_, **__: store)
    assert main(cli.app, ["train-head", "--head", "glscl"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "c is without token features. Extract with --tokens" in said.err


def test_training_over_a_run_says_so_before_it_says_that_it_trains(small_cache, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cache = small_cache(videos=24).fill().path
    arguments = ["train-head", "--head", "mean_pool", "--epochs", "1", "--cache", str(cache), "--out", "run"]
    monkeypatch.setattr(sys, "argv", ["glscl", *arguments])
    assert main(cli.app, arguments) == 0
    capsys.readouterr()
    assert main(cli.app, arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and "run holds a run already" in said.err and "--resume" in said.err


def in_force(said: str) -> dict[str, str]:
    """Settings as -v prints them."""
    pairs = (line.partition(" = ") for line in said.splitlines() if line.startswith("  ") and " = " in line)
    return {name.strip(): value for name, _, value in pairs}


def as_printed(saved: dict) -> dict[str, str]:
    return {name: str(value) for name, value in saved.items()}


def test_what_was_in_force_is_printed_and_saved_whoever_decided_it(glscl, cache, tmp_path):
    (tmp_path / "train.toml").write_text('head = "projection"\nepochs = 1\nbatch_size = 4\nvalidation = 2\n')
    words = ("--config", tmp_path / "train.toml", "--batch-size", 8, "--out", tmp_path / "run", "-v")
    status, _, said = glscl("train-head", *words)
    saved = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert status == 0 and in_force(said) == as_printed(saved)
    assert (saved["head"], saved["epochs"], saved["batch_size"], saved["weight_decay"]) == ("projection", 1, 8, 0.2)
    status, _, said = glscl("train-head", "--config", tmp_path / "run" / "run.json", "--out", tmp_path / "again", "-v")
    assert status == 0 and in_force(said) == as_printed(saved)


def test_finetune_leaves_a_run_that_pixels_and_new_features_judge_alike(glscl, tmp_path, make_video):
    lines = ["video,caption,split"]
    for i in range(8):
        split = "train" if i < 6 else "test"
        make_video(tmp_path / "videos" / f"clip{i}.mp4", frames=8, seed=i)
        lines += [f"clip{i}.mp4,a red circle number {i} {word},{split}" for word in ("moving", "turning")]
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    data = ("--dataset", "csv", "--annotations", tmp_path / "captions.csv", "--videos", tmp_path / "videos")
    cache, out, again = tmp_path / "cache", tmp_path / "ft", tmp_path / "again"
    extract = ("extract", *data, "--backbone", "demo", "--dtype", "float32", "--workers", 1)
    assert glscl(*extract, "--out", cache, "--store-frames", "uint8")[0] == 0

    asked = ("--head", "projection", "--epochs", 1, "--batch-size", 4, "--lr", 1e-3, "--backbone-lr-scale", 0.1)
    status, text, said = glscl("finetune", "--cache", cache, "--out", out, *asked, "--micro-batch", 2, "-v")
    assert status == 0 and "judge it from pixels, or extract again" in text
    assert in_force(said) == as_printed(json.loads((out / "run.json").read_text())["settings"])
    assert "  backbone: lr 0.0001, micro_batch 2" in text
    by_pixels, extraction, by_features = (
        shlex.split(line)[1:] for line in text.splitlines() if line.startswith("  glscl ")
    )
    assert json.loads((out / "run.json").read_text())["frozen_backbone"] is False

    status, _, error = glscl("eval", "--run", out)
    assert status == 1 and "trained the backbone itself" in error and "--pretrained" in error
    assert "--store-frames uint8" in error and f"glscl eval --run {out} --videos {tmp_path / 'videos'}" in error
    status, text, _ = glscl(*by_pixels, "--json", "--out", tmp_path / "a.json")
    assert status == 0
    assert extraction == [*map(str, extract), "--store-frames", "uint8", *extraction[-4:]]
    status, _, said = glscl(*[again if word == "CACHE" else word for word in extraction], "-v")
    saved = as_printed(open_store(again).list.settings)
    assert status == 0 and in_force(said) == saved | {"precision": "auto"} and saved["precision"] == "fp32"
    status, same, _ = glscl(*[again if word == "CACHE" else word for word in by_features], "--json")
    assert status == 0
    of_pixels, of_features = json.loads(text), json.loads(same)
    assert of_pixels["text_to_video"] == of_features["text_to_video"]
    assert of_pixels["frozen_backbone"] is of_features["frozen_backbone"] is False

    for wrong, says in [
        (("--lora-rank", 2, "--freeze-layers", 1), "--lora-rank leaves the backbone as it is"),
        (("--freeze-layers", 9), "the vision tower of demo has 4 blocks"),
        (("--patch-embedding", "3d"), "needs an open_clip vision transformer"),
        (("--out", out), "holds a run already"),
    ]:
        status, _, error = glscl("finetune", "--cache", cache, "--out", tmp_path / "bad", *asked, *wrong)
        assert status in (1, 2) and says in error and error.count("\n") <= 4, error
        assert not (tmp_path / "bad").exists()


def public_state_dict(embed_dim=8):
    """A CLIP4Clip checkpoint of the LSTM type, with a part of its backbone."""
    torch.manual_seed(0)
    head = build_head("seq_lstm", embed_dim=embed_dim)
    lstm = {key.replace("aggregator.lstm", "lstm_visual"): value for key, value in head.state_dict().items()}
    lstm.pop("logit_scale")
    return {**lstm, "clip.logit_scale": torch.tensor(4.0), "clip.visual.proj": torch.ones(3, 3)}


def test_an_imported_checkpoint_is_judged_like_a_run(glscl, cache, tmp_path):
    torch.save(public_state_dict(), tmp_path / "pytorch_model.bin")
    status, out, err = glscl("import-checkpoint", tmp_path / "pytorch_model.bin", "--source", "clip4clip")
    assert status == 0 and "1 of its backbone clip" in out and "trained on other features" in out, err
    status, out, err = glscl("eval", "--json")
    result = json.loads(out)
    assert status == 0 and result["head"] == "seq_lstm" and result["selection"] == "last", err
    assert "trained on other features" in err
    assert glscl("export", "--out", tmp_path / "v")[0] == 0


def test_a_checkpoint_with_more_than_tensors_is_one_clear_line(glscl, cache, tmp_path, one_line):
    torch.save({"model": public_state_dict(), "path": tmp_path}, tmp_path / "f.pt")
    one_line(
        glscl("import-checkpoint", tmp_path / "f.pt", "--source", "clip4clip"), "f.pt", "other Python objects", status=1
    )
    torch.save(public_state_dict(embed_dim=16), tmp_path / "wide.pt")
    one_line(glscl("import-checkpoint", tmp_path / "wide.pt", "--source", "clip4clip"), "lstm", "expects", status=1)
    assert not (tmp_path / "home" / "runs").exists()


def test_a_job_that_is_started_again_is_one_command(glscl, cache, tmp_path, one_line, monkeypatch):
    run, stop = tmp_path / "run", [True]
    quick = ("--epochs", 3, "--batch-size", 4, "--validation", 0, "--device", "cpu")
    arguments = ("train-head", "--head", "projection", *quick, "--out", run, "--requeue")
    heard = TrainingLines.epoch

    def epoch(self, row, **more):
        heard(self, row, **more)
        if stop and row["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingLines, "epoch", epoch)
    status, _, err = glscl(*arguments)
    line = err.strip().splitlines()[-1]
    assert status == 130 and f"{run} keeps what is done. Go on: " in line and line.endswith("--requeue")
    stop.clear()
    status, out, err = glscl(*arguments)
    assert status == 0, err
    assert "epoch 1 " not in out and "epoch 3 " in out
    status, out, _ = glscl(*arguments)
    assert status == 0 and "is finished already" in out
    one_line(glscl(*arguments[:-3], "--requeue"), "--requeue goes on with the run in --out", status=2)
    one_line(glscl(*arguments, "--epochs", 9), "epochs", status=2)


def test_a_training_ends_with_what_there_is_to_doubt(glscl, cache, tmp_path, monkeypatch):
    alike = ScoreSummary(low=0.5, high=0.5, queries=99, gallery=99, hub=0, hits=99)
    monkeypatch.setattr("glscl.train_head.learner.sampled_scores", lambda *_: alike)
    arguments = ("train-head", "--head", "projection", *QUICK, "--out")
    status, out, _ = glscl(*arguments, tmp_path / "a")
    assert status == 0 and "warning: the head scores all alike: the scores of 99 captions" in out
    status, out, _ = glscl(*arguments, tmp_path / "b", "--json")
    assert any("scores all alike" in line for line in json.loads(out)["doubts"])
    status, out, _ = glscl(*arguments, tmp_path / "c", "--sweep", "lr=1e-2,1e-3")
    assert status == 0 and "warning: lr=0.001: the head scores all alike" in out
