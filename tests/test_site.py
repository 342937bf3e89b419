"""The site: every page is in its navigation, every link leads somewhere, every public name has its docstring there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import glscl

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *ROOT.glob("benchmarks/**/*.md")]
)
NOTEBOOKS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/*.ipynb"))
FORMS = ROOT / ".github/ISSUE_TEMPLATE"
HOME = "https://github.com/glscl/glscl"


def test_the_navigation_has_every_page_once():
    found = re.findall(r"^ +- .*?: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(found) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert len(set(found)) == len(found)


def without_code(path: Path) -> str:
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path: Path) -> list[str]:
    """Targets of the links and pictures of a page, or of the text cells of a notebook."""
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    else:
        text = without_code(path)
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS, ".github/PULL_REQUEST_TEMPLATE.md"])
def test_every_link_leads_to_a_file_and_its_heading(page):
    for link in links(ROOT / page):
        own = re.sub(rf"^{HOME}/(?:blob|tree)/main/", f"{ROOT}/", link)
        if "://" in own or own.startswith("mailto:"):
            continue
        target, _, anchor = own.partition("#")
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(file), f"{page}: {link}"


def test_the_links_of_the_package_and_its_forms_lead_to_files():
    files = ["pyproject.toml", "mkdocs.yml", *(f".github/ISSUE_TEMPLATE/{n.name}" for n in FORMS.iterdir())]
    found = [
        m for file in files for m in re.findall(rf"{HOME}/(?:blob|tree)/main/([^\s\"'#)]+)", (ROOT / file).read_text())
    ]
    assert found and not [path for path in found if not (ROOT / path).exists()]


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
