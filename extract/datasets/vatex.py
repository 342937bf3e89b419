"""VATEX (English): 10-second clips with ten captions each; the lists divide the official validation part in two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from glscl.cache.schema import Expected
from glscl.extract.datasets.benchmark import Benchmark, FoundFiles, add_listed
from glscl.extract.datasets.builder import AnnotationBuilder
from glscl.extract.datasets.splits import SPLITS
from glscl.extract.datasets.text_files import member, read_json, show

WHOLE = "vatex_data.json"  # id → {"enCap": [captions]}
OFFICIAL = ("vatex_training_v1.0.json", "vatex_validation_v1.0.json")


def _collect(builder: AnnotationBuilder, found: FoundFiles) -> None:
    """Videos stand in the order of the lists, their captions in that of the caption file."""
    for split, (listed, _) in found.files.items():
        add_listed(builder, listed, split)
    ids = builder.ids()
    captioned: dict[str, None] = {}
    for path in dict.fromkeys(path for _, path in found.files.values()):
        for id, captions, entry in captions_of(path):
            captioned[id] = None
            if id in ids:
                for caption in captions:
                    builder.text(id, caption, path=path, row=entry)
    builder.drop_uncaptioned("without caption", captioned)


def captions_of(path: Path) -> Iterator[tuple[str, list[object], str | int]]:
    """(id, English captions, where) of either layout."""
    content = read_json(path, (dict, list))
    if isinstance(content, dict):
        for id, entry in content.items():
            yield id, member(entry, "enCap", list, path, show(id)), show(id)
    else:
        for row, entry in enumerate(content, 1):
            yield member(entry, "videoID", str, path, row), member(entry, "enCap", list, path, row), row


DATASET = Benchmark(
    name="vatex",
    source="The captions: eric-xw.github.io/vatex-website; the lists: github.com/jpthu17/EMCL, "
    "video_retrieval/As_an_inference_module/data/vatex_data; "
    "see docs/datasets.md.",
    expected={
        "": {"train": Expected(259_910, 25_991), "val": Expected(15_000, 1_500), "test": Expected(15_000, 1_500)}
    },
    files=(*(f"{split}_list.txt" for split in SPLITS), WHOLE),
    needs={split: [(f"{split}_list.txt",), (WHOLE, OFFICIAL[split != "train"])] for split in SPLITS},
    collect=_collect,
)
EXPECTED, read = DATASET.expected, DATASET.read
