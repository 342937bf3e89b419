"""Code from outside the package: `package.module:attribute`, and the entry points of installed packages."""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from glscl.common.errors import UsageError, first_line

_NAMED = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


def installed(group: str) -> dict[str, str]:
    """Name → `package.module:attribute` of what other installed packages offer in a group of entry points."""
    return {entry.name: re.sub(r"\s|\[.*", "", entry.value) for entry in entry_points(group=group)}


def outside_name(name: str, group: str) -> str | None:
    """`package.module:attribute` itself, or that of an entry point's name; None for any other name. Imports nothing."""
    return name if _NAMED.fullmatch(name) else installed(group).get(name)


def load(name: str, *, setting: str) -> Any:
    """What `package.module:attribute` names. A module is also looked for in the current folder, as `python -m` does.

    Args:
        setting: that the name was given for, for messages.

    Raises:
        UsageError: it cannot be imported, or has no such attribute.
    """
    module, _, path = name.partition(":")
    try:
        return attribute(_imported(module), path)
    except Exception as error:  # foreign code raises anything
        raise UsageError(
            f"`{setting}` is {name!r}, which cannot be imported: {type(error).__name__}: {first_line(error)}",
            hint="Write `package.module:name` of something that Python finds, from here or installed",
        ) from error


def attribute(module: ModuleType, path: str) -> Any:
    """`module.a.b` for "a.b". Raises AttributeError."""
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _imported(name: str) -> ModuleType:
    here = os.getcwd()
    if here in sys.path or "" in sys.path:
        return import_module(name)
    sys.path.append(here)  # last: it hides nothing that is installed
    try:
        return import_module(name)
    finally:
        sys.path.remove(here)
