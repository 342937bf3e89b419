"""Search and export, as a user meets them: a sentence, a list of them, the vectors of a run."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from glscl.cache.library import open_library
from glscl.cache.schema import TextFeatures
from glscl.cache.upkeep.convert import convert
from glscl.commands.options import CommonConfig, Run
from glscl.commands.printing import print_hits
from glscl.commands.searching import _play
from glscl.evaluate.search.answers import VideoHit
from glscl.evaluate.search.model import Model
from glscl.evaluate.search.moments import Moment
from glscl.evaluate.search.playing import write_playlist

QUICK = ("--epochs", 1, "--batch-size", 8, "--validation", 4)


def test_a_search_normalises_one_sentence_at_a_time_or_a_list_of_them(glscl, cache, monkeypatch, one_line):
    shapes = {"text_features": (1, 8), "token_features": (1, 3, 8)}

    class Backbone:
        def doubts(self, sentence):
            return []

        def encode_texts(self, texts, padded=False):
            g = torch.Generator().manual_seed(len(texts[0]))
            made = {name: torch.randn(*shape, generator=g) for name, shape in shapes.items()}
            return TextFeatures(**made, token_mask=torch.ones(1, 3, dtype=torch.bool))

    monkeypatch.setattr(Model, "backbone", Backbone())
    monkeypatch.setattr(Model, "load_backbone", lambda self, weights=None, texts_only=False: self.backbone)
    status, out, err = glscl("search", "a dog", "--normalise", "nnn", "--top", 3)
    said = out.splitlines()
    assert status == 0 and said[1].split() == ["rank", "score", "nnn", "video", "moment", "file"], err
    assert said[0] == f"23 videos of {cache.path}, by zero-shot mean_pool"  # one of 24 gave no frames
    alone = json.loads(glscl("search", "a dog", "--normalise", "nnn", "--top", 3, "--json")[1])
    about = {"head": "mean_pool", "run": None, "cache": str(cache.path), "split": None}
    assert {key: alone[key] for key in about} == about
    monkeypatch.setattr(sys, "stdin", io.StringIO("a cat runs\n\na dog\n"))
    status, out, _ = glscl("search", "-", "--normalise", "nnn", "--top", 3, "--json")
    found = json.loads(out)
    assert status == 0 and [of["query"] for of in found["searches"]] == ["a cat runs", "a dog"]
    assert found["searches"][1]["hits"] == alone["hits"] and "first caption of" in found["bank"] == alone["bank"]
    one_line(glscl("search", "  "), "empty", status=2)
    one_line(glscl("search", "--video", "nowhere.mp4"), "nowhere.mp4", status=1)


@pytest.fixture
def made_backbone(monkeypatch):
    """A backbone that makes up a vector for a sentence."""

    class Backbone:
        def doubts(self, sentence):
            return []

        def encode_texts(self, texts, padded=False):
            return TextFeatures(torch.randn(1, 8, generator=torch.Generator().manual_seed(len(texts[0]))))

    monkeypatch.setattr(Model, "backbone", Backbone())
    monkeypatch.setattr(Model, "load_backbone", lambda self, weights=None, texts_only=False: self.backbone)


def test_every_frame_is_searched_and_answers_can_be_opened(glscl, cache, made_backbone, one_line, tmp_path):
    status, out, err = glscl("search", "a dog", "--top", 3, "--moments", 2)
    said = out.splitlines()
    assert status == 0 and said[1].split() == ["rank", "score", "video", "moment", "file"], err
    assert (
        "23 videos with" in said[0] and said[0].endswith("by zero-shot best_frames") and "not there any more" in said[2]
    )
    found = json.loads(glscl("search", "a dog", "--top", 3, "--json")[1])
    assert found["list"] == "made" and [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    assert set(found["hits"][0]) == {"rank", "video", "path", "score", "normalised", "time", "moments"}
    moments = json.loads(glscl("search", "a dog", "--by", "moment", "--json")[1])["hits"]
    assert [hit["score"] for hit in moments] == sorted((hit["score"] for hit in moments), reverse=True)
    best = f"{found['hits'][0]['score']:.3f}"
    assert glscl("search", "a dog", "--min", 2)[1].splitlines()[1:] == [f"no video reaches 2; the best has {best}"]
    assert glscl("search", "a dog", "--m3u", tmp_path / "found.m3u", "--open")[0] == 0
    assert (tmp_path / "found.m3u").read_text() == "#EXTM3U\n"
    one_line(glscl("search", "a", "dog", "runs"), "quotes", "glscl search 'a dog runs'", status=2)
    one_line(glscl("search", "a dog", "--normalise", "nnn", "--min", 0.1), "--min", "--normalise", status=2)
    one_line(glscl("search", "--like", "nobody"), "no file nobody, and the list", status=1)
    one_line(glscl("search", "--and", "a cat"), "Give a sentence", status=2)
    nothing = glscl("search", "a dog", "--folder", "x", "--shortest", 2, "--longest", 1.5)
    one_line(nothing, "has no video below 'x', of at least 2 s, of at most 1.5 s", status=2)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (("a dog", "--start", 3), "--start goes with a video file"),
        (("--like", "v.mp4", "--start", 5, "--end", 2), "from 5 s to 2 s is empty"),
        (("--like", "p.jpg", "--start", 5), "--start goes with a video file"),
        (("--like", "an id", "--end", 5), "--end goes with a video file"),
        (("--video", "v.mp4", "--min", 0.1), "--min goes with a search of every frame, not with --video"),
        (("--video", "v.mp4", "--by", "moment"), "--by goes with"),
        (("--video", "v.mp4", "--m3u", "x.m3u"), "which have no moments"),
        (("a dog", "--min", "nan"), "--min is nan; expected a finite number"),
        (
            ("a dog", "--max-frames", 3, "--folder", "x"),
            "--folder goes with a search of every frame, not with --max-frames",
        ),
    ],
)
def test_what_a_search_would_leave_out_is_refused(glscl, cache, one_line, tmp_path, monkeypatch, question, said):
    monkeypatch.chdir(tmp_path)
    for name in ("v.mp4", "p.jpg"):
        (tmp_path / name).touch()
    one_line(glscl("search", *question), said, status=2)


def test_an_answer_names_ids_and_files_as_they_are(monkeypatch, tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    ids = ["1", "two  blanks.mp4", "long" * 60]
    hits = [
        VideoHit(rank, id, f"/v/{id}", 1.0, None, 0.0, (Moment(0.0, 1.0, 1.0, 0.0),)) for rank, id in enumerate(ids, 1)
    ]
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    print_hits(Run(CommonConfig()), hits, None)
    header, *lines = sys.stdout.getvalue().splitlines()
    linked = [re.search(r"]8;;file:///v/[^\x1b]*\x1b.([^\x1b]*)\x1b]8;;\x1b", line) for line in lines]
    assert [each.group(1) for each in linked] == ids  # "1" is the id, and neither the rank nor the score
    assert all(line.endswith(f"/v/{id}") for line, id in zip(lines, ids))
    assert len(header) < 120  # one long id leaves the others where they are
    assert write_playlist(tmp_path / "m3u", [hits[0]._replace(path="/v/a\nb")]) == 1
    assert (tmp_path / "m3u").read_text().endswith("\nfile:///v/a%0Ab\n")


def test_of_a_video_in_a_tar_it_is_said_where_it_lies(capsys, tmp_path):
    (tmp_path / "my shard.tar").write_bytes(bytes(600))
    place = f"{tmp_path}/my shard.tar@512+80/in/egg.mp4"
    hit = VideoHit(1, "egg", place, 1.0, None, 0.0, (Moment(0.0, 1.0, 1.0, 0.0),))
    run = Run(CommonConfig())
    print_hits(run, [hit], None)
    _play(run, [hit])
    assert write_playlist(tmp_path / "m3u", [hit]) == 0
    said = capsys.readouterr()
    assert f"  {place}\n" in said.out
    assert f"`tail -c +513 '{tmp_path}/my shard.tar' | head -c 80 > egg.mp4` takes it out" in said.out


@pytest.mark.parametrize("player, said", [("mpv", ""), ("xdg-open", "begins at the beginning")])
def test_a_moment_is_played_by_what_is_there(monkeypatch, capsys, player, said):
    started = []
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name == player else None)
    monkeypatch.setattr(subprocess, "Popen", lambda words, **_: started.append(words))
    monkeypatch.setattr(sys, "platform", "linux")
    _play(Run(CommonConfig()), [VideoHit(1, "a", "/v/a b", 1.0, None, 3.0, (Moment(2.5, 4.0, 1.0, 3.0),))])
    assert started == [[f"/bin/{player}", *(["--start=2.500"] if player == "mpv" else []), "/v/a b"]]
    assert said in capsys.readouterr().out


def test_vectors_of_a_run_reproduce_its_similarities(glscl, two_runs, tmp_path):
    out, similarity = tmp_path / "vectors", tmp_path / "s.npy"
    status, said, err = glscl("export", "--run", two_runs[1], "--to", "npy", "--out", out)
    assert status == 0 and "videos" in said, err
    assert glscl("eval", "--run", two_runs[1], "--save-similarity", similarity)[0] == 0
    found = np.load(out / "text_vectors.npy") @ np.load(out / "video_vectors.npy").T
    np.testing.assert_allclose(found, np.load(similarity), atol=1e-5)
    ids = json.loads((out / "ids.json").read_text())
    assert ids["video_ids"] == json.loads(similarity.with_suffix(".json").read_text())["video_ids"]
    assert ids["run"] == str(two_runs[1]) and ids["head"] == "attention_pool"


def test_the_whole_cache_is_exported_without_a_run_too(glscl, cache, tmp_path):
    status, out, _ = glscl(
        "export", "--zero-shot", "--split", "all", "--to", "safetensors", "--out", tmp_path / "v", "--json"
    )
    assert status == 0
    assert json.loads(out)["videos"] == 23  # one of 24 gave no frames


def test_an_export_of_a_head_without_vectors_names_those_that_have_some(glscl, cache, tmp_path, one_line):
    run = tmp_path / "run"
    assert glscl("train-head", "--head", "xpool", *QUICK, "--out", run)[0] == 0
    one_line(glscl("export", "--run", run, "--out", tmp_path / "v"), "xpool", "attention_pool", "seq_transf", status=2)
    assert not (tmp_path / "v").exists()


def test_an_index_tells_recall_and_speed_and_a_search_uses_it(glscl, small_cache, made_backbone, one_line, monkeypatch):
    path = small_cache(videos=60).fill().path
    status, out, err = glscl("index", path)
    assert status == 0 and "frames in" in out and "recall@10" in out and "ms a query, every frame" in out, err
    told = json.loads(glscl("index", path, "--json")[1])
    assert told["recall"] > 0.5 and told["segments"][0]["items"] == 59
    found, exact = (
        json.loads(glscl("search", "x", "--cache", path, "--json", "--top", 5, *more)[1]) for more in ((), ["--exact"])
    )
    assert not found["exact"] and exact["exact"] and found["hits"][0] == exact["hits"][0]
    assert "in an approximate index" in glscl("search", "x", "--cache", path)[1]
    small_cache(videos=64).fill()
    said = glscl("search", "x", "--cache", path)[1]
    assert (
        f"note: every frame is looked at: the index of {path} lacks 4 of 63 videos. Add them: glscl index {path}"
        in said
    )
    convert(open_library(path), path.parent / "flat.h5")
    one_line(glscl("index", path.parent / "flat.h5"), "one file", status=2)
    monkeypatch.setitem(sys.modules, "faiss", None)
    one_line(glscl("index", path), "pip install 'glscl[index]'", status=2)


def test_every_stored_frame_is_exported_for_other_engines(glscl, small_cache, one_line, tmp_path, monkeypatch):
    faiss, parquet = pytest.importorskip("faiss"), pytest.importorskip("pyarrow.parquet")
    store = small_cache(videos=12).fill()
    arrays, ids = store.arrays("video"), store.ids("video")
    frames = F.normalize(torch.from_numpy(arrays["values"]).float(), dim=-1).numpy()
    owner = np.repeat(np.arange(len(ids)), np.diff(arrays["offsets"]))
    status, out, err = glscl("export", "--cache", store.path, "--to", "faiss", "--out", tmp_path / "f")
    assert status == 0 and f"{len(frames)} frames of 11 videos, 8-d" in out, err
    index = faiss.read_index(str(tmp_path / "f" / "frames.faiss"))
    rows, told = np.load(tmp_path / "f" / "rows.npz"), json.loads((tmp_path / "f" / "frames.json").read_text())
    np.testing.assert_allclose(index.reconstruct_n(0, index.ntotal), frames, atol=1e-3)
    assert rows["entry"].tolist() == owner.tolist() and rows["time"].tolist() == arrays["times"].tolist()
    assert told["video_ids"] == ids and told["frames"] == len(frames) and told["cache_fingerprint"] == store.fingerprint
    assert glscl("export", "--cache", store.path, "--to", "parquet", "--out", tmp_path / "p", "--split", "test")[0] == 0
    table = parquet.read_table(tmp_path / "p" / "frames.parquet")
    wanted = np.isin(owner, [*store.splits["test"].videos])
    assert table["name"].to_pylist() == [ids[row] for row in owner[wanted]] and set(table["split"].to_pylist()) == {
        "test"
    }
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), arrays["values"][wanted])
    assert table["time"].to_pylist() == arrays["times"][wanted].tolist()
    assert {"frames.parquet", "texts.parquet", "captions.csv"} <= {p.name for p in (tmp_path / "p").iterdir()}
    one_line(
        glscl("export", "--cache", store.path, "--to", "faiss", "--out", tmp_path, "--split", "x"), "no split", status=1
    )
    one_line(glscl("export", "--run", "r", "--to", "lance", "--out", tmp_path), "--to", "without a run", status=2)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    one_line(glscl("export", "--cache", store.path, "--to", "parquet", "--out", tmp_path), "glscl[parquet]", status=2)
