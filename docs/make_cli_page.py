"""Write docs/cli.md from the commands themselves; the tests fail while the page differs from what this prints.

python docs/make_cli_page.py            writes the page
python docs/make_cli_page.py --check    exits with 1 where it is out of date
"""

from __future__ import annotations

import enum
import inspect
import sys
import typing
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo

from glscl import cli
from glscl.commands.options import COMMANDS, flags_of, required_type
from glscl.extract.datasets import DATASETS

PAGE = Path(__file__).with_name("cli.md")
VALUES = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
HEAD = """# Commands

Made from the commands by `docs/make_cli_page.py`; edit the help texts, not this page.

Paths default below `$GLSCL_HOME` (default `./glscl-data`): `datasets/<name>/{annotations,videos}`, `caches/<name>-<backbone>`,
`runs/<head>-<time>`. Exit status: 0 done, 1 an error (one line on standard error), 2 wrong usage, 130 stopped by Ctrl-C.
With `--json` standard output is exactly one JSON object. A list of choices stands for the value of an option; an empty default is
nothing, or what the text says.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for name, signature in COMMANDS.items():
        function = getattr(cli, name.replace("-", "_"))
        parts.append(f"## glscl {name}\n\n{_sentence(function.__doc__)}\n")
        parameters = [(p, *typing.get_args(p.annotation)) for p in signature.parameters.values()]
        arguments = [x for x in parameters if isinstance(x[2], ArgumentInfo)]
        if arguments:
            rows = [f"| `{p.name.upper()}` | {_cell(info.help)} |" for p, _, info in arguments]
            parts.append("| argument | |\n|---|---|\n" + "\n".join(rows) + "\n")
        options = [x for x in parameters if not isinstance(x[2], ArgumentInfo)]
        for panel in dict.fromkeys(info.rich_help_panel or "Options" for _, _, info in options):
            members = [x for x in options if (x[2].rich_help_panel or "Options") == panel]
            rows = [f"| {_flags(p, kind, info)} | {_default(p)} | {_cell(info.help)} |" for p, kind, info in members]
            parts.append(f"| {panel} | default | |\n|---|---|---|\n" + "\n".join(rows) + "\n")
        if name == "extract":
            rows = [f"| `{dataset}` | {_cell(entry.help)} |" for dataset, entry in DATASETS.items()]
            parts.append("| `--dataset` | |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str | None) -> str:
    return _sentence(text).replace("|", "\\|")


def _flags(parameter: inspect.Parameter, kind: Any, info: Any) -> str:
    flags, kind = " / ".join(f"`{flag}`" for flag in flags_of(parameter)), required_type(kind)
    if kind is bool:
        return flags
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return f"{flags} {_cell('|'.join(choice.value for choice in kind))}"
    return f"{flags} {_cell(info.metavar or VALUES.get(kind, 'TEXT'))}"


def _default(parameter: inspect.Parameter) -> str:
    value = getattr(parameter.default, "value", parameter.default)
    if value is inspect.Parameter.empty:
        return "required"
    if value is None or value is False or value == []:
        return ""
    return "yes" if value is True else f"`{value}`"


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.exists() and PAGE.read_text() == text else f"{PAGE} is out of date: run make docs")
    PAGE.write_text(text)
