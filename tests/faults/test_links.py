"""Links in folders that commands write to: refused in one line before anything happens, and nothing outside ever changes."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from snapshots import snapshot

from glscl.cache.files import put_if_absent, write_atomically
from glscl.cache.library import open_library
from glscl.cache.table import FeatureTable
from glscl.common.errors import StorageError
from glscl.demo.corpus import render_corpus
from glscl.demo.stages import DemoSettings, run_demo
from glscl.evaluate.evaluation import save_similarity_matrix, write_result
from glscl.evaluate.exporting.vectors import export_vectors
from glscl.evaluate.report.plots import Plot
from glscl.evaluate.search.approximate import make_index
from glscl.extract.backbone.fetching import fetch
from glscl.extract.datasets import DATASETS
from glscl.extract.datasets.unpacking import plain_tar
from glscl.extract.decode.pool import _sweep
from glscl.extract.importing.import_features import FeatureFiles, import_features
from glscl.extract.settings import ImportSettings
from glscl.train_head.finetuning.finetune import finetune
from glscl.train_head.heads import build_head
from glscl.train_head.importing.import_checkpoint import import_checkpoint
from glscl.train_head.settings import resolve
from glscl.train_head.sweeping.sweep import parse_sweep, sweep_points, train_sweep
from glscl.train_head.train import train

# --- folders of runs, results, the demo and unpacked videos ----------------------------------------------------------

SETTINGS = resolve({"head": "projection", "epochs": 1, "seed": 0}, dataset="default", device_type="cpu")


def refuses(box: Path, link: str, target: Path, write) -> None:
    """`write` ends in the line that names the link, and leaves all as it was but for files of its own."""
    place = box / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
    before = snapshot(target.parent)
    with pytest.raises(StorageError, match=f"{re.escape(link)} is a link to "):
        write()
    assert snapshot(target.parent) == before and place.is_symlink()
    shutil.rmtree(box)


@pytest.fixture
def thesis(tmp_path):
    folder = tmp_path / "elsewhere" / "thesis"
    folder.mkdir(parents=True)
    (folder / "1.tex").write_text("years of work")
    return folder


def test_trainings_refuse_links_in_their_folders(small_cache, tmp_path, thesis):
    store = small_cache("hdf5", videos=8).fill()
    points = sweep_points({"head": "projection"}, parse_sweep(["lr=1e-2,1e-3"]), dataset="default", embed_dim=8)
    weights = tmp_path / "weights.pt"
    torch.save({"clip.logit_scale": torch.tensor(4.6)}, weights)
    run = tmp_path / "run"
    for target in (thesis, thesis / "1.tex", thesis / "nothing"):
        for name in (
            "run.json",
            "best.safetensors",
            "resume.safetensors",
            "history.jsonl",
            "logs",
            ".run.json.0badcafe.tmp",
        ):
            refuses(run, name, target, lambda: train(store, run, SETTINGS, resume=True))
            refuses(run, name, target, lambda: finetune(store, run, SETTINGS, resume=True))
            refuses(
                run, name, target, lambda: train_sweep(store, tmp_path, [dataclasses.replace(points[0], name="run")])
            )
        for name in ("sweep.json", points[1].name):
            refuses(run, name, target, lambda: train_sweep(store, run, points))
        refuses(run, "run.json", target, lambda: import_checkpoint(weights, store, run, source="clip4clip"))


def test_results_vectors_and_figures_are_never_written_over_a_link(small_cache, tmp_path, thesis):
    store = small_cache("hdf5", videos=8).fill()
    table = FeatureTable.load(store, "test")
    empty = SimpleNamespace(result={}, ranks={}, text_ids=[], video_ids=[], video_of_text=np.zeros(0, int))
    out, matrix, head = tmp_path / "out", torch.zeros(2, 2), build_head("mean_pool", embed_dim=8)
    plot = Plot.__new__(Plot)
    object.__setattr__(plot, "_save", lambda to, **_: to.write(b"picture"))
    for name, value in (("key", "curve"), ("title", ""), ("summary", ""), ("figure", None)):
        object.__setattr__(plot, name, value)
    for target in (thesis, thesis / "1.tex", thesis / "nothing"):
        for name in ("result.json", "result.ranks.npz"):
            refuses(out, name, target, lambda: write_result(out / "result.json", empty))
        for name in ("m.npy", "m.json"):
            refuses(out, name, target, lambda: save_similarity_matrix(out / "m.npy", matrix, table))
        for name in ("text_vectors.npy", "ids.json"):
            refuses(out, name, target, lambda: export_vectors(head, table, out))
        refuses(out, "curve.pdf", target, lambda: plot.write(out))
        refuses(out, "report.html", target, lambda: write_atomically(out / "report.html", b"page"))
        refuses(out, "00000.json", target, lambda: put_if_absent(out / "00000.json", b"commit"))


def test_the_demo_refuses_links_in_its_folders(tmp_path, thesis):
    out, few = tmp_path / "demo", {"train": 1, "val": 0, "test": 0}
    for target in (thesis, thesis / "nothing"):
        for name in ("dataset", "cache", "cache-finetuned", "runs", "results.json", "runs/glscl", "runs/zero_shot"):
            refuses(out, name, target, lambda: run_demo(out, DemoSettings(sizes=few, epochs=1, workers=1)))
        for name in ("annotations", "videos", "annotations/train.json", "videos/.train0000.1.part"):
            refuses(out, name, target, lambda: render_corpus(out, workers=1, sizes=few))


def test_imported_features_go_into_no_cache_with_links(small_cache, tmp_path, thesis):
    made = small_cache("hdf5", videos=4)
    np.savez(tmp_path / "features.npz", **{v.id: np.ones((2, 8), np.float32) for v in made.annotations.videos})
    np.save(tmp_path / "texts.npy", np.ones((len(made.annotations.texts), 8), np.float32))

    def write() -> None:
        files = FeatureFiles(tmp_path / "features.npz", tmp_path / "texts.npy")
        import_features(made.annotations, files, made.path, ImportSettings(format="hdf5"))

    for name in ("partial", "shards", "commits/video", "plan", "locks", "store.json"):
        refuses(made.path, name, thesis, write)


def test_no_index_is_made_through_a_link_and_nothing_is_tidied_away_behind_it(small_cache, tmp_path, thesis):
    pytest.importorskip("faiss")
    made = small_cache("hdf5", videos=8)
    made.fill()
    (thesis / "results.npz").write_text("years of work")
    (thesis / ".results.npz.00000000.tmp").write_text("work")
    for name in ("index", "index/index.json", "index/locks", "index/0123456789abcdef.npz"):
        box = tmp_path / "box" / made.path.name
        shutil.copytree(made.path, box)
        refuses(box, name, thesis, lambda box=box: make_index(open_library(box), recall=0.9, encode=lambda _: 1 / 0))


def test_a_backbone_is_written_into_no_folder_with_links(tmp_path, thesis):
    for name in ("text", "open_clip_model.safetensors", "text/config.json"):
        out = tmp_path / "model"
        out.mkdir()
        (out / "open_clip_config.json").write_text('{"glscl": {}}')
        refuses(out, name, thesis, lambda out=out: fetch("ViT-B-32", None, out))


def test_a_shard_is_unpacked_into_no_folder_with_links(tmp_path, thesis):
    (tmp_path / "shards").mkdir()
    packed = tmp_path / "shards" / "0.tgz"
    with tarfile.open(packed, "w:gz") as archive:
        for name in ("a/b/x.mp4", "a/b/x.txt"):
            member = tarfile.TarInfo(name)
            member.size = 5
            archive.addfile(member, io.BytesIO(b"words"))
    videos = tmp_path / "videos"
    for name in (plain_tar(packed, videos, "0").name, f".{os.getpid()}.part", "other", "0/below"):
        for target in (thesis, thesis / "1.tex", thesis / "nothing"):
            refuses(videos, name, target, lambda: DATASETS["webdataset"].read(tmp_path / "shards", videos))


def test_frames_under_way_of_a_dead_process_are_swept_by_no_link(tmp_path, thesis):
    (tmp_path / "glscl-frames-x").symlink_to(thesis)
    os.utime(thesis, (0, 0))
    before = snapshot(thesis.parent)
    _sweep(tmp_path / "glscl-frames-x")
    assert snapshot(thesis.parent) == before
