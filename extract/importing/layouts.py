"""Layouts in which other extractors keep the features of videos: what each entry of a file is called, and its times.

N videos, F frames, D embed_dim.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

Read = Callable[[], Any]
NamedReaders = dict[str, Read]  # name → reads its value; "" is the name of an array that has none

_SECONDS = {"timestamps": 1.0, "times": 1.0, "timestamps_ms": 1e-3}  # what times are called, with their unit
_RATE = "fps"  # of the video, not of the features: nothing follows from it
_LENGTHS = ("lengths", "num_frames", "n_frames")
_IDS = ("video_ids", "video_id", "ids", "names", "video_names", "keys", "filenames")
_FEATURES = ("features", "clip_embeddings")
_TIMES_OF_CLIP = re.compile(rf"(.+)_(timestamps_ms|{_RATE})")  # video0_timestamps_ms beside video0_clip


class Times(NamedTuple):
    """When the frames of an entry are shown: reads numbers (F,), each so many `seconds`."""

    read: Read
    seconds: float


class Arranged(NamedTuple):
    """Entries by the name of their video, and the times of those that have some."""

    entries: NamedReaders
    times: dict[str, Times]


def arrange(entries: NamedReaders, as_array: Callable[[Any], np.ndarray]) -> Arranged:
    """Entries called after their videos.

    Understood are `ID/features` with `ID/timestamps` beside, `ID_clip` with `ID_fps` and `ID_timestamps_ms`, and one array
    (N, F, D) `features` with N names `video_ids`, and perhaps `lengths` and `timestamps` (N, F). Everything else stays as it is called.

    Args:
        as_array: makes a value an array.
    Raises:
        ValueError: names and array are of different number, or a name stands twice.
    """
    listed = _listed(entries, as_array)
    if listed is not None:
        return listed
    inside: dict[str, dict[str, str]] = defaultdict(dict)  # folder → last part of a name → entry
    times_of: dict[str, dict[str, str]] = defaultdict(dict)  # video → what stands beside it → entry
    for name in entries:
        folder, _, last = name.rpartition("/")
        inside[folder][last.lower()] = name
        if found := _TIMES_OF_CLIP.fullmatch(name):
            times_of[found[1]][found[2]] = name
    made, times = dict(entries), {}
    for folder, parts in inside.items():
        key = next((each for each in _FEATURES if each in parts), None)
        if key is None:
            continue
        name = folder or parts[key]
        made[name] = made.pop(parts[key])
        for other, seconds in _SECONDS.items():
            if other in parts:
                made.pop(parts[other])
                times.setdefault(name, Times(entries[parts[other]], seconds))
        made.pop(parts.get(_RATE, ""), None)
    for video, parts in times_of.items():
        owners = [name for name in entries if name.startswith(f"{video}_") and name not in parts.values()]
        if len(parts) == 2 and len(owners) == 1:
            made[video] = made.pop(owners[0])
            times[video] = Times(entries[parts["timestamps_ms"]], 1e-3)
            for part in parts.values():
                del made[part]
    if made and all(name.endswith("_clip") for name in made):
        made = {name.removesuffix("_clip"): read for name, read in made.items()}
    return Arranged(made, times)


def only(entries: Mapping[str, Any]) -> str:
    """The name of the one array of a file. Raises ValueError where there are several, and none is called features."""
    named = [name for name in entries if name in _FEATURES]
    if len(entries) > 1 and len(named) != 1:
        names = ", ".join(repr(name) for name in list(entries)[:4])
        raise ValueError(f"{len(entries)} arrays ({names}); expected one, or one named 'features'")
    return named[0] if len(entries) > 1 else next(iter(entries))


def _listed(entries: NamedReaders, as_array: Callable[[Any], np.ndarray]) -> Arranged | None:
    """One array of all videos, with their names and perhaps lengths and times beside it; None for other layouts."""
    last = {name.rpartition("/")[2].lower(): name for name in entries}
    ids = next((last[key] for key in _IDS if key in last), None)
    others = [key for key in last if key not in (*_IDS, *_LENGTHS)]
    features = next((key for key in others if key in _FEATURES), others[0] if len(others) == 1 else None)
    if ids is None or features is None or len(last) != len(entries):
        return None
    names = _strings(entries[ids]())
    if names is None:
        return None
    block = as_array(entries[last[features]]())
    if len(block) != len(names):
        raise ValueError(f"{len(names)} names in {ids} beside an array of {len(block)} videos")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"the name {name!r} stands {count} times in {ids}")
    key = next((last[each] for each in _LENGTHS if each in last), None)
    lengths = [None] * len(names) if key is None else as_array(entries[key]()).reshape(-1).tolist()
    if len(lengths) != len(names):
        raise ValueError(f"{len(names)} names beside {len(lengths)} lengths")
    for name, length in zip(names, lengths):
        if length is not None and not (0 <= length <= block.shape[1] and length == int(length)):
            raise ValueError(
                f"the length of {name!r} in {key} is {length}, expected a number of its {block.shape[1]} rows"
            )
    stops = [None if length is None else int(length) for length in lengths]

    def of_each(array: np.ndarray) -> NamedReaders:
        return {name: partial(lambda row, stop: array[row][:stop], i, stops[i]) for i, name in enumerate(names)}

    clock = next((each for each in _SECONDS if each in last), None)
    if clock is None:
        return Arranged(of_each(block), {})
    shown = as_array(entries[last[clock]]())
    if shown.shape != block.shape[:2]:
        raise ValueError(f"{clock} of the shape {shown.shape} beside features of the shape {block.shape}")
    return Arranged(of_each(block), {name: Times(read, _SECONDS[clock]) for name, read in of_each(shown).items()})


def _strings(value: Any) -> list[str] | None:
    """Names in an array or a list; None for anything else."""
    if isinstance(value, np.ndarray):
        if value.ndim != 1 or value.dtype.kind not in "SUOiu":
            return None
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        return None
    names = [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in value]
    if not all(isinstance(name, (str, int)) and not isinstance(name, bool) for name in names):
        return None
    return [str(name) for name in names]
