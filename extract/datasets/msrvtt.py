"""MSR-VTT: 10,000 clips with 20 captions each.

Protocols: `9k` (train 9,000 clips, test the 1,000 of the 1k-A split, one caption each), `7k` (the same test, train the
7,010 clips of the official train and validation splits) and `full` (official 6,513 / 497 / 2,990, all captions).
9k and 7k have no validation split; training carves one from train.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from glscl.cache.schema import Expected
from glscl.common.errors import InputError
from glscl.common.tables import amount
from glscl.extract.datasets.benchmark import AnnotationFolder, Benchmark, FoundFiles, check_held_out
from glscl.extract.datasets.builder import AnnotationBuilder
from glscl.extract.datasets.columns import captions_in_cell, read_table
from glscl.extract.datasets.splits import SPLITS, split_name
from glscl.extract.datasets.text_files import check_id, examples, member, read_json, read_lines, show

TEST = "MSRVTT_JSFUSION_test.csv"
TRAIN_LIST = "MSRVTT_train.{}.csv"
SENTENCES = "MSRVTT_data.json"
TRAIN_SENTENCES, TEST_SENTENCES = "train_val_videodatainfo.json", "test_videodatainfo.json"  # the official pair


def _collect(builder: AnnotationBuilder, found: FoundFiles) -> None:
    """Texts of train stand in the order of the JSON file, those of test in that of the CSV file."""
    folder, files, protocol = found
    captioned: dict[str, None] = {}
    if protocol == "full":
        data = _read_sentences(folder)
        _add_official(builder, data, files)
        captioned = _add_sentences(builder, data, builder.ids())
    else:
        if "test" in files:
            _add_test(builder, files["test"][0])
        if "train" in files:
            data = _read_sentences(folder)
            _add_training(builder, data, folder, protocol)
            captioned = _add_sentences(builder, data, builder.ids("train"))
    builder.drop_uncaptioned("without caption", captioned)


def _needs(protocol: str, folder: AnnotationFolder) -> dict[str, list[tuple[str, ...]]]:
    train, test = (SENTENCES, TRAIN_SENTENCES), (SENTENCES, TEST_SENTENCES)
    if protocol == "full":
        return {"train": [train], "val": [train], "test": [test]}
    # without its list, the training part of 9k is all but the test clips
    derived = protocol == "9k" and folder.find(TRAIN_LIST.format(protocol)) is None
    return {"train": [train, (TEST,)] if derived else [train], "test": [(TEST,)]}


def _read_sentences(folder: AnnotationFolder) -> list[tuple[Path, dict[str, Any]]]:
    """The JSON file with everything, or those of the two official ones that are there."""
    whole = folder.find(SENTENCES)
    paths = [whole] if whole else [folder.find(TRAIN_SENTENCES), folder.find(TEST_SENTENCES)]
    return [(path, read_json(path, dict)) for path in paths if path]


def _official_splits(data: list[tuple[Path, dict[str, Any]]]) -> Iterator[tuple[str, str, Path, int]]:
    """(video id, official split, file, row) of every clip."""
    for path, content in data:
        for row, entry in enumerate(member(content, "videos", list, path, "(whole file)"), 1):
            id = check_id(member(entry, "video_id", str, path, row), path, row)
            yield id, split_name(member(entry, "split", str, path, row), path, row), path, row


def _add_official(builder: AnnotationBuilder, data: list[tuple[Path, dict[str, Any]]], splits: Container[str]) -> None:
    for id, split, path, row in _official_splits(data):
        if split in splits:
            builder.video(id, split=split, path=path, row=row)


def _add_training(
    builder: AnnotationBuilder, data: list[tuple[Path, dict[str, Any]]], folder: AnnotationFolder, protocol: str
) -> None:
    listed = folder.find(TRAIN_LIST.format(protocol))
    if listed is not None:
        lines = read_lines(listed)
        lines = lines[1:] if lines and lines[0][1] == "video_id" else lines
        chosen = [(check_id(line, listed, row), listed, row) for row, line in lines]
    else:
        builder.note(
            f"no {TRAIN_LIST.format(protocol)}: the training clips follow from the other files, in their order"
        )
        wanted = ("train", "val") if protocol == "7k" else SPLITS
        chosen = [(id, path, row) for id, split, path, row in _official_splits(data) if split in wanted]
    test_file = folder.find(TEST)
    if test_file is not None:
        held_out = [id for _, (id, _) in read_table(test_file, ("video_id", "sentence"), notes=builder.notes)]
        check_held_out(held_out, [id for id, *_ in chosen], test_file)
        if listed is None and protocol == "9k":
            chosen = _without_test(builder, chosen, held_out, test_file)
    for id, path, row in chosen:
        builder.video(id, split="train", path=path, row=row)


def _without_test(
    builder: AnnotationBuilder, clips: list[tuple[str, Path, int]], held_out: Sequence[str], test_file: Path
) -> list[tuple[str, Path, int]]:
    """The clips that are not held out. Raises InputError where none of those is among them."""
    left_out, known = {*held_out}, {id for id, *_ in clips}
    strange = [id for id in held_out if id not in known]
    if clips and len(strange) == len(held_out):
        raise InputError(
            f"{test_file}: none of its {amount(len(strange), 'id')} is among the clips of {clips[0][1]}, for example "
            f"{show(strange[0])}; those are such as {show(clips[0][0])}",
            hint="All clips would be trained on: give both files of one source, or the list of the training clips",
        )
    if strange:
        builder.note(f"{amount(len(strange), 'test clip')} not among the clips of {clips[0][1]}: {examples(strange)}")
    return [clip for clip in clips if clip[0] not in left_out]


def _add_test(builder: AnnotationBuilder, path: Path) -> None:
    for row, (id, sentence) in read_table(path, ("video_id", "sentence"), notes=builder.notes):
        builder.video(check_id(id, path, row), split="test", path=path, row=row)
        for caption in captions_in_cell(sentence, path, row):
            builder.text(id, caption, path=path, row=row)


def _add_sentences(
    builder: AnnotationBuilder, data: list[tuple[Path, dict[str, Any]]], ids: Container[str]
) -> dict[str, None]:
    """Add the captions of some videos; the ids that have any, of these or others."""
    captioned: dict[str, None] = {}
    for path, content in data:
        for row, entry in enumerate(member(content, "sentences", list, path, "(whole file)"), 1):
            id = member(entry, "video_id", str, path, row)
            captioned[id] = None
            if id in ids:
                builder.text(id, member(entry, "caption", str, path, row), path=path, row=row)
    return captioned


DATASET = Benchmark(
    name="msrvtt",
    source="MSRVTT_data.json and the lists are in the archive msrvtt_data.zip of the CLIP4Clip releases "
    "(github.com/ArrowLuo/CLIP4Clip/releases); see docs/datasets.md.",
    expected={
        "9k": {"train": Expected(180_000, 9_000), "test": Expected(1_000, 1_000)},
        "7k": {"train": Expected(140_200, 7_010), "test": Expected(1_000, 1_000)},
        "full": {"train": Expected(130_260, 6_513), "val": Expected(9_940, 497), "test": Expected(59_800, 2_990)},
    },
    files=(SENTENCES, TEST),
    needs=_needs,
    collect=_collect,
    about_splits="protocol {protocol}",
)
EXPECTED, read = DATASET.expected, DATASET.read
