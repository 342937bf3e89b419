"""MTEB's video retrieval sets: one caption a video, a test split alone, never to be mixed with the benchmarks they were drawn from.

Each protocol reads the annotations of a benchmark here, and which captions MTEB took from a file `mteb.txt` beside them, one a line
(docs/datasets.md says how it is made of MTEB's data set): what is left of the videos decided, which annotations do not tell. MSVD needs none:
MTEB's are the distinct first captions. Sizes, and the number of characters that is checked, are of MTEB's descriptive statistics.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from glscl.cache.schema import Annotations, Expected, TextItem
from glscl.common.errors import InputError, NotFoundError
from glscl.common.tables import amount
from glscl.extract.datasets.activitynet import DATASET as ACTIVITYNET
from glscl.extract.datasets.benchmark import Benchmark, FoundFiles
from glscl.extract.datasets.builder import AnnotationBuilder
from glscl.extract.datasets.didemo import DATASET as DIDEMO
from glscl.extract.datasets.msrvtt import DATASET as MSRVTT
from glscl.extract.datasets.msvd import DATASET as MSVD
from glscl.extract.datasets.splits import choose_protocol, choose_splits
from glscl.extract.datasets.text_files import examples, fold, read_lines, show
from glscl.extract.datasets.vatex import DATASET as VATEX
from glscl.extract.datasets.vatex import OFFICIAL, WHOLE, captions_of
from glscl.extract.datasets.youcook2 import DATASET as YOUCOOK2

CAPTIONS = "mteb.txt"


class Drawn(NamedTuple):
    """One of MTEB's sets: the benchmark it was drawn from, its name at the Hugging Face Hub, pairs, characters of all captions."""

    benchmark: Benchmark
    hub: str
    pairs: int
    characters: int


def _all_of_vatex(builder: AnnotationBuilder, found: FoundFiles) -> None:
    (path,) = found.files["test"]
    for id, captions, row in captions_of(path):
        builder.video(id, split="test", path=path, row=row)
        for caption in captions:
            builder.text(id, caption, path=path, row=row)


_TEST = {"": {"test": Expected(None, None)}}
_VAL_2 = replace(ACTIVITYNET, expected=_TEST, files=("val_2.json",), needs={"test": [("val_2.json",)]}, about_splits="")
_VATEX_FILES = ("vatex_public_test_english_v1.1.json", WHOLE, OFFICIAL[1])
_VATEX = replace(VATEX, expected=_TEST, files=_VATEX_FILES[:1], needs={"test": [_VATEX_FILES]}, collect=_all_of_vatex)

SETS = {
    "msrvtt": Drawn(MSRVTT, "mteb/MSR-VTT", 879, 43_882),
    "msvd": Drawn(MSVD, "mteb/MSVD", 660, 27_769),
    "didemo": Drawn(DIDEMO, "mteb/DiDeMo", 999, 154_627),
    "vatex": Drawn(_VATEX, "mteb/VATEX_test_1k", 1_000, 74_253),
    "activitynet": Drawn(_VAL_2, "mteb/ActivityNet_Captions_val2", 4_884, 1_062_224),
    "youcook2": Drawn(YOUCOOK2, "mteb/YouCook2_val", 3_104, 136_758),
}
EXPECTED = {name: {"test": Expected(drawn.pairs, drawn.pairs)} for name, drawn in SETS.items()}


def read(
    annotations: Path | None, videos: Path | None, *, splits: Sequence[str] | None = None, protocol: str | None = None
) -> Annotations:
    """The pairs of a protocol in MTEB's order; see `glscl.extract.datasets.DatasetEntry.read`."""
    protocol = choose_protocol(protocol, [*SETS], "mteb")
    choose_splits(splits, ("test",), "mteb (its sets are for testing alone)")
    drawn = SETS[protocol]
    whole = drawn.benchmark.read(annotations, videos, splits=["test"])
    path = None if annotations is None else annotations / CAPTIONS
    if path is not None and path.is_file():
        texts, notes = _named(whole, path)
    elif protocol == "msvd":
        firsts = {text.video: text for text in reversed(whole.texts)}
        first = {firsts[video.id].text: firsts[video.id] for video in reversed(whole.videos) if video.id in firsts}
        texts, notes = [*first.values()][::-1], []
    else:
        raise NotFoundError(
            f"mteb: {annotations} has no {CAPTIONS}, the captions of {drawn.hub}, one a line",
            hint="Make it as docs/datasets.md says: what MTEB left out does not follow from the annotations",
        )
    taken = {text.video for text in texts}
    characters = sum(len(text.original or text.text) for text in texts)
    if (len(texts), characters) != (drawn.pairs, drawn.characters):
        notes.append(
            f"{amount(len(texts), 'caption')} of {characters:,} characters; MTEB's set has {drawn.pairs:,} of {drawn.characters:,}"
        )
    texts = [TextItem(f"{text.video}#0", text.video, "test", text.text, text.original) for text in texts]
    chosen = [video for video in whole.videos if video.id in taken]
    return Annotations(
        dataset="mteb", videos=chosen, texts=texts, expected=EXPECTED[protocol], notes=[*whole.notes, *notes]
    )


def _named(whole: Annotations, path: Path) -> tuple[list[TextItem], list[str]]:
    """The captions of a file with the videos that have them, by their letters and digits; and what must be said of them."""
    known: dict[str, dict[str, None]] = {}
    for text in whole.texts:
        known.setdefault(_plain(text.text), {})[text.video] = None
    found: list[TextItem] = []
    taken: set[str] = set()
    doubtful: list[str] = []
    for row, line in read_lines(path):
        owners = [video for video in known.get(_plain(line), ()) if video not in taken]
        if not owners:
            raise InputError(f"{path}, line {row}: no video left has the caption {show(fold(line))}")
        if len(owners) > 1:
            doubtful.append(owners[0])
        taken.add(owners[0])
        found.append(TextItem(f"{owners[0]}#0", owners[0], "test", fold(line), None if fold(line) == line else line))
    notes = []
    if doubtful:
        notes.append(f"{amount(len(doubtful), 'caption')} of several videos, the first taken: {examples(doubtful)}")
    return found, notes


def _plain(text: str) -> str:
    return re.sub(r"\W+", "", text).casefold()
