"""Where something is: on this machine, by a path or a file:// address; other addresses are refused, and make no local folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from glscl.common.errors import UsageError

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # one slash too: a Path keeps no two; a drive has one letter


def local_path(place: os.PathLike[str] | str, name: str) -> Path:
    """The path of a place on this machine.

    Args:
        place: a path, or `file:///…`.
        name: of the setting, for the message.

    Raises:
        UsageError: an address of another machine, such as `s3://bucket/cache`. A folder here that is called so has an absolute path.
    """
    text = os.fspath(place)
    address = _ADDRESS.match(text)
    if address is None:
        return Path(place)
    if address[1].lower() == "file":
        return Path("/" + unquote(text[address.end() :]))
    shown = re.sub(r":/+", "://", text, count=1)
    raise UsageError(
        f"`{name}` is {shown}, which is not on this machine; expected a path",
        hint="Copy it here first, or mount it (rclone mount, s3fs), and give the path",
    )
