"""What one types every day: an extract, then bare commands that find the cache and the run by themselves."""

from __future__ import annotations

import json
from pathlib import Path


def test_the_everyday_commands_work_bare_after_an_extract(glscl, clips, extract_arguments, monkeypatch):
    home = clips / "home"
    monkeypatch.setenv("GLSCL_HOME", str(home))
    monkeypatch.chdir(clips)
    status, out, _ = glscl(*extract_arguments("--json"))
    extracted = json.loads(out)
    assert status == 0 and extracted["videos"] == 12 and extracted["texts"] == 24
    cache = Path(extracted["cache"])
    assert cache.parent == home / "caches" and cache.name.startswith("csv-")

    status, out, _ = glscl(*extract_arguments())
    assert status == 0 and "is complete already" in out

    status, out, err = glscl("train-head", "--epochs", 2, "--batch-size", 4)
    assert status == 0, err
    assert "training glscl" in out and "validation R@1" in out
    status, out, _ = glscl("eval")
    assert status == 0 and "text → video" in out
    (run,) = (home / "runs").glob("glscl-*")
    result = json.loads((run / "result.json").read_text())
    assert result["run"] == str(run) and result["head"] == "glscl" and result["selection"] == "validation"
    assert result["counts"]["videos"] == 2 and result["text_to_video"]["queries"] == 4
    assert result["cache_fingerprint"] == extracted["fingerprint"]

    status, out, _ = glscl("eval", "--zero-shot", "--json")
    assert status == 0 and json.loads(out)["head"] == "mean_pool" and json.loads(out)["run"] is None
    status, out, _ = glscl("search", "a picture of thing 3", "--top", 4, "--json")
    hits = json.loads(out)["hits"]
    assert status == 0 and [h["rank"] for h in hits] == [1, 2, 3, 4]
    status, out, _ = glscl("search", "--video", clips / "videos" / "clip2.mp4", "--run", run, "--top", 1)
    assert status == 0 and "a picture of thing" in out
    status, out, _ = glscl("inspect", cache, "--verify", "--json")
    report = json.loads(out)
    assert status == 0 and report["complete"] and report["problems"] == [] and report["splits"]["test"]["videos"] == 2
    status, out, _ = glscl("convert", cache, clips / "shared.h5")
    assert status == 0
    assert json.loads(glscl("eval", "--zero-shot", "--cache", clips / "shared.h5", "--json")[1])["text_to_video"]
