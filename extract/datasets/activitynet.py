"""ActivityNet Captions as paragraph retrieval: the joined sentences of a video are one query for all of it.

The split `test` is the first validation annotation (`val_1`), on which every published number is measured; there is
no other test set with captions, and no validation split: training carves one from train.
"""

from __future__ import annotations

import math

from glscl.cache.schema import Expected
from glscl.extract.datasets.benchmark import Benchmark, FoundFiles
from glscl.extract.datasets.builder import AnnotationBuilder
from glscl.extract.datasets.columns import number
from glscl.extract.datasets.text_files import check_id, member, read_json, refuse, show

FILES = {"train": ("train_ids.json", "train.json"), "test": ("val_ids.json", "val_1.json")}


def collect(builder: AnnotationBuilder, found: FoundFiles, *, joined: bool = True) -> None:
    """Videos and their one text (or, not `joined`, their sentences) in the order of the id files, else of the captions.

    Ids without captions are left out, as by all public programs. A video runs from 0 to its duration, rounded up.
    """
    captioned: dict[str, None] = {}
    for split, (path,) in found.files.items():
        captions = read_json(path, dict)
        captioned.update(dict.fromkeys(captions))
        listed = found.folder.find(FILES[split][0])
        if listed is None:
            builder.note(f"{split}: no {FILES[split][0]}: the order is that of {path.name}")
        for row, value in enumerate(captions if listed is None else read_json(listed, list), 1):
            source = listed or path
            id = check_id(value, source, row)
            if id not in captions:
                builder.video(id, split=split, path=source, row=row)
                continue
            entry = captions[id]
            duration = number(member(entry, "duration", (int, float), path, show(id)), "duration", path, show(id))
            sentences = member(entry, "sentences", list, path, show(id))
            if not all(isinstance(sentence, str) for sentence in sentences):
                refuse(path, show(id), f"the sentences are {show(sentences)}, expected strings")
            builder.video(id, split=split, path=source, row=row, start=0.0, end=float(max(1, math.ceil(duration))))
            for text in [" ".join(sentences)] if joined else sentences:
                builder.text(id, text, path=path, row=show(id))
    builder.drop_uncaptioned("without caption", captioned)


def _without_prefix(id: str) -> list[str]:
    return [id[2:]] if id.startswith("v_") and len(id) > 2 else []


DATASET = Benchmark(
    name="activitynet",
    source="captions.zip of cs.stanford.edu/people/ranjaykrishna/densevid has all four files; see docs/datasets.md.",
    expected={"": {"train": Expected(10_009, 10_009), "test": Expected(4_917, 4_917)}},
    files=[name for pair in FILES.values() for name in pair],
    needs={split: [(captions,)] for split, (_, captions) in FILES.items()},
    collect=collect,
    about_splits="val_1 is read as split test",
    also=_without_prefix,  # v_<11 characters>, the same without v_ …
    any_prefix=True,  # … or with any two characters
)
EXPECTED, read = DATASET.expected, DATASET.read
