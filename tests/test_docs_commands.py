"""The commands on the pages: every one is parsed by the program, and those of the tutorials run from top to bottom.

A block of commands that is not run says why, in the line above it or for its whole page:

    <!-- not run: it serves until it is stopped -->
    <!-- commands are parsed, not run: they need the videos of the benchmarks -->
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer.main

import glscl as front_door
from glscl import cli
from glscl.commands.options import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
TUTORIALS = [page for page in PAGES if "/tutorials/" in page]
PYTHON_RUN = {  # pages whose Python a test runs, and where
    "docs/cache-format.md": "tests/test_docs.py",
    "docs/datasets.md": "tests/extract/datasets/test_datasets_page.py",
    "docs/new-head.md": "tests/train_head/heads/test_docs.py",
    "docs/python.md": "tests/test_front_door.py",
    "docs/results.md": "tests/evaluate/test_schema.py",
}
WHOLE_PAGE = re.compile(r"^<!-- commands are parsed, not run: \S.* -->$", re.M)
COMMAND = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )?(?:glscl|accelerate launch .*-m glscl|srun glscl) ")
SHELL = re.compile(
    r"^(?:\$ )?(?:[A-Z_]+=\S+ )?(?:glscl|accelerate|make|pip|python|pytest|\.venv/bin/|git|cp|srun|sbatch) "
)


class Block(NamedTuple):
    """A fenced block: what stands behind the fence, its lines, and the line above it."""

    language: str
    lines: list[str]
    above: str

    @property
    def marked(self) -> bool:
        return self.above.startswith("<!-- not run: ")

    @property
    def commands(self) -> list[str]:
        """Lines of a shell, comments at their ends left out; one that ends in a backslash goes on."""
        if self.language not in ("", "sh", "bash"):
            return []
        joined = re.sub(r"\\\n\s*", "", "\n".join(self.lines)).splitlines()
        return [re.sub(r"\s+#\s.*", "", line).strip() for line in joined if SHELL.match(line.strip())]


def blocks(page: str) -> list[Block]:
    lines, found = ["", *(ROOT / page).read_text().splitlines()], []
    fences = [row for row, line in enumerate(lines) if line.startswith("```")]
    for start, end in zip(fences[::2], fences[1::2], strict=True):
        language = re.match(r"```(\w*)", lines[start])[1]
        found.append(Block(language, lines[start + 1 : end], lines[start - 1].strip()))
    return found


def words_of(line: str) -> list[str]:
    """The words behind `glscl` of a command line, without redirections and what is piped into it or out of it."""
    line = re.sub(r"\$\w+", "1", re.sub(r"\[(.*?)\]", r"\1", line))  # a variable of a script; what may be left out
    words = list(itertools.takewhile(lambda word: word not in ("|", ">", ">>", "&&", "&", ";"), shlex.split(line)))
    return words[words.index("glscl") + 1 :]


@pytest.mark.parametrize("page", PAGES)
def test_a_block_of_commands_is_run_or_says_why_not(page):
    whole = WHOLE_PAGE.search((ROOT / page).read_text())
    for block in blocks(page):
        if block.language == "python":
            assert page in PYTHON_RUN or block.marked, f"{page}: {block.lines[0]}"
        elif block.commands and not block.marked:
            assert whole or (page in TUTORIALS and block.language == "sh"), f"{page}: {block.lines[0]}"


def test_the_tests_that_run_python_name_its_page():
    for page, file in PYTHON_RUN.items():
        assert Path(page).name in (ROOT / file).read_text()


@pytest.fixture(scope="module")
def program():
    return typer.main.get_command(cli.app)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_the_program_understands(program, page):
    lines = [line for block in blocks(page) for line in block.commands if COMMAND.match(line)]
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.M | re.S)
    inline = [line for line in re.findall(r"`(glscl [^`…]*)`", text) if "[" not in line and "\\|" not in line]
    for line in lines:
        name, *words = words_of(line)
        if name.startswith("-"):
            continue
        try:
            program.commands[name].make_context(name, words, resilient_parsing=False)
        except Exception as error:  # of whichever click typer is made
            raise AssertionError(f"{page}: {line}: {error}") from None
    for line in inline:
        name, *words = words_of(re.sub(r"\s+", " ", line))
        if name.startswith("-") or name == "COMMAND":
            continue
        assert name in COMMANDS, f"{page}: {line}"
        known = {flag for each in program.commands[name].params for flag in (*each.opts, *each.secondary_opts)} | {
            "--help"
        }
        assert {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)} <= known, f"{page}: {line}"


# --- tutorials run, with the built-in backbone, on a few small clips ---------------------------------------------------

SPLITS = ["train"] * 8 + ["test"] * 4
SHORT = {  # what a command is given besides, so that it takes seconds and no weights from elsewhere
    "extract": ["--backbone", "demo", "--workers", "1"],
    "train-head": ["--epochs", "1", "--batch-size", "4"],
    "finetune": ["--batch-size", "4"],
}


@pytest.fixture(scope="module")
def made_world(tmp_path_factory, make_video_file) -> Path:
    """A folder with what the tutorials begin from: clips, a table of captions, a small MSR-VTT, somebody's features."""
    world = tmp_path_factory.mktemp("world")
    names = [f"clip{i}.mp4" for i in range(len(SPLITS))]
    for i, name in enumerate(names):
        make_video_file(world / "videos" / name, frames=8, seed=i)
        make_video_file(world / "MSRVTT/videos" / f"video{i}.mp4", frames=8, seed=100 + i)
    make_video_file(world / "inbox/holiday.mp4", frames=8, seed=99)
    rows = [
        (name, f"a picture of thing {i} {word}", SPLITS[i])
        for i, name in enumerate(names)
        for word in ("moves", "turns")
    ]
    with (world / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("video", "caption", "split"), *rows])
    videos = [{"video_id": f"video{i}", "split": split, "id": i} for i, split in enumerate(SPLITS)]
    sentences = [{"caption": f"thing {i}", "video_id": f"video{i}", "sen_id": i} for i in range(len(SPLITS))]
    (world / "MSRVTT/MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    ids = {split: [f"video{i}" for i, each in enumerate(SPLITS) if each == split] for split in ("train", "test")}
    (world / "MSRVTT/MSRVTT_train.9k.csv").write_text("\n".join(["video_id", *ids["train"]]) + "\n")
    tests = [f"ret{i},{id.replace('video', 'msr')},{id},somebody does {id}" for i, id in enumerate(ids["test"])]
    (world / "MSRVTT/MSRVTT_JSFUSION_test.csv").write_text("\n".join(["key,vid_key,video_id,sentence", *tests]) + "\n")
    (world / "clip_features").mkdir()
    rng = np.random.default_rng(0)
    for name in names:
        np.save(
            world / "clip_features" / name.replace(".mp4", ".npy"), rng.standard_normal((3, 128)).astype(np.float32)
        )
    return world


@pytest.fixture
def world(made_world, tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("GLSCL_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    subprocess.run(["cp", "-r", f"{made_world}/.", tmp_path], check=True)
    return tmp_path


def run_page(glscl, page: str) -> dict[str, str]:
    """Every command of a page, in order, in this process; command → what it printed."""
    printed = {}
    for line in [line for block in blocks(page) if not block.marked for line in block.commands]:
        if not line.startswith("glscl "):
            subprocess.run(line, shell=True, check=True)
            continue
        name, *words = words_of(line.replace("ViT-B-32", "demo"))
        extra = [] if name in ("import-features",) else SHORT.get(name, [])
        status, out, err = glscl(
            name, *words, *(extra if "--sweep" not in words else [*extra[:2], "--validation", "2"])
        )
        assert status == 0, f"{line}\n{out}{err}"
        printed[line] = out
    return printed


def said(printed: dict[str, str], command: str) -> str:
    return next(out for line, out in printed.items() if command in line)


@pytest.mark.exhaustive
def test_the_tutorial_of_a_benchmark_runs(glscl, world, undrawn):
    printed = run_page(glscl, "docs/tutorials/benchmark.md")
    assert "8" in said(printed, "--dry-run") and "qb-norm" in said(printed, "--normalise")
    assert "seq_transf" in said(printed, "compare") and "<html" in (world / "report.html").read_text()


@pytest.mark.exhaustive
def test_the_tutorial_of_own_videos_runs(glscl, world):
    printed = run_page(glscl, "docs/tutorials/own-videos.md")
    assert "clip" in said(printed, "--top 3") and "R@1" in said(printed, "eval")
    captioned, library = (front_door.open_cache("library", list=name) for name in ("csv-captions", "folder-videos"))
    assert captioned.num_items == {"text": 24, "video": 12} and library.num_items["video"] == 13
    assert "#EXTM3U" in (world / "found.m3u").read_text()


@pytest.mark.exhaustive
def test_the_tutorial_of_features_runs(glscl, world):
    printed = run_page(glscl, "docs/tutorials/features.md")
    assert "R@1" in said(printed, "eval") and list((world / "vectors").glob("*.npy"))


@pytest.mark.exhaustive
def test_the_tutorial_of_the_second_pass_runs(glscl, world):
    before = ("extract", "--dataset", "csv", "--annotations", "captions.csv", "--videos", "videos", "--out", "library")
    status, out, err = glscl(*before, *SHORT["extract"])
    assert status == 0, out + err
    assert "R@1" in said(run_page(glscl, "docs/tutorials/second-pass.md"), "eval")
