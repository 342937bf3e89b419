"""Readers of our own files under hostile input: caches in both formats, flat caches, runs, standings, results."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import torch
from hostile_reader import Reader
from msgspec import structs

from glscl.cache import lists
from glscl.cache.keys import Stat
from glscl.cache.known_files import KnownFiles
from glscl.cache.lists import list_arrays
from glscl.cache.schema import STREAMS
from glscl.cache.shards import describe_array
from glscl.common.errors import CacheCorruptError, first_line

DIM, VIDEOS = 16, 6


@cache
def _made(kind: str) -> dict[str, bytes]:
    """Files of a cache (`zarr`, `hdf5`, a shard a stream; `zarr parts`, `hdf5 parts`, two; `flat.h5`, `flat.zarr`), or of a run."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        _make(kind, root)
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def _make(kind: str, root: Path) -> None:
    from glscl.cache.upkeep.convert import convert

    if kind.startswith(("zarr", "hdf5")):
        _cache(root, kind.split()[0], videos=4 if "parts" in kind else VIDEOS)
    elif kind.startswith("flat"):
        convert(_cache(root / "cache", "hdf5", videos=4).library, root / kind)
        shutil.rmtree(root / "cache")
    elif kind == "list":
        _list(root)
    else:
        _run(root)


def _cache(out: Path, format: str, *, videos: int) -> Any:
    """A cache of six videos and twelve captions, in shards of so many videos, and of two captions each; with a memo of files."""
    from glscl.cache.schema import Annotations, TextItem, VideoItem
    from glscl.cache.store import open_store
    from glscl.extract.importing.import_features import FeatureFiles, import_features
    from glscl.extract.settings import ImportSettings

    rng = np.random.default_rng(0)
    ids = [f"video{i}" for i in range(VIDEOS)]
    split = ["train"] * 3 + ["test"] * 3
    annotations = Annotations(
        dataset="made",
        videos=[VideoItem(v, s, None) for v, s in zip(ids, split)],
        texts=[TextItem(f"{v}#{k}", v, s, f"thing {k} of {v}") for v, s in zip(ids, split) for k in range(2)],
    )
    with TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{name}.npz") for name in ("frames", "texts", "tokens")}
        np.savez(files["frames"], **{v: rng.standard_normal((1 + i % 3, DIM)) for i, v in enumerate(ids)})
        np.savez(files["texts"], **{t.id: rng.standard_normal(DIM) for t in annotations.texts})
        np.savez(files["tokens"], **{t.id: rng.standard_normal((3, DIM)) for t in annotations.texts})
        import_features(
            annotations,
            FeatureFiles(files["frames"], files["texts"], files["tokens"]),
            out,
            ImportSettings(format=format, shard_videos=videos, shard_texts=2 * videos),
        )
    store = open_store(out)
    known = KnownFiles()
    for row, key in enumerate(store.list.video_key):
        known._seen[f"/videos/video{row}.mp4"] = Stat(100, 10**18), key.tobytes()
    known.save(out)
    return store


def _list(root: Path) -> None:
    """The record and the arrays of a list, as files that are easily changed."""
    with TemporaryDirectory() as folder:
        store = _cache(Path(folder), "hdf5", videos=VIDEOS)
        (record,) = Path(folder).glob("lists/*/*.json")
        shutil.copy(record, root / "record.json")
        np.savez(root / "arrays.npz", **list_arrays(store.list))


def _run(root: Path) -> None:
    """Two runs of one epoch of two, judged, with where the first stands."""
    import torch

    from glscl.evaluate.evaluation import evaluate_run, write_result
    from glscl.evaluate.settings import EvaluateSettings
    from glscl.train_head.checkpoint import Resume, save_resume, save_weights, write_run
    from glscl.train_head.heads import build_head
    from glscl.train_head.run_cache import cache_record

    store = _cache(root / "cache", "hdf5", videos=VIDEOS)
    for name in ("a", "b"):
        folder = root / name
        head = build_head("seq_transf", embed_dim=DIM, aggregator_layers=1, frame_positions=4)
        row = {
            "epoch": 1,
            "step": 1,
            "loss": 3.0,
            "validation": {"text_to_video": {"R@1": 10.0}, "video_to_text": {"R@1": 1.0}},
        }
        for which in ("best", "last"):
            save_weights(folder / f"{which}.safetensors", head)
        state = {"epochs": 2, "steps": 2, "batch_size": 2, "seed": 0}
        moving = {"epoch": 1, "step": 0, "losses": [], "seconds": 1.0, "history": [row], "best": row, "scaler": None}
        tensors = {f"head.{key}": value for key, value in head.state_dict().items()}
        for key, value in head.named_parameters():
            tensors |= {f"{kind}.{key}": value.detach().clone() for kind in ("exp_avg", "exp_avg_sq")}
            tensors[f"step.{key}"] = torch.tensor(2.0)
        save_resume(folder, Resume(tensors, {**state, **moving}))
        write_run(
            folder,
            {
                "head": "seq_transf",
                "options": head.options,
                "embed_dim": DIM,
                "parameters": 1234,
                "settings": {"head": "seq_transf", "epochs": 2, "max_frames": 6, "frame_position": "uniform"},
                **cache_record(store),
                "selection": "validation",
                "frozen_backbone": True,
                "training": {"texts": 4, "videos": 3},
                "versions": {"torch": "0.0.1"},
                "command": "glscl train-head",
                "history": [row],
                "best": row,
                "complete": False,
            },
        )
        write_result(
            folder / "result.json",
            evaluate_run(store, folder, EvaluateSettings(normalise=("dsl",)), command="glscl eval"),
        )


def _files(kind: str) -> Any:
    def put(folder: Path) -> None:
        for name, data in _made(kind).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)

    return put


def _read_cache(kind: str) -> Any:
    def read(folder: Path, changed: Path | None) -> dict[str, Any]:
        from glscl.cache.store import open_store
        from glscl.cache.upkeep.verification import verify

        store = open_store(folder / kind if kind.startswith("flat") else folder)
        told = _told(store)
        told["problems"] = verify(store.library) if changed is None else _problems(store.library, changed)
        told["pieces"] = sorted(store.backbone_tensors())
        return told

    return read


def _told(store: Any) -> dict[str, Any]:
    """What a list seen on a library tells, and its test split is read."""
    from glscl.cache.table import FeatureTable
    from glscl.cache.upkeep.summary import summarise

    told = summarise(store.library)
    told["plan"] = [structs.asdict(item) for item in (*store.plan.videos, *store.plan.texts)]
    told["failures"] = store.failures()
    table = FeatureTable.load(store, "test")
    table.texts(slice(None)), table.videos(slice(None)), table.subset(torch.arange(table.num_videos))
    return told


def _problems(library: Any, changed: Path) -> list[str]:
    """What `verify` says of the shard that a file belongs to; where it belongs to none, of the one that its bytes choose."""
    from glscl.cache.upkeep.verification import verify_commit

    found = []
    for about in (library.stream("video"), library.stream("text")):
        found += [(about.commit_of(place), place.addition.keys) for place in about.committed()]
    own = [each for each in found if changed.is_relative_to(library.path / each[0].path)]
    chosen = own or found[zlib.crc32(changed.read_bytes()) % max(1, len(found)) :][:1]
    return [problem for commit, keys in chosen for problem in verify_commit(library, commit, keys)]


def _read_signed(folder: Path, changed: Path | None) -> dict[str, Any]:
    """As `_read_cache`, with a head whose fingerprint is that of what now stands in it: made so, not damaged."""
    from glscl.cache.fingerprint import fingerprint

    path = folder / "store.json"
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
        head = json.loads(path.read_bytes())
        path.write_text(json.dumps({**head, "fingerprint": fingerprint(head["configuration"])}))
    return _read_cache("hdf5")(folder, changed)


def _read_signed_additions(folder: Path, changed: Path | None) -> dict[str, Any]:
    """As `_read_cache`, with an addition under the name that proves what now stands in it, beside those that the shards are of."""
    made = folder / "made.txt" if changed is None else changed
    if changed is None:
        return _read_cache("hdf5")(folder, None)
    own, good = changed.read_bytes(), _made("hdf5 parts")[changed.relative_to(folder).as_posix()]
    signed = made.with_name(f"{hashlib.sha256(own).hexdigest()[:16]}.txt")
    try:
        changed.write_bytes(good)
        signed.write_bytes(own)
        return _read_cache("hdf5")(folder, signed)
    finally:
        signed.unlink()
        changed.write_bytes(own)


def _read_signed_list(folder: Path, _: Path | None) -> dict[str, Any]:
    """A list of which hashes and checksums are those of what now stands in it, seen on a good cache."""
    from glscl.cache.library import open_library
    from glscl.cache.store import Store

    with TemporaryDirectory() as box:
        for name, data in _made("hdf5").items():
            Path(box, name).parent.mkdir(parents=True, exist_ok=True)
            Path(box, name).write_bytes(data)
        try:
            record = msgspec.json.decode((folder / "record.json").read_bytes(), type=lists.ListRecord)
            with np.load(folder / "arrays.npz") as file:
                arrays = {name: file[name] for name in file.files}
            told = {name: describe_array(array) for name, array in arrays.items()}
            hashes = {"annotations": record.annotations, "hash": record.hash}
            with mock.patch.object(lists, "_hashed", lambda made, _: replace(made, **hashes)):
                made = lists.from_arrays(structs.replace(record, arrays=told), arrays)
        except Exception as error:  # as `lists.read_list` does
            raise CacheCorruptError(f"The list cannot be read: {first_line(error)}") from error
        store = Store(open_library(box), made)
        for stream in STREAMS:
            store.arrays(stream)
        return _told(store)


KNOWN = b"""["/videos/a.mp4",7,1700000000000000000,"00112233445566778899aabbccddeeff"]
["/videos/b c.mp4",123456789,1700000000123456789,"ffeeddccbbaa99887766554433221100"]
"""


def _read_known(folder: Path, _: Path | None) -> dict[str, Any]:

    known = KnownFiles.read(folder)
    content = bytes.fromhex("00112233445566778899aabbccddeeff")
    return {"path": known.path_of(content), "stat": known.stat_of("/videos/a.mp4"), "files": repr(known)}


def _read_locks(folder: Path, _: Path | None) -> dict[str, Any]:
    from glscl.cache.lock import locks

    return {"locks": [(lock.describe(), lock.stale, lock.hint()) for lock in locks(folder)]}


def _lock_files(folder: Path) -> None:
    from glscl.cache.lock import hold

    with hold(folder, what="extract"):
        (path,) = (folder / "locks").iterdir()
        data = json.dumps(json.loads(path.read_bytes()))
    path.write_text(data)


def _read_run(folder: Path, _: Path | None) -> dict[str, Any]:
    from glscl.train_head.checkpoint import load_run
    from glscl.train_head.run_cache import check_cache, open_recorded

    head, run = load_run(folder / "a")
    return {"run": run, "notes": check_cache(folder / "a", run, open_recorded(run, folder / "cache"))}


def _take_up(folder: Path, _: Path | None) -> dict[str, Any]:
    import torch
    from accelerate import Accelerator

    from glscl.train_head.heads import build_head
    from glscl.train_head.resume_state import TrainingState, restore

    head = build_head("seq_transf", embed_dim=DIM, aggregator_layers=1, frame_positions=4)
    state = TrainingState(epochs=2, steps=2, batch_size=2, seed=0)
    restore(Accelerator(cpu=True), state, head, torch.optim.AdamW(head.parameters()), folder / "a")
    assert 0 <= state.epoch <= 2 and 0 <= state.step <= 2
    return vars(state)


def _read_results(folder: Path, changed: Path | None) -> dict[str, Any]:
    from glscl.common.tables import STYLES, render
    from glscl.evaluate.compare.comparison import compare_runs

    comparison = compare_runs(_both(folder, changed, with_cache=True), resamples=5)
    told = comparison.as_dict()
    for table in comparison.tables():
        for style in STYLES:
            render(table, style)
    return told


def _report(*, figures: bool) -> Any:
    """Reads runs into a page; with figures, which take nearly all of the time, or without."""

    def read(folder: Path, changed: Path | None) -> dict[str, Any]:
        from glscl.evaluate.report import table_contents as report_tables
        from glscl.evaluate.report.page import write_report

        runs = _both(folder, changed, with_cache=False)
        with contextlib.nullcontext() if figures else mock.patch.object(report_tables, "figures_of", lambda *_: ()):
            write_report(runs, folder.parent / "out" / "report.html", resamples=5)
        return {}

    return read


_SECOND: dict[Path, Any] = {}


def _both(folder: Path, changed: Path | None, *, with_cache: bool) -> list[Any]:
    """Two runs read back, the first anew; the second and the cache never change, so that they are read once."""
    from glscl.evaluate.evaluated_run import open_cache_of, read_evaluated

    if changed is None:
        _SECOND[folder] = open_cache_of(read_evaluated(folder / "b"), folder / "cache")[1]
    first, second = read_evaluated(folder / "a"), _SECOND[folder]
    if with_cache and all(first.result.get(key) == second.result[key] for key in ("cache_fingerprint", "split")):
        first = replace(first, captions=second.captions, failures=second.failures, extraction=second.extraction)
    elif with_cache:
        first = open_cache_of(first, folder / "cache")[1]
    return [first, second]


_TOLD = ("json", "jsonl", "txt", "current")
_OF_REPORT = ("a/result.json", "a/run.json", "a/history.jsonl")
STORED = [
    Reader("cache-zarr", _files("zarr"), _read_cache("zarr"), few=12),
    Reader("cache-zarr-json", _files("zarr parts"), _read_cache("zarr"), only=_TOLD, few=20),
    Reader("cache-hdf5", _files("hdf5"), _read_cache("hdf5"), few=25),
    Reader("cache-hdf5-json", _files("hdf5 parts"), _read_cache("hdf5"), only=_TOLD, few=40),
    Reader("cache-flat-hdf5", _files("flat.h5"), _read_cache("flat.h5"), few=25),
    Reader("cache-flat-zarr", _files("flat.zarr"), _read_cache("flat.zarr"), few=15),
    Reader("cache-signed", _files("hdf5 parts"), _read_signed, only=("store.json",), few=25),
    Reader("cache-additions-signed", _files("hdf5 parts"), _read_signed_additions, only=("txt",), few=25),
    Reader("list-signed", _files("list"), _read_signed_list, few=40),
    Reader("known-files", {"files.jsonl": KNOWN}, _read_known, refuses=False),
    Reader("lock", _lock_files, _read_locks, refuses=False),
    Reader("run", _files("run"), _read_run, only=("a/run.json", "a/best.safetensors"), few=30),
    Reader("standing", _files("run"), _take_up, only=("a/resume.safetensors",), few=30),
    Reader(
        "results",
        _files("run"),
        _read_results,
        only=("a/result.json", "a/result.ranks.npz", "a/run.json", "a/history.jsonl"),
        few=30,
    ),
    Reader("report", _files("run"), _report(figures=False), writes=True, only=_OF_REPORT, few=24),
    Reader("report-figures", _files("run"), _report(figures=True), writes=True, only=_OF_REPORT, few=3),
]
