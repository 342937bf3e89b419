"""YouCook2, clip level: each step of a recipe is one caption for the seconds of the video in which it is done.

The split `test` is the official validation part, on which published retrieval numbers are measured (the official test
part has no captions). Protocol `mil-nce` takes its test clips from MIL-NCE's list.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glscl.cache.schema import Annotations, Expected
from glscl.common.errors import InputError
from glscl.extract.datasets.base import (
    AnnotationFolder,
    Gather,
    choose_protocol,
    choose_splits,
    examples,
)
from glscl.extract.datasets.text_files import (
    check_id,
    clip_id,
    member,
    number,
    read_json,
    read_table,
    refuse,
    show,
)

OFFICIAL = ("youcookii_annotations_trainval.json",)
MIL_NCE = ("validation_youcook.csv",)
SOURCE = (
    "youcookii_annotations_trainval.json: youcook2.eecs.umich.edu; validation_youcook.csv: "
    "github.com/antoine77340/MIL-NCE_HowTo100M, folder csv; see docs/datasets.md."
)
EXPECTED = {  # one test clip has two sentences for the same seconds
    "official": {"train": Expected(10_337, 10_337), "test": Expected(3_492, 3_491)},
    "mil-nce": {"train": Expected(10_337, 10_337), "test": Expected(3_350, 3_349)},
}
_SUBSETS = {"training": "train", "validation": "test"}


def read(
    annotations: Path | None,
    videos: Path | None,
    *,
    splits: Sequence[str] | None = None,
    protocol: str | None = None,
) -> Annotations:
    """Read YouCook2; the id of a clip is `<youtube id>@<start>-<end>` in seconds.

    Args:
        annotations: folder with `youcookii_annotations_trainval.json`, and `validation_youcook.csv` for `mil-nce`.
        videos: folder with `<youtube id>` plus extension, in any sub-folders (`<subset>/<recipe>/` as distributed).
        splits: only these.
        protocol: official (default) or mil-nce.
    Raises:
        InputError, NotFoundError, UsageError: see `DatasetEntry.read`.
    """
    protocol = choose_protocol(protocol, tuple(EXPECTED), "youcook2")
    wanted = choose_splits(splits, ("train", "test"), "youcook2 (the validation part is read as split test)")
    tested = OFFICIAL if protocol == "official" else MIL_NCE
    names = dict.fromkeys((*OFFICIAL, *tested))
    folder = AnnotationFolder(annotations, dataset="youcook2", source=SOURCE, files=list(names))
    files, notes = folder.of_splits(wanted, {"train": [OFFICIAL], "test": [tested]}, asked=splits is not None)
    clips = _Clips(Gather("youcook2", wanted, EXPECTED[protocol]))
    clips.gather.notes += notes
    official = {split for split, (path,) in files.items() if path.name == OFFICIAL[0]}
    if official:
        _add_official(clips, folder.need(*OFFICIAL), official)
    if protocol == "mil-nce" and "test" in files:
        _add_mil_nce(clips, files["test"][0])
    return clips.finish(videos)


class _Clips:
    """Adds clips of videos, whose videos must not be in two splits either."""

    def __init__(self, gather: Gather) -> None:
        self.gather = gather
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
        self.gather.video(id, split=split, path=path, row=row, file=video, start=start, end=end)
        self.gather.text(id, sentence, path=path, row=row)

    def finish(self, videos: Path | None) -> Annotations:
        if self._backwards:
            count = len(self._backwards)
            self.gather.note(f"dropped {count} clip(s) that end before they start: {examples(self._backwards)}")
        self.gather.drop_uncaptioned("without sentence")
        return self.gather.annotations(videos)


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
    for row, (start, end, sentence, video) in read_table(path, ("start", "end", "text", "video_id")):
        clips.add(video, (start, end), sentence, split="test", path=path, row=row)
