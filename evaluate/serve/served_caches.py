"""What a server searches: caches, their lists, and the heads that order what is found; by the names that requests use.

V videos of a list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
import torch

from glscl.cache.known_files import KnownFiles
from glscl.cache.library import Library, open_library
from glscl.cache.lists import current_version, list_names
from glscl.cache.schema import Status
from glscl.cache.store import Store, choose_list
from glscl.common.errors import GlsclError, NotFoundError
from glscl.evaluate.search.model import Model, load_run, zero_shot
from glscl.extract.backbone.encoder import Backbone, backbone_of_cache
from glscl.train_head.checkpoint import read_run
from glscl.train_head.run_cache import check_cache

UNTRAINED = ("best_frames", "mean_pool", "query_scoring")  # heads that every cache has
FOLDERS = 200  # of a list that are named
EXAMPLES, SHORT = 4, 80  # captions of a list that are shown to those who do not know what to ask, and their length

Note = Callable[[str], None]


class Video(NamedTuple):
    """One entry of a list. `path` is its file, where that is there unchanged; `stamp` its size and time."""

    id: str
    row: int
    split: str
    path: Path | None
    stamp: tuple[int, int] | None


class Collection:
    """One list of a cache, with the heads that search it.

    What it computes is for one thread at a time; `video` may be called from any.

    Attributes:
        cache, name: what requests call the cache and the list.
        store: the list on its library.
        runs: name → folder of the runs that understand this cache.
    """

    def __init__(self, cache: str, store: Store, encoder: BackboneOfCache, runs: dict[str, Path]) -> None:
        self.cache, self.name, self.store, self.encoder, self.runs = cache, store.list_name, store, encoder, runs
        self._models: dict[str, Model] = {}

    def __repr__(self) -> str:
        return f"Collection({self.cache}/{self.name}, {len(self.rows)} videos)"

    @property
    def heads(self) -> list[str]:
        """Names of all heads, the one that is used where none is named first."""
        return [*self.runs, *UNTRAINED]

    def model(self, head: str | None = None) -> Model:
        """A head on this list; all of them share what was read of it. Raises NotFoundError for an unknown name."""
        name = head or self.heads[0]
        if name not in self.heads:
            raise NotFoundError(f"there is no head {name!r} for {self.cache}; there are {', '.join(self.heads)}")
        if name not in self._models:
            device = self.encoder.device
            made = load_run(self.runs[name], self.store, device=device) if name in self.runs else zero_shot(
                self.store, name, device=device
            )  # fmt: skip
            first = next(iter(self._models.values()), None)
            self._models[name] = made if first is None else made.share(first)
        model = self._models[name]
        if self.encoder.backbone is not None:
            model.__dict__["backbone"] = self.encoder.backbone
        return model

    @cached_property
    def query(self) -> str:
        """What names it in a URL."""
        return urlencode({"cache": self.cache, "list": self.name})

    @cached_property
    def rows(self) -> dict[str, int]:
        """Id → row of the list."""
        return {id: row for row, id in enumerate(self.store.list.video_ids)}

    @cached_property
    def known(self) -> KnownFiles:
        """Where contents were last seen."""
        known = KnownFiles.read(self.store.path)
        known.paths_of(b"")  # its table is made now, and only read by other threads
        return known

    def row(self, id: str) -> int:
        """Raises NotFoundError."""
        try:
            return self.rows[id]
        except KeyError:
            raise NotFoundError(f"the list {self.name} of {self.cache} has no video {id[:200]!r}") from None

    def video(self, id: str) -> Video:
        """An entry, with its file as it is now. Raises NotFoundError where the list has none of this id."""
        row = self.row(id)
        path = self.known.path_of(self.store.list.video_content[row].tobytes(), like=id)
        return Video(id, row, self.split_of(row), path, None if path is None else self.known.stat_of(path))

    def split_of(self, row: int) -> str:
        """Name of the split of a row; nothing where it is in none."""
        return next((name for name, split in self.store.splits.items() if row in split.videos), "")

    def captions(self, row: int, most: int = 40) -> list[str]:
        """The captions of a video, the first of them."""
        texts = np.flatnonzero(self.store.list.text_video == row)[:most]
        return [self.store.list.captions[text] for text in texts.tolist()]

    @cached_property
    def failures(self) -> list[dict[str, Any]]:
        """See `Store.failures`."""
        return self.store.failures()

    @cached_property
    def about(self) -> dict[str, Any]:
        """For JSON."""
        missing = Status.MISSING.name.lower()
        parents = Counter(id.rpartition("/")[0] for id in self.store.list.video_ids if "/" in id)
        return {
            "name": self.name,
            "hash": self.store.list_hash,
            "dataset": self.store.dataset,
            "videos": self.store.num_items["video"],
            "captions": self.store.num_items["text"],
            "failed": sum(each["status"] != missing for each in self.failures),
            "without_file": sum(each["status"] == missing for each in self.failures),
            "splits": {name: len(split.videos) for name, split in self.store.splits.items()},
            "folders": sorted(folder for folder, _ in parents.most_common(FOLDERS)),
            "examples": self._examples(),
        }

    def _examples(self) -> list[str]:
        """A few short captions from all over the list."""
        captions = self.store.list.captions
        part = max(1, len(captions) // EXAMPLES)
        chosen = [
            next((text for text in captions[start : start + part] if len(text) <= SHORT), None)
            for start in range(0, len(captions), part)
        ]
        return [text for text in dict.fromkeys(chosen) if text is not None][:EXAMPLES]


class BackboneOfCache:
    """The backbone of a cache, loaded once, or why there is none.

    Attributes:
        backbone: None where `problem` says why it cannot be had.
        sees: whether it encodes pictures as the frames of the cache were.
        problem: in one line; None where it encodes sentences.
    """

    def __init__(self, library: Library, weights: str | None, device: torch.device) -> None:
        self.device, self.problem = device, None
        self.sees = "text_backbone" not in library.configuration
        self.backbone: Backbone | None = None
        try:
            self.backbone = backbone_of_cache(library.configuration, library.path, weights, device=device)
        except GlsclError as error:
            self.problem, self.sees = error.message, False


class Catalog:
    """All collections. Obtain it from `open_catalog`."""

    def __init__(self, collections: Sequence[Collection]) -> None:
        self.collections = list(collections)
        self._by_name = {(each.cache, each.name): each for each in self.collections}

    def __repr__(self) -> str:
        return f"Catalog({', '.join(f'{each.cache}/{each.name}' for each in self.collections)})"

    @property
    def first(self) -> Collection:
        """What is searched where nothing is named."""
        return self.collections[0]

    def find(self, cache: str | None, list: str | None) -> Collection:
        """The collection of these names; the first that fits where one or both are None. Raises NotFoundError."""
        if cache is not None and list is not None and (cache, list) in self._by_name:
            return self._by_name[cache, list]
        for each in self.collections:
            if cache in (None, each.cache) and list in (None, each.name):
                return each
        names = ", ".join(f"{each.cache}/{each.name}" for each in self.collections)
        raise NotFoundError(f"there is no {cache or 'cache'}/{list or 'list'}; there are {names}"[:1000])

    def about(self, *, paths: bool) -> dict[str, Any]:
        """For JSON.

        Args:
            paths: whether to say where caches and runs lie.
        """
        caches: dict[str, dict[str, Any]] = {}
        for each in self.collections:
            backbone, library = each.store.configuration["backbone"], each.store.library
            entry = caches.setdefault(
                each.cache,
                {
                    "name": each.cache,
                    **({"path": str(each.store.path)} if paths else {}),
                    "backbone": backbone["name"],
                    "pretrained": str(backbone["pretrained"]) if paths else Path(str(backbone["pretrained"])).name,
                    "fingerprint": library.fingerprint,
                    "embed_dim": library.embed_dim,
                    "stored_frames": library.frames is not None,
                    "sentences": each.encoder.backbone is not None,
                    "pictures": each.encoder.sees,
                    "problem": each.encoder.problem,
                    "heads": [
                        {"name": name, "trained": name in each.runs, **_where(each.runs.get(name), paths)}
                        for name in each.heads
                    ],
                    "lists": [],
                },
            )
            entry["lists"].append(each.about)
        first = self.first
        return {
            "caches": list(caches.values()),
            "default": {"cache": first.cache, "list": first.name, "head": first.heads[0]},
        }


def _where(folder: Path | None, paths: bool) -> dict[str, str]:
    return {"path": str(folder)} if paths and folder is not None else {}


def open_catalog(
    caches: Sequence[Path],
    runs: Sequence[Path] = (),
    *,
    list: str | None = None,
    weights: str | None = None,
    device: torch.device | str = "cpu",
    note: Note = lambda text: None,
) -> Catalog:
    """Open caches with all their lists, load a backbone each, and find out which runs understand which cache.

    Args:
        caches: folders or flat files; the first is what is searched where no other is named.
        runs: run folders; those that fit a cache order what is found in it.
        list: only this list of each cache.
        weights: of the backbone, where a cache was made from a file.
        device: where to compute.
        note: told what cannot be used.

    Raises:
        NotFoundError, CacheError: a cache that cannot be opened, or has no finished list.
        FingerprintError: a run that understands none of the caches.
    """
    records = {folder: read_run(folder) for folder in runs}
    names, run_names = unique_names([path.stem for path in caches]), unique_names([path.name for path in runs])
    encoders: dict[str, BackboneOfCache] = {}
    collections, used, refused = [], set[Path](), dict[Path, GlsclError]()
    for name, path in zip(names, caches):
        library = open_library(path)
        stores = _lists_of(library, list, note)
        if library.fingerprint not in encoders:
            encoders[library.fingerprint] = BackboneOfCache(library, weights, torch.device(device))
            problem = encoders[library.fingerprint].problem
            if problem is not None:
                note(f"{path} can be searched by its own videos alone: {problem}")
        wanted = [records[run].get("list") for run in runs]  # older runs do not say
        stores.sort(key=lambda store: (store.list_name not in wanted, -store.num_items["video"]))
        for store in stores:
            store.require_complete()
            understood = {}
            for title, folder in zip(run_names, runs):
                try:
                    check_cache(folder, records[folder], store)
                    understood[title] = folder
                    used.add(folder)
                except GlsclError as error:
                    refused[folder] = error
            collections.append(Collection(name, store, encoders[library.fingerprint], understood))
    for folder in runs:
        if folder not in used:
            raise refused[folder]
    return Catalog(collections)


def _lists_of(library: Library, asked: str | None, note: Note) -> list[Store]:
    """The lists of a cache, at their current versions; only the one that is asked for, where one is."""
    if asked is not None or library.is_flat:
        return [Store(library, choose_list(library, asked))]
    names = list_names(library.path)
    finished = [name for name in names if current_version(library.path, name) is not None]
    for name in names:
        if name not in finished:
            note(f"the list {name} of {library.place} was never finished, and is not searched")
    if not finished:
        return [Store(library, choose_list(library, None))]  # says why it cannot be
    return [Store(library, choose_list(library, name)) for name in finished]


def unique_names(names: Sequence[str]) -> list[str]:
    """Names made different by -2, -3 … where they are equal, and text where they are none."""
    found: list[str] = []
    for name in names:
        name = name.encode("utf-8", "replace").decode()
        number, title = 1, name
        while title in found:
            number += 1
            title = f"{name}-{number}"
        found.append(title)
    return found
