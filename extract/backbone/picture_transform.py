"""What a model's own preprocessing does to pictures: it runs in the decode workers.

A transform of open_clip is steps from picture to picture (resize, crop, RGB), then ToTensor, then Normalize. The first are
taken over as they stand; the rest is two lines of arithmetic on uint8 pixels that the encoder does on its device, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Step = Callable[[Image.Image], Image.Image]


class PictureTransform:
    """PIL picture → (S, S, 3) uint8 RGB, by the picture transforms of a model. Picklable.

    Args:
        steps: torchvision-style transforms from picture to picture, in order.
        size: (height, width) that they produce, in pixels.
    """

    def __init__(self, steps: Sequence[Step], size: tuple[int, int]) -> None:
        self.steps = list(steps)
        self.size = size

    def __call__(self, picture: Image.Image) -> NDArray[np.uint8]:
        for step in self.steps:
            picture = step(picture)
        return np.array(picture.convert("RGB"))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self.size[0]} x {self.size[1]} pixels>"
