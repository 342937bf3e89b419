"""`glscl serve` as it is typed: the address first, notes aside, one line where it cannot be, and an end at Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import urllib.request

import pytest
from forked import Forked


@pytest.fixture
def serving(trained):
    """`serving(*arguments)`: the command in a process of its own, and its first line."""
    started = []

    def start(*arguments):
        begun = Forked(["-m", "glscl", "serve", *arguments, "--port", 0], cwd=trained)
        started.append(begun)
        return begun, begun.lines(1)[0]

    yield start
    for each in started:
        each.send_signal(signal.SIGKILL)
        each.communicate()


def test_the_first_line_is_the_address_and_ctrl_c_ends_it(serving, trained):
    server, line = serving(trained / "cache", "--run", trained / "run")
    url = re.fullmatch(r"serving (http://127\.0\.0\.1:\d+/)", line).group(1)
    with urllib.request.urlopen(f"{url}api/search?q=a%20thing&top=2") as answer:
        found = json.load(answer)
    assert found["head"] == "run" and len(found["hits"]) == 2
    with urllib.request.urlopen(url) as answer:
        assert b"<!doctype html>" in answer.read()
    with urllib.request.urlopen(f"{url}video/{found['hits'][0]['video']}"):
        server.send_signal(signal.SIGINT)  # while somebody reads
        out, err = server.communicate(60)
    assert server.returncode == 130 and "Stopped serving" in err and "Traceback" not in err
    assert "csv-captions: 12 videos, by run, best_frames" in out


def test_with_json_standard_output_is_one_object(serving, trained):
    server, line = serving(trained / "cache", "--json", "--host", "0.0.0.0")
    told = json.loads(line)
    assert told["token"] and told["token"] in told["url"]
    server.send_signal(signal.SIGTERM)
    out, err = server.communicate(60)
    assert err.startswith("serving ") and "warning: whoever has this address" in err
    assert json.loads(out.partition("\n")[2])["exit_status"] == 130


def test_what_cannot_be_served_is_one_line(glscl, trained, one_line, small_cache, monkeypatch):
    one_line(glscl("serve", trained / "nothing"), "nothing", status=1)
    one_line(glscl("serve"), "no cache", status=1)
    one_line(glscl("serve", trained / "cache", "--host", "256.1.1.1"), "Cannot serve at 256.1.1.1", "--port", status=2)
    one_line(glscl("serve", trained / "cache", "--list", "nope"), "no list nope", status=1)
    other = small_cache(name="other")
    other.fill()
    one_line(glscl("serve", other.path, "--run", trained / "run"), str(trained / "run"), status=1)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in ("glscl.evaluate.serve.server",):
        monkeypatch.delitem(sys.modules, name, raising=False)
    one_line(glscl("serve", trained / "cache"), "pip install 'glscl[serve]'", status=2)
    assert os.environ["GLSCL_HOME"]
