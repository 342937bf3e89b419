"""The cache and the list that a run was made from: recorded, opened again, and compared with another that it meets."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glscl.cache.fingerprint import differences
from glscl.cache.library import Library, open_library
from glscl.cache.lists import current_version, list_names
from glscl.cache.store import Store, choose_list
from glscl.common.errors import FingerprintError, Hint, NotFoundError
from glscl.common.recorded_commands import recorded_command

# Parts of a cache's configuration that decide whether a head understands its features. The others (sampling, numbers of
# words, dtype) may differ, and so may the list: a head may be judged on another corpus.
_BINDING = ("library", "name", "pretrained", "weights", "quick_gelu", "preprocessing", "tokenizer")


def cache_record(store: Store) -> dict[str, Any]:
    """What run.json says of the cache and the list that a run was made from; see `open_recorded`."""
    name, pretrained = backbone_of(store.configuration)
    return {
        "dataset": store.dataset,
        "backbone": name,
        "pretrained": pretrained,
        "cache": store.place,
        "cache_fingerprint": store.fingerprint,
        "list": store.list_name,
        "list_hash": store.list_hash,
        "annotations": store.list.annotations,
        "cache_configuration": store.configuration,
    }


def open_recorded(record: Mapping[str, Any], cache: Path | None = None, list: str | None = None) -> Store:
    """The cache that a run or a result was made from, or another one, seen at the list it was made from.

    By its hash, not its name: what was added to the list since does not change what is read. Another cache that does not
    have that version is seen at its only list.

    Args:
        record: content of run.json or of a result file.
        cache: another place to look at; by default the recorded one.
        list: another list, as `glscl.cache.store.open_store` takes it.

    Raises:
        NotFoundError: the recorded cache does not have that version of the list any more.
        UsageError: another cache does not have it, and several lists.
        Others: see `open_store`.
    """
    library = open_library(Path(record["cache"]) if cache is None else cache)
    name, version = record.get("list"), record.get("list_hash")
    if list is not None or not version:
        return Store(library, choose_list(library, list))
    for known_as in (f"{name}@{version}", version):
        with contextlib.suppress(NotFoundError):
            return Store(library, choose_list(library, known_as))
    if os.path.realpath(library.place) == os.path.realpath(record["cache"]):
        raise NotFoundError(
            f"{library.place} does not have the list {name}@{version} any more; it has {_lists(library)}",
            hint="Choose one with `list`",
        )
    return Store(library, choose_list(library, None))


def _lists(library: Library) -> str:
    """The current versions of the lists of a cache, as they are named."""
    if library.is_flat:
        only = choose_list(library, None)
        return f"{only.name}@{only.hash}"
    named = [(name, current_version(library.path, name)) for name in list_names(library.path)]
    return ", ".join(name if version is None else f"{name}@{version}" for name, version in named) or "none"


def list_differences(run: Mapping[str, Any], store: Store) -> list[str]:
    """Whether a cache is seen at another list than a run was made from, or at another version of it: a line, or none."""
    if run.get("list_hash") in (None, "", store.list_hash):
        return []
    line = f"list: found {store.list_name}@{store.list_hash}, expected {run.get('list')}@{run['list_hash']}"
    return [
        f"{line}, the same annotations with other files" if run.get("annotations") == store.list.annotations else line
    ]


def check_cache(folder: Path | str, run: Mapping[str, Any], store: Store, *, which: str = "best") -> list[str]:
    """Refuse features that the head of a run cannot understand.

    Args:
        folder: the run, for the message.
        run: content of its run.json.
        store: an open cache.
        which: "best" or "last" weights; a second pass leaves a backbone with each.

    Returns:
        What else differs from what the run was trained on (list, sampling, …), one line each.

    Raises:
        FingerprintError: another backbone, preprocessing or size of features.
    """
    tuned, lists = run.get("weights", {}).get(which), list_differences(run, store)
    if tuned is None and run["cache_fingerprint"] == store.fingerprint:
        return lists
    trained = run.get("cache_configuration") or {}
    if tuned is not None:
        backbone = {**trained["backbone"], "pretrained": tuned["backbone"], "weights": tuned["weights"]}
        trained = {**trained, "backbone": backbone}
    here, there = _binding(store.configuration), _binding(trained)
    if tuned is not None:
        here["pretrained"] = there["pretrained"]  # the file may have another name; the hash of its weights decides
    if here != there:
        ours, theirs = _describe(store.configuration), _describe(trained)
        detail = "" if ours != theirs else f" ({'; '.join(differences(here, there)[:2])})"
        name, pretrained = backbone_of(trained)
        again: dict[str, Any] = {"dataset": store.dataset, "backbone": name}
        if trained.get("backbone", {}).get("preprocessing", {}).get("method") == "fast":
            again["preprocess"] = "fast"
        if tuned is not None:
            weights = Path(folder) / tuned["backbone"]
            hint = Hint("Extract again", "extract", {**again, "pretrained": weights, "out": "CACHE"})
            if run["cache_fingerprint"] == store.fingerprint:
                hint = extraction_hint(store, weights)
            raise _other_than_tuned(folder, tuned, store, ours, hint)
        if pretrained not in (None, "openai", "demo"):
            again["pretrained"] = pretrained
        raise FingerprintError(
            f"{store.place} was extracted with {ours}; {folder} expects {theirs}{detail}",
            hint=Hint("Extract again", "extract", again),
        )
    features = differences(store.configuration, trained)
    return [*lists, *(line for line in features if not line.startswith("backbone.pretrained:"))]


def _other_than_tuned(
    folder: Path | str, tuned: Mapping[str, Any], store: Store, ours: str, extract: Hint
) -> FingerprintError:
    """What to say of features that another backbone gave than the one a second pass left."""
    pixels = Hint("Judge it from pixels", "eval", {"run": folder, "videos": videos_folder(store) or "DIR"})
    again = extract._replace(otherwise=pixels._replace(text="from pixels"))
    return FingerprintError(
        f"{store.place} was extracted with {ours}; {folder} trained the backbone itself, so its head reads other features",
        hint=pixels if tuned.get("patch_embedding") == "3d" else again,
    )


def extraction_hint(store: Store, weights: Path | str) -> Hint:
    """How what a cache holds is extracted again with other weights, into a folder CACHE that is to be named.

    By the command that made the cache, as it was typed, where an extraction did.
    """
    new = {"pretrained": weights, "out": "CACHE"}
    typed = recorded_command(store.list.command) or ""
    if typed.split(" ")[:2] == ["glscl", "extract"]:
        return Hint("Extract again", typed, new)
    about = store.configuration
    known = {"dataset": store.dataset, "annotations": "FILE", "videos": videos_folder(store) or "DIR"}
    fast = about.get("backbone", {}).get("preprocessing", {}).get("method") == "fast"
    known |= {"backbone": backbone_of(about)[0]} | ({"preprocess": "fast"} if fast else {})
    return Hint("Extract again", "extract", {**known, **new})


def videos_folder(store: Store) -> str | None:
    """The folder that all videos of a cache lay in when it was made; None where nothing says so."""
    folders = {os.path.dirname(video.path) for video in store.plan.videos if video.path}
    if not folders or len({os.path.isabs(folder) for folder in folders}) > 1:
        return None
    return os.path.commonpath(folders) or "."


def backbone_of(configuration: Mapping[str, Any]) -> tuple[str, str | None]:
    """Architecture and weights' tag of the backbone that a cache was made with."""
    backbone = configuration.get("backbone")
    if isinstance(backbone, Mapping):
        return str(backbone.get("name", "unknown")), backbone.get("pretrained")
    return str(backbone or "unknown"), None


def _binding(configuration: Mapping[str, Any]) -> dict[str, Any]:
    backbone = configuration.get("backbone")
    parts = {key: backbone.get(key) for key in _BINDING} if isinstance(backbone, Mapping) else {"name": backbone}
    return {"embed_dim": configuration.get("embed_dim"), **parts}


def _describe(configuration: Mapping[str, Any]) -> str:
    name, pretrained = backbone_of(configuration)
    return f"{name}{f'/{pretrained}' if pretrained else ''} ({configuration.get('embed_dim')}-d)"
