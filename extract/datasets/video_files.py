"""Finds the file of a video id in a folder, by every file-name rule that distributions of the benchmarks use."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from glscl.common.errors import InputError, NotFoundError
from glscl.common.remote import unsafe
from glscl.common.staged import bring_below, list_folder, remote_file
from glscl.common.tables import amount
from glscl.extract.datasets.text_files import examples

_EXTENSIONS = """
264 265 3g2 3gp 3gpp amv asf avi avs divx dv f4v flv gif h264 h265 hevc ivf m1v m2ts m2v m4v mjpeg mjpg mkv mov mp2v
mp4 mpe mpeg mpg mpv mts mxf nut obu ogm ogv qt rm rmvb ts vob webm wmv wtv y4m
"""
VIDEO_EXTENSIONS = frozenset(_EXTENSIONS.split())
_STRIPPED = VIDEO_EXTENSIONS | {"", "null"}  # ends of an id that a downloader may have replaced (DiDeMo)


def split_extension(name: str) -> tuple[str, str]:
    """(`x.mov`, `mp4`) for `x.mov.mp4`; (name, "") where the end is no known video extension. Case of it is free."""
    stem, dot, extension = name.rpartition(".")
    return (stem, extension) if dot and stem and extension.lower() in VIDEO_EXTENSIONS else (name, "")


class VideoFiles:
    """Every file below a folder, listed once; hidden files and folders are left out, symbolic links are followed.

    Args:
        root: the folder, or its address.
    Raises:
        NotFoundError: no such folder.
        InputError: it cannot be listed. StorageError: it cannot be reached.
    """

    def __init__(self, root: Path) -> None:
        self.notes: list[str] = []
        self.root: Path | str = remote_file(root) or root.absolute()
        if isinstance(self.root, str):
            names = self._list_there(self.root)
        elif root.is_dir():
            names = self._list()
        else:
            found = "is a file, not a folder" if root.exists() else "no such folder"
            raise NotFoundError(f"{root}: {found}; expected the folder of videos", hint="Give `videos=DIR`.")
        self.names = sorted(names)  # relative, with forward slashes
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_suffix: dict[str, list[str]] | None = None
        for relative in self.names:
            name = _normal(relative.rpartition("/")[2])
            self._by_name[name].append(relative)
            stem, extension = split_extension(name)
            if extension:
                self._by_stem[stem].append(relative)

    def _list_there(self, address: str) -> list[str]:
        """Names below an address; what a store tells of them is known afterwards."""
        found = list_folder(address)
        if [*found] == [""]:
            raise NotFoundError(f"{address}: is a file, not a folder; expected the folder of videos")
        shown = [name for name in found if not any(part.startswith(".") for part in name.split("/"))]
        names = [name for name in shown if _is_plain(name) and not unsafe(name)]
        if left := len(shown) - len(names):
            self.notes.append(f"left out {amount(left, 'name')} below {address} that no file here could have")
        return names

    def bring(self, relatives: Iterable[str], folder: Path) -> None:
        """Bring files of an address below a folder here. Raises StorageError."""
        bring_below(str(self.root), relatives, folder)

    def _list(self) -> list[str]:
        found: list[str] = []
        unreadable, no_files = 0, []
        seen: set[tuple[int, int]] = set()
        folders = [""]
        while folders:
            prefix = folders.pop()
            here = os.path.join(self.root, prefix)
            try:
                identity = os.stat(here)
                if (identity.st_dev, identity.st_ino) in seen:  # a link to a folder that was listed, or a circle
                    continue
                seen.add((identity.st_dev, identity.st_ino))
                with os.scandir(here) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                if not prefix:
                    raise InputError(f"{self.root}: cannot be listed: {error.strerror or error}") from None
                self.notes.append(f"left out {prefix}: cannot be listed ({error.strerror or error})")
                continue
            below = []
            for entry in listed:
                if entry.name.startswith("."):
                    continue
                if not _is_plain(entry.name):
                    unreadable += 1
                    continue
                relative = f"{prefix}/{entry.name}" if prefix else entry.name
                try:
                    if entry.is_dir():
                        below.append(relative)
                    elif entry.is_file():
                        found.append(relative)
                    else:
                        no_files.append(relative)
                except OSError as error:  # a circle of links
                    self.notes.append(f"left out {relative}: {error.strerror or error}")
            folders.extend(reversed(below))
        if no_files:
            kinds = f"left out {amount(len(no_files), 'name')} below {self.root}"
            self.notes.append(f"{kinds}: links that lead nowhere, or no files: {examples(no_files)}")
        if unreadable:
            self.notes.append(
                f"left out {amount(unreadable, 'name')} below {self.root}: "
                "control characters or bytes that are not UTF-8"
            )
        return found

    def videos(self) -> list[str]:
        """Relative names of all files with a known video extension, sorted."""
        return [name for name in self.names if split_extension(name.rpartition("/")[2])[1]]

    def full(self, relative: str) -> str:
        """The whole path of a relative name."""
        return f"{self.root}/{relative}" if isinstance(self.root, str) else os.path.join(self.root, relative)

    def locate(
        self,
        ids: Iterable[str],
        *,
        also: Callable[[str], Iterable[str]] | None = None,
        any_prefix: bool = False,
        as_paths: bool = False,
    ) -> dict[str, str]:
        """Find the file of each id, in any sub-folder, case-sensitively (but for the extension).

        A file fits if its name is the id or the id plus a known extension. Failing that, if it is the id minus its own
        extension, with or without another (`x.mov`, `x.null` and `x.` find `x.mp4`), unless the file is another id's.

        Args:
            ids: as in the annotations, perhaps with sub-folders in front.
            also: further names of an id that count as much as the id.
            any_prefix: failing all else, a file whose name minus two characters and extension is one of these names.
            as_paths: an id that is the relative path of a file is that file, whatever else fits, and a file may have
                several ids that name it: the caller knows what to do about them.

        Returns:
            id → path, without the ids that were not found.
        Raises:
            InputError: several files fit one id, or one file fits several ids, naming them.
        """
        ids = list(dict.fromkeys(ids))
        found: dict[str, str] = {}
        crowded: dict[str, list[str]] = {}
        exact = set(self.names) if as_paths else set()

        def settle(id: str, candidates: Iterable[str]) -> bool:
            distinct = self._distinct(candidates)
            if len(distinct) == 1:
                found[id] = distinct[0]
            elif distinct:
                crowded[id] = distinct
            return bool(distinct)

        rest = []
        for id in ids:
            if id in exact:
                found[id] = id
                continue
            candidates: list[str] = []
            for name in (id, *(also(id) if also else ())):
                candidates += self._named(name)
            if not settle(id, candidates):
                rest.append(id)
        if not as_paths:
            self._refuse_two_ids(found)
        taken = set(found.values())
        loosely: dict[str, str] = {}
        for id in rest:
            stem, dot, extension = id.rpartition(".")
            candidates = []
            if dot and stem and not stem.endswith("/") and extension.lower() in _STRIPPED:
                candidates = [name for name in self._named(stem) if name not in taken]
            if not candidates and any_prefix:
                for name in (id, *(also(id) if also else ())):
                    candidates += [other for other in self._prefixed(name) if other not in taken]
            if settle(id, candidates) and id in found:
                loosely[id] = found[id]
        self._refuse_two_ids(loosely)
        if crowded:
            id, names = next(iter(crowded.items()))
            more = f" (and {len(crowded) - 1} more ids like it)" if len(crowded) > 1 else ""
            raise InputError(
                f"{id} has {len(names)} candidate files below {self.root}: {', '.join(names[:4])}"
                f"{', ...' if len(names) > 4 else ''}{more}; expected one",
                hint="Move the others away, or give `videos` the folder that holds the ones you mean.",
            )
        return {id: self.full(found[id]) for id in ids if id in found}

    def strangers(self, found: Mapping[str, str], ids: Iterable[str]) -> list[str]:
        """A note on video files of no id beside ids without a file: they may be the same, spelled in another way."""
        missing, taken = [id for id in ids if id not in found], set(found.values())
        unused = [name for name in self.videos() if self.full(name) not in taken]
        if not missing or not unused:
            return []
        return [
            f"not found below {self.root}: {amount(len(missing), 'video')}, for example {missing[0]}; "
            f"and of no video there: {amount(len(unused), 'file')}, for example {unused[0]}"
        ]

    def _refuse_two_ids(self, found: dict[str, str]) -> None:
        owner: dict[str, str] = {}
        for id, name in found.items():
            if owner.setdefault(name, id) != id:
                raise InputError(
                    f"{self.full(name)} fits two videos of the annotations: {owner[name]} and {id}",
                    hint="Name each file after its id.",
                )

    def _named(self, id: str) -> list[str]:
        folder, slash, name = _normal(id).rpartition("/")
        candidates = [*self._by_name.get(name, ()), *self._by_stem.get(name, ())]
        if slash:
            candidates = [other for other in candidates if _normal(other.rpartition("/")[0]) == folder]
        return candidates

    def _prefixed(self, id: str) -> list[str]:
        if self._by_suffix is None:
            self._by_suffix = defaultdict(list)
            for stem, names in self._by_stem.items():
                if len(stem) > 2:
                    self._by_suffix[stem[2:]].extend(names)
        return self._by_suffix.get(_normal(id), [])

    def _distinct(self, names: Iterable[str]) -> list[str]:
        """The candidates without repeats and without further names (links) of the same file."""
        names = sorted(set(names))
        if len(names) < 2 or isinstance(self.root, str):
            return names
        files: dict[tuple[int, int], str] = {}
        for name in names:
            try:
                identity = os.stat(self.full(name))
            except OSError:
                continue
            files.setdefault((identity.st_dev, identity.st_ino), name)
        return list(files.values())


def _normal(name: str) -> str:
    """Composed Unicode, so that a name written by macOS (decomposed) is found."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _is_plain(name: str) -> bool:
    if name.isascii() and name.isprintable():
        return True
    return not any(unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") for c in name)
