"""VATEX (English): 10-second clips with ten captions each; the lists divide the official validation part in two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from glscl.cache.schema import Annotations, Expected
from glscl.extract.datasets.base import (
    SPLITS,
    AnnotationFolder,
    Gather,
    choose_protocol,
    choose_splits,
)
from glscl.extract.datasets.text_files import (
    check_id,
    member,
    read_json,
    read_lines,
    show,
)

WHOLE = "vatex_data.json"
OFFICIAL = ("vatex_training_v1.0.json", "vatex_validation_v1.0.json")
SOURCE = (
    "The captions: eric-xw.github.io/vatex-website; the lists: github.com/jpthu17/EMCL, "
    "video_retrieval/As_an_inference_module/data/vatex_data; "
    "see docs/datasets.md."
)
EXPECTED = {"": {"train": Expected(259_910, 25_991), "val": Expected(15_000, 1_500), "test": Expected(15_000, 1_500)}}


def read(
    annotations: Path | None,
    videos: Path | None,
    *,
    splits: Sequence[str] | None = None,
    protocol: str | None = None,
) -> Annotations:
    """Read VATEX; videos stand in the order of the lists, their captions in that of the caption file.

    Args:
        annotations: folder with `{train,val,test}_list.txt` and the captions: `vatex_data.json`
            (id → {"enCap": [captions]}) or the official `vatex_{training,validation}_v1.0.json`.
        videos: folder with `<youtube id>_<start>_<end>` plus extension.
        splits: only these.
    Raises:
        InputError, NotFoundError, UsageError: see `DatasetEntry.read`.
    """
    choose_protocol(protocol, (), "vatex")
    wanted = choose_splits(splits, SPLITS, "vatex")
    names = (*(f"{split}_list.txt" for split in SPLITS), WHOLE)
    folder = AnnotationFolder(annotations, dataset="vatex", source=SOURCE, files=names)
    needs = {
        split: [(f"{split}_list.txt",), (WHOLE, OFFICIAL[0] if split == "train" else OFFICIAL[1])] for split in SPLITS
    }
    files, notes = folder.of_splits(wanted, needs, asked=splits is not None)
    gather = Gather("vatex", wanted, EXPECTED[""])
    gather.notes += notes
    for split, (listed, _) in files.items():
        for row, line in read_lines(listed):
            gather.video(check_id(line, listed, row), split=split, path=listed, row=row)
    ids = gather.ids()
    for path in dict.fromkeys(path for _, path in files.values()):
        for id, captions, entry in _captions(path):
            if id in ids:
                for caption in captions:
                    gather.text(id, caption, path=path, row=entry)
    gather.drop_uncaptioned("without caption")
    return gather.annotations(videos)


def _captions(path: Path) -> Iterator[tuple[str, list[object], str | int]]:
    """(id, English captions, where) of either layout."""
    content = read_json(path, (dict, list))
    if isinstance(content, dict):
        for id, entry in content.items():
            yield id, member(entry, "enCap", list, path, show(id)), show(id)
    else:
        for row, entry in enumerate(content, 1):
            yield member(entry, "videoID", str, path, row), member(entry, "enCap", list, path, row), row
