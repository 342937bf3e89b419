"""The part of a model's own preprocessing that works on pictures: it runs in the decode workers.

A transform of open_clip is geometry (resize, crop, RGB), then ToTensor, then Normalize. The first part is taken over as it
stands; the rest is two lines of arithmetic on uint8 pixels that the encoder does on its device, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image


class Geometry:
    """PIL picture → (S, S, 3) uint8 RGB, by the picture transforms of a model. Picklable.

    Args:
        steps: torchvision-style transforms from picture to picture, in order.
        size: (height, width) that they produce, in pixels.
    """

    def __init__(self, steps: Sequence[Callable[[Image.Image], Image.Image]], size: tuple[int, int]) -> None:
        self.steps = list(steps)
        self.size = size

    def __call__(self, picture: Image.Image) -> np.ndarray:
        for step in self.steps:
            picture = step(picture)
        return np.array(picture.convert("RGB"))
