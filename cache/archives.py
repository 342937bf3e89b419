"""Compressed files may not claim to unpack to far more than they store: a megabyte of zeros deflated is a kilobyte.

The limit is RATIO times what is stored, and FLOOR bytes beside, which are never too many. Features and videos hardly shrink;
arrays that are padded with zeros by a factor of ten or twenty. deflate can do a thousand.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

RATIO, FLOOR = 100, 16 << 20


def check_unpacked(claimed: int, stored: int) -> None:
    """Raise ValueError where `claimed` bytes are too many to come out of `stored` bytes."""
    if claimed > RATIO * stored + FLOOR:
        raise ValueError(
            f"it claims {claimed} bytes, but stores {stored}; at most {RATIO} times as many, and {FLOOR >> 20} MiB, are taken"
        )


def check_zip(path: Path) -> None:
    """`check_unpacked` of every entry of a zip archive (.npz, .pt) and of all together; nothing for other files.

    Readers take no more from an entry than it declares, so what it declares is what counts. Entries that share their bytes
    are seen by the sum.

    Raises:
        ValueError: it would unpack to too much. zipfile.BadZipFile, OSError: it cannot be read.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    for entry in entries:
        check_unpacked(entry.file_size, entry.compress_size)
    check_unpacked(sum(entry.file_size for entry in entries), path.stat().st_size)
