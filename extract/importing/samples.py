"""Arrays in archives of webdataset, as clip-video-encode writes them and its published sets hold them."""

from __future__ import annotations

import io
import json
import math
import tarfile
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glscl.common.archive_limits import check_unpacked, check_zip
from glscl.common.errors import InputError, first_line
from glscl.extract.datasets.text_files import show
from glscl.extract.importing.layouts import NamedReaders, only

TARS = (".tar", ".tar.gz", ".tgz")
_JSON_LIMIT = 1 << 20  # bytes of the .json of a sample
_LONGEST = 255  # characters of a name


class Samples(NamedTuple):
    """Samples of an archive by their keys.

    Attributes:
        named: field of their .json → key → what the sample is called there.
    """

    entries: NamedReaders
    named: dict[str, dict[str, str]]


def open_samples(path: Path, stack: ExitStack) -> Samples:
    """The arrays `KEY.npy` or `KEY.npz` of an archive, each read when it is asked for, until `stack` ends.

    Raises:
        InputError: it cannot be read, or holds none.
    """
    entries: NamedReaders = {}
    named: dict[str, dict[str, str]] = {}
    try:
        archive = stack.enter_context(tarfile.open(path))  # noqa: SIM115
        size = path.stat().st_size
        for member in archive:
            check_unpacked(member.offset_data + member.size, size)
            key, _, end = member.name.removeprefix("./").rpartition(".")
            if not member.isreg() or not key:
                continue
            if end.lower() in ("npy", "npz"):
                if key in entries:
                    raise InputError(f"{path}: the sample {show(key)} holds two arrays; expected one")
                entries[key] = partial(_array, archive, member)
            elif end.lower() == "json" and member.size <= _JSON_LIMIT:
                for name, value in _fields(_content(archive, member)).items():
                    named.setdefault(name, {})[key] = value
    except InputError:
        raise
    except Exception as error:  # a damaged archive raises nearly anything
        raise InputError(f"{path}: cannot be read: {first_line(error)}") from None
    if not entries:
        raise InputError(f"{path}: none of its members is an .npy or .npz file")
    return Samples(entries, named)


def _fields(data: bytes) -> dict[str, str]:
    """What the .json of a sample says that could be its name."""
    content = None
    with suppress(ValueError, RecursionError):
        content = json.loads(data)
        if isinstance(content, str):  # the text of an object written as a string
            content = json.loads(content)
    if not isinstance(content, dict):
        return {}
    texts = {name: str(value) for name, value in content.items() if type(value) in (str, int)}
    return {name: text for name, text in texts.items() if 0 < len(text) <= _LONGEST}


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(member)
    if content is None:
        raise ValueError(f"{member.name} has no content")
    return content.read()


def _array(archive: tarfile.TarFile, member: tarfile.TarInfo) -> np.ndarray:
    data = io.BytesIO(_content(archive, member))
    if member.name.lower().endswith(".npz"):
        check_zip(data)
        data.seek(0)
        with np.load(data, allow_pickle=False) as arrays:
            return arrays[only(dict.fromkeys(arrays.files))]
    version = np.lib.format.read_magic(data)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(data)
    if math.prod(shape) * dtype.itemsize > member.size:  # it would be reserved before it is missed
        raise ValueError(f"it claims to be {shape}, but has {member.size} bytes")
    data.seek(0)
    return np.lib.format.read_array(data, allow_pickle=False)
