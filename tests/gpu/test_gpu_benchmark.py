"""The GPU benchmark: every section runs in small on a CPU, and whatever breaks off leaves what it had."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time

import pytest
import torch


@pytest.fixture(scope="module")
def gpu(benchmark_module):
    return benchmark_module("gpu")


@pytest.fixture(scope="module")
def sections(gpu, benchmark_module):
    return benchmark_module("gpu_sections")


@pytest.fixture(scope="module")
def small(gpu, benchmark_module):
    return benchmark_module("gpu_bench")


@pytest.fixture
def bench(small, tmp_path):
    """A bench of small sizes on the CPU; its `lines` are what was measured."""
    lines: list[dict] = []
    made = small.Bench(torch.device("cpu"), small.SMALL, lines.append, lambda: lines, tmp_path)
    made.lines = lines
    return made


EXPECTED = {
    "machine": ("What the machine reaches", 7),
    "attention": ("Attention, forward and backward, 2 items of 64 a head", 10),
    "step": ("A step of training", 5),
    "recipe": ("The whole recipe", 2),
    "encodes": ("First and second encode of a size", 6),
    "frames": ("Frames a second", 3),
    "values": ("Values of features", 9),
    "second-pass": ("A step of the second pass", 2),
    "scoring": ("Scoring", 4),
    "search": ("Search among 1,000 frames, D=64", 6),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.exhaustive) if n == "second-pass" else n for n in EXPECTED]
)
def test_a_section_measures_in_small_on_a_cpu(name, sections, bench):
    bench.section = name
    sections.SECTIONS[name].run(bench)
    table, count = EXPECTED[name]
    rows = [line["row"] for line in bench.lines if line.get("table") == table]
    assert len(rows) == count, bench.lines
    failed = [line for line in bench.lines if "not_measured" in line and "GPU" not in line["not_measured"]]
    assert [line["what"] for line in failed] == (["compiled encoder"] if name == "frames" else [])


def test_sections_not_run_here_are_those_of_other_processes_and_of_cuda_graphs(sections):
    assert set(sections.SECTIONS) - set(EXPECTED) == {"tests", "again", "graphs"}


def test_a_part_that_fails_is_a_line_and_the_others_go_on(small, bench, monkeypatch):
    with bench.attempt("first"):
        raise ValueError("\x1b[31mno such kernel\x1b[0m\nmore")
    with bench.attempt("second"):
        bench.require(1.0)
        bench.row("Table", value=1.0)
    bench.deadline = time.monotonic()
    monkeypatch.setattr(type(bench), "cuda", True)
    monkeypatch.setattr(small, "synchronise", lambda device: None)
    with bench.attempt("third"):
        bench.require(30.0)
        pytest.fail("it must not begin")
    found = [line.get("not_measured") or line["row"] for line in bench.lines]
    assert found == ["ValueError: no such kernel", {"value": 1.0}, "0 s were left, and it takes about 30"]


def test_the_fastest_manner_counts_the_start_up(sections):
    def line(by, arithmetic, milliseconds, start_up, head="glscl"):
        row = {
            "head": head,
            "by": by,
            "arithmetic": arithmetic,
            "ms a step": milliseconds,
            "first window longer, s": start_up,
        }
        return {"table": sections.STEP, "row": row}

    lines = [
        line("loop", "bf16", 20.0, 0.0),
        line("compiled loop", "TF32", 5.0, 60.0),
        line("loop", "TF32", 1.0, 0.0, "xpool"),
    ]
    lines += [{"table": sections.GRAPH, "row": {"head": "glscl"}}]  # nothing that can be asked for
    assert sections.fastest(lines, "glscl", 1000) == ("bf16", "loop")
    assert sections.fastest(lines, "glscl", 7000) == ("TF32", "compiled loop")
    assert sections.fastest(lines, "wti", 1000) == ("TF32", "loop")


def test_later_sections_keep_the_time_they_need(gpu, sections):
    names = list(sections.SECTIONS)
    given = gpu.limits(names, until=100.0, now=0.0)
    needs = {name: section.needs for name, section in sections.SECTIONS.items()}
    assert given[names[-1]] == min(sections.SECTIONS[names[-1]].limit, 100.0)
    assert given["machine"] == min(sections.SECTIONS["machine"].limit, 100.0 - sum(needs.values()) + needs["machine"])


FAKE = """
import json, os, sys, time
words = dict(zip(sys.argv[2::2], sys.argv[3::2]))
out = open(words["--results"], "a")
for name in words["--only"].split(","):
    print(json.dumps({"begun": name, "limit": 0.0, "at": time.time()}), file=out, flush=True)
    print(json.dumps({"section": name, "text": f"{name} said this"}), file=out, flush=True)
    if name == "attention":
        os.abort()
    if name == "step":
        time.sleep(600)
    print(json.dumps({"section": name, "seconds": 1.0}), file=out, flush=True)
"""


def test_a_process_that_dies_or_hangs_costs_its_section_alone(gpu, tmp_path, monkeypatch):
    script, results, target = tmp_path / "work.py", tmp_path / "made.jsonl", tmp_path / "note.md"
    script.write_text(FAKE)
    monkeypatch.setattr(gpu, "__file__", str(script))
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    gpu.main(
        ["--seconds", "60", "--results", str(results), "--note", str(target), "--only", "machine,attention,step,search"]
    )
    told = target.read_text()
    parts = dict(part.split("\n\n", 1) for part in told.split("## ")[1:])
    assert "machine said this" in parts["The machine"] and "(1 s)" in parts["The machine"]
    assert "attention said this" in parts["Attention"] and "ended with status -6" in parts["Attention"]
    assert "it hung and was killed" in parts["A step of training a head"] and "search said this" in parts["Search"]
    assert parts["Scoring"].startswith("Not measured: it was not begun.")
    before = results.read_text()
    gpu.main(["--seconds", "60", "--results", str(results), "--only", "machine,attention,step,search"])
    assert results.read_text().count("begun") == before.count("begun")  # nothing is run again


def test_results_cut_off_in_the_middle_give_a_note(gpu, tmp_path):
    results = tmp_path / "made.jsonl"
    gpu.append(results, {"section": "search", "table": "Search", "row": {"what": "x", "ms": 12.3456}})
    with results.open("a") as file:
        file.write('{"section": "search", "tab')
    told = gpu.note(gpu.read(results), {"search": "Search"}, "command")
    assert "| x | 12.3 |" in told and "the run ended meanwhile" in told


def test_a_section_is_stopped_when_its_time_is_over(gpu, sections, tmp_path, monkeypatch):
    def slow(bench):
        bench.say("begun")
        while True:
            time.sleep(0.01)

    monkeypatch.setitem(sections.SECTIONS, "search", sections.Section("Search", slow, 2.5, 0))
    results = tmp_path / "made.jsonl"
    gpu.work(argparse.Namespace(device="cpu", small=True, results=results, only="search", until=time.time() + 60))
    lines = gpu.read(results)
    assert [line["text"] for line in lines if "text" in line] == ["begun"]
    assert lines[-1] == {"section": "search", "stopped": "its 2 s were over"}


def test_runs_are_killed_once_they_can_be_resumed(sections, tmp_path):
    def start(script: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, text=True, start_new_session=True)

    started = {
        "slow": (start("import time; time.sleep(60)"), tmp_path / "none"),
        "soon": (start("import time; open('resume.safetensors', 'w'); time.sleep(60)"), tmp_path),
        "over": (start("raise SystemExit(3)"), tmp_path / "none"),
    }
    found = dict(sections.kill_at_checkpoints(started, until=time.monotonic() + 5))
    assert found["over"].startswith("ended by itself with status 3") and found["soon"].startswith("killed after")
    assert set(found) == {"over", "soon"} and started["soon"][0].returncode == -signal.SIGKILL
    started["slow"][0].kill()
    started["slow"][0].wait()


def test_weights_that_differ_are_told(sections, tmp_path):
    from safetensors.torch import save_file

    for name, value in (("a", 1.0), ("b", 1.0), ("c", 1.25)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.tensor([value])}, tmp_path / name / "last.safetensors")
    assert sections.alike(tmp_path / "a", tmp_path / "b") == "the same to the last bit"
    assert sections.alike(tmp_path / "a", tmp_path / "c") == "differ by 2.5e-01 at most"


@pytest.mark.slow
def test_the_script_writes_its_note_and_goes_on_from_an_earlier_one(gpu, tmp_path):
    def ran(out: str, *options: str, **more: str) -> str:
        about = {"OUT": str(tmp_path / out), "SITE": str(tmp_path / "site"), "PYTHON": sys.executable, **more}
        command = ["bash", str(gpu.HERE / "gpu.sh"), "--small", "--seconds", "120", "--device", "cpu", *options]
        subprocess.run(command, env={**os.environ, **about}, check=True, capture_output=True)
        (told,) = (tmp_path / out).glob("*-gpu-small.md")
        return told.read_text()

    told = ran("first", "--only", "search,machine")
    assert "Small sizes" in told and "TFLOP/s" in told and "Search among 1,000 frames" in told
    assert "It ran on the device cpu: nothing here was measured on a GPU." in told
    assert told.count("Not measured: it was not begun.") == 11
    again = ran("second", "--only", "machine,scoring", EARLIER=str(tmp_path / "first" / "gpu-small.jsonl"))
    assert told.split("## Tests")[0].split("## The machine")[1] in again, "what was measured is not measured again"
    assert again.count("Not measured: it was not begun.") == 10
