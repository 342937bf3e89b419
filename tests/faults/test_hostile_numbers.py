"""Odd numbers and odd sizes through the whole command line: each step works, or ends in one clear line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from glscl import cli
from glscl.cache.library import open_library
from glscl.commands.options import main

DIM = 128  # of the built-in backbone
TRAIN = ("--head", "seq_transf", "--epochs", 2, "--batch-size", 4, "--option", "aggregator_layers=1")


class Line:
    """Runs commands in this process and holds what must hold of each."""

    def __init__(self, folder: Path, capsys, monkeypatch) -> None:
        self.folder, self.capsys, self.monkeypatch = folder, capsys, monkeypatch
        monkeypatch.setenv("GLSCL_HOME", str(folder / "home"))

    def __call__(self, *arguments: object) -> SimpleNamespace:
        words = [str(a) for a in (arguments[0], "--json", "--device", "cpu", *arguments[1:])]
        self.monkeypatch.setattr(sys, "argv", ["glscl", *words])
        status = main(cli.app, words)
        out, err = self.capsys.readouterr()
        said = [line for line in err.splitlines() if line.startswith("glscl: ")]
        assert status in (0, 1, 2), err
        assert len(said) == (status != 0) and "Traceback" not in err and "Unexpected" not in err, err
        told = json.loads(out)
        assert status == 0 or told["error"] == said[0].removeprefix("glscl: ")
        return SimpleNamespace(status=status, said=said[0] if said else "", told=told, err=err)

    def all(self, cache: Path) -> dict[str, SimpleNamespace]:
        """train-head, eval, search, report and compare on a cache; what lacks its input says so in a line of its own."""
        run, page = self.folder / "run", self.folder / "report.html"
        done = {
            "inspect": self("inspect", cache, "--verify"),
            "train-head": self("train-head", "--cache", cache, "--out", run, *TRAIN),
            "zero-shot": self("eval", "--zero-shot", "--cache", cache, "--out", self.folder / "zero.json"),
            "eval": self("eval", "--run", run, "--cache", cache, "--normalise", "qb-norm,dsl"),
            "search": self("search", "a red ball", "--cache", cache, "--top", 3),
            "export": self("export", "--zero-shot", "--cache", cache, "--out", self.folder / "vectors"),
            "compare": self("compare", run, run, "--resamples", 10),
            "report": self("report", run, "--out", page, "--examples", 1),
        }
        if done["report"].status == 0:
            assert "nan" not in page.read_text().lower().split("</style>")[1][:200]
        return done


@pytest.fixture
def line(tmp_path, capsys, monkeypatch):
    return Line(tmp_path, capsys, monkeypatch)


@pytest.fixture
def data(tmp_path):
    """`data(videos, captions, frames=..., caption=..., change=...)` writes features and captions; gives import's options."""

    def make(
        videos: int = 12, captions: int = 2, *, frames: int = 3, caption=None, change=lambda arrays: None
    ) -> tuple:
        rng = np.random.default_rng(0)
        arrays = {f"video{i}": rng.standard_normal((frames, DIM)).astype(np.float32) for i in range(videos)}
        change(arrays)
        np.savez(tmp_path / "frames.npz", **arrays)
        rows = ["video,caption,split"]
        for i in range(videos):
            split = "train" if i < videos - 4 else "val" if i < videos - 2 else "test"
            texts = [caption(i, k) if caption else f"a made-up thing {k} of video {i}" for k in range(captions)]
            rows += [f"video{i},{text},{split if videos > 4 else 'test'}" for text in texts or [""]]
        (tmp_path / "captions.csv").write_text("\n".join(rows))
        files = ("--annotations", tmp_path / "captions.csv", "--features", tmp_path / "frames.npz")
        options = ("--backbone", "demo", "--out", tmp_path / "cache", "--format", "hdf5", "--shard-videos", 4)
        return ("import-features", "--dataset", "csv", *files, *options)

    return make


def statuses(done: dict[str, SimpleNamespace]) -> dict[str, int]:
    return {name: step.status for name, step in done.items()}


def test_ordinary_numbers_go_all_the_way(line, data, tmp_path):
    assert line(*data()).status == 0
    assert set(statuses(line.all(tmp_path / "cache")).values()) == {0}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_features_that_are_no_numbers_are_not_imported(line, data, tmp_path, value):
    def change(arrays):
        arrays["video3"][1, 7] = value

    refused = line(*data(change=change))
    assert refused.status == 1 and "video3" in refused.said and "NaN or infinite" in refused.said
    assert not (tmp_path / "cache").exists()


def test_features_beyond_half_precision_name_the_way_out(line, data):
    def change(arrays):
        arrays["video3"] *= 1e6

    refused = line(*data(change=change))
    assert refused.status == 1 and "--dtype float32" in refused.said


def test_a_frame_of_zeros_goes_all_the_way(line, undrawn, data, tmp_path):
    def change(arrays):
        for rows in arrays.values():
            rows[1] = 0

    assert line(*data(change=change)).status == 0
    done = line.all(tmp_path / "cache")
    assert set(statuses(done).values()) == {0}
    assert done["eval"].told["counts"]["videos"] == 2


def test_a_video_of_zeros_is_counted_as_failed(line, undrawn, data, tmp_path):
    def change(arrays):
        arrays["video0"][:] = 0
        arrays["video11"][:] = 0

    imported = line(*data(change=change))
    assert imported.status == 0 and {failure["id"] for failure in imported.told["failed"]} == {"video0", "video11"}
    done = line.all(tmp_path / "cache")
    assert set(statuses(done).values()) == {0}
    assert done["eval"].told["counts"]["videos_failed"] == 1


def test_features_that_are_all_the_same_are_ties(line, undrawn, data, tmp_path):
    def change(arrays):
        for rows in arrays.values():
            rows[:] = 1

    assert line(*data(change=change, caption=lambda i, k: "the same")).status == 0
    done = line.all(tmp_path / "cache")
    assert set(statuses(done).values()) == {0}
    assert done["zero-shot"].told["text_to_video"]["MnR"] == 1.5


def test_one_frame_a_video_goes_all_the_way(line, undrawn, data, tmp_path):
    assert line(*data(frames=1)).status == 0
    assert set(statuses(line.all(tmp_path / "cache")).values()) == {0}


@pytest.mark.parametrize(
    ("videos", "captions"), [(1, 5), *(pytest.param(videos, 1, marks=pytest.mark.exhaustive) for videos in (1, 2))]
)
def test_a_cache_without_training_videos_is_judged_and_searched_untrained(
    line, undrawn, data, tmp_path, videos, captions
):
    assert line(*data(videos, captions)).status == 0
    done = line.all(tmp_path / "cache")
    found = statuses(done)
    assert found["zero-shot"] == found["search"] == found["inspect"] == found["export"] == 0
    assert found["train-head"] != 0 and "train" in done["train-head"].said
    assert (
        done["zero-shot"].told["counts"] | {"texts": videos * captions, "videos": videos}
        == done["zero-shot"].told["counts"]
    )
    assert line("report", tmp_path / "zero.json", "--out", tmp_path / "zero.html").status == 0
    assert line("compare", tmp_path / "zero.json", tmp_path / "zero.json", "--resamples", 10).status == 0


def test_one_video_to_train_on_ends_in_a_line_or_works(line, undrawn, data, tmp_path):
    assert line(*data(5, 1)).status == 0
    line.all(tmp_path / "cache")


def test_no_caption_at_all_is_a_cache_to_search(line, undrawn, data, tmp_path):
    assert line(*data(captions=0)).status == 0
    done = line.all(tmp_path / "cache")
    assert done["search"].status == done["inspect"].status == 0
    assert "no captions" in done["train-head"].said and "nothing to rank: 0 texts" in done["zero-shot"].said


def test_empty_captions_are_left_out_and_counted(line, undrawn, data, tmp_path):
    imported = line(*data(caption=lambda i, k: "   " if k else f"thing {i}"))
    assert imported.status == 0 and imported.told["texts"] == 12
    assert any("12 empty captions" in note for note in imported.told["notes"])
    assert set(statuses(line.all(tmp_path / "cache")).values()) == {0}


def test_captions_of_ten_thousand_words_go_all_the_way(line, undrawn, data, tmp_path):
    words = " ".join(f"word{i}" for i in range(10_000))
    assert line(*data(caption=lambda i, k: f"{i} {k} {words if i == k == 0 else 'few'}")).status == 0
    assert set(statuses(line.all(tmp_path / "cache")).values()) == {0}
    assert line("search", words, "--cache", tmp_path / "cache").status == 0


def test_any_sentence_can_be_searched_for(line, data, tmp_path):
    assert line(*data(5, 1)).status == 0
    for nothing in ("", "   ", "\n"):
        assert "sentence is empty" in line("search", "--cache", tmp_path / "cache", "--", nothing).said
    for sentence in ("\0", "\ud800", "👍" * 999, "x" * 100_000, "--", "é\u0301\u202e"):
        found = line("search", "--cache", tmp_path / "cache", "--top", 2, "--", sentence)
        assert found.status == 0 and len(found.told["hits"]) == 2, ascii(sentence[:20])


# --- numbers that went bad in the cache -------------------------------------------------------------------------------


def poison(cache: Path, stream: str, name: str, row: int, value: float) -> None:
    """Put a number into a committed shard past all checks, as a failing disk or a foreign writer would."""
    about = open_library(cache).stream(stream)
    shard = cache / about.commit_of(about.places[0]).path
    with h5py.File(shard, "r") as file:
        dataset = file[name]
        start = dataset.id.get_chunk_info(0).byte_offset + row * DIM * dataset.dtype.itemsize
        dtype = dataset.dtype
    with open(shard, "r+b") as raw:
        raw.seek(start)
        raw.write(np.array([value], dtype).tobytes())


@pytest.mark.parametrize(
    ("stream", "name", "value"),
    [
        ("video", "values", np.nan),
        ("text", "pooled", np.inf),
        pytest.param("video", "values", np.inf, marks=pytest.mark.exhaustive),
        pytest.param("text", "pooled", np.nan, marks=pytest.mark.exhaustive),
    ],
)
def test_a_bad_number_in_a_cache_stops_training_and_names_the_batch(line, data, tmp_path, stream, name, value):
    assert line(*data()).status == 0
    poison(tmp_path / "cache", stream, name, 0, value)
    done = line.all(tmp_path / "cache")
    assert done["inspect"].status == 1 and name in done["inspect"].said
    trained = done["train-head"]
    assert trained.status == 1 and "video0" in trained.said
    assert done["search"].status == (1 if stream == "video" else 0)


def test_a_bad_number_among_the_test_features_stops_evaluation(line, data, tmp_path):
    assert line(*data(4, 2)).status == 0
    poison(tmp_path / "cache", "video", "values", 2, np.nan)
    refused = line("eval", "--zero-shot", "--cache", tmp_path / "cache")
    assert refused.status == 1 and "(video0) is nan" in refused.said


def test_a_loss_that_explodes_keeps_the_last_good_checkpoint(line, data, tmp_path, monkeypatch):
    """The second epoch gives NaN: training stops with its batch named, and the first epoch can be judged."""
    from glscl.train_head import learner

    assert line(*data()).status == 0
    calls = []
    honest = learner.LOSSES["infonce"]

    def explode(*arguments, **options):
        calls.append(None)
        loss = honest(*arguments, **options)
        return loss * float("nan") if len(calls) > 4 else loss

    monkeypatch.setitem(learner.LOSSES, "infonce", explode)
    run = tmp_path / "run"
    stopped = line("train-head", "--cache", tmp_path / "cache", "--out", run, *TRAIN)
    assert stopped.status == 1 and "epoch 2" in stopped.said and "video" in stopped.said
    monkeypatch.undo()
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "home"))
    record = json.loads((run / "run.json").read_text())
    assert [row["epoch"] for row in record["history"]] == [1] and not record["complete"]
    assert line("eval", "--run", run, "--cache", tmp_path / "cache").status == 0


# --- pixels -----------------------------------------------------------------------------------------------------------


def test_black_videos_single_frames_and_odd_captions_go_all_the_way(line, undrawn, tmp_path, make_video):
    import av

    for i in range(8):
        make_video(tmp_path / "videos" / f"v{i}.mp4", frames=1 if i % 4 == 0 else 4, seed=i)
    black = np.zeros((48, 64, 3), np.uint8)
    for i in (1, 7):
        with av.open(str(tmp_path / "videos" / f"v{i}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=2)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(3 if i == 1 else 4):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(black, format="rgb24")))
            container.mux(stream.encode(None))
    words = " ".join(f"word{i}" for i in range(10_000))
    rows = [f"v{i}.mp4,{words if i == 2 else f'thing {i}'},{'train' if i < 6 else 'test'}" for i in range(8)]
    rows += ["v3.mp4,,train", 'v6.mp4,"  ",test']
    (tmp_path / "captions.csv").write_text("\n".join(["video,caption,split", *rows]))
    where = ("--annotations", tmp_path / "captions.csv", "--videos", tmp_path / "videos", "--workers", 1)
    extracted = line("extract", "--dataset", "csv", *where, "--backbone", "demo", "--out", tmp_path / "cache")
    assert extracted.status == 0 and extracted.told["videos"] == 8 and extracted.told["failed"] == []
    assert extracted.told["texts"] == 8 and "dropped 2 empty captions" in extracted.err
    assert set(statuses(line.all(tmp_path / "cache")).values()) == {0}
