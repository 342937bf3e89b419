"""Command lines that were typed once and are told again: a cache records how it was made.

A cache may have been moved, copied or converted since, and the same command would then begin another one.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glscl.common.settings import home

_MAKERS = ("extract", "import-features")  # commands that take --out and --format
_FORMAT = "zarr"  # where --format is not given


def going_on(command: str, settings: Mapping[str, Any]) -> str:
    """A recorded command with `out` and `format` as they are true now. What is true already stays as it was typed."""
    path, format = Path(settings["out"]), settings.get("format")
    try:
        words = shlex.split(command)
    except ValueError:  # no command line; whatever it is, it says more than nothing
        return command
    if len(words) < 2 or words[1] not in _MAKERS:
        return command
    typed = _value(words, "--out")
    if typed is None:
        same = (home() / "caches").resolve() == path.parent.resolve()
    else:
        same = Path(typed).resolve() == path.resolve()
    if not same:
        command = _with(command, "--out", str(path))
    if (_value(words, "--format") or _FORMAT) != format:
        command = _with(command, "--format", str(format))
    return command


def with_weights(command: str, settings: Mapping[str, Any]) -> str:
    """A recorded extraction with other weights, `pretrained`, into another cache, `out`."""
    for option in ("--pretrained", "--out"):
        command = with_option(command, option, None)
    return f"{command} --pretrained {shlex.quote(str(settings['pretrained']))} --out {settings['out']}"


def with_option(command: str, option: str, value: str | None) -> str:
    """A command line with another value of an option, or (None) without it; as it stands where it has none."""
    words, kept = shlex.split(command), []
    while words:
        word = words.pop(0)
        if word == option and words:
            words.pop(0)
        elif not word.startswith(option + "="):
            kept.append(word)
            continue
        kept += [] if value is None else [option, value]
    return shlex.join(kept)


def _value(words: list[str], option: str) -> str | None:
    """What an option was given, by the last time it was."""
    found = [word.removeprefix(f"{option}=") for word in words if word.startswith(f"{option}=")]
    found += [after for word, after in zip(words, words[1:]) if word == option]
    return found[-1] if found else None


def _with(command: str, option: str, value: str) -> str:
    given = _value(shlex.split(command), option) is not None
    return with_option(command, option, value) if given else shlex.join([*shlex.split(command), option, value])
