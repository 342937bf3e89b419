"""docs/datasets.md says what the code does: every dataset, every size, every file and command."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from glscl.cache.schema import Expected
from glscl.extract.datasets import DATASETS, dataset_entry
from glscl.extract.datasets.columns import NAMES as COLUMNS
from glscl.extract.datasets.csv_file import read as read_table

PAGE = (Path(__file__).parents[3] / "docs/datasets.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


def test_every_dataset_has_its_section():
    named = [title.split(":")[0] for title in SECTIONS]
    assert sorted(name for name in named if name in DATASETS) == sorted(DATASETS)


def test_the_table_lists_the_published_sizes_of_the_code():
    def size(cell: str) -> int | None:
        return None if cell == "–" else int(cell.replace(",", ""))

    rows = re.findall(r"^\| (\w+) \|(.*?)\| (train|val|test) \| (.*?) \| (.*?) \|$", PAGE, re.M)
    listed = {(name, protocol.strip(), split): Expected(size(c), size(v)) for name, protocol, split, c, v in rows}
    assert listed == {
        (name, protocol, split): expected
        for name, entry in DATASETS.items()
        if entry.module.startswith("glscl.extract.datasets")
        for protocol, splits in entry.expected.items()
        for split, expected in splits.items()
    }


def test_every_command_names_a_dataset_and_its_protocols():
    commands = [c for c in re.findall(r"^glscl extract .*$", PAGE, re.M) if ":" not in c]
    assert {re.search(r"--dataset (\w+)", command)[1] for command in commands} | {"demo"} == set(DATASETS)
    for command in commands:
        entry = DATASETS[re.search(r"--dataset (\w+)", command)[1]]
        protocol = re.search(r"--protocol (\S+)", command)
        assert protocol is None or protocol[1] in entry.protocols


@pytest.mark.parametrize("name", ["msrvtt", "msvd", "didemo", "lsmdc", "activitynet", "vatex", "youcook2"])
def test_every_file_that_a_reader_names_stands_in_its_section(name):
    module = import_module(DATASETS[name].module)
    source = Path(module.__file__).read_text()
    files = set(re.findall(r'"(\w[\w.-]*\.(?:json|csv|pkl))"', source)) - {"LSMDC16_challenge_1000_publictest.csv"}
    assert all(file in SECTIONS[name] for file in files), files


def test_the_table_on_the_page_is_read(tmp_path):
    section = next(text for title, text in SECTIONS.items() if title.startswith("csv"))
    (tmp_path / "t.csv").write_text(re.search(r"```\n(video,caption.*?)```", section, re.S)[1])
    found = read_table(tmp_path / "t.csv", None)
    assert [(t.video, t.split) for t in found.texts] == [
        ("kitchen/egg.mp4", "train"),
        ("kitchen/egg.mp4", "train"),
        ("talk.mp4", "test"),
    ]
    assert found.texts[-1].text == "she laughs, and sits down"
    assert all(f"`{column}`" in section for column in COLUMNS)


def test_the_reader_of_ones_own_on_the_page_reads(tmp_path, files, monkeypatch):
    code = re.search(r"```python\n(.*?)```", SECTIONS["A dataset of your own format"], re.S)[1]
    (tmp_path / "my_clips.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    lists = files("lists", {"clips.txt": "train\ta\ta cat\ntest\tb\ta dog\n"})
    entry = dataset_entry("my_clips:read")
    found = entry.read(lists, files("clips", ["b.mp4"]), splits=["test"])
    assert [(v.id, v.split, v.path) for v in found.videos] == [("b", "test", str(tmp_path / "clips/b.mp4"))]
    assert entry.name == "read" and [t.text for t in found.texts] == ["a dog"]
