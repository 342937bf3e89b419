"""Frames beside the features: the pictures that the encoder saw, as raw pixels or as JPEG, rows aligned with `offsets`.

R rows (frames of all videos of a shard), H and W the sides of the model's input in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from glscl.common.errors import CacheFormatError, UsageError

FRAME_ARRAYS: dict[str, tuple[str, ...]] = {"none": (), "uint8": ("frames",), "jpeg": ("frame_bytes", "frame_offsets")}


class FrameSpec(NamedTuple):
    """How frames are stored.

    Attributes:
        encoding: "uint8", raw pixels: `frames` uint8 (R, H, W, 3); or "jpeg", lossy: `frame_bytes` uint8 (B), and
            `frame_offsets` int64 (R + 1), the bytes of each frame.
        size: (H, W).
        quality: of JPEG, 1 to 100; None with "uint8".
    """

    encoding: str
    size: tuple[int, int]
    quality: int | None = None

    @property
    def arrays(self) -> tuple[str, ...]:
        return FRAME_ARRAYS[self.encoding]

    def __str__(self) -> str:
        quality = "" if self.quality is None else f" of quality {self.quality}"
        return f"{self.encoding}{quality}, {self.size[0]}×{self.size[1]} pixels"

    def as_header(self) -> dict[str, Any]:
        """The entry `stored_frames` of store.json."""
        return {"encoding": self.encoding, "size": list(self.size), "quality": self.quality}

    @classmethod
    def make(cls, encoding: str, size: tuple[int, int], quality: int) -> FrameSpec | None:
        """From the choice of a user; None for "none"."""
        if encoding not in FRAME_ARRAYS:
            raise UsageError(f"--store-frames is {encoding!r}; expected one of {', '.join(FRAME_ARRAYS)}")
        if encoding == "none":
            return None
        return cls(encoding, (int(size[0]), int(size[1])), quality if encoding == "jpeg" else None)

    @classmethod
    def from_header(cls, entry: Mapping[str, Any] | None) -> FrameSpec | None:
        """Raises CacheFormatError for an encoding that this version does not know."""
        if entry is None:
            return None
        height, width = (int(side) for side in entry["size"])
        if entry["encoding"] not in FRAME_ARRAYS:
            raise CacheFormatError(f"Frames are stored as {entry['encoding']!r}, which this version cannot read")
        return cls(str(entry["encoding"]), (height, width), entry["quality"])


def require_same(found: FrameSpec | None, asked: FrameSpec | None, where: object) -> None:
    """Raises UsageError where a cache holds frames in another way than is asked for."""
    if found != asked:
        option = "--store-frames none" if found is None else f"--store-frames {found.encoding}"
        option += f" --frame-quality {found.quality}" if found is not None and found.quality is not None else ""
        raise UsageError(
            f"{where} was begun with stored frames: {found or 'none'}; asked for: {asked or 'none'}",
            mend=f"Go on with {option}, or choose another folder with --out",
        )
