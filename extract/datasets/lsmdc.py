"""LSMDC: clips of films with their audio description; every sentence is a sample, the test part has 1,000 clips."""

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
)
from glscl.extract.datasets.text_files import check_id, read_text, refuse, show

FILES = {
    "train": ("LSMDC16_annos_training.csv",),
    "val": ("LSMDC16_annos_val.csv",),
    "test": ("LSMDC16_challenge_1000_publictect.csv", "LSMDC16_challenge_1000_publictest.csv"),  # the first is real
}
COLUMNS = 6  # clip id, start and end aligned, start and end extracted, sentence
SOURCE = (
    "Ask for access at sites.google.com/site/describingmovies/download (an agreement is to be signed); "
    "see docs/datasets.md."
)
EXPECTED = {"": {"train": Expected(101_079, None), "val": Expected(7_408, None), "test": Expected(1_000, 1_000)}}


def read(
    annotations: Path | None,
    videos: Path | None,
    *,
    splits: Sequence[str] | None = None,
    protocol: str | None = None,
) -> Annotations:
    """Read LSMDC: tables without header, separated by tabs, although named .csv; a clip may have several sentences.

    Args:
        annotations: folder with the files of `FILES`.
        videos: folder with `<clip id>.avi` (or another extension), flat or in a folder per film.
        splits: only these.
    Raises:
        InputError, NotFoundError, UsageError: see `DatasetEntry.read`.
    """
    choose_protocol(protocol, (), "lsmdc")
    wanted = choose_splits(splits, SPLITS, "lsmdc")
    folder = AnnotationFolder(annotations, dataset="lsmdc", source=SOURCE, files=[names[0] for names in FILES.values()])
    files, notes = folder.of_splits(wanted, {split: [FILES[split]] for split in SPLITS}, asked=splits is not None)
    gather = Gather("lsmdc", wanted, EXPECTED[""])
    gather.notes += notes
    for split, (path,) in files.items():
        stray = 0
        for row, line in enumerate(read_text(path).split("\n"), 1):
            if not line.strip():
                continue
            cells = line.rstrip("\r").split("\t")
            if len(cells) == COLUMNS - 1:  # the separator before an empty sentence was lost
                cells.append("")
            if len(cells) < COLUMNS:
                refuse(
                    path,
                    row,
                    f"{len(cells)} cells separated by tabs, expected {COLUMNS}: clip id, four times, sentence; "
                    f"found {show(line)}",
                )
            stray += len(cells) > COLUMNS
            id = check_id(cells[0].strip(), path, row)
            gather.video(id, split=split, path=path, row=row)
            gather.text(id, " ".join(cells[COLUMNS - 1 :]), path=path, row=row)
        if stray:
            gather.note(f"{split}: {stray} sentences held a tab, read as a space: {path}")
    gather.drop_uncaptioned("without sentence")
    return gather.annotations(videos)
