"""DiDeMo as paragraph retrieval: all descriptions of a video, joined, are one query for its first 31 seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glscl.cache.schema import Annotations, Expected
from glscl.extract.datasets.base import (
    SPLITS,
    AnnotationFolder,
    Gather,
    choose_protocol,
    choose_splits,
    examples,
)
from glscl.extract.datasets.text_files import check_id, member, read_json, read_lines

SECONDS = 31.0
SOURCE = (
    "{train,val,test}_data.json: github.com/LisaAnne/LocalizingMoments, folder data; the lists: "
    "github.com/albanie/collaborative-experts, misc/datasets/didemo; see docs/datasets.md."
)
EXPECTED = {"": {"train": Expected(8_392, 8_392), "val": Expected(1_065, 1_065), "test": Expected(1_004, 1_004)}}


def read(
    annotations: Path | None,
    videos: Path | None,
    *,
    splits: Sequence[str] | None = None,
    protocol: str | None = None,
) -> Annotations:
    """Read DiDeMo; videos and their one text stand in the order of the lists.

    The descriptions of a video are joined by a space in the order of the file (not of time). Videos of the JSON files
    that no list names are left out, as by all public programs.

    Args:
        annotations: folder with `{train,val,test}_list.txt` and `{train,val,test}_data.json`.
        videos: folder with files named after the id (`x.mov`, `x.`, `x.null`), the id and `.mp4` (the official
            downloader: `x.mov.mp4`), or the id with another extension (`x.mp4`).
        splits: only these.
    Raises:
        InputError, NotFoundError, UsageError: see `DatasetEntry.read`.
    """
    choose_protocol(protocol, (), "didemo")
    wanted = choose_splits(splits, SPLITS, "didemo")
    names = [f"{split}_{kind}" for split in SPLITS for kind in ("list.txt", "data.json")]
    folder = AnnotationFolder(annotations, dataset="didemo", source=SOURCE, files=names)
    needs = {split: [(f"{split}_list.txt",), (f"{split}_data.json",)] for split in SPLITS}
    files, notes = folder.of_splits(wanted, needs, asked=splits is not None)
    gather = Gather("didemo", wanted, EXPECTED[""])
    gather.notes += notes
    for split, (ids, data) in files.items():
        descriptions: dict[str, list[str]] = {}
        for row, line in read_lines(ids):
            id = check_id(line, ids, row)
            gather.video(id, split=split, path=ids, row=row, start=0.0, end=SECONDS)
            descriptions[id] = []
        unlisted: dict[str, int] = {}
        for row, entry in enumerate(read_json(data, list), 1):
            id = member(entry, "video", str, data, row)
            description = member(entry, "description", str, data, row)
            if id in descriptions:
                descriptions[id].append(description)
            else:
                unlisted[id] = unlisted.get(id, 0) + 1
        for id, parts in descriptions.items():
            if parts:
                gather.text(id, " ".join(parts), path=data, row=id)
        if unlisted:
            gather.note(
                f"{split}: dropped {sum(unlisted.values())} descriptions of {len(unlisted)} videos of {data.name} "
                f"that {ids.name} does not name: {examples(unlisted)}"
            )
    gather.drop_uncaptioned("without description")
    return gather.annotations(videos)
