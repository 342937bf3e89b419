"""TVR: sentences about moments of clips of TV shows, a minute or more each; each is a query for the whole clip that holds it.

The split `test` is the released validation part, on which partially relevant retrieval is measured: of TVR's own test part the moments
are not public. There is no other validation part, so training carves one from train. The times of the moments are not kept.
"""

from __future__ import annotations

from glscl.cache.schema import Expected
from glscl.extract.datasets.benchmark import Benchmark, FoundFiles
from glscl.extract.datasets.builder import AnnotationBuilder
from glscl.extract.datasets.text_files import check_id, member, parse_json, read_lines

FILES = {"train": "tvr_train_release.jsonl", "test": "tvr_val_release.jsonl"}


def _collect(builder: AnnotationBuilder, found: FoundFiles) -> None:
    """Lines `{"vid_name": "friends_s01e03_seg02_clip_19", "desc": "Phoebe puts one of her ponytails in her mouth.", …}`"""
    for split, (path,) in found.files.items():
        for row, line in read_lines(path):
            entry = parse_json(line, path, row)
            id = check_id(member(entry, "vid_name", str, path, row), path, row)
            builder.video(id, split=split, path=path, row=row)
            builder.text(id, member(entry, "desc", str, path, row), path=path, row=row)
    builder.drop_uncaptioned("without sentence")


DATASET = Benchmark(
    name="tvr",
    source="tvr_train_release.jsonl and tvr_val_release.jsonl: github.com/jayleicn/TVRetrieval, folder data; see docs/datasets.md.",
    expected={"": {"train": Expected(87_175, 17_435), "test": Expected(10_895, 2_179)}},
    files=[*FILES.values()],
    needs={split: [(name,)] for split, name in FILES.items()},
    collect=_collect,
    about_splits="the released validation part is read as split test",
)
EXPECTED, read = DATASET.expected, DATASET.read
