"""ActivityNet Captions as paragraph retrieval: the joined sentences of a video are one query for all of it.

The split `test` is the first validation annotation (`val_1`), on which every published number is measured; there is
no other test set with captions, and no validation split: training carves one from train.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from glscl.cache.schema import Annotations, Expected
from glscl.extract.datasets.base import AnnotationFolder, Gather, choose_protocol, choose_splits
from glscl.extract.datasets.text_files import (
    check_id,
    member,
    number,
    read_json,
    refuse,
    show,
)

FILES = {"train": ("train_ids.json", "train.json"), "test": ("val_ids.json", "val_1.json")}
SOURCE = "captions.zip of cs.stanford.edu/people/ranjaykrishna/densevid has all four files; see docs/datasets.md."
EXPECTED = {"": {"train": Expected(10_009, 10_009), "test": Expected(4_917, 4_917)}}


def read(
    annotations: Path | None,
    videos: Path | None,
    *,
    splits: Sequence[str] | None = None,
    protocol: str | None = None,
) -> Annotations:
    """Read ActivityNet Captions; videos and their one text stand in the order of the id files.

    Ids without captions are left out, as by all public programs. A video runs from 0 to its duration, rounded up.

    Args:
        annotations: folder with `train.json`, `train_ids.json`, `val_1.json`, `val_ids.json` (without a file of ids,
            the order is that of the captions).
        videos: folder with `v_<11 characters>` plus extension, the same without `v_`, or with any two characters.
        splits: only these.
    Raises:
        InputError, NotFoundError, UsageError: see `DatasetEntry.read`.
    """
    choose_protocol(protocol, (), "activitynet")
    wanted = choose_splits(splits, tuple(FILES), "activitynet (val_1 is read as split test)")
    names = [name for pair in FILES.values() for name in pair]
    folder = AnnotationFolder(annotations, dataset="activitynet", source=SOURCE, files=names)
    needs = {split: [(captions,)] for split, (_, captions) in FILES.items()}
    files, notes = folder.of_splits(wanted, needs, asked=splits is not None)
    gather = Gather("activitynet", wanted, EXPECTED[""])
    gather.notes += notes
    for split, (path,) in files.items():
        captions = read_json(path, dict)
        listed = folder.find(FILES[split][0])
        if listed is None:
            gather.note(f"{split}: no {FILES[split][0]}: the order is that of {path.name}")
        for row, value in enumerate(captions if listed is None else read_json(listed, list), 1):
            source = listed or path
            id = check_id(value, source, row)
            if id not in captions:
                gather.video(id, split=split, path=source, row=row)
                continue
            entry = captions[id]
            duration = number(member(entry, "duration", (int, float), path, show(id)), "duration", path, show(id))
            sentences = member(entry, "sentences", list, path, show(id))
            if not all(isinstance(sentence, str) for sentence in sentences):
                refuse(path, show(id), f"the sentences are {show(sentences)}, expected strings")
            gather.video(id, split=split, path=source, row=row, start=0.0, end=float(max(1, math.ceil(duration))))
            gather.text(id, " ".join(sentences), path=path, row=show(id))
    gather.drop_uncaptioned("without caption")
    return gather.annotations(videos, also=_without_prefix, any_prefix=True)


def _without_prefix(id: str) -> list[str]:
    return [id[2:]] if id.startswith("v_") and len(id) > 2 else []
