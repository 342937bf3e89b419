"""Which arrays a shard holds, and how each follows the items: the same names in HDF5, in Zarr and in memory."""

from __future__ import annotations

import zlib
from typing import Literal, NamedTuple

import numpy as np

from glscl.common.errors import CacheCorruptError

FLOAT = "float"  # stands for the feature dtype of the cache: float16, float32, or bfloat16 stored as uint16

FEATURE_DTYPES = {"float16": np.float16, "float32": np.float32, "bfloat16": np.uint16}


class ArraySpec(NamedTuple):
    """`along` says what the first axis counts: items, item boundaries, or the rows that a boundary array cuts up."""

    dtype: str
    along: Literal["items", "boundaries", "rows"]
    boundaries: str | None = None  # for "rows": the name of the array with n + 1 boundaries
    columns: bool = False  # a second axis of length embed_dim


_COMMON = {
    "values": ArraySpec(FLOAT, "rows", "offsets", columns=True),
    "offsets": ArraySpec("int64", "boundaries"),
    "pooled": ArraySpec(FLOAT, "items", columns=True),
    "id_bytes": ArraySpec("uint8", "rows", "id_offsets"),
    "id_offsets": ArraySpec("int64", "boundaries"),
    "status": ArraySpec("uint8", "items"),
}

LAYOUT: dict[str, dict[str, ArraySpec]] = {
    "video": _COMMON
    | {
        "times": ArraySpec("float32", "rows", "offsets"),
        "duration": ArraySpec("float32", "items"),
        "fps": ArraySpec("float32", "items"),
        "frames_total": ArraySpec("int32", "items"),
    },
    "text": _COMMON
    | {
        "token_ids": ArraySpec("int32", "rows", "offsets"),
        "text_bytes": ArraySpec("uint8", "rows", "text_offsets"),
        "text_offsets": ArraySpec("int64", "boundaries"),
    },
}


def checksum(array: np.ndarray, before: int = 0) -> int:
    """CRC-32 of the raw bytes of an array, or of one that comes in pieces: of this one after those `before`."""
    return zlib.crc32(np.ascontiguousarray(array).data, before)


def numpy_dtype(spec: ArraySpec, feature_dtype: str) -> np.dtype:
    """The dtype on disk."""
    return np.dtype(FEATURE_DTYPES[feature_dtype] if spec.dtype == FLOAT else spec.dtype)


def encode_features(values: np.ndarray, feature_dtype: str) -> np.ndarray:
    """float32 features → the stored dtype (bfloat16: upper half of the float32 bits, rounded to nearest even)."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if feature_dtype != "bfloat16":
        with np.errstate(over="ignore"):  # an overflow becomes infinite, which the writer refuses by name
            return values.astype(FEATURE_DTYPES[feature_dtype])
    bits = values.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return rounded.astype(np.uint16)


def decode_features(values: np.ndarray, feature_dtype: str) -> np.ndarray:
    """The stored dtype → something numpy can calculate with: bfloat16 becomes float32, the others stay."""
    if feature_dtype != "bfloat16":
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)


def pack_strings(strings: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 bytes of all strings one after another, (B,) uint8, and their n + 1 boundaries, int64."""
    encoded = [s.encode("utf-8", "surrogatepass") for s in strings]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(e) for e in encoded], out=offsets[1:])
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def unpack_strings(data: np.ndarray, offsets: np.ndarray) -> list[str]:
    """The strings that `pack_strings` packed. Raises CacheCorruptError where the bytes are not UTF-8."""
    try:
        text = data.tobytes().decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise CacheCorruptError(f"The cache holds ids or captions that are not UTF-8: {error}") from error
    if len(text) < len(data):  # boundaries count bytes; a byte that goes on with a character begins with the bits 10
        begins = (data & 0xC0) != 0x80
        if not begins[offsets[offsets < len(data)]].all():
            raise CacheCorruptError("The cache holds ids or captions that are cut within a character")
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(begins, dtype=np.int64)])[offsets]
    bounds = offsets.tolist()
    return [text[a:b] for a, b in zip(bounds, bounds[1:])]
