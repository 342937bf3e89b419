"""The steps of a model's preprocessing in decode workers: open_clip's pixels, without torch."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import CenterCrop, Resize

from glscl.extract.backbone.picture_transform import PictureTransform, plain

SIZES = [(320, 240), (240, 320), (426, 240), (31, 200), (33, 32), (32, 32), (64, 32), (5, 5), (7, 90), (181, 103)]
SETTINGS = [
    {},
    {"interpolation": "bilinear"},
    {"resize_mode": "squash"},
    {"size": (32, 48)},
    {"size": (32, 48), "resize_mode": "squash"},
    {"size": 33, "resize_mode": "longest"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_pixels_are_those_of_open_clip_bit_for_bit(settings):
    cfg = PreprocessCfg(**{"size": 32, **settings})
    steps = image_transform_v2(cfg, is_train=False).transforms[:-3]
    size = (cfg.size, cfg.size) if isinstance(cfg.size, int) else cfg.size
    ours, random = pickle.loads(pickle.dumps(PictureTransform(steps, size))), np.random.default_rng(0)
    for width, height in SIZES:
        picture = expected = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for step in steps:
            expected = step(expected)
        np.testing.assert_array_equal(ours(picture), np.asarray(expected), err_msg=f"{width} x {height}")


@pytest.mark.parametrize(
    "step", [CenterCrop(20), CenterCrop((9, 34)), Resize([24]), Resize((9, 21)), Resize(8)], ids=str
)
def test_steps_of_torchvision_are_the_same_without_it(step):
    for width, height in [(20, 20), (19, 33), (9, 34), (35, 8), (10, 21)]:
        picture = Image.fromarray(np.arange(width * height, dtype=np.uint8).reshape(height, width))
        assert plain(step) is not step
        np.testing.assert_array_equal(np.asarray(plain(step)(picture)), np.asarray(step(picture)))


def test_steps_that_are_not_known_stay_what_they_are():
    limited = Resize(8, max_size=20)
    assert plain(limited) is limited and plain(repr) is repr


def test_a_worker_that_resizes_pictures_imports_no_torch():
    packed = pickle.dumps(PictureTransform(image_transform_v2(PreprocessCfg(), is_train=False).transforms[:-3], (8, 8)))
    code = (
        f"import pickle, sys; pickle.loads({packed!r}); sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
