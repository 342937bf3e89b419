"""Trainings that are killed, many of them: all is imported once, each one is a forked process. See crash_harness.py.

    python training_harness.py WORK SEED COMMAND:KIND=ROUNDS…          COMMAND is train-head or finetune

A round runs a command until it dies at one point: before a call that makes data durable (`call`; `commit`: at the commit
points, so often at each), before a line of the code that trains and saves (`line`), or at a moment (`time`). The same
command with --resume dies once more at another point, and is then left to end. What must be true: after each death the
run can be read or is not there yet, and at the end every file holds the bytes of a run that was never stopped. Prints one
JSON object: {COMMAND: {"stopped", "rounds", "sizes", "commit_points": [...], "problems": [...]}}.

This process computes nothing itself: threads of libraries would be missing in the forked ones.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash_harness as crash

from glscl import cli
from glscl.cache import files
from glscl.commands.options import main as run_command
from glscl.extract import pipeline
from glscl.extract.backbone.encoder import load_backbone
from glscl.extract.settings import ExtractSettings
from glscl.train_head import checkpoint, loop, resume_state

MEASURED = ("seconds", "captions_per_second")
WATCHED = frozenset([files.__file__, checkpoint.__file__, resume_state.__file__, loop.__file__])
HOOKS = crash.HOOKS | {"line": functools.partial(crash.count_lines, watched=WATCHED)}
HEAD = [f"--option={name}" for name in ("queries=2", "decoder_layers=1", "aggregator_layers=1", "frame_positions=12")]


def command(name: str, cache: Path, out: Path, *, resume: bool) -> list[str]:
    """A short training of a small head with dropout, so that also the random numbers must come back."""
    own = {"train-head": [], "finetune": ["--checkpoint-every", "1"]}[name]
    fixed = [
        "--head",
        "glscl",
        *HEAD,
        "--epochs",
        "2",
        "--batch-size",
        "4",
        "--seed",
        "3",
        "--device",
        "cpu",
        "--validation",
        "1",
    ]
    begun = (out / "run.json").exists()  # a training that died before has nothing to go on with
    return [name, "--cache", str(cache), "--out", str(out), *fixed, *own, *(["--resume"] if resume and begun else [])]


def make_cache(work: Path) -> None:
    pipeline.DecodePool = crash.DecodesHere
    backbone = load_backbone("demo", None, words=12, device="cpu", precision="fp32")
    settings = ExtractSettings(fps=2.0, store_frames="uint8")
    pipeline.extract(crash.corpus(work / "clips"), work / "cache", settings, backbone=backbone)


def run(arguments: list[str]) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = run_command(cli.app, arguments)
    if status != 0:
        raise RuntimeError(f"exit status {status}: {said.getvalue()[-500:]}")


def content(out: Path) -> dict[str, Any]:
    """What a run folder holds, but for what was measured and for the folder's own name."""
    found: dict[str, Any] = {p.name: weights(p) if p.suffix == ".safetensors" else "" for p in out.iterdir()}
    record = json.loads((out / "run.json").read_text())
    for row in [record["best"], *record["history"]]:
        for name in MEASURED:
            row.pop(name)
    found["history.jsonl"] = len((out / "history.jsonl").read_text().splitlines())
    return found | {"run.json": {key: value for key, value in record.items() if key != "command"}}


def weights(path: Path) -> list[Any]:
    """Header and bytes of a file of tensors; safetensors writes the lines of its metadata in any order."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return [json.loads(data[8:end]), hashlib.sha256(data[end:]).hexdigest()]


def look(out: Path) -> list[str]:
    """Problems of a run whose training was killed: what is there must be whole."""
    if not (out / "run.json").exists():
        return []
    record = checkpoint.read_run(out)
    if record["history"]:
        for which in checkpoint.WHICH:
            checkpoint.load_run(out, which)
    checkpoint.load_resume(out)
    return []


def dies(kind: str, place: float, sizes: dict[str, float], arguments: list[str]) -> bool:
    """Whether the command died at that place; it may have been done before."""

    def begin() -> None:
        if kind in HOOKS:
            HOOKS[kind](crash.Countdown(1 + int(place * sizes[kind])))
        run(arguments)

    status, answer = crash.in_child(begin, kill_after=place * sizes["time"] if kind == "time" else None)
    if answer is not None:
        raise RuntimeError(answer["raised"])
    return status == -signal.SIGKILL


def one_round(
    name: str, points: list[tuple[str, float]], sizes: dict[str, float], work: Path, reference: Path
) -> dict[str, Any]:
    out, cache, stopped, problems = work / "run", work / "cache", 0, []
    shutil.rmtree(out, ignore_errors=True)
    where = ", then ".join(f"{place:.4f} of {sizes[kind]:g} ({kind})" for kind, place in points)
    try:
        for number, (kind, place) in enumerate(points):
            stopped += dies(kind, place, sizes, command(name, cache, out, resume=number > 0))
            problems += expect(lambda: look(out))
        problems += expect(lambda: run(command(name, cache, out, resume=True)) or [])
        ended, whole = content(out), json.loads(reference.read_text())
        differing = sorted(name for name in ended.keys() | whole.keys() if ended.get(name) != whole.get(name))
        problems += [f"{name} is not as an uninterrupted run leaves it" for name in differing]
    except RuntimeError as error:
        problems.append(str(error))
    return {"stopped": stopped, "problems": [f"stopped at {where}: {problem}" for problem in problems]}


def expect(work: Callable[[], list[str]]) -> list[str]:
    status, found = crash.in_child(work)
    return [f"ended with {status}: {found and found['raised']}"] if status or isinstance(found, dict) else found


def measure(name: str, work: Path, reference: Path, kinds: set[str]) -> tuple[dict[str, float], dict[str, list[int]]]:
    """How many calls, lines and seconds a whole training takes, and the calls of its commit points.

    The first training is the reference.
    """
    out = work / "run"

    def whole() -> float:
        began = time.perf_counter()
        shutil.rmtree(out, ignore_errors=True)
        run(command(name, work / "cache", out, resume=False))
        return time.perf_counter() - began

    def first() -> dict[str, float]:
        whole()
        reference.write_text(json.dumps(content(out)))
        return {}

    def counted() -> dict[str, Any]:
        calls = crash.CommitPoints(Path(checkpoint.__file__).parent)
        HOOKS["call"](calls)
        whole()
        return {"call": calls.count, "commit": calls.count, "points": calls.calls}

    def traced() -> dict[str, float]:
        lines = crash.Countdown(None)
        HOOKS["line"](lines)
        whole()
        return {"line": lines.count}

    steps = {"line": traced, "time": lambda: {"time": whole()}}
    found: dict[str, Any] = {}
    for step in (first, counted, *(steps[kind] for kind in steps if kind in kinds)):
        status, answer = crash.in_child(step)
        if status != 0 or "raised" in answer:
            raise SystemExit(f"an uninterrupted run ends with {status}: {answer}")
        found |= answer
    return found, found.pop("points")


def rounds_of(name: str, asked: dict[str, int], seed: int, work: Path) -> dict[str, Any]:
    reference = work / f"{name}.json"
    sizes, points = measure(name, work, reference, set(asked))
    chosen = [("commit", at) for at in crash.at_commit_points(points, sizes["call"], asked.get("commit", 0), seed)]
    chosen += crash.places({kind: rounds for kind, rounds in asked.items() if kind != "commit"}, seed)
    report: dict[str, Any] = {"rounds": len(chosen), "stopped": 0, "sizes": sizes, "commit_points": sorted(points)}
    report["problems"] = []
    rng = random.Random(seed)
    for point in chosen:
        again = (rng.choice(sorted(asked)), 0.4 * rng.random())  # what is left is less than the whole
        found = one_round(name, [point, again], sizes, work, reference)
        report["stopped"] += found["stopped"]
        report["problems"] += found["problems"]
    return report


def main(work: str, seed: str, *words: str) -> None:
    os.fsync = lambda _: None  # processes die here, never the machine
    folder = Path(work)
    problems = expect(lambda: make_cache(folder) or [])
    if problems:
        raise SystemExit(f"no cache: {problems}")
    asked: dict[str, dict[str, int]] = {}
    for word in words:
        name, kind, rounds = re.fullmatch(r"(.+):(.+)=(\d+)", word).groups()
        asked.setdefault(name, {})[kind] = int(rounds)
    print(json.dumps({name: rounds_of(name, kinds, int(seed), folder) for name, kinds in asked.items()}))


if __name__ == "__main__":
    os.environ["GLSCL_HOME"] = sys.argv[1]
    main(*sys.argv[1:])
