"""Extract on the command line: what is wrong with the input is one clear line, and nothing is left half made."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from glscl.cache.store import open_store
from glscl.commands.printing import print_extraction


def test_a_dry_run_counts_and_decodes_nothing(glscl, clips, monkeypatch):
    (clips / "videos" / "clip11.mp4").unlink()
    (clips / "videos" / "clip0.mp4").write_text("not a video")
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
def test_bad_annotations_end_in_one_clear_line(glscl, clips, extract_arguments, text, words, one_line):
    path = clips / "captions.csv"
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    one_line(glscl(*extract_arguments("--out", clips / "cache")), *words)
    assert not (clips / "cache").exists()


def test_an_empty_caption_is_dropped_and_said(glscl, clips, monkeypatch):
    (clips / "captions.csv").write_text("video,caption\nclip0.mp4,a dog\nclip1.mp4,  \n")
    arguments = ("--annotations", clips / "captions.csv", "--videos", clips / "videos", "--dry-run")
    status, out, _ = glscl("extract", "--dataset", "csv", *arguments)
    assert status == 0 and "dropped 1 empty caption" in out and "row 3" in out


def test_an_empty_videos_folder_is_named(glscl, clips, extract_arguments, one_line):
    shutil.rmtree(clips / "videos")
    one_line(glscl(*extract_arguments("--out", clips / "cache")), clips / "videos")
    (clips / "videos").mkdir()
    one_line(glscl(*extract_arguments("--out", clips / "cache")), "12 videos", "--videos")


def test_videos_that_cannot_be_decoded_are_an_error_only_together(glscl, clips, extract_arguments, one_line):
    for i in range(12):
        (clips / "videos" / f"clip{i}.mp4").write_bytes(b"\x00" * i)
    one_line(glscl(*extract_arguments("--out", clips / "cache")), "None of the 12 videos gave frames")
    status, out, _ = glscl("inspect", clips / "cache")
    assert status == 0 and "decode_error: clip3.mp4" in out


def test_an_output_that_cannot_be_written_is_named(glscl, clips, extract_arguments, one_line):
    (clips / "file").write_text("")
    one_line(glscl(*extract_arguments("--out", clips / "file" / "cache")), "file/cache")
    (clips / "mine").mkdir()
    (clips / "mine" / "thesis.tex").write_text("")
    one_line(glscl(*extract_arguments("--out", clips / "mine")), "thesis.tex")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_line_and_the_same_command_goes_on(
    glscl, clips, extract_arguments, monkeypatch, one_line
):
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
        one_line(glscl(*extract_arguments("--out", clips / "cache")), "the disk is full")
    status, out, _ = glscl(*extract_arguments("--out", clips / "cache", "--json"))
    assert status == 0 and json.loads(out)["videos"] == 12
    assert glscl("inspect", clips / "cache", "--verify")[0] == 0


def test_a_cache_of_another_backbone_is_refused_with_the_command_that_mends_it(
    glscl, trained, extract_arguments, one_line
):
    other = extract_arguments(kind="clip_resnet")
    one_line(glscl(*other, "--out", trained / "cache"), "backbone", "--out")
    assert glscl(*other, "--out", trained / "other")[0] == 0
    status, out, err = glscl("eval", "--run", trained / "run", "--cache", trained / "other")
    one_line((status, out, err), "expects", "glscl extract")


def test_an_interrupt_stops_with_a_line_and_status_130(glscl, clips, extract_arguments, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("glscl.extract.pipeline.extract", interrupted)
    status, _, err = glscl(*extract_arguments("--out", clips / "cache"))
    assert status == 130 and "the same command again" in err


def test_a_dry_run_foresees_what_the_extraction_made(glscl, trained, extract_arguments):
    made = json.loads(glscl("inspect", trained / "cache", "--json")[1])
    foreseen = json.loads(glscl(*extract_arguments("--out", trained / "new"), "--dry-run", "--json")[1])["foreseen"]
    assert foreseen["lengths"] == "files" and foreseen["decode_seconds"] > 0
    assert (foreseen["videos"], foreseen["texts"]) == (made["videos"], made["texts"])
    assert foreseen["frames"] == pytest.approx(made["frames"], rel=0.2)
    _, out, _ = glscl(*extract_arguments("--out", trained / "new"), "--dry-run")
    assert "MB (lengths as some of the files say)" in out and "without a GPU" in out
    _, out, _ = glscl(*extract_arguments("--out", trained / "cache"), "--dry-run")
    assert "nothing is left to encode" in out


@pytest.mark.parametrize("dataset", ["msvd", "youcook2"])
def test_a_dry_run_needs_no_videos(glscl, tmp_path, dataset):
    if dataset == "msvd":
        (tmp_path / "test_list.txt").write_text("a_0_10\n")
        (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps({"a_0_10": [["a", "dog"], ["a", "cat", "sleeps"]]}))
    else:
        step = {"segment": [3, 8], "sentence": "cut it"}
        told = {"database": {"x": {"subset": "validation", "annotations": [step]}}}
        (tmp_path / "youcookii_annotations_trainval.json").write_text(json.dumps(told))
    words = ("extract", "--dataset", dataset, "--annotations", tmp_path, "--splits", "test", "--dry-run")
    status, out, err = glscl(*words, "--json")
    assert status == 0, err
    foreseen = json.loads(out)["foreseen"]
    assert foreseen["videos"] == 1 and not (tmp_path / "home").exists()
    assert (foreseen["lengths"], foreseen["frames"]) == {"msvd": ("data set", 10), "youcook2": ("annotations", 5)}[
        dataset
    ]
    assert "about " in glscl(*words)[1]


@pytest.mark.parametrize(
    "command",
    [
        ("extract", "--dataset", "csv", "--annotations", "not-there.csv"),
        ("eval", "--zero-shot", "--cache", "not-there"),
    ],
)
def test_without_ray_one_line_says_so_before_anything_is_read(glscl, one_line, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "ray", None)
    one_line(glscl(*command, "--engine", "ray"), "needs Ray", "glscl[ray]", status=2)


def test_of_two_processes_that_end_in_the_same_moment_one_speaks():
    said, launch = [], SimpleNamespace(world=2)
    run = SimpleNamespace(say=said.append, speaks=True, launch=launch)
    done = SimpleNamespace(finished_here=False, complete=True, already_complete=False)
    print_extraction(run, Path("cache"), done)
    assert said == []


def test_a_run_s_own_record_extracts_what_it_was_trained_on(glscl, trained, tmp_path):
    """With its run.json other videos become features that the run reads; options override it."""
    data = ("--dataset", "csv", "--annotations", trained / "captions.csv", "--videos", trained / "videos")
    as_run = ("extract", *data, "--config", trained / "run" / "run.json", "--limit", 1)
    assert glscl(*as_run, "--out", tmp_path / "other")[0] == 0
    assert (
        glscl("eval", "--run", trained / "run", "--cache", tmp_path / "other", "--list", "csv-captions-first1")[0] == 0
    )
    assert glscl(*as_run, "--out", tmp_path / "faster", "--fps", 2)[0] == 0
    assert open_store(tmp_path / "faster").configuration["sampling"]["fps"] == 2


def test_the_record_of_a_list_is_a_settings_file_too(glscl, trained, tmp_path):
    made = open_store(trained / "cache")
    data = ("--dataset", "csv", "--annotations", trained / "captions.csv", "--videos", trained / "videos", "--limit", 1)
    record = next((trained / "cache" / "lists").rglob(f"{made.list_hash}.json"))
    assert glscl("extract", *data, "--config", record, "--out", tmp_path / "again")[0] == 0
    assert open_store(tmp_path / "again").fingerprint == made.fingerprint
