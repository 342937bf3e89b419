"""Where something is: on this machine, by a path or a file:// address, or elsewhere, by an address that fsspec knows."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from glscl.common.errors import UsageError

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # one slash too: a Path keeps no two; a drive has one letter
_SHOWN: dict[str, str] = {}  # folder that mirrors an address → the address
SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "hf", "https", "http", "memory")


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
    raise UsageError(
        f"`{name}` is {_spelled(text)}, which is not on this machine; expected a path",
        hint="Copy it here first, or mount it (rclone mount, s3fs), and give the path",
    )


def address_of(place: os.PathLike[str] | str, name: str) -> str | None:
    """The address of a place on another machine, without a slash at its end; None for a place on this one.

    Args:
        place: as it was typed, or as a Path keeps that.
        name: of the setting, for the message.

    Raises:
        UsageError: an address of a kind that cannot be read, such as `ftp://…`.
    """
    text = os.fspath(place)
    address = _ADDRESS.match(text)
    if address is None or address[1].lower() == "file":
        return None
    scheme = address[1].lower()
    if scheme not in SCHEMES:
        raise UsageError(
            f"`{name}` is {_spelled(text)}; expected a path, or an address that begins with "
            f"{', '.join(f'{each}://' for each in ('file', *SCHEMES[:-1]))}"
        )
    return f"{scheme}://{text[address.end() :].rstrip('/')}"


def show_as(folder: Path, address: str) -> None:
    """Let `shown` name an address in the place of the folder that mirrors it."""
    _SHOWN[str(folder)] = address


def shown(text: str) -> str:
    """A text for people, with addresses in the place of the folders here that mirror them."""
    for folder, address in _SHOWN.items():
        text = text.replace(folder, address)
    return text


def may_exist(place: os.PathLike[str] | str) -> bool:
    """Whether something is at a path; of an address that is told where it is opened."""
    return _ADDRESS.match(os.fspath(place)) is not None or Path(place).exists()


def _spelled(text: str) -> str:
    return re.sub(r":/+", "://", text, count=1)
