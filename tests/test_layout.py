"""The house: who may import whom, in which order a room is read, and that every room and data file is packaged."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from collections import Counter
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

from glscl.cli import COMMAND_GROUPS

ROOT = Path(__file__).parents[1]
ROOMS = ["common", "cache", "extract", "train_head", "evaluate", "demo", "commands"]  # each may import those before it
LIBRARIES = {"zarr", "h5py", "torch", "numpy", "av", "decord", "typer", "rich", "csv", "json", "ray", "mlflow"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("glscl", *(part for part in parts if part != "__init__")))


@cache
def modules() -> dict[str, Path]:
    """Name → file of every module of the product."""
    paths = [*ROOT.glob("*.py"), *(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))]
    return {module_name(path): path for path in paths}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(name: str) -> frozenset[str]:
    """Our modules that a module imports, wherever in the file it stands: in functions and under TYPE_CHECKING too."""
    known, found = modules(), set()
    for node in ast.walk(tree(known[name])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            longer = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each if each in known else node.module for each in longer}
    return frozenset(found & known.keys()) - {"glscl"}


def external(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


def room_of(name: str) -> str:
    return name.split(".")[1]


def test_the_root_holds_the_door_and_nothing_else():
    assert {p.name for p in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "cli.py"}


def test_imports_go_down_only():
    order = [*ROOMS, "cli", "__main__"]
    wrong = [
        f"{name} imports {found}"
        for name in modules()
        if name != "glscl"
        for found in imports(name)
        if order.index(room_of(found)) > order.index(room_of(name))
    ]
    assert wrong == []


def test_a_name_of_a_module_in_a_string_goes_down_too():
    """Of registries and lazy imports. The built-in corpus is named as a data set from outside is, and loaded as one; the
    program is what decoding processes import again."""
    order = [*ROOMS, "cli", "__main__"]
    allowed = {("glscl.extract.datasets", "glscl.demo.corpus"), ("glscl.commands.extraction", "glscl.cli")}
    wrong = {
        (name, found)
        for name, path in modules().items()
        if name != "glscl"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if (found := node.value.partition(":")[0]) in modules() and found != "glscl"
        if order.index(room_of(found)) > order.index(room_of(name))
    }
    assert wrong == allowed


def test_no_room_uses_the_front_door():
    """It stands above all rooms, which would be a circle; only the version is written there."""
    for name, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                assert "glscl" not in {alias.name for alias in node.names}, name
            elif isinstance(node, ast.ImportFrom) and node.module == "glscl":
                assert {alias.name for alias in node.names} <= {"__version__", *ROOMS}, name


def test_no_modules_import_each_other_in_a_circle():
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join((*way[way.index(name) :], name))
        if name not in done:
            for found in sorted(imports(name)):
                visit(found, (*way, name))
            done.add(name)

    for name in sorted(modules().keys() - {"glscl"}):
        visit(name, ())


@cache
def reading_order(room: str) -> tuple[list[str], list[str]]:
    """What the docstring of a room lists: the files and folders on the way, in reading order, and the wings."""
    text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())) or ""
    way, _, wings = text.partition("\nWings")
    rows = re.compile(r"^    ([a-z_0-9]+/?)(?:\s|$)", re.M)
    return rows.findall(way), rows.findall(wings)


def is_of_a_wing(name: str) -> bool:
    parts = name.split(".")
    return len(parts) > 2 and parts[1] in ROOMS and f"{parts[2]}/" in reading_order(parts[1])[1]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_lists_its_files_in_reading_order(room):
    way, wings = reading_order(room)
    files = {p.stem for p in (ROOT / room).glob("*.py")} - {"__init__"}
    folders = {f"{p.parent.name}/" for p in (ROOT / room).glob("*/__init__.py")}
    assert sorted(way + wings) == sorted(files | folders)


@pytest.mark.parametrize("room", ROOMS)
def test_files_import_what_stands_before_them_and_no_wing(room):
    """A wing may build on a wing before it, as serving does on searching; nothing on the way may load one, of any room."""
    way, wings = reading_order(room)
    order = {entry.rstrip("/"): number for number, entry in enumerate([*way, *wings])}
    wrong = []
    for name in modules():
        parts = name.split(".")
        if len(parts) < 3 or parts[1] != room:
            continue
        for found in imports(name):
            target = found.split(".")
            if target[1] == room and len(target) > 2 and target[2] != parts[2] and order[target[2]] >= order[parts[2]]:
                wrong.append(f"{name} imports {found}")
            if room not in ("demo", "commands") and f"{parts[2]}/" not in wings and is_of_a_wing(found):
                wrong.append(f"{name} imports {found}, of a wing")
    assert wrong == []


@pytest.mark.parametrize("room", ["common", "cache", "train_head", "evaluate"])
def test_rooms_behind_the_cache_run_without_decoders_and_open_clip(room):
    for path in (ROOT / room).rglob("*.py"):
        if "finetuning" not in path.parts:
            assert not external(path) & {"open_clip", "decord", "av"}, path


def test_only_the_second_pass_goes_back_from_training_to_pixels():
    for name in modules():
        if name.startswith("glscl.train_head.") and ".finetuning" not in name:
            assert not {found for found in imports(name) if room_of(found) == "extract" or ".finetuning" in found}, name


def test_every_package_is_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rooms = {p.parent for room in ROOMS for p in (ROOT / room).rglob("__init__.py")}
    expected = {"glscl"} | {"glscl." + ".".join(p.relative_to(ROOT).parts) for p in rooms}
    assert set(project["tool"]["setuptools"]["packages"]) == expected
    with_modules = {p.parent for room in ROOMS for p in (ROOT / room).rglob("*.py")}
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
    data = {p for room in ROOMS for p in (ROOT / room).rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert data <= listed


def test_no_module_is_named_like_a_library_it_uses():
    assert not {path.stem for path in modules().values()} & LIBRARIES


def test_a_name_of_a_module_has_one_meaning_and_says_it():
    """Two files of one name are two things called alike; only `settings` are of a stage each."""
    stems = Counter(path.stem for path in modules().values() if path.stem not in ("__init__", "settings"))
    assert [stem for stem, count in stems.items() if count > 1] == []
    vague = {"beside", "standing", "finite", "places", "upstream", "pieces", "utils", "helpers", "misc"}
    assert not vague & {word for stem in stems for word in stem.split("_")}


def test_a_class_or_type_has_a_name_of_its_own():
    """`Part` of an extraction and `Part` of a gallery are two words; what stands for any type (`Kind`) is none."""
    found: dict[str, list[str]] = {}
    for name, path in modules().items():
        for node in tree(path).body:
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign) and "TypeVar" not in ast.unparse(node.value):
                names = [each.id for each in node.targets if isinstance(each, ast.Name)]
            for each in names:
                if re.match(r"[A-Z][a-z]", each):
                    found.setdefault(each, []).append(name)
    assert {each: where for each, where in found.items() if len(where) > 1} == {}


@pytest.mark.parametrize("room", ROOMS[:-1])
def test_nothing_below_the_commands_knows_an_option_or_a_command(room):
    """Options and commands are words of `commands/`: the library names settings in backticks and gives hints as data."""
    commands = "|".join(function.__name__.replace("_", "-") for function in chain(*COMMAND_GROUPS.values()))
    option = re.compile(rf"(?<!var\()(?<![\w-])--[a-z][a-z-]+|\bglscl ({commands})\b")
    found = [
        f"{name}, line {number}: {text[:80]!r}"
        for name, path in modules().items()
        if name.startswith(f"glscl.{room}") and path.stem != "train_backbone"  # a script with options of its own
        for number, text in said_in(path)
        if option.search(text)
    ]
    assert found == []


def said_in(path: Path) -> list[tuple[int, str]]:
    """Line and text of every string and comment; where a string has a value, a command's name stands for it."""
    found, source = [], path.read_text()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else "inspect" for part in node.values]
            found.append((node.lineno, "".join(parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append((node.lineno, node.value))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return found + [(each.start[0], each.string) for each in tokens if each.type == tokenize.COMMENT]


def test_no_public_function_takes_more_than_eight_parameters():
    def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return len([each for each in given if each.arg not in ("self", "cls")])

    commands = {function.__name__ for function in chain(*COMMAND_GROUPS.values())}
    found = [
        f"{name}.{node.name}: {parameters(node)}"
        for name, path in modules().items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and parameters(node) > 8
        if node.name == "__init__" or not node.name.startswith("_")
        # a parameter of a command is an option of it, and of a head's constructor an option of the head
        if not (name.startswith("glscl.commands") and node.name in commands)
        if not (name.startswith("glscl.train_head.heads") and node.name == "__init__")
    ]
    assert found == []
