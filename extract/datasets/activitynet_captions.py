"""ActivityNet Captions by caption: each sentence is a query for the long video that holds its moment.

Partially relevant retrieval (Dong et al. 2022, arXiv 2208.12510): a caption tells of a part, the gallery has whole videos. Files and
splits are those of `glscl.extract.datasets.activitynet`; published numbers are measured on `val_1`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from glscl.cache.schema import Expected
from glscl.extract.datasets.activitynet import DATASET as PARAGRAPHS
from glscl.extract.datasets.activitynet import collect

DATASET = replace(
    PARAGRAPHS,
    name="activitynet_captions",
    expected={"": {"train": Expected(37_421, 10_009), "test": Expected(17_505, 4_917)}},
    collect=partial(collect, joined=False),
)
EXPECTED, read = DATASET.expected, DATASET.read
