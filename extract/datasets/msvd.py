"""MSVD: 1,970 short clips with 18 to 81 captions each; every caption is a sample and a query."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from glscl.cache.schema import Expected
from glscl.common.errors import InputError
from glscl.extract.datasets.benchmark import Benchmark, FoundFiles, add_listed
from glscl.extract.datasets.builder import AnnotationBuilder
from glscl.extract.datasets.splits import SPLITS
from glscl.extract.datasets.text_files import check_memo, read_bytes, read_json, refuse, show

CAPTIONS = ("raw-captions.pkl", "captions_msvd.json")  # the second is X-Pool's


def _collect(builder: AnnotationBuilder, found: FoundFiles) -> None:
    """Videos stand in the order of the lists, captions of a video in that of the caption file."""
    path = found.folder.need(*CAPTIONS)
    captions = read_json(path, dict) if path.suffix == ".json" else read_plain_pickle(path, dict)
    for split, (listed, _) in found.files.items():
        for id in add_listed(builder, listed, split):
            for caption in _captions(captions.get(id, []), path, id):
                builder.text(id, caption, path=path, row=show(id))
    builder.drop_uncaptioned(f"without caption in {path.name}", captions)


def _captions(value: object, path: Path, id: str) -> list[str]:
    """The captions of one video, each a sentence or a list of its words."""
    if not isinstance(value, list):
        refuse(path, show(id), f"found {show(value)}, expected a list of captions")
    captions = []
    for caption in value:
        if isinstance(caption, list) and all(isinstance(word, str) for word in caption):
            captions.append(" ".join(caption))
        elif isinstance(caption, str):
            captions.append(caption)
        else:
            refuse(path, show(id), f"found {show(caption)}, expected a caption: a list of words")
    return captions


class _PlainUnpickler(pickle.Unpickler):
    """Admits containers, strings and numbers: whatever would import a name, and so could run code, is refused."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {show(f'{module_name}.{global_name}')}, which could run code")

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def read_plain_pickle(path: Path, expected: type) -> Any:
    """The value of a pickle that holds nothing but containers, strings and numbers.

    Raises:
        InputError: it holds anything else, is damaged, or is not of the expected type.
    """
    data = read_bytes(path)
    try:
        check_memo(data)
        value = _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{path}: not a pickle of plain containers, strings and numbers: {show(reason, limit=150)}",
            hint="Take it from its official source, or convert it to JSON where you trust it.",
        ) from None
    if not isinstance(value, expected):
        refuse(path, None, f"found {type(value).__name__}, expected {expected.__name__}")
    return value


DATASET = Benchmark(
    name="msvd",
    source="The lists and raw-captions.pkl are in the archive msvd_data.zip of the CLIP4Clip releases "
    "(github.com/ArrowLuo/CLIP4Clip/releases); see docs/datasets.md.",
    expected={"": {"train": Expected(48_774, 1_200), "val": Expected(4_290, 100), "test": Expected(27_763, 670)}},
    files=(CAPTIONS[0], *(f"{split}_list.txt" for split in SPLITS)),
    needs={split: [(f"{split}_list.txt",), CAPTIONS] for split in SPLITS},
    collect=_collect,
)
EXPECTED, read = DATASET.expected, DATASET.read
