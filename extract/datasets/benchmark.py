"""The base of the benchmarks: a table of facts each, and one function that adds its videos and captions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, NoReturn

from glscl.cache.schema import Annotations, Expected
from glscl.common.errors import InputError, NotFoundError, telling
from glscl.extract.datasets.builder import AnnotationBuilder
from glscl.extract.datasets.splits import choose_protocol, choose_splits
from glscl.extract.datasets.text_files import EXAMPLES, check_id, listing, read_lines, show
from glscl.extract.datasets.video_files import split_extension

Needs = Mapping[str, Sequence[Sequence[str]]]  # split → its files, each by its possible names


class AnnotationFolder:
    """The folder of a benchmark's annotations: finds its files by name, directly or one folder below.

    Args:
        path: what the user gave.
        dataset: name for messages.
        source: one sentence on where the files are to be had.
        files: the files it should hold, for messages.
    Raises:
        NotFoundError: no folder given, or it is not there, naming the files that were looked for.
    """

    def __init__(self, path: Path | None, *, dataset: str, source: str, files: Sequence[str]) -> None:
        self.dataset, self.source, self.files = dataset, source, files
        if path is None:
            raise NotFoundError(
                f"{dataset}: no folder with annotations was given; expected {listing(files)}",
                hint=f"Give `annotations=DIR`. {source}",
            )
        if not path.is_dir():
            found = "is a file, not a folder" if path.exists() else "there is no such folder"
            raise NotFoundError(
                f"{dataset}: {path}: {found}; expected {listing(files)} in it",
                hint=f"Name the folder with `annotations=DIR`. {source}",
            )
        self.path = path

    def find(self, *names: str) -> Path | None:
        """The first of `names` that is there, or None; two copies in different sub-folders are refused."""
        for name in names:
            if (self.path / name).is_file():
                return self.path / name
            below = sorted(folder / name for folder in self._sub_folders if (folder / name).is_file())
            if len(below) > 1:
                raise InputError(
                    f"{self.dataset}: {name} is there {len(below)} times: {', '.join(map(str, below[:EXAMPLES]))}",
                    hint="Give `annotations` the folder that holds the one you mean.",
                )
            if below:
                return below[0]
        return None

    def need(self, *names: str) -> Path:
        """As `find`; NotFoundError naming folder, files and source where there is none."""
        return self.find(*names) or self.missing([" or ".join(names)])

    def missing(self, names: Iterable[str]) -> NoReturn:
        """Raise the NotFoundError for files that are not in the folder."""
        raise NotFoundError(f"{self.dataset}: {self.path} has no {', no '.join(names)}", hint=self.source)

    def files_of_splits(
        self, splits: Sequence[str], needs: Mapping[str, Sequence[Sequence[str]]], *, asked: bool
    ) -> tuple[dict[str, list[Path]], list[str]]:
        """The files of each split that has all of its files.

        Args:
            splits: the splits that are wanted.
            needs: split → one sequence of alternative names per file.
            asked: the user named the splits, so a missing file is an error, not a note.
        Returns:
            split → its files in the order of `needs`, and a note on each split left out.
        Raises:
            NotFoundError: a file of a split that was asked for, or the files of every split, are missing.
        """
        found: dict[str, list[Path]] = {}
        notes = []
        all_absent: dict[str, None] = {}
        for split in splits:
            paths = [self.find(*names) for names in needs[split]]
            absent = [" or ".join(names) for names, path in zip(needs[split], paths) if path is None]
            if absent and asked:
                self.missing(absent)
            if absent:
                notes.append(f"{split} was not read: {self.path} has no {listing(absent)}")
                all_absent.update(dict.fromkeys(absent))
            else:
                found[split] = [path for path in paths if path is not None]
        if not found:
            self.missing(all_absent)
        return found, notes

    @cached_property
    def _sub_folders(self) -> list[Path]:
        try:
            with os.scandir(self.path) as entries:
                return [self.path / e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
        except OSError as error:
            raise InputError(f"{self.path}: cannot be listed: {error.strerror or error}") from None


class FoundFiles(NamedTuple):
    """The annotation files of a benchmark that are there: split → its files, in the order in which it needs them."""

    folder: AnnotationFolder
    files: dict[str, list[Path]]
    protocol: str


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is known of a benchmark, and how it is read.

    Attributes:
        name: key of `DATASETS`.
        source: one sentence on where the files are to be had.
        expected: published sizes, protocol → split → Expected; the protocol is "" where there is only one.
        files: the files that its folder should hold, for messages; or protocol → files.
        needs: which files each split needs; or a function of (protocol, folder).
        collect: adds the videos and captions of what was found.
        about_splits: what to say of its splits where an unknown one is asked for; may name the {protocol}.
        also: further names of the file of an id, see `VideoFiles.locate`.
        any_prefix: file names may have any two characters before the id.
    """

    name: str
    source: str
    expected: Mapping[str, Mapping[str, Expected]]
    files: Sequence[str] | Mapping[str, Sequence[str]]
    needs: Needs | Callable[[str, AnnotationFolder], Needs]
    collect: Callable[[AnnotationBuilder, FoundFiles], None]
    about_splits: str = ""
    also: Callable[[str], Iterable[str]] | None = None
    any_prefix: bool = False

    def read(
        self,
        annotations: Path | None,
        videos: Path | None,
        *,
        splits: Sequence[str] | None = None,
        protocol: str | None = None,
    ) -> Annotations:
        """Read the files of a folder; a split whose files are not there is left out with a note.

        Args:
            annotations: folder that holds the files, or has them one folder below.
            videos: folder of the videos; None leaves every path None.
            splits: only these, whose files must be there.
            protocol: a key of `expected`, the first by default.
        Raises:
            InputError, NotFoundError, UsageError: see `DatasetEntry.read`.
        """
        protocol = choose_protocol(protocol, [name for name in self.expected if name], self.name)
        about = f" ({self.about_splits.format(protocol=protocol)})" if self.about_splits else ""
        wanted = choose_splits(splits, tuple(self.expected[protocol]), self.name + about)
        files = self.files[protocol] if isinstance(self.files, Mapping) else self.files
        folder = AnnotationFolder(annotations, dataset=self.name, source=self.source, files=files)
        needs = self.needs(protocol, folder) if callable(self.needs) else self.needs
        found, notes = folder.files_of_splits(wanted, needs, asked=splits is not None)
        builder = AnnotationBuilder(self.name, wanted, self.expected[protocol])
        builder.notes += notes
        with telling(builder.notes):
            self.collect(builder, FoundFiles(folder, found, protocol))
            return builder.build(videos, also=self.also, any_prefix=self.any_prefix)


def check_held_out(held_out: Sequence[str], known: Sequence[str], path: Path) -> None:
    """Refuse ids that are to be left out of training but would not be, for they are written in another way.

    Args:
        held_out: ids in the file `path`.
        known: ids that are trained on but for those held out.
    Raises:
        InputError: one is a known id but for quotes, blanks, case or an extension.
    """

    def plain(id: str) -> str:
        return split_extension("".join(id.split()).strip("'\"").casefold())[0]

    exact, alike = {*known}, {plain(id): id for id in known}
    for id in held_out:
        if id not in exact and plain(id) in alike:
            raise InputError(
                f"{path}: the id {show(id)} is {show(alike[plain(id)])} elsewhere, and would not be held out of training",
                hint="Write it in the same way",
            )


def add_listed(
    builder: AnnotationBuilder, path: Path, split: str, *, start: float | None = None, end: float | None = None
) -> list[str]:
    """Add the videos of a list, one id a line, each from `start` to `end` seconds; the ids in its order."""
    ids = []
    for row, line in read_lines(path):
        ids.append(check_id(line, path, row))
        builder.video(ids[-1], split=split, path=path, row=row, start=start, end=end)
    return ids
