"""Every way through the program on a CUDA device that is emulated: tensors of two devices never meet, whatever head."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from glscl.demo.corpus import render_corpus
from glscl.train_head.heads import HEADS, build_head

HERE = Path(__file__).parent / "emulated"

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="puts stubs in the place of shared libraries"),
    pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch is built without CUDA"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc"),
]


@pytest.fixture(scope="module")
def stubs(tmp_path_factory) -> Path:
    """A folder with the runtime and the driver of a GPU that does nothing."""
    folder = tmp_path_factory.mktemp("stubs")
    nvidia, triton = (pytest.importorskip(name, reason="comes with torch for CUDA") for name in ("nvidia", "triton"))
    (headers,) = {next(Path(place).rglob("cuda_runtime_api.h")).parent for place in nvidia.__path__}
    include = [f"-I{headers}", f"-I{Path(triton.__file__).parent / 'backends' / 'nvidia' / 'include'}"]
    library = ["gcc", "-shared", "-fPIC", "-w", *include, "-o"]
    subprocess.run([*library, folder / "cudart.so", HERE / "cudart.c"], check=True)
    subprocess.run([*library, folder / "libcuda.so.1", "-Wl,-soname,libcuda.so.1", HERE / "cuda.c"], check=True)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Annotations and videos of the built-in corpus, few."""
    folder = tmp_path_factory.mktemp("corpus")
    return render_corpus(folder, seed=0, sizes={"train": 12, "val": 4, "test": 8}, workers=1)


def run(stubs: Path, folder: Path, *commands: list[object], memory: int = 0) -> str:
    """What the commands said, each on the device; all must end well."""
    asked = [[str(word) for word in [*words, "--device", "cuda"]] for words in commands]
    done = on_device(stubs, folder, "session.py", asked, memory=memory)
    assert json.loads(done.stdout.splitlines()[-1]) == [0] * len(commands), done.stderr
    return done.stdout + done.stderr


def on_device(
    stubs: Path, folder: Path, script: str, asked: object, *, memory: int = 0
) -> subprocess.CompletedProcess[str]:
    """A script beside the emulation, told what is asked in a file."""
    file = folder / "asked.json"
    file.write_text(json.dumps(asked))
    environment = {
        **os.environ,
        "LD_PRELOAD": str(stubs / "cudart.so"),
        "LD_LIBRARY_PATH": str(stubs),
        "OMP_NUM_THREADS": "1",
        "GLSCL_HOME": str(folder),
        **({"EMULATED_MEMORY": str(memory)} if memory else {}),
    }
    done = subprocess.run(
        [sys.executable, str(HERE / script), str(file)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done


def test_features_heads_and_searches_of_the_device_are_those_of_the_cpu(stubs, corpus, tmp_path, glscl):
    annotations, videos = corpus
    cache = tmp_path / "cache"
    data = ["--dataset", "demo", "--annotations", annotations, "--videos", videos, "--backbone", "demo"]
    extract = ["extract", *data, "--precision", "fp32", "--store-frames", "uint8"]
    train = ["--epochs", "1", "--batch-size", "16"]
    runs = {head: tmp_path / head for head in HEADS if head != "best_frames"}
    found = run(
        stubs,
        tmp_path,
        [*extract, "--out", cache],
        *(["train-head", "--cache", cache, "--head", head, "--out", out, *train] for head, out in runs.items()),
        *(["eval", "--run", out] for out in runs.values()),
        ["search", "a red circle", "--cache", cache, "--run", runs["glscl"]],
        ["search", "a red circle", "--cache", cache, "--run", runs["seq_lstm"]],
        ["export", "--run", runs["attention_pool"], "--out", tmp_path / "vectors"],
        ["export", "--run", runs["seq_lstm"], "--out", tmp_path / "vectors of an LSTM"],
        ["finetune", "--run", runs["glscl"], "--out", tmp_path / "second", "--epochs", "1", "--batch-size", "8"],
    )
    assert "rank" in found
    assert glscl(*extract, "--out", tmp_path / "here", "--device", "cpu")[0] == 0
    from glscl.cache.store import open_store

    there, here = (open_store(path) for path in (cache, tmp_path / "here"))
    for stream in ("video", "text"):
        for name, array in here.arrays(stream).items():
            np.testing.assert_allclose(
                there.arrays(stream)[name], array, rtol=2e-3, atol=2e-3, err_msg=f"{stream} {name}"
            )
    for head, out in runs.items():
        of_device = json.loads((out / "result.json").read_text())
        status, _, err = glscl("eval", "--run", str(out), "--device", "cpu")
        assert status == 0, err
        assert json.loads((out / "result.json").read_text())["text_to_video"] == of_device["text_to_video"], head


def test_a_device_without_room_for_the_table_trains_all_the_same(stubs, corpus, tmp_path):
    annotations, videos = corpus
    data = ["--dataset", "demo", "--annotations", annotations, "--videos", videos, "--backbone", "demo"]
    run(
        stubs,
        tmp_path,
        ["extract", *data, "--out", tmp_path / "cache"],
        ["train-head", "--cache", tmp_path / "cache", "--out", tmp_path / "run", "--epochs", "1", "--batch-size", "16"],
        memory=(1 << 30) + 4096,  # a GiB of it is taken
    )


def test_the_tests_that_need_a_gpu_pass_on_the_device(stubs, tmp_path):
    """So that on a real one none fails for a fault of its own."""
    said = on_device(stubs, tmp_path, "marked.py", str(HERE.parents[1])).stdout
    assert " passed" in said.splitlines()[-1] and "failed" not in said, said


def test_a_training_of_the_device_goes_on_where_it_stopped(stubs, tmp_path):
    """In every precision, recorded or not; a step that is recorded draws the same random numbers as one that is not."""
    ways = ({"precision": "tf32"}, {"precision": "bf16", "cuda_graphs": True}, {"precision": "fp16"})
    asked = [(head, how) for head in ("glscl", "seq_lstm") for how in ways]
    found = json.loads(on_device(stubs, tmp_path, "resumed.py", asked).stdout.splitlines()[-1])
    assert found == [0.0] * len(asked)


REPORT = 2  # times that the host waits where the loop reports: for the losses, and for their parts


def test_no_step_of_a_head_makes_the_host_wait(stubs, tmp_path):
    heads = [head for head in HEADS if build_head(head, embed_dim=64).has_logit_scale]
    asked = [(head, "cuda", 12, {"precision": "bf16"}) for head in heads]
    found = json.loads(on_device(stubs, tmp_path, "steps.py", asked).stdout.splitlines()[-1])
    for head, each in zip(heads, found, strict=True):
        first, second, last = each["counts"]  # the training begins in the first, and the last ends it
        assert second.get("waits", 0) <= REPORT and second.get("copies", 0) == 0, (head, second)


def test_no_batch_of_frames_and_no_step_of_a_second_pass_makes_the_host_wait(stubs, corpus, tmp_path):
    found = json.loads(
        on_device(stubs, tmp_path, "pixels.py", [*map(str, corpus), str(tmp_path)]).stdout.splitlines()[-1]
    )
    assert found["encoding"].get("waits", 0) == 0, found["encoding"]
    _, *steady, _ = found["second pass"]
    assert steady and all(each.get("waits", 0) <= REPORT for each in steady), steady


OF_A_GPU = {"attention", "driver"}  # kernels that torch has for some shapes alone, and nvidia-smi


def test_every_section_of_the_gpu_benchmark_measures_on_the_device(stubs, tmp_path):
    names = [
        "machine",
        "attention",
        "step",
        "graphs",
        "recipe",
        "encodes",
        "frames",
        "values",
        "second-pass",
        "scoring",
    ]
    lines = json.loads(on_device(stubs, tmp_path, "sections.py", [*names, "search"]).stdout.splitlines()[-1])
    assert [line for line in lines if "not_measured" in line and not OF_A_GPU & {*line.values()}] == []
    rows = Counter(line["section"] for line in lines if "table" in line)
    assert {*names, "search"} == {*rows}
    assert [rows[name] for name in ("step", "graphs", "recipe", "second-pass")] == [11, 4, 2, 5]
    manners = {(line["row"]["arithmetic"], line["row"]["by"]) for line in lines if line["section"] == "step"}
    assert {(how, by) for how in ("fp32", "TF32", "bf16") for by in ("loop", "recorded loop")} <= manners


def test_recorded_steps_are_one_launch_and_give_what_the_plain_ones_give(stubs, tmp_path):
    heads = ("glscl", "wti", "seq_transf")
    ways = ({}, {"cuda_graphs": True})
    asked = [(head, "cuda", 20, {"precision": "tf32", **how}) for head in heads for how in ways]
    found = iter(json.loads(on_device(stubs, tmp_path, "steps.py", asked).stdout.splitlines()[-1]))
    for head in heads:
        plain, recorded = next(found), next(found)
        assert recorded["notes"] == []
        assert recorded["losses"] == pytest.approx(plain["losses"], rel=1e-3), head
        *_, replayed = (counts for counts in recorded["counts"][:-1] if counts.get("replays") == 4)
        assert replayed["operations"] <= 4 * 12 and replayed["waits"] <= REPORT, (head, replayed)
        if head == "glscl":  # of two layers and two blocks
            assert plain["counts"][1]["operations"] <= 4 * 450  # 442 with torch 2.14
