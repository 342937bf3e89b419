"""Charades-STA: sentences about moments of videos of half a minute; each is a query for the whole video that holds it.

For partially relevant retrieval the published numbers are measured on the part `test`; there is no validation part, so training
carves one from train. The times of the moments are read and checked, and not kept: `glscl.evaluate.moment_retrieval` reads them.
"""

from __future__ import annotations

from glscl.cache.schema import Expected
from glscl.extract.datasets.benchmark import Benchmark, FoundFiles
from glscl.extract.datasets.builder import AnnotationBuilder
from glscl.extract.datasets.columns import number
from glscl.extract.datasets.text_files import check_id, read_lines, refuse, show

FILES = {"train": "charades_sta_train.txt", "test": "charades_sta_test.txt"}


def _collect(builder: AnnotationBuilder, found: FoundFiles) -> None:
    """Lines `AO8RW 0.0 6.9##a person is putting a book on a shelf.`"""
    for split, (path,) in found.files.items():
        for row, line in read_lines(path):
            where, mark, sentence = line.partition("##")
            words = where.split()
            if not mark or len(words) != 3:
                refuse(path, row, f"found {show(line)}, expected `video start end##sentence`")
            for value, name in zip(words[1:], ("start", "end")):
                number(value, name, path, row)
            id = check_id(words[0], path, row)
            builder.video(id, split=split, path=path, row=row)
            builder.text(id, sentence, path=path, row=row)
    builder.drop_uncaptioned("without sentence")


DATASET = Benchmark(
    name="charades_sta",
    source="charades_sta_train.txt and charades_sta_test.txt: github.com/jiyanggao/TALL; see docs/datasets.md.",
    expected={"": {"train": Expected(12_408, 5_338), "test": Expected(3_720, 1_334)}},
    files=[*FILES.values()],
    needs={split: [(name,)] for split, name in FILES.items()},
    collect=_collect,
)
EXPECTED, read = DATASET.expected, DATASET.read
