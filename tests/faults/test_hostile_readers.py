"""Whatever stands in a file: a reader answers or says one clear line, and touches nothing but its output folder.

`make test` gives each reader one file, `make test-all` a few dozen; as many as one likes, and long runs by `fuzz_long.py`:

    python -m pytest tests/faults/test_hostile_readers.py --fuzz-cases 20000 --fuzz-start 20000 -k msrvtt
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from glscl.common.errors import InputError

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_long import READERS, run_apart, table
from hostile_reader import Attack, Reader
from mutation import mutate


def test_the_same_number_gives_the_same_bytes():
    for name in ("a.json", "a.csv", "a.tar", "a.npz", "a.safetensors", "a"):
        data = b'{"a": [1, 2, "x"]}\nx,y\n' * 5
        cases = [mutate(name, data, case) for case in range(20)]
        assert cases == [mutate(name, data, case) for case in range(20)]
        assert len(set(cases)) > 15


EACH_READER = pytest.mark.parametrize("reader", READERS.values(), ids=lambda reader: reader.name)


@EACH_READER
def test_a_hostile_file_is_read_or_refused_in_one_line(reader: Reader, tmp_path):
    tally = Attack(reader, tmp_path).run(0, 1)
    assert tally.cases == 1 and not tally.failures, "\n".join(tally.failures)


@pytest.mark.exhaustive
@EACH_READER
def test_hostile_files_are_read_or_refused_in_one_line(reader: Reader, tmp_path, request, record_property):
    cases = request.config.getoption("--fuzz-cases") or reader.few
    start = request.config.getoption("--fuzz-start")
    tally = Attack(reader, tmp_path).run(start, cases)
    assert not tally.failures, "\n".join(tally.failures)
    record_property("read", tally.read)
    record_property("refused", tally.refused)
    assert tally.refused or not reader.refuses or cases < 10, (
        "no hostile file was refused: the cases do not reach the reader"
    )


def attack_of(read, ground: Path) -> Attack:
    return Attack(Reader("made", {"a.csv": b"x,y\n1,2\n"}, read), ground)


def test_an_error_of_any_other_kind_a_long_message_and_an_answer_that_is_no_json_are_failures(tmp_path):
    def error(folder, changed):
        if changed:
            raise KeyError("x")

    def endless(folder, changed):
        if changed:
            raise InputError("x" * 1000, hint="y" * 3000)

    def circle(folder, changed):
        found: list = []
        found += [found] if changed else []
        return found

    for read, said in ((error, "KeyError: 'x'"), (endless, "a message of"), (circle, "RecursionError")):
        tally = attack_of(read, tmp_path / read.__name__).run(0, 3)
        assert (len(tally.failures), tally.cases) == (3, 3)
        assert all(said in failure and "a.csv" in failure for failure in tally.failures)


def test_a_case_that_hangs_is_a_failure_even_where_all_exceptions_are_caught(tmp_path, monkeypatch):
    def read(folder, changed):
        try:
            while changed:
                pass
        except Exception as error:
            raise InputError("caught it, whatever it was") from error

    monkeypatch.setattr("hostile_reader.PATIENCE", 0.05)
    (failure,) = attack_of(read, tmp_path).run(7, 1).failures
    assert "case 7" in failure and "no answer within" in failure


@pytest.mark.parametrize("name", ["beside", "../beside", "../../beside"])
def test_the_case_that_writes_outside_is_found_in_its_batch(tmp_path, name):
    def read(folder, changed):
        if changed and b"x" not in changed.read_bytes():
            (folder / ".." / name).write_text("here")

    tally = attack_of(read, tmp_path).run(0, 50)
    guilty = [case for case in range(50) if b"x" not in mutate("made 0.csv", b"x,y\n1,2\n", case)]
    assert guilty and [failure.split(":")[0] for failure in tally.failures] == [f"made, case {case}" for case in guilty]
    assert not list(tmp_path.rglob("beside"))


def test_a_process_that_dies_is_a_failure_of_the_case_it_was_at():
    def read(folder, changed):
        if changed and b"x" not in changed.read_bytes():
            os._exit(3)

    reader = Reader("made", {"a.csv": b"x,y\n1,2\n"}, read)
    first = next(case for case in range(50) if b"x" not in mutate("made 0.csv", b"x,y\n1,2\n", case))
    piece = run_apart(reader, 0, 50, 60.0, 64.0)
    assert (piece.start, piece.cases) == (0, first + 1) and f"case {first}: the process ended" in piece.failures[0]
    assert "exit status 3" in piece.failures[0]


def test_pieces_add_up_to_a_table():
    pieces = [run_apart(READERS["csv"], start, 10, 60.0, 64.0) for start in (0, 10)]
    assert [piece.cases for piece in pieces] == [10, 10] and not any(piece.failures for piece in pieces)
    row = next(line for line in table(pieces).splitlines() if "| csv |" in line)
    assert row.startswith("| Annotations | csv | 20 |") and "20 cases, 0 failed." in table(pieces)
