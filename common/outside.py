"""Code from outside the package: `package.module:attribute`, and the entry points of installed packages."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, NamedTuple

from glscl.common.errors import UsageError, first_line


class FromOutside(NamedTuple):
    """Attributes:
    name: short, for folders: what stands behind the colon, or the name of the entry point.
    module, attribute: where it was found.
    value: what it is.
    """

    name: str
    module: str
    attribute: str
    value: Any


def from_outside(name: str, *, setting: str, group: str) -> FromOutside | None:
    """What `package.module:attribute` names, or the entry point of that name in a group; None for any other name.

    A module is also looked for in the current folder, as `python -m` does.

    Args:
        setting: that the name was given for, for messages.

    Raises:
        UsageError: it cannot be imported, or has no such attribute.
    """
    if ":" in name:
        module, _, path = name.partition(":")
        short = path.rpartition(".")[2] or module.rpartition(".")[2]
    else:
        entry = next(iter(entry_points(group=group, name=name)), None)
        if entry is None:
            return None
        module, _, path = entry.value.partition(":")
        short = name
    module, path = module.strip(), path.split("[")[0].strip()
    try:
        found = attribute(_imported(module), path)
    except Exception as error:  # foreign code raises anything
        raise UsageError(
            f"`{setting}` is {name!r}, which cannot be imported: {type(error).__name__}: {first_line(error)}",
            hint="Write `package.module:name` of something that Python finds, from here or installed",
        ) from error
    return FromOutside(short, module, path, found)


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
