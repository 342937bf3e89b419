"""Whatever stands in a file: a reader answers or says one clear line, and touches nothing but its output folder.

    python -m pytest tests/faults/test_hostile_readers.py --fuzz-cases 20000 --fuzz-start 20000 -k msrvtt
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from annotation_readers import ANNOTATIONS
from feature_readers import FEATURES
from hostile_reader import Reader, attack
from mutation import mutate
from stored_readers import STORED

READERS = [*ANNOTATIONS, *FEATURES, *STORED]


def test_the_same_number_gives_the_same_bytes():
    for name in ("a.json", "a.csv", "a.tar", "a.npz", "a.safetensors", "a"):
        data = b'{"a": [1, 2, "x"]}\nx,y\n' * 5
        cases = [mutate(name, data, case) for case in range(20)]
        assert cases == [mutate(name, data, case) for case in range(20)]
        assert len(set(cases)) > 15


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_hostile_files_are_read_or_refused_in_one_line(reader: Reader, tmp_path, request, record_property):
    cases = request.config.getoption("--fuzz-cases") or reader.few
    start = request.config.getoption("--fuzz-start")
    tally = attack(reader, tmp_path, start=start, cases=cases)
    record_property("read", tally.read)
    record_property("refused", tally.refused)
    assert tally.refused or not reader.refuses or cases < 10, "no hostile file was refused: the cases do not reach the reader"
