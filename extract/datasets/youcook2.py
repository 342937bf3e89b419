"""YouCook2, clip level: each step of a recipe is one caption for the seconds of the video in which it is done.

The split `test` is the official validation part, on which published retrieval numbers are measured (the official test
part has no captions). Protocol `mil-nce` takes its test clips from MIL-NCE's list.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glscl.cache.schema import Expected
from glscl.common.errors import InputError
from glscl.extract.datasets.benchmark import AnnotationFolder, Benchmark, FoundFiles
from glscl.extract.datasets.builder import AnnotationBuilder
from glscl.extract.datasets.columns import number, read_table
from glscl.extract.datasets.text_files import check_id, clip_id, examples, member, read_json, refuse, show

OFFICIAL = ("youcookii_annotations_trainval.json",)
MIL_NCE = ("validation_youcook.csv",)
_SUBSETS = {"training": "train", "validation": "test"}


def _needs(protocol: str, folder: AnnotationFolder) -> dict[str, list[tuple[str, ...]]]:
    return {"train": [OFFICIAL], "test": [OFFICIAL if protocol == "official" else MIL_NCE]}


def _collect(builder: AnnotationBuilder, found: FoundFiles) -> None:
    """The id of a clip is `<youtube id>@<start>-<end>` in seconds."""
    clips = _Clips(builder)
    official = {split for split, (path,) in found.files.items() if path.name == OFFICIAL[0]}
    if official:
        _add_official(clips, found.folder.need(*OFFICIAL), official)
    if found.protocol == "mil-nce" and "test" in found.files:
        _add_mil_nce(clips, found.files["test"][0])
    clips.finish()


class _Clips:
    """Adds clips of videos, whose videos must not be in two splits either."""

    def __init__(self, builder: AnnotationBuilder) -> None:
        self.builder = builder
        self._split_of: dict[str, str] = {}
        self._backwards: list[str] = []

    def add(
        self, video: str, times: Sequence[object], sentence: str, *, split: str, path: Path, row: int | str
    ) -> None:
        check_id(video, path, row)
        start, end = (number(value, name, path, row) for value, name in zip(times, ("start", "end")))
        id = clip_id(video, start, end)
        known = self._split_of.setdefault(video, split)
        if known != split:
            raise InputError(f"{path}: the video {show(video)} is in split {split}, but also in {known}")
        if end <= start:
            self._backwards.append(id)
            return
        self.builder.video(id, split=split, path=path, row=row, file=video, start=start, end=end)
        self.builder.text(id, sentence, path=path, row=row)

    def finish(self) -> None:
        if self._backwards:
            count = len(self._backwards)
            self.builder.note(f"dropped {count} clip(s) that end before they start: {examples(self._backwards)}")
        self.builder.drop_uncaptioned("without sentence")


def _add_official(clips: _Clips, path: Path, splits: set[str]) -> None:
    for video, entry in member(read_json(path, dict), "database", dict, path, "(whole file)").items():
        subset = member(entry, "subset", str, path, show(video))
        if subset not in _SUBSETS:
            refuse(path, show(video), f"the subset is {show(subset)}, expected training or validation")
        split = _SUBSETS[subset]
        for index, step in enumerate(member(entry, "annotations", list, path, show(video))):
            row = f"{show(video)} step {index}"
            times = member(step, "segment", list, path, row)
            if len(times) != 2:
                refuse(path, row, f"'segment' is {show(times)}, expected [start, end]")
            if split in splits:
                clips.add(video, times, member(step, "sentence", str, path, row), split=split, path=path, row=row)


def _add_mil_nce(clips: _Clips, path: Path) -> None:
    for row, (start, end, sentence, video) in read_table(
        path, ("start", "end", "text", "video_id"), notes=clips.builder.notes
    ):
        clips.add(video, (start, end), sentence, split="test", path=path, row=row)


DATASET = Benchmark(
    name="youcook2",
    source="youcookii_annotations_trainval.json: youcook2.eecs.umich.edu; validation_youcook.csv: "
    "github.com/antoine77340/MIL-NCE_HowTo100M, folder csv; see docs/datasets.md.",
    expected={  # one test clip has two sentences for the same seconds
        "official": {"train": Expected(10_337, 10_337), "test": Expected(3_492, 3_491)},
        "mil-nce": {"train": Expected(10_337, 10_337), "test": Expected(3_350, 3_349)},
    },
    files={"official": OFFICIAL, "mil-nce": (*OFFICIAL, *MIL_NCE)},
    needs=_needs,
    collect=_collect,
    about_splits="the validation part is read as split test",
)
EXPECTED, read = DATASET.expected, DATASET.read
