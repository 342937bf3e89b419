"""DiDeMo as paragraph retrieval: all descriptions of a video, joined, are one query for its first 31 seconds."""

from __future__ import annotations

from glscl.cache.schema import Expected
from glscl.common.tables import amount
from glscl.extract.datasets.benchmark import Benchmark, FoundFiles, add_listed
from glscl.extract.datasets.builder import AnnotationBuilder
from glscl.extract.datasets.splits import SPLITS
from glscl.extract.datasets.text_files import examples, member, read_json

SECONDS = 31.0


def collect(builder: AnnotationBuilder, found: FoundFiles, *, joined: bool = True) -> None:
    """Videos and their one text (or, not `joined`, their descriptions) stand in the order of the lists.

    The descriptions of a video are joined by a space in the order of the file (not of time). Videos of the JSON files
    that no list names are left out, as by all public programs.
    """
    described: dict[str, None] = {}
    for split, (ids, data) in found.files.items():
        descriptions: dict[str, list[str]] = {id: [] for id in add_listed(builder, ids, split, start=0.0, end=SECONDS)}
        unlisted: dict[str, int] = {}
        for row, entry in enumerate(read_json(data, list), 1):
            id = member(entry, "video", str, data, row)
            described[id] = None
            description = member(entry, "description", str, data, row)
            if id in descriptions:
                descriptions[id].append(description)
            else:
                unlisted[id] = unlisted.get(id, 0) + 1
        for id, parts in descriptions.items():
            for text in [" ".join(parts)] if joined and parts else parts:
                builder.text(id, text, path=data, row=id)
        if unlisted:
            builder.note(
                f"{split}: dropped {amount(sum(unlisted.values()), 'description')} of {amount(len(unlisted), 'video')} of {data.name} "
                f"that {ids.name} does not name: {examples(unlisted)}"
            )
    builder.drop_uncaptioned("without description", described)


# Files are named after the id (`x.mov`, `x.`, `x.null`), the id and `.mp4` (the official downloader: `x.mov.mp4`), or the
# id with another extension (`x.mp4`).
DATASET = Benchmark(
    name="didemo",
    source="{train,val,test}_data.json: github.com/LisaAnne/LocalizingMoments, folder data; the lists: "
    "github.com/albanie/collaborative-experts, misc/datasets/didemo; see docs/datasets.md.",
    expected={"": {"train": Expected(8_392, 8_392), "val": Expected(1_065, 1_065), "test": Expected(1_004, 1_004)}},
    files=[f"{split}_{kind}" for split in SPLITS for kind in ("list.txt", "data.json")],
    needs={split: [(f"{split}_list.txt",), (f"{split}_data.json",)] for split in SPLITS},
    collect=collect,
)
EXPECTED, read = DATASET.expected, DATASET.read
