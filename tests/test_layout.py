"""The house: who may import whom, and that every room and data file is packaged."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOOR = ["errors", "config", "versions", "progress", "processes"]  # modules at the top that every room may import
ORDER = ["cache", "extract", "train_head", "evaluate", "cli"]
DOOR = {"options", "streams", "places", "demo", "console", "commands", "cli", "__main__"}  # the command line may import all
FOLDERS = [*ORDER[:-1], "commands"]  # with modules, to be packaged


def sources() -> list[Path]:
    rooms = [p for room in FOLDERS for p in (ROOT / room).rglob("*.py")]
    return rooms + [p for p in ROOT.glob("*.py")]


def imports(path: Path) -> set[str]:
    """First part of every `glscl.<part>` import, wherever in the file it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "glscl" else [node.module]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("glscl.")}
    return found - {"__version__"}


def external(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    parts = path.relative_to(ROOT).parts
    room = parts[0] if len(parts) > 1 else path.stem
    if room in DOOR:
        return
    allowed = set(FLOOR) | (set(ORDER[: ORDER.index(room) + 1]) if room in ORDER else set())
    assert imports(path) <= allowed, f"{room} may import only {sorted(allowed)}"


@pytest.mark.parametrize("room", ["cache", "train_head", "evaluate"])
def test_rooms_behind_the_cache_run_without_decoders_and_open_clip(room):
    for path in (ROOT / room).rglob("*.py"):
        if path not in second_pass():
            assert not external(path) & {"open_clip", "decord", "av"}, path


def second_pass() -> set[Path]:
    """The part of train_head that goes back to pixels."""
    return {ROOT / "train_head" / "finetune.py", *(ROOT / "train_head" / "finetuning").glob("*.py")}


def test_only_the_second_pass_goes_back_from_training_to_pixels():
    for path in (ROOT / "train_head").rglob("*.py"):
        if path not in second_pass():
            assert "extract" not in imports(path), path
            assert not [line for line in path.read_text().splitlines() if "import" in line and "finetun" in line], path


def test_every_package_is_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rooms = {p.parent for room in FOLDERS for p in (ROOT / room).rglob("__init__.py")}
    expected = {"glscl"} | {"glscl." + ".".join(p.relative_to(ROOT).parts) for p in rooms}
    assert set(project["tool"]["setuptools"]["packages"]) == expected
    with_modules = {p.parent for room in FOLDERS for p in (ROOT / room).rglob("*.py")}
    assert with_modules == rooms, "a folder with modules lacks its __init__.py"


def test_every_data_file_is_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]
    listed = {
        path
        for package, globs in patterns.items()
        for pattern in globs
        for path in ROOT.joinpath(*package.split(".")[1:]).glob(pattern)
    }
    data = {
        p
        for room in FOLDERS
        for p in (ROOT / room).rglob("*")
        if p.is_file() and p.suffix not in (".py", ".pyc")
    }
    assert data <= listed


def test_no_module_is_named_like_a_library_it_uses():
    libraries = {"zarr", "h5py", "torch", "numpy", "av", "decord", "typer", "rich", "csv", "json"}
    assert not {p.stem for p in sources()} & libraries
