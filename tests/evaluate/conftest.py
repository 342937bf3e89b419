"""Small caches that were judged: an untrained head and a glscl run, with their result files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from glscl.cache.store import Store
from glscl.evaluate.evaluation import evaluate_run, write_result
from glscl.evaluate.settings import EvaluateSettings
from glscl.train_head.checkpoint import read_run, save_weights, write_run
from glscl.train_head.heads import build_head

DIM = 16
HISTORY = [
    {
        "epoch": epoch,
        "step": 4 * epoch,
        "loss": 3.0 / epoch,
        "validation": {"text_to_video": {"R@1": 10.0 * epoch}, "video_to_text": {"R@1": 12.0 * epoch}},
    }
    for epoch in (1, 2, 3)
]


@pytest.fixture(scope="module")
def browser():
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no browser is installed: `apt-get install chromium`")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright drives the browser: pip install playwright"
    )
    with sync_api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


def make_run(folder: Path, store: Store, *, head: str = "glscl", selection: str = "validation", seed: int = 0) -> Path:
    """A run folder as training leaves it, with weights that nobody has trained."""
    torch.manual_seed(seed)
    options = {"decoder_layers": 1, "aggregator_layers": 1, "queries": 2} if head == "glscl" else {}
    built = build_head(head, embed_dim=DIM, **options)
    for which in ("best", "last"):
        save_weights(folder / f"{which}.safetensors", built)
    write_run(
        folder,
        {
            "head": head,
            "options": built.options,
            "embed_dim": DIM,
            "parameters": 1234,
            "settings": {"head": head, "epochs": 3, "max_frames": 6, "frame_position": "uniform"},
            "cache": str(store.path),
            "cache_fingerprint": store.fingerprint,
            "cache_configuration": store.configuration,
            "list": store.list_name,
            "list_hash": store.list_hash,
            "annotations": store.list.annotations,
            "selection": selection,
            "frozen_backbone": True,
            "training": {"texts": 45, "videos": 22},
            "versions": {"torch": "0.0.1"},
            "command": f"glscl train-head --head {head} --seed {seed}",
            "history": HISTORY,
        },
    )
    return folder


@pytest.fixture
def untrained_run(tmp_path):
    """`untrained_run(store, name, **changes)`: a run as if it had been trained on a list, with changes of its run.json."""

    def make(store: Store, name: str = "run", *, seed: int = 0, **changes: object) -> Path:
        folder = make_run(tmp_path / "runs" / name, store, head="mean_pool", selection="last", seed=seed)
        write_run(folder, {**read_run(folder), **changes})
        return folder

    return make


@pytest.fixture(scope="session")
def result_schema() -> dict:
    """The content of docs/result.schema.json."""
    return json.loads((Path(__file__).parents[2] / "docs" / "result.schema.json").read_text())


@pytest.fixture(scope="session")
def judged(small_cache_class, tmp_path_factory) -> SimpleNamespace:
    """`store`, and folders with results: `zero_shot` (normalised too), `run` (glscl), `other` (glscl, selected on test).

    Made once: a test that changes files copies the folder first.
    """
    root = tmp_path_factory.mktemp("judged")
    store = small_cache_class(root / "cache", "zarr", "float16", videos=40, captions=2, dim=DIM, seed=0).fill()
    folders = SimpleNamespace(store=store, root=root, zero_shot=root / "runs" / "zero-shot", evaluations={})
    evaluation = evaluate_run(
        store, settings=EvaluateSettings(normalise=("qb-norm", "dsl")), command="glscl eval --zero-shot"
    )
    write_result(folders.zero_shot / "result.json", evaluation)
    folders.evaluations["zero_shot"] = evaluation
    for name, selection, seed in (("run", "validation", 0), ("other", "test", 1)):
        folder = make_run(root / "runs" / name, store, selection=selection, seed=seed)
        evaluation = evaluate_run(store, folder, command=f"glscl eval --run {folder.name}")
        write_result(folder / "result.json", evaluation)
        folders.evaluations[name] = evaluation
        setattr(folders, name, folder)
    return folders
