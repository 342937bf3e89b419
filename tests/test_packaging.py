"""A wheel holds every module and data file, and works away from the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("common", "cache", "extract", "train_head", "evaluate", "demo", "commands")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in [*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "py.typed"]:
        shutil.copy(file, source)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", out, source]
    subprocess.run(command, check=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_rooms(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [p for room in ROOMS for p in (ROOT / room).rglob("*") if p.is_file() and p.suffix != ".pyc"]
    files += [*ROOT.glob("*.py"), ROOT / "py.typed"]
    missing = {f"glscl/{p.relative_to(ROOT).as_posix()}" for p in files} - names
    assert missing == set()
    assert not [n for n in names if not n.startswith(("glscl/", "glscl-"))]


def test_the_wheel_works_away_from_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import glscl, glscl.cli, glscl.cache, glscl.train_head.heads as heads, glscl.extract.datasets as datasets\n"
        "from glscl.extract.backbone.encoder import Backbone, load_backbone\n"
        "assert glscl.__file__.startswith(sys.path[0]), glscl.__file__\n"
        "[heads.head_class(name) for name in heads.HEAD_NAMES]\n"
        "print(load_backbone('demo').embed_dim, len(datasets.DATASETS))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "128"
