"""What a model's own preprocessing does to pictures: it runs in the decode workers.

A transform of open_clip is steps from picture to picture (resize, crop, RGB), then ToTensor, then Normalize. The first are
taken over, the usual ones of torchvision as the few lines of Pillow that they are: a decode worker then imports no torch, which
would take it seconds. The rest is two lines of arithmetic on uint8 pixels that the encoder does on its device, exactly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Step = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Resize:
    """torchvision's `Resize` of PIL pictures. `size`: shorter side, or (height, width). `resample`: as Pillow has it."""

    size: int | tuple[int, int]
    resample: int

    def __call__(self, picture: Image.Image) -> Image.Image:
        width, height = picture.size
        if isinstance(self.size, int):
            other = int(self.size * max(width, height) / min(width, height))
            size = (self.size, other) if width <= height else (other, self.size)
        else:
            size = (self.size[1], self.size[0])
        return picture if picture.size == size else picture.resize(size, Image.Resampling(self.resample))


@dataclass(frozen=True)
class CenterCrop:
    """torchvision's `CenterCrop` of PIL pictures. `size`: (height, width); a smaller picture is put on black."""

    size: tuple[int, int]

    def __call__(self, picture: Image.Image) -> Image.Image:
        top, left = (_first(have, wanted) for have, wanted in zip(picture.size[::-1], self.size))
        return picture.crop((left, top, left + self.size[1], top + self.size[0]))


def _first(have: int, wanted: int) -> int:
    return round((have - wanted) / 2) if have >= wanted else -((wanted - have) // 2)


def plain(step: Any) -> Step:
    """A step of torchvision as one that needs no torch and gives the same pixels; any other as it is."""
    torchvision = sys.modules.get("torchvision.transforms")  # whose step it would be
    if torchvision is None:
        return step
    if type(step) is torchvision.Resize and step.max_size is None:
        from torchvision.transforms.functional import pil_modes_mapping

        sides = (step.size,) if isinstance(step.size, int) else tuple(step.size)
        return Resize(sides if len(sides) == 2 else sides[0], int(pil_modes_mapping[step.interpolation]))
    return CenterCrop(tuple(step.size)) if type(step) is torchvision.CenterCrop else step


class PictureTransform:
    """PIL picture → (S, S, 3) uint8 RGB, by the picture transforms of a model. Picklable.

    Args:
        steps: torchvision-style transforms from picture to picture, in order.
        size: (height, width) that they produce, in pixels.
    """

    def __init__(self, steps: Sequence[Step], size: tuple[int, int]) -> None:
        self.steps = [*map(plain, steps)]
        self.size = size

    def __call__(self, picture: Image.Image) -> NDArray[np.uint8]:
        for step in self.steps:
            picture = step(picture)
        return np.array(picture.convert("RGB"))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self.size[0]} x {self.size[1]} pixels>"
