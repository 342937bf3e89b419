"""How frames are stored with the features: the pictures that the encoder saw, as raw pixels or as JPEG.

R rows (frames of all videos of a shard, aligned with `offsets`), H and W the sides of the model's input in pixels.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from glscl.common.errors import Hint, UsageError

FRAME_ARRAYS: dict[str, tuple[str, ...]] = {"none": (), "uint8": ("frames",), "jpeg": ("frame_bytes", "frame_offsets")}

Side = Annotated[int, Meta(ge=1, le=10**5)]


class FrameSpec(msgspec.Struct, frozen=True):
    """How frames are stored; the entry `stored_frames` of store.json.

    Attributes:
        encoding: "uint8", raw pixels: `frames` uint8 (R, H, W, 3); or "jpeg", lossy: `frame_bytes` uint8 (B), and
            `frame_offsets` int64 (R + 1), the bytes of each frame.
        size: (H, W).
        quality: of JPEG, 1 to 100; None with "uint8".
    """

    encoding: Literal["uint8", "jpeg"]
    size: tuple[Side, Side]
    quality: Annotated[int, Meta(ge=1, le=100)] | None = None

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of a shard that hold the frames."""
        return FRAME_ARRAYS[self.encoding]

    def shapes(self, rows: int) -> dict[str, tuple[int | None, ...]]:
        """Shape of each array where there are so many rows of features; None is a length that these do not tell."""
        if self.encoding == "uint8":
            return {"frames": (rows, *self.size, 3)}
        return {"frame_bytes": (None,), "frame_offsets": (rows + 1,)}

    def __str__(self) -> str:
        quality = "" if self.quality is None else f" of quality {self.quality}"
        return f"{self.encoding}{quality}, {self.size[0]}×{self.size[1]} pixels"

    def as_header(self) -> dict[str, Any]:
        """As JSON."""
        return msgspec.to_builtins(self)

    @classmethod
    def make(cls, encoding: str, size: tuple[int, int], quality: int) -> FrameSpec | None:
        """From the choice of a user; None for "none"."""
        if encoding == "none":
            return None
        if encoding == "uint8":
            return cls("uint8", (int(size[0]), int(size[1])))
        if encoding == "jpeg":
            return cls("jpeg", (int(size[0]), int(size[1])), quality)
        raise UsageError(f"`store_frames` is {encoding!r}; expected one of {', '.join(FRAME_ARRAYS)}")


def require_same(found: FrameSpec | None, asked: FrameSpec | None, where: object) -> None:
    """Raises UsageError where a cache holds frames in another way than is asked for."""
    if found != asked:
        settings = f"`store_frames={'none' if found is None else found.encoding}`"
        settings += f" `frame_quality={found.quality}`" if found is not None and found.quality is not None else ""
        raise UsageError(
            f"{where} was begun with stored frames: {found or 'none'}; asked for: {asked or 'none'}",
            hint=Hint(f"Go on with {settings}, or choose another folder with `out`"),
        )
