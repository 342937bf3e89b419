"""The command that goes on with a cache: as it was typed at first, with the folder where the cache stands now."""

from __future__ import annotations

import shlex
from pathlib import Path

from glscl.common.settings import home, with_option

_MAKERS = ("extract", "import-features")  # commands that take --out and --format
_FORMAT = "zarr"  # where --format is not given


def going_on(command: str | None, path: Path, format: str) -> str:
    """A recorded command with `--out` and `--format` as they are true of the cache at `path`.

    A cache may have been moved, copied or converted since the command was typed, and the same command would then begin
    another one. What is true already stays as it was typed.
    """
    if not command:
        return shlex.join(["glscl", "extract", "--out", str(path)])
    try:
        words = shlex.split(command)
    except ValueError:  # no command line; whatever it is, it says more than nothing
        return command
    if len(words) < 2 or words[1] not in _MAKERS:
        return command
    typed = _value(words, "--out")
    if (home() / "caches" if typed is None else Path(typed)).resolve() != (
        path.parent if typed is None else path
    ).resolve():
        command = _with(command, "--out", str(path))
    if (_value(words, "--format") or _FORMAT) != format:
        command = _with(command, "--format", format)
    return command


def _value(words: list[str], option: str) -> str | None:
    """What an option was given, by the last time it was."""
    found = [word.removeprefix(f"{option}=") for word in words if word.startswith(f"{option}=")]
    found += [after for word, after in zip(words, words[1:]) if word == option]
    return found[-1] if found else None


def _with(command: str, option: str, value: str) -> str:
    given = _value(shlex.split(command), option) is not None
    return with_option(command, option, value) if given else shlex.join([*shlex.split(command), option, value])
