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
from stored_readers import STORED

READERS = [*ANNOTATIONS, *FEATURES, *STORED]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_hostile_files_are_read_or_refused_in_one_line(reader: Reader, tmp_path, request, record_property):
    cases = request.config.getoption("--fuzz-cases")
    start = request.config.getoption("--fuzz-start")
    tally = attack(reader, tmp_path, start=start, cases=reader.few if cases is None else cases)
    record_property("read", tally.read)
    record_property("refused", tally.refused)
    assert tally.refused or (cases is None and reader.few < 10), "no hostile file was refused: the cases do not reach the reader"
