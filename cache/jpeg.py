"""Frames as JPEG: how they are stored where space counts. H, W: sides of the model's input in pixels."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """(H, W, 3) uint8 RGB → JPEG with colours at full resolution (4:4:4)."""
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def decode_jpeg(data: bytes | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """JPEG → (H, W, 3) uint8 RGB. Raises ValueError where it is no JPEG of this size (H, W)."""
    try:
        picture = Image.open(io.BytesIO(data if isinstance(data, bytes) else data.tobytes()), formats=["JPEG"])
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"no JPEG: {error}") from error
    with picture:
        if picture.size != size[::-1]:
            raise ValueError(f"a JPEG of {picture.size[1]}×{picture.size[0]} pixels, expected {size[0]}×{size[1]}")
        return np.array(picture.convert("RGB"))
