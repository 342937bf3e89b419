"""Splits: their names, which of them are wanted, and how they are made where nobody gives them."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from glscl.common.errors import InputError, UsageError
from glscl.common.tables import amount
from glscl.extract.datasets.text_files import refuse, show
from glscl.extract.settings import SPLITS

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
CARVE_AT_LEAST = 20  # captioned videos; fewer are all test


def choose_protocol(protocol: str | None, protocols: Sequence[str], dataset: str) -> str:
    """`protocol`, or the first of `protocols` for None; UsageError for any other."""
    if protocol is None:
        return protocols[0] if protocols else ""
    if protocol not in protocols:
        known = f"expected one of {', '.join(protocols)}" if protocols else "it has only one"
        raise UsageError(f"{dataset} has no protocol {show(protocol)}; {known}")
    return protocol


def choose_splits(splits: Sequence[str] | None, available: Sequence[str], dataset: str) -> list[str]:
    """The chosen splits in the order train, val, test; all that are available for None.

    Raises:
        UsageError: an unknown split, or none at all.
    """
    if splits is None:
        return [split for split in SPLITS if split in available]
    if isinstance(splits, str):
        splits = [splits]
    for split in splits:
        if split not in available:
            raise UsageError(f"{dataset} has no split {show(split)}; it has {', '.join(available)}")
    if not splits:
        raise UsageError(f"{dataset}: no split was chosen; it has {', '.join(available)}")
    return [split for split in SPLITS if split in splits]


def split_name(value: object, path: Path | str, row: int | str | None) -> str:
    """train, val or test for any usual spelling of them."""
    name = SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if name is None:
        refuse(path, row, f"the split is {show(value)}, expected train, val or test")
    return name


def carve(files: Iterable[str], contents: Mapping[str, bytes] | None = None) -> dict[str, str]:
    """Split for each video file, by a hash: about 80/10/10 of train, val, test; all test where few.

    A file keeps its split when others are added, and when it is renamed, and copies of it have the same (but for sets so
    small that val or test would be empty: these take the training files whose hashes are nearest).

    Args:
        contents: file → hash of what is in it; the others are told apart by their names, in composed Unicode.
    """
    contents = contents or {}
    name_of = {file: contents.get(file) or unicodedata.normalize("NFC", file).encode() for file in files}
    place_of = {name: int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2**64 for name in name_of.values()}
    if len(place_of) < CARVE_AT_LEAST:
        return dict.fromkeys(name_of, "test")
    split_of = {name: "train" if at < 0.8 else "val" if at < 0.9 else "test" for name, at in place_of.items()}
    for split in ("test", "val"):
        if split not in split_of.values():
            training = [name for name in split_of if split_of[name] == "train"]
            split_of[max(training, key=lambda name: (place_of[name], name))] = split
    return {file: split_of[name] for file, name in name_of.items()}


def carving_note(
    path: Path, captioned: Sequence[str], carved: Mapping[str, str], contents: Mapping[str, bytes]
) -> list[str]:
    """The line that says which splits were made up, of `captioned` files."""
    counts = {split: sum(s == split for s in carved.values()) for split in SPLITS}
    if not captioned:
        return [f"{path}: no captions: all videos are in split test, to be searched"]
    if counts["train"]:
        by_name = sum(file not in contents for file in captioned)
        what = f"content ({by_name} without a file: of their names)" if contents and by_name else "content"
        shares = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
        return [
            f"{path}: no splits given: captioned videos were divided by a hash of their "
            f"{what if contents else 'names'}: {shares}"
        ]
    return [f"{path}: no splits given and only {amount(len(captioned), 'captioned video')}: all in split test"]


def choose_present(splits: Sequence[str] | None, split_of: Iterable[str], path: Path) -> list[str]:
    """The chosen splits among those that have videos."""
    present = set(split_of)
    available = [split for split in SPLITS if split in present]
    wanted = choose_splits(splits, SPLITS, str(path))
    absent = [split for split in wanted if split not in present]
    if splits is not None and absent:
        raise InputError(f"{path}: no video in split {absent[0]}; it has {', '.join(available)}")
    return [split for split in wanted if split in present]
