"""What `make site` does to the pages, which are written to be read on GitHub as well.

Links to files outside docs/ lead to the repository, links called after a page's file are called after the page. A mark that
says how commands are checked, invisible on GitHub, becomes a line below them.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
WHOLE_PAGE = re.compile(r"^<!-- commands are parsed, not run: (.*?) -->$", re.M)


def on_config(config: Any, **_: Any) -> Any:
    """The package under its import name, for the pages that are made of docstrings: its rooms stand at the top level."""
    root = Path(config.config_file_path).parent
    package = root / "build/site-source/glscl"
    package.mkdir(parents=True, exist_ok=True)
    for each in [*root.glob("*.py"), *(init.parent for init in root.glob("*/__init__.py"))]:
        link = package / each.name
        link.unlink(missing_ok=True)
        link.symlink_to(each)
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """The page as the site shows it."""
    folder, root = posixpath.dirname(page.file.src_uri), Path(config.docs_dir).parent
    titles = dict(_titles(config.nav))

    def shown(match: re.Match[str]) -> str:
        text, target, anchor = match[1], posixpath.normpath(posixpath.join("docs", folder, match[2])), match[3] or ""
        if target.startswith("docs/") and target.endswith((".md", ".png")):
            if text == posixpath.basename(target):
                text = titles.get(target.removeprefix("docs/"), text)
            return f"[{text}]({match[2]}{anchor})"
        kind = "tree" if (root / target).is_dir() else "blob"
        return f"[{text}]({config.repo_url}/{kind}/main/{target}{anchor})"

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.M | re.S)  # code is left alone
    text, reason = (
        "".join([LINK.sub(shown, part) if i % 2 == 0 else part for i, part in enumerate(parts)]),
        WHOLE_PAGE.search(markdown),
    )
    note = (
        ""
        if reason is None
        else f"\n\n---\n\n*Tests parse the commands of this page, and do not run them: {reason[1]}.*\n"
    )
    return text + note


def _titles(nav: Any) -> Iterator[tuple[str, str]]:
    """(file of a page below docs/, what the navigation calls it)."""
    for entry in nav:
        for title, place in entry.items():
            if isinstance(place, str):
                yield place, title
            else:
                yield from _titles(place)


class SettingsSayWhatTheyAre(griffe.Extension):
    """Fields of settings, `epochs: int = setting(5, "Passes over all captions.", …)`, with that default and that sentence."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, agent: Any, **_: Any) -> None:
        call = getattr(node, "value", None)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "setting" and len(call.args) == 2:
            default, sentence = call.args
            parts = sentence.values if isinstance(sentence, ast.JoinedStr) else [sentence]
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
            attr.docstring = griffe.Docstring(text, parent=attr)
            attr.value = ast.unparse(default)
