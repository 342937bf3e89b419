"""Which list a result was judged on, and which results were judged on the same videos and captions."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from glscl.cache.lists import CacheList


class JudgedData(NamedTuple):
    """Results of one split with the same videos and captions: what they are called, and their positions."""

    title: str
    members: list[int]


def about_list(made: CacheList, split: str | None = None) -> dict[str, str]:
    """What a file says of the list, and of the split, that it was made from."""
    about = {"list": made.name, "list_hash": made.hash, "annotations": made.annotations}
    return about if split is None else {**about, "split_annotations": split_hash(made, split)}


def split_hash(made: CacheList, split: str) -> str:
    """Hash of the ids, times and captions of a split, in whatever order, and whatever else the list holds."""
    start, end, owner = (column.tolist() for column in (made.video_start, made.video_end, made.text_video))
    videos = [(made.video_ids[row], start[row], end[row]) for row in made.splits[split].videos]
    texts = [
        (made.text_ids[row], "" if owner[row] < 0 else made.video_ids[owner[row]], made.captions[row])
        for row in made.splits[split].texts
    ]
    content = [sorted(videos), sorted(texts)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def by_judged_data(results: Sequence[Mapping[str, Any]]) -> list[JudgedData]:
    """Results by what they were judged on, in the order given; one that does not say stands with the first of its split."""
    places = [(result["dataset"], result["split"]) for result in results]
    said = [result.get("split_annotations") or result.get("annotations") or "" for result in results]
    first = {place: content for place, content in reversed([*zip(places, said)]) if content}
    found: dict[tuple[tuple[str, str], str], list[int]] = {}
    for position, (place, content) in enumerate(zip(places, said)):
        found.setdefault((place, content or first.get(place, "")), []).append(position)
    several = Counter(place for place, _ in found)
    return [
        JudgedData(_title(place, [results[i] for i in members] if several[place] > 1 else []), members)
        for (place, _), members in found.items()
    ]


def list_notes(results: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """What must be said of results, by (name, result), that stand side by side: that they do not share one list."""
    by_version: dict[str, list[str]] = {}
    for name, result in results:
        by_version.setdefault(result.get("list_hash") or "", []).append(name)
    unknown = by_version.pop("", [])
    notes = [f"{', '.join(unknown)}: not known which list it was judged on."] if unknown else []
    if len(by_version) > 1:
        known = {result["list_hash"]: result for _, result in results if result.get("list_hash")}
        where = "; ".join(f"{', '.join(names)} on {version_of(known[hash])}" for hash, names in by_version.items())
        alike = len({result.get("annotations") for result in known.values()}) == 1
        what = "of the same annotations with other files" if alike else "that differ, but not in this split"
        notes.append(f"Judged on lists {what}: {where}.")
    return notes


def version_of(result: Mapping[str, Any]) -> str:
    """The list of a result as it is named; "an unknown list" where it does not say."""
    return f"{result.get('list')}@{result['list_hash']}" if result.get("list_hash") else "an unknown list"


def _title(place: tuple[str, str], to_tell_apart: Sequence[Mapping[str, Any]]) -> str:
    lists = ", ".join(dict.fromkeys(map(version_of, to_tell_apart)))
    return ", ".join(filter(None, place)) + (f" ({lists})" if lists else "")
