"""Strings of variable length in HDF5 files, as h5py writes lists of names, read without the library.

The library follows a damaged heap in a circle and never comes back, so its few records are read here.
"""

from __future__ import annotations

import os
import struct
from typing import Any

_REFERENCE = struct.Struct("<IQI")  # length, address of a collection, number of the object in it
_COLLECTION = struct.Struct("<4sB3xQ")  # signature, version, size
_OBJECT = struct.Struct("<HH4xQ")  # number, references, size; its bytes follow, filled up to a multiple of 8
LONGEST = 64 << 20  # bytes of names in a file


def read_texts(dataset: Any) -> list[bytes]:
    """The strings of a dataset (n,) of h5py that is stored in one piece. Raises ValueError for anything else, and damage."""
    where, size = dataset.id.get_offset(), len(dataset) * _REFERENCE.size
    if where is None or dataset.ndim != 1 or size > LONGEST or dataset.id.get_storage_size() != size:
        raise ValueError(
            "names of variable length in chunks; save them as strings of one length: numpy.array(names, 'S')"
        )
    with open(os.fsdecode(dataset.file.filename), "rb") as file:
        file.seek(where)
        references = list(_REFERENCE.iter_unpack(_exactly(file, size)))
        objects: dict[int, dict[int, bytes]] = {}
        for _, address, _ in references:
            if address not in objects:
                objects[address] = _collection(file, address)
    texts = []
    for length, address, number in references:
        text = objects[address].get(number)
        if text is None or length > len(text):
            raise ValueError("a name is not where it should be")
        texts.append(text[:length])
    return texts


def _collection(file: Any, address: int) -> dict[int, bytes]:
    """Number → bytes of the objects of a collection of the heap."""
    file.seek(address)
    signature, version, size = _COLLECTION.unpack(_exactly(file, _COLLECTION.size))
    if signature != b"GCOL" or version != 1 or not _COLLECTION.size <= size <= LONGEST:
        raise ValueError("a heap of names is damaged")
    data, at, objects = _exactly(file, size - _COLLECTION.size), 0, {}
    while at + _OBJECT.size <= len(data):
        number, _, length = _OBJECT.unpack_from(data, at)
        if number == 0:  # free space, to the end
            break
        at += _OBJECT.size
        objects[number] = data[at : at + length]
        at += -(-length // 8) * 8
    return objects


def _exactly(file: Any, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError("the file is cut short")
    return data
