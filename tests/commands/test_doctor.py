"""`glscl doctor`: ten lines for an issue report, whatever is broken."""

from __future__ import annotations

import json
import sys

import pytest

from glscl.commands import doctor

SUBJECTS = {"system", "packages", "extras", "processor", "device", "codecs", "backbones", "places", "contents"}


@pytest.fixture(autouse=True)
def few_backbones(monkeypatch):
    monkeypatch.setattr("glscl.extract.backbone.catalog.entries", lambda **_: iter(()))


def test_ten_lines_say_what_an_issue_report_needs(glscl, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status, out, _ = glscl("doctor")
    lines = [line for line in out.splitlines() if not line.startswith("problem: ")]
    assert status == 0 and len(lines) == 10
    for word in ("Python 3.", "torch 2.", "cores", "cpu", "h264", "GB free", "0 caches, 0 runs", "HF_HUB_OFFLINE=1"):
        assert any(word in line for line in lines), word
    assert "hf_secret" not in out
    status, out, _ = glscl("doctor", "--json")
    told = json.loads(out)
    assert told.keys() == SUBJECTS | {"environment", "problems"}
    assert told["places"]["home"]["writable"] and told["places"]["home"]["free"] > 0
    assert told["packages"]["torch"] == __import__("torch").__version__.partition("+")[0]


def test_what_is_wrong_is_said_with_what_mends_it(glscl, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(doctor, "requires", lambda _: ["numpy>=99", "no-such-package>=1", 'pytest>=1; extra == "x"'])
    monkeypatch.setitem(sys.modules, "av", None)  # cannot be imported
    status, out, _ = glscl("doctor")
    problems = [line for line in out.splitlines() if line.startswith("problem: ")]
    assert status == 0 and len(problems) == 4
    for line, words in zip(
        problems, [("numpy is", "pip install 'numpy>=99'"), ("no-such-package is not",), ("codecs:",)]
    ):
        assert all(word in line for word in words), line
    assert str(tmp_path / "file") in problems[3]
    assert "codecs      cannot be told" in out and "extras      x;" in out
