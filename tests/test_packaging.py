"""The source distribution makes the wheel, the wheel holds every module and data file, and it works away from the checkout."""

from __future__ import annotations

import email
import importlib.metadata
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from glscl import __version__

ROOT = Path(__file__).parents[1]
ROOMS = ("common", "cache", "extract", "train_head", "evaluate", "demo", "commands")
EXTRAS = ("docs", "tests", "benchmarks", "examples")  # of the source distribution alone
NOISE = shutil.ignore_patterns("__pycache__", "*.py[co]", ".*")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    for folder in (*ROOMS, *EXTRAS):
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, source / folder, ignore=NOISE)
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, source)
    out = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"], cwd=source)
    return next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    # asked for by its metadata: a process in which pip was imported cannot import setuptools, and torch then compiles nothing
    if not any(importlib.metadata.distributions(name="pip")):
        pytest.skip("pip builds the wheel")
    out = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", out, sdist])
    return next(out.glob("*.whl"))


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_wheel_holds_every_file_of_the_rooms(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [p for room in ROOMS for p in (ROOT / room).rglob("*") if p.is_file() and p.suffix != ".pyc"]
    files += [*ROOT.glob("*.py"), ROOT / "py.typed"]
    missing = {f"glscl/{p.relative_to(ROOT).as_posix()}" for p in files} - names
    assert missing == set()
    assert not [n for n in names if not n.startswith(("glscl/", "glscl-"))]


def test_the_wheel_says_whose_it_is_and_under_which_licence(wheel):
    archive = zipfile.ZipFile(wheel)
    folder = f"glscl-{__version__}.dist-info"
    metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "MIT" and metadata.get_all("License-File") == ["LICENSE"]
    assert archive.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert metadata["Author"] == "the glscl authors" and metadata["Keywords"]
    labels = {line.split(", ")[0] for line in metadata.get_all("Project-URL")}
    assert labels >= {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert metadata["Description-Content-Type"] == "text/markdown" and "# glscl" in metadata.get_payload()


def test_the_source_distribution_holds_what_a_distributor_tests(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    listed = ["LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "tests/conftest.py", "docs/cache-format.md"]
    golden = [
        p.relative_to(ROOT).as_posix() for p in (ROOT / "tests").rglob("*") if p.suffix in (".json", ".npz", ".py")
    ]
    assert {*listed, *golden} <= names
    assert not [name for name in names if "__pycache__" in name]


def test_citation_and_package_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {project['version']}" in lines and project["version"] == __version__
    assert f"license: {project['license']}" in lines
    assert f"repository-code: {project['urls']['Source']}" in lines


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment of its own with the wheel in it; the packages it needs are borrowed from this one by their path."""
    home = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", home])
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q", wheel])
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return python


def test_an_installed_wheel_finds_its_heads_readers_and_backbone(installed, tmp_path):
    code = (
        "import glscl, glscl.cli, glscl.cache, glscl.train_head.heads as heads, glscl.extract.datasets as datasets\n"
        "from importlib import import_module\n"
        "from glscl.extract.backbone.encoder import load_backbone\n"
        "[heads.head_class(name) for name in heads.HEAD_NAMES]\n"
        "[import_module(entry.module) for entry in datasets.DATASETS.values()]\n"
        "print(load_backbone('demo').embed_dim, glscl.__file__)\n"
    )
    dim, where = run([installed, "-I", "-c", code], cwd=tmp_path).split(maxsplit=1)
    assert dim == "128" and Path(where.strip()).is_relative_to(installed.parents[1])


@pytest.mark.exhaustive
@pytest.mark.dist
@pytest.mark.slow
def test_an_installed_wheel_goes_from_videos_to_a_report(installed, make_video, tmp_path):
    lines = ["video,caption,split"]
    for i in range(6):
        make_video(tmp_path / "videos" / f"clip{i}.mp4", frames=8, seed=i)
        lines.append(f"clip{i}.mp4,a picture of thing {i},{'train' if i < 4 else 'test'}")
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    quiet = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "GLSCL_HOME")}

    def glscl(*words):
        return run([installed.with_name("glscl"), *words], cwd=tmp_path, env=quiet)

    assert glscl("--version").split() == ["glscl", __version__]
    assert "train-head" in glscl("--help")
    extract = (
        "extract",
        "--dataset",
        "csv",
        "--annotations",
        "captions.csv",
        "--videos",
        "videos",
        "--backbone",
        "demo",
    )
    assert json.loads(glscl(*extract, "--json"))["videos"] == 6
    glscl("train-head", "--head", "projection", "--epochs", "1", "--out", "run")
    assert "text → video" in glscl("eval", "--run", "run")
    glscl("report", "run", "--out", "report.html")
    assert "<html" in (tmp_path / "report.html").read_text()


def test_make_takes_torch_without_cuda_before_the_package_asks_for_any(tmp_path):
    def commands(*words):
        return run(["make", "-n", "demo", f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}", *words], cwd=ROOT)

    light = commands("CPU=1")
    assert (
        0
        < light.index('--index-url "https://download.pytorch.org/whl/cpu" torch torchvision')
        < light.index("'.[test]'")
    )
    assert '--index-url "https://example.org/cu128" torch' in commands("TORCH_INDEX=https://example.org/cu128")
    assert "--index-url" not in commands()


def test_the_image_is_given_all_that_the_package_is_made_of():
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rooms = {name.split(".")[1] for name in config["tool"]["setuptools"]["packages"] if "." in name}
    assert admitted >= rooms | {path.name for path in ROOT.glob("*.py")}
    assert admitted >= {"py.typed", "pyproject.toml", "LICENSE", "README.md"} and all(
        (ROOT / n).exists() for n in admitted
    )
    wanted = re.search(r"/src\[(.*?)\]", (ROOT / "Dockerfile").read_text())
    assert wanted and set(wanted[1].split(",")) <= config["project"]["optional-dependencies"].keys()


def test_the_page_of_versions_names_the_bounds_that_are_set():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = itertools.chain(*config["project"]["optional-dependencies"].values())
    asked = [*config["build-system"]["requires"], *config["project"]["dependencies"], *extras]
    bounds = {(m[1], m[2]) for line in asked if (m := re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", line))}
    table = (ROOT / "docs/versions.md").read_text().partition("## What was run")[0]
    told = set()
    for names, versions in re.findall(r"^\| ([a-z].*?) \| (\d.*?) \| ", table, re.M):
        names = [re.match(r"[\w-]+", name)[0] for name in re.sub(r", (for|to) \w+", "", names).split(", ")]
        told |= set(zip(names, re.findall(r"[\d.]+", re.sub(r", with .*", "", versions)), strict=True))
    assert len(told) > 10 and told <= bounds
