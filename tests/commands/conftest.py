"""What tests of commands share: clips with captions, a cache, runs; each is made once, and every test gets a copy."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glscl import cli
from glscl.commands.options import main


@pytest.fixture
def glscl(glscl, monkeypatch, tmp_path):
    """Run a command in this process, its home below the test's own folder."""
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "home"))
    return glscl


@pytest.fixture
def one_line():
    """`one_line(found, *words)`: what `glscl` gave ends in one line that says the words, with no traceback."""

    def check(found: tuple[int, str, str], *words: object, status: int | None = None) -> None:
        given, _, err = found
        assert given == status if status else given in (1, 2), err
        lines = [line for line in err.splitlines() if line.startswith("glscl: ")]
        assert len(lines) == 1 and "Traceback" not in err and "Unexpected" not in err, err
        for word in words:
            assert str(word) in lines[0], f"{word!r} is not in: {lines[0]}"

    return check


def command(*words: object) -> None:
    """A command outside any test, which must succeed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["glscl", *map(str, words)])
        assert main(cli.app, sys.argv[1:]) == 0


def copied_run(run: Path, copy: Path, cache: Path) -> Path:
    """A run as if it had been trained there, on that cache."""
    shutil.copytree(run, copy)
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | {"cache": str(cache)}))
    return copy


# --- clips, a cache of them, a run ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def made_clips(tmp_path_factory, make_video_file) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    lines = ["video,caption,split"]
    for i in range(12):
        split = "train" if i < 8 else "val" if i < 10 else "test"
        make_video_file(folder / "videos" / f"clip{i}.mp4", frames=8, seed=i)
        lines += [f"clip{i}.mp4,a picture of thing {i} {word},{split}" for word in ("moving", "turning")]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def clips(made_clips, tmp_path) -> Path:
    """Twelve clips and a CSV with two captions each; eight train, two val, two test."""
    return shutil.copytree(made_clips, tmp_path, dirs_exist_ok=True)


def extraction(clips: Path, backbone: Path, *more: object) -> tuple:
    where = ("--annotations", clips / "captions.csv", "--videos", clips / "videos")
    return ("extract", "--dataset", "csv", *where, "--backbone", f"local-dir:{backbone}", *more)


@pytest.fixture
def extract_arguments(clips, tiny_clip) -> Callable[..., tuple]:
    """`extract_arguments(*more)`: the command that extracts the clips with a tiny backbone."""
    return lambda *more, kind="clip_vit": extraction(clips, tiny_clip(kind), *more)


@pytest.fixture(scope="session")
def made_run(made_clips, tiny_clip, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    command(*extraction(made_clips, tiny_clip(), "--out", folder / "cache"))
    fixed = ("--head", "projection", "--epochs", 1, "--batch-size", 4)
    command("train-head", "--cache", folder / "cache", "--out", folder / "run", *fixed)
    return folder


@pytest.fixture
def trained(clips, made_run) -> Path:
    """The folder of the clips, with a cache of them and a run of one epoch."""
    copied_run(made_run / "run", clips / "run", shutil.copytree(made_run / "cache", clips / "cache"))
    return clips


# --- a cache of made-up features, two runs ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def made_runs(small_cache_class, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    small_cache_class(folder / "cache", "zarr", "float16", videos=24, captions=3, dim=8, seed=0).fill()
    fixed = ("--epochs", 1, "--batch-size", 8, "--validation", 4)
    for name, head in (("a", "projection"), ("b", "attention_pool")):
        command("train-head", "--cache", folder / "cache", "--head", head, *fixed, "--out", folder / name)
    return folder


@pytest.fixture
def cache(made_runs, small_cache):
    """The only cache there is, so that commands find it by themselves."""
    made = small_cache(name="home/caches/made", videos=24)
    shutil.copytree(made_runs / "cache", made.path)
    return made


@pytest.fixture
def two_runs(made_runs, cache, tmp_path) -> tuple[Path, Path]:
    """A run of projection and one of attention_pool, of one epoch each."""
    a, b = (copied_run(made_runs / name, tmp_path / name, cache.path) for name in ("a", "b"))
    return a, b
