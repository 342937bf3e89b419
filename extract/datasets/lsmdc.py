"""LSMDC: clips of films with their audio description; every sentence is a sample, the test part has 1,000 clips."""

from __future__ import annotations

from glscl.cache.schema import Expected
from glscl.common.tables import amount
from glscl.extract.datasets.benchmark import Benchmark, FoundFiles
from glscl.extract.datasets.builder import AnnotationBuilder
from glscl.extract.datasets.columns import check_film_times
from glscl.extract.datasets.text_files import check_id, read_text, refuse, show

FILES = {
    "train": ("LSMDC16_annos_training.csv",),
    "val": ("LSMDC16_annos_val.csv",),
    "test": ("LSMDC16_challenge_1000_publictect.csv", "LSMDC16_challenge_1000_publictest.csv"),  # the first is real
}
TIMES = ("the aligned start", "the aligned end", "the extracted start", "the extracted end")
COLUMNS = 2 + len(TIMES)  # clip id, times, sentence


def _collect(builder: AnnotationBuilder, found: FoundFiles) -> None:
    """Tables without header, separated by tabs, although named .csv; a clip may have several sentences."""
    for split, (path,) in found.files.items():
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
                    f"{amount(len(cells), 'cell')} separated by tabs, expected {COLUMNS}: clip id, four times, sentence; "
                    f"found {show(line)}",
                )
            check_film_times(cells[1 : COLUMNS - 1], TIMES, path, row)
            stray += len(cells) > COLUMNS
            id = check_id(cells[0].strip(), path, row)
            builder.video(id, split=split, path=path, row=row)
            builder.text(id, " ".join(cells[COLUMNS - 1 :]), path=path, row=row)
        if stray:
            builder.note(f"{split}: {amount(stray, 'sentence')} held a tab, read as a space: {path}")
    builder.drop_uncaptioned("without sentence")


DATASET = Benchmark(
    name="lsmdc",
    source="Ask for access at sites.google.com/site/describingmovies/download (an agreement is to be signed); "
    "see docs/datasets.md.",
    expected={"": {"train": Expected(101_079, None), "val": Expected(7_408, None), "test": Expected(1_000, 1_000)}},
    files=[names[0] for names in FILES.values()],
    needs={split: [names] for split, names in FILES.items()},
    collect=_collect,
)
EXPECTED, read = DATASET.expected, DATASET.read
