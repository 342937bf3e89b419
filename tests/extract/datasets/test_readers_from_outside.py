"""Readers that are no part of the package: a function of a module, an entry point, and what is said of what is neither."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from glscl.common import outside
from glscl.common.errors import UsageError
from glscl.extract.datasets import DATASETS, DatasetEntry, dataset_entry

READER = """
from glscl.cache.schema import Annotations, TextItem, VideoItem
from glscl.extract.datasets import DatasetEntry

asked = []

def read(annotations, videos, *, splits=None, protocol=None):
    asked.append((annotations, videos, splits, protocol))
    return Annotations(dataset="mine", videos=[VideoItem("a", "test", None)], texts=[TextItem("a#0", "a", "test", "a cat")])

class Lists:
    own = staticmethod(read)

def wrong(annotations, videos, *, splits=None, protocol=None):
    return [annotations]

entry = DatasetEntry(module="own_reader", reader="read", fps=4.0, max_words=20, recipe="msvd")
number = 7
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the folder one works in, which is not where Python looks when a console script runs."""
    (tmp_path / "own_reader.py").write_text(READER)
    (tmp_path / "broken_reader.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield tmp_path
    for name in ("own_reader", "broken_reader"):
        sys.modules.pop(name, None)


@pytest.fixture
def installed(module, monkeypatch):
    """An installed package that names two readers."""
    points = [
        EntryPoint("mine", "own_reader:read", "glscl.datasets"),
        EntryPoint("ours", "own_reader:entry", "glscl.datasets"),
    ]
    monkeypatch.setattr(outside, "entry_points", lambda *, group: [p for p in points if p.group == group])


@pytest.mark.parametrize(("name", "short"), [("own_reader:read", "read"), ("own_reader:Lists.own", "own")])
def test_a_function_of_a_module_reads(module, name, short):
    entry = dataset_entry(name)
    assert entry.name == short and entry.defaults == {"fps": 1.0, "max_words": 32} and entry.expected == {}
    found = entry.read(module, str(module / "videos"), splits=["test"], protocol="x", dry_run=True)
    assert found.dataset == "mine"
    assert sys.modules["own_reader"].asked == [(module, module / "videos", ["test"], "x")]
    assert str(module) not in sys.path


def test_an_entry_point_gives_a_reader_or_an_entry_with_defaults(installed):
    assert dataset_entry("mine").name == "mine" and dataset_entry("mine").read(None, None).dataset == "mine"
    entry = dataset_entry("ours")
    assert (entry.name, entry.recipe) == ("ours", "msvd") and entry.defaults == {"fps": 4.0, "max_words": 20}


def test_ours_keep_their_names(installed):
    assert dataset_entry("msrvtt") == DatasetEntry(**{**vars(DATASETS["msrvtt"]), "name": "msrvtt"})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "`dataset` is 'nothing'; expected one of csv, folder, .*package.module:reader"),
        ("nowhere:read", "'nowhere:read', which cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("own_reader:absent", "cannot be imported: AttributeError: .*absent"),
        ("broken_reader:read", "cannot be imported: ZeroDivisionError: division by zero"),
        ("own_reader:number", "is int, expected a function"),
        (":", "expected one of csv"),
    ],
)
def test_what_is_no_reader_is_said_in_one_line(module, name, said):
    with pytest.raises(UsageError, match=said) as error:
        dataset_entry(name)
    assert "\n" not in str(error.value)


def test_a_reader_that_gives_something_else_is_named(module):
    with pytest.raises(UsageError, match=r"own_reader:wrong gave list, expected glscl.cache.schema.Annotations"):
        dataset_entry("own_reader:wrong").read(None, None)


def test_the_command_line_takes_a_reader_of_ones_own(module, glscl, monkeypatch):
    monkeypatch.setenv("GLSCL_HOME", str(module / "home"))
    status, out, err = glscl("extract", "--dataset", "own_reader:read", "--dry-run", "--json")
    assert status == 0 and '"captions": 1' in out, err
    annotations = sys.modules["own_reader"].asked[-1][0]
    assert annotations == module / "home/datasets/read/annotations"
    status, _, err = glscl("extract", "--dataset", "nothing", "--dry-run")
    assert status == 2 and "--dataset is 'nothing'; expected one of csv" in err
