"""The site: every page is in its navigation, every link leads somewhere, every public name has its docstring there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import glscl

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")])


def test_the_navigation_has_every_page_once():
    found = re.findall(r"^ +- .*?: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(found) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_page_of_names_has_every_public_name():
    named = set(re.findall(r"^::: glscl\.(\S+)$", (DOCS / "api.md").read_text(), re.M))
    rooms = {
        "extract": "extract.pipeline.extract",
        "evaluate": "evaluate.evaluation.evaluate_run",
    }  # modules that are called
    assert {rooms.get(name, name) for name in glscl.__all__} - {"__version__"} == named


@pytest.mark.exhaustive
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="`make test-all` installs it")
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(build, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {"index.html", "api", "tutorials", "search"} <= {path.name for path in tmp_path.iterdir()}
    assert "Passes over all captions." in (tmp_path / "api/index.html").read_text()
