"""Command lines that lists, runs and results record, as far as they may be told again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

_OPTION = re.compile(r"-v$|-?\d|--[a-z][a-z-]*(=|$)")  # or a negative number
_COMMAND = re.compile(r"[a-z-]+")
_COMMAND_LINE = ("extract", "import-features", "demo")  # that make lists, which record how they were made


def recorded_command(text: str, among: Sequence[str] | None = _COMMAND_LINE) -> str | None:
    """A command line that a list, run or result records, written anew with every word quoted; None where it is none of ours.

    A record may be anybody's, and people type what they are told: what begins with another program, or with another command
    than `among` (None: of any name), is not told, and nor is what would be shown as something else than it is.
    """
    try:
        words = shlex.split(text)
    except ValueError:
        return None
    if len(words) < 2 or words[0] != "glscl" or (words[1] not in among if among else not _COMMAND.fullmatch(words[1])):
        return None
    if not text.isprintable() or any(word.startswith("-") and not _OPTION.match(word) for word in words[2:]):
        return None
    return shlex.join(words)
