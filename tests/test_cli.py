"""The command line as a user meets it: bare commands, one JSON object, exit statuses, one clear line for bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import glscl.cli  # registers the commands
from glscl.commands.options import COMMANDS


@pytest.fixture
def clips(tmp_path, make_video):
    """Twelve clips and a CSV with two captions each; eight train, two val, two test."""
    lines = ["video,caption,split"]
    for i in range(12):
        split = "train" if i < 8 else "val" if i < 10 else "test"
        make_video(tmp_path / "videos" / f"clip{i}.mp4", frames=8, seed=i)
        lines += [f"clip{i}.mp4,a picture of thing {i} {word},{split}" for word in ("moving", "turning")]
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def extract_arguments(clips, tiny_clip, *more):
    return (
        *("extract", "--dataset", "csv", "--annotations", clips / "captions.csv", "--videos", clips / "videos"),
        *("--backbone", f"local-dir:{tiny_clip()}", *more),
    )


def one_line(status, out, err, *words):
    """The error is exactly one line on standard error, names what it should, and shows no traceback."""
    assert status in (1, 2), err
    lines = [line for line in err.splitlines() if line.startswith("glscl: ")]
    assert len(lines) == 1 and "Traceback" not in err and "Unexpected" not in err, err
    for word in words:
        assert str(word) in lines[0], f"{word!r} is not in: {lines[0]}"


def test_the_everyday_commands_work_bare_after_an_extract(glscl, clips, tiny_clip, monkeypatch):
    home = clips / "home"
    monkeypatch.setenv("GLSCL_HOME", str(home))
    monkeypatch.chdir(clips)
    status, out, _ = glscl(*extract_arguments(clips, tiny_clip, "--json"))
    extracted = json.loads(out)
    assert status == 0 and extracted["videos"] == 12 and extracted["texts"] == 24
    cache = Path(extracted["cache"])
    assert cache.parent == home / "caches" and cache.name.startswith("csv-")

    status, out, _ = glscl(*extract_arguments(clips, tiny_clip))
    assert status == 0 and "is complete already" in out

    status, out, err = glscl("train-head", "--epochs", 2, "--batch-size", 4)
    assert status == 0, err
    assert "training glscl" in out and "validation R@1" in out
    status, out, _ = glscl("eval")
    assert status == 0 and "text → video" in out
    (run,) = (home / "runs").glob("glscl-*")
    result = json.loads((run / "result.json").read_text())
    assert result["run"] == str(run) and result["head"] == "glscl" and result["selection"] == "validation"
    assert result["counts"]["videos"] == 2 and result["text_to_video"]["queries"] == 4
    assert result["cache_fingerprint"] == extracted["fingerprint"]

    status, out, _ = glscl("eval", "--zero-shot", "--json")
    assert status == 0 and json.loads(out)["head"] == "mean_pool" and json.loads(out)["run"] is None
    status, out, _ = glscl("search", "a picture of thing 3", "--top", 4, "--json")
    hits = json.loads(out)["hits"]
    assert status == 0 and [h["rank"] for h in hits] == [1, 2, 3, 4]
    status, out, _ = glscl("search", "--video", clips / "videos" / "clip2.mp4", "--run", run, "--top", 1)
    assert status == 0 and "a picture of thing" in out
    status, out, _ = glscl("inspect", cache, "--verify", "--json")
    report = json.loads(out)
    assert status == 0 and report["complete"] and report["problems"] == [] and report["splits"]["test"]["videos"] == 2
    status, out, _ = glscl("convert", cache, clips / "shared.h5")
    assert status == 0
    assert json.loads(glscl("eval", "--zero-shot", "--cache", clips / "shared.h5", "--json")[1])["text_to_video"]


def test_a_dry_run_counts_and_decodes_nothing(glscl, clips, monkeypatch):
    (clips / "videos" / "clip11.mp4").unlink()
    (clips / "videos" / "clip0.mp4").write_text("not a video")
    monkeypatch.setenv("GLSCL_HOME", str(clips / "home"))
    status, out, _ = glscl(
        *("extract", "--dataset", "csv", "--annotations", clips / "captions.csv", "--videos", clips / "videos"),
        *("--dry-run", "--json"),
    )
    splits = json.loads(out)["splits"]
    assert status == 0
    assert splits["test"] == {
        "captions": 4, "videos": 2, "found": 1, "missing": 1, "expected_captions": None, "expected_videos": None
    }  # fmt: skip
    assert splits["train"]["found"] == 8
    assert not (clips / "home").exists()


def test_json_is_one_object_on_standard_output_also_for_errors(glscl, tmp_path):
    status, out, err = glscl("inspect", tmp_path / "nothing", "--json")
    assert status == 1
    assert json.loads(out) == {"error": err.strip().removeprefix("glscl: "), "exit_status": 1}
    for words in (
        ("extract",),
        ("inspect",),
        ("no-such-command",),
        ("eval", "--no-such-option"),
        ("eval", "--seed", "x"),
    ):
        status, out, err = glscl(*words, "--json")
        told = json.loads(out)
        assert status == told["exit_status"] == 2
        assert told["error"] and told["error"].split()[0] in err


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_and_the_common_options(glscl, command):
    status, out, _ = glscl(command, "--help")
    assert status == 0
    text = " ".join(out.split())
    for option in ("--seed", "--device", "--json", "--debug", "--verbose"):
        assert option in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("extract",),
        ("extract", "--dataset", "csv", "--format", "parquet"),
        ("extract", "--dataset", "nonsense"),
        ("extract", "--dataset", "csv", "--fps", "fast"),
        ("extract", "--dataset", "csv", "--part", "3/2"),
        ("inspect", "--no-such-option"),
        ("no-such-command",),
        ("extract", "--dataset", "csv", "--max-frames", "0"),
        ("eval", "--run", "x", "--zero-shot"),
        ("search",),
        ("inspect", "x", "--device", "abacus"),
    ],
)
def test_wrong_usage_exits_with_2(glscl, arguments, monkeypatch, tmp_path):
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path))
    assert glscl(*arguments)[0] == 2


def test_help_loads_nothing_heavy():
    code = "import sys, glscl.cli; print([m for m in sys.modules if '.' not in m])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "numpy", "open_clip", "av", "decord", "zarr", "h5py", "matplotlib", "accelerate"):
        assert f"'{heavy}'" not in loaded


def test_the_installed_command_runs():
    script = Path(sys.executable).with_name("glscl")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("glscl ")
    module = subprocess.run([sys.executable, "-m", "glscl", "--version"], capture_output=True, text=True, check=True)
    assert module.stdout == done.stdout


CSV = "video,caption\nclip0.mp4,a dog\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["captions.csv"]),
        ("", ["captions.csv"]),
        ("video,caption\n", ["captions.csv"]),
        ("film,words\nclip0.mp4,a dog\n", ["captions.csv"]),
        ("video,caption\nclip0.mp4,a dog,too,many\n", ["captions.csv", "2"]),
        ("video,caption\n../clip0.mp4,a dog\n", ["captions.csv", ".."]),
        ("video,caption\n/etc/passwd,a dog\n", ["/etc/passwd"]),
        ("video,caption,split\nclip0.mp4,a dog,train\nclip0.mp4,a dog,test\n", ["clip0.mp4", "train", "test"]),
        ("video,caption,split\nclip0.mp4,a dog,holiday\n", ["captions.csv", "holiday"]),
        ("video,caption\nnowhere.mp4,a dog\n", ["nowhere.mp4", "--videos"]),
        (b"video,caption\nclip0.mp4,\xff\xfe\x00 dog\n", ["captions.csv"]),
    ],
)
def test_bad_annotations_end_in_one_clear_line(glscl, clips, tiny_clip, text, words):
    path = clips / "captions.csv"
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    one_line(*glscl(*extract_arguments(clips, tiny_clip, "--out", clips / "cache")), *words)
    assert not (clips / "cache").exists()


def test_an_empty_caption_is_dropped_and_said(glscl, clips, monkeypatch):
    (clips / "captions.csv").write_text("video,caption\nclip0.mp4,a dog\nclip1.mp4,  \n")
    arguments = ("--annotations", clips / "captions.csv", "--videos", clips / "videos", "--dry-run")
    status, out, _ = glscl("extract", "--dataset", "csv", *arguments)
    assert status == 0 and "dropped 1 empty caption" in out and "row 3" in out


def test_an_empty_videos_folder_is_named(glscl, clips, tiny_clip):
    shutil.rmtree(clips / "videos")
    one_line(*glscl(*extract_arguments(clips, tiny_clip, "--out", clips / "cache")), clips / "videos")
    (clips / "videos").mkdir()
    one_line(*glscl(*extract_arguments(clips, tiny_clip, "--out", clips / "cache")), "12 videos", "--videos")


def test_videos_that_cannot_be_decoded_are_an_error_only_together(glscl, clips, tiny_clip):
    for i in range(12):
        (clips / "videos" / f"clip{i}.mp4").write_bytes(b"\x00" * i)
    one_line(
        *glscl(*extract_arguments(clips, tiny_clip, "--out", clips / "cache")), "None of the 12 videos gave frames"
    )
    status, out, _ = glscl("inspect", clips / "cache")
    assert status == 0 and "decode_error: clip3.mp4" in out


def test_an_output_that_cannot_be_written_is_named(glscl, clips, tiny_clip):
    (clips / "file").write_text("")
    one_line(*glscl(*extract_arguments(clips, tiny_clip, "--out", clips / "file" / "cache")), "file/cache")
    (clips / "mine").mkdir()
    (clips / "mine" / "thesis.tex").write_text("")
    one_line(*glscl(*extract_arguments(clips, tiny_clip, "--out", clips / "mine")), "thesis.tex")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_line_and_the_same_command_goes_on(glscl, clips, tiny_clip, monkeypatch):
    from glscl.cache.formats.zarr_store import ZarrShards

    original = ZarrShards.write
    calls = []

    def write(path, arrays, attributes):
        calls.append(path)
        if len(calls) == 2:
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(b"x")
        original(path, arrays, attributes)

    with monkeypatch.context() as patch:
        patch.setattr(ZarrShards, "write", staticmethod(write))
        one_line(*glscl(*extract_arguments(clips, tiny_clip, "--out", clips / "cache")), "the disk is full")
    status, out, _ = glscl(*extract_arguments(clips, tiny_clip, "--out", clips / "cache", "--json"))
    assert status == 0 and json.loads(out)["videos"] == 12
    assert glscl("inspect", clips / "cache", "--verify")[0] == 0


@pytest.fixture
def trained(glscl, clips, tiny_clip):
    """A cache and a run of one epoch."""
    assert glscl(*extract_arguments(clips, tiny_clip, "--out", clips / "cache"))[0] == 0
    status, _, err = glscl(
        *("train-head", "--cache", clips / "cache", "--out", clips / "run", "--head", "projection"),
        *("--epochs", 1, "--batch-size", 4),
    )
    assert status == 0, err
    return clips


def test_a_cache_of_another_backbone_is_refused_with_the_command_that_mends_it(glscl, trained, tiny_clip):
    other = (*extract_arguments(trained, tiny_clip)[:-1], f"local-dir:{tiny_clip('clip_resnet')}")
    one_line(*glscl(*other, "--out", trained / "cache"), "backbone", "--out")
    assert glscl(*other, "--out", trained / "other")[0] == 0
    status, out, err = glscl("eval", "--run", trained / "run", "--cache", trained / "other")
    one_line(status, out, err, "expects", "glscl extract")


def test_a_damaged_cache_is_found_and_never_read_as_if_whole(glscl, trained):
    shard = next(p for p in (trained / "cache" / "shards" / "video").glob("0*/values/c/0/0"))
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    one_line(*glscl("eval", "--run", trained / "run"), "shards/video", "--verify")
    shard.write_bytes(data[:9] + bytes([data[9] ^ 4]) + data[10:])
    one_line(*glscl("inspect", trained / "cache", "--verify"), "problems", "values")
    (trained / "cache" / "store.json").write_text("{}")
    one_line(*glscl("inspect", trained / "cache"), "schema")


def test_a_checkpoint_that_does_not_fit_is_one_clear_line(glscl, trained):
    run = trained / "run"
    weights = (run / "best.safetensors").read_bytes()
    for broken in (b"", weights[:50], b"\x00" * 100):
        (run / "best.safetensors").write_bytes(broken)
        one_line(*glscl("eval", "--run", run), "best.safetensors")
    (run / "best.safetensors").write_bytes(weights)
    record = json.loads((run / "run.json").read_text())
    record["head"] = "seq_transf"
    (run / "run.json").write_text(json.dumps(record))
    one_line(*glscl("eval", "--run", run), "run")
    (run / "run.json").write_text("[]")
    one_line(*glscl("eval", "--run", run), "run.json")
    shutil.rmtree(run)
    one_line(*glscl("eval", "--run", run), run)


def test_bare_commands_say_what_is_missing_or_ambiguous(glscl, clips, tmp_path, monkeypatch, small_cache):
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "home"))
    one_line(*glscl("train-head"), "no cache", "glscl extract")
    one_line(*glscl("eval"), "no run", "glscl train-head")
    for name in ("home/caches/a", "home/caches/b"):
        small_cache(name=name).fill()
    one_line(*glscl("train-head"), "caches/a", "caches/b", "--cache")


def test_an_interrupt_stops_with_a_line_and_status_130(glscl, clips, tiny_clip, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("glscl.extract.pipeline.extract", interrupted)
    status, _, err = glscl(*extract_arguments(clips, tiny_clip, "--out", clips / "cache"))
    assert status == 130 and "the same command again" in err


def test_debug_shows_the_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "glscl", "inspect", tmp_path / "nothing", "--debug"],
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    assert done.returncode == 1 and "Traceback" in done.stderr and "NotFoundError" in done.stderr
