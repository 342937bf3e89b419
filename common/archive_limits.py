"""Files that ask for far more than their size: compressed ones that claim to unpack to far more than they store (a megabyte of
zeros deflated is a kilobyte), and names that take a reader hours.

The limit is RATIO times what is stored, and FLOOR bytes beside, which are never too many. Features and videos hardly shrink;
arrays that are padded with zeros by a factor of ten or twenty. deflate can do a thousand.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

RATIO, FLOOR = 100, 16 << 20
LONGEST = 10_000
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
PICKLES = 5  # at the head of a file of torch before 1.6: a mark, its version, the machine, the object, its keys


def check_unpacked(claimed: int, stored: int) -> None:
    """Raise ValueError where `claimed` bytes are too many to come out of `stored` bytes."""
    if claimed > RATIO * stored + FLOOR:
        raise ValueError(
            f"it claims {claimed} bytes, but stores {stored}; at most {RATIO} times as many, and {FLOOR >> 20} MiB, are taken"
        )


def check_zip(path: Path | BinaryIO) -> None:
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
    size = path.stat().st_size if isinstance(path, Path) else path.seek(0, io.SEEK_END)
    check_unpacked(sum(entry.file_size for entry in entries), size)


def check_torch_file(path: Path) -> None:
    """`check_zip` of what `torch.save` wrote, and no name or text in it beyond LONGEST characters without a space.

    torch quotes names in its refusals and searches them in time that grows with the square of their length. A file that
    cannot be walked through is left to torch, which refuses it.

    Raises:
        ValueError: it would unpack to too much, or holds such a name. zipfile.BadZipFile, OSError: it cannot be read.
    """
    import torch

    check_zip(path)
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as opened:
            _check_texts(opened)
        return
    try:
        data = torch._C.PyTorchFileReader(str(path)).get_record(
            "data.pkl"
        )  # the bytes that torch will read, of all entries
    except RuntimeError:
        return
    _check_texts(io.BytesIO(data))


def _check_texts(stream: BinaryIO) -> None:
    for _ in range(PICKLES):
        while opcode := _OPCODES.get(stream.read(1).decode("latin-1")):
            try:
                if opcode.name in ("GLOBAL", "INST"):  # torch takes names that are not ASCII; pickletools does not
                    argument = stream.readline() + b" " + stream.readline()
                else:
                    argument = opcode.arg.reader(stream) if opcode.arg else None
            except (ValueError, struct.error):
                return
            if isinstance(argument, str | bytes) and len(argument) > LONGEST:
                longest = max(map(len, argument.split()), default=0)
                if longest > LONGEST:
                    raise ValueError(f"it holds a name of {longest} characters; at most {LONGEST} are taken")
            if opcode.name == "STOP":
                break
        else:
            return
