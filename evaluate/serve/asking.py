"""What a request asks for: parameters of a URL → settings of a search, checked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from glscl.common.errors import UsageError
from glscl.common.settings import build
from glscl.evaluate.search.settings import SearchSettings

MOST = 1000  # answers at once
LONGEST = 2000  # characters of a value
WHERE = {"cache": str, "list": str, "head": str}
SEARCH = {
    "top": int,
    "by": str,
    "moments": int,
    "min": float,
    "split": str,
    "folder": str,
    "shortest": float,
    "longest": float,
    "exact": bool,
}
PART = {"start": float, "end": float}
SENTENCES = ("q", "and", "not")
ELSEWHERE = ("id", "v")  # what other parts of the server read


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is searched, and how.

    Attributes:
        cache, list, head: names, as `/api/caches` gives them; None is the default.
        q: the sentence. also, without: others that should fit, or should not.
        t, start, end: seconds of a video.
        encode: whether a part to be played is encoded anew.
    """

    cache: str | None = None
    list: str | None = None
    head: str | None = None
    q: str | None = None
    also: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    t: float | None = None
    start: float | None = None
    end: float | None = None
    encode: bool = False
    settings: SearchSettings = SearchSettings()


def read_parameters(given: Iterable[tuple[str, str]], *names: str) -> Asked:
    """Parameters of a URL.

    Args:
        given: names and values as they stand in the URL; an empty value counts as none.
        names: which ones this request knows.

    Raises:
        UsageError: one that is unknown, given twice, no number, out of bounds or too long.
    """
    found: dict[str, str | int | float | bool] = {}
    sentences: dict[str, list[str]] = {"and": [], "not": []}
    for name, value in given:
        if name not in names:
            raise UsageError(f"there is no parameter {name[:40]!r} here; there are {', '.join(sorted(names))}")
        if len(value) > LONGEST:
            raise UsageError(f"{name} has {len(value):,} characters; at most {LONGEST:,} are read")
        if not value.strip():
            continue
        if name in sentences:
            sentences[name].append(value)
        elif name in found:
            raise UsageError(f"{name} is given twice")
        else:
            found[name] = _converted(name, value)
    settings = build(SearchSettings, {_FIELDS.get(name, name): found.pop(name) for name in SEARCH if name in found})
    if settings.top > MOST or settings.moments > MOST:
        raise UsageError(f"at most {MOST:,} answers are given at once")
    told: dict[str, Any] = {name: value for name, value in found.items() if name not in ELSEWHERE}
    return Asked(**told, also=tuple(sentences["and"]), without=tuple(sentences["not"]), settings=settings)


_FIELDS = {"min": "minimum"}
_NUMBERS = {**SEARCH, **PART, "t": float, "encode": bool}


def _converted(name: str, value: str) -> str | int | float | bool:
    kind = _NUMBERS.get(name, str)
    if kind is str:
        return value
    if kind is bool:
        if value not in ("true", "false"):
            raise UsageError(f"{name} is {value[:40]!r}; expected true or false")
        return value == "true"
    try:
        number = kind(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or abs(number) > 1e9:
        raise UsageError(f"{name} is {value[:40]!r}; expected {'a whole number' if kind is int else 'a number'}")
    if name in ("t", *PART) and number < 0:
        raise UsageError(f"{name} is {value[:40]!r}; expected seconds from 0 on")
    return number
