"""DiDeMo by description: each is a query for the first 31 seconds of the video that holds its moment.

Files and splits are those of `glscl.extract.datasets.didemo`. With them `test_data.json` says when each happens.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from glscl.cache.schema import Expected
from glscl.extract.datasets.didemo import DATASET as PARAGRAPHS
from glscl.extract.datasets.didemo import collect

DATASET = replace(
    PARAGRAPHS,
    name="didemo_captions",
    expected={"": {"train": Expected(None, 8_392), "val": Expected(4_109, 1_065), "test": Expected(3_932, 1_004)}},
    collect=partial(collect, joined=False),
)
EXPECTED, read = DATASET.expected, DATASET.read
