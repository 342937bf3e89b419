"""Where caches, runs and results are looked for when no path is given: below `$GLSCL_HOME`."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path

from glscl.cache.files import storage_errors
from glscl.common.errors import Hint, NotFoundError, UsageError
from glscl.common.launch import launch
from glscl.common.settings import home

_CACHE_MARKS = ("store.json", "head/zarr.json")


def caches_there() -> list[Path]:
    """Every cache below `$GLSCL_HOME`, by name."""
    folder = home() / "caches"
    return sorted(p for p in folder.glob("*") if p.suffix == ".h5" or any((p / m).is_file() for m in _CACHE_MARKS))


def all_caches() -> list[Path]:
    """Every cache there is, by name. Raises NotFoundError where there is none."""
    found = caches_there()
    if not found:
        raise NotFoundError(
            f"There is no cache in {home() / 'caches'}",
            hint=Hint("Name one with `cache`, or make one", "extract", {"dataset": "NAME"}),
        )
    return found


def own_backbones() -> list[str]:
    """What `backbone` calls the folders of models below `$GLSCL_HOME`, by name."""
    return [f"local-dir:{path}" for path in sorted((home() / "backbones").glob("*")) if path.is_dir()]


def the_cache() -> Path:
    """The only cache there is.

    Raises:
        NotFoundError: there is none.
        UsageError: there are several; names them.
    """
    found = all_caches()
    if len(found) > 1:
        raise UsageError(f"There are several caches: {', '.join(map(str, found))}", hint="Choose one with `cache`")
    return found[0]


@contextlib.contextmanager
def run_folder(given: Path | None, head: str) -> Iterator[Path]:
    """The folder of a run: the one that was named, else `runs/<head>-<time>`, of package.module:Class the class.

    A folder that is named here is made at once, so that no other process gets its name; it goes again where nothing was
    written into it.
    """
    path = given or _reserved(re.sub(r"[\w.]+:", "", head))
    try:
        yield path
    finally:
        if given is None and launch().speaks:
            with contextlib.suppress(OSError):  # not empty, as it should be
                path.rmdir()


def _reserved(name: str) -> Path:
    """A run's folder that nobody else has: the first process of a launch makes it, the others only need its name."""
    first = home() / "runs" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not launch().speaks:
        return first
    with storage_errors(first):
        first.parent.mkdir(parents=True, exist_ok=True)
        for count in itertools.count(1):
            path = first if count == 1 else first.with_name(f"{first.name}-{count}")
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
    raise AssertionError("numbers do not end")


def runs_there() -> list[Path]:
    """Every run below `$GLSCL_HOME`, by itself or in a sweep, the newest first."""
    folder = home() / "runs"
    found = [*folder.glob("*/run.json"), *folder.glob("*/*/run.json")]
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)]


def newest_run() -> Path:
    """The run that was written last, by itself or in a sweep. Raises NotFoundError where there is none."""
    found = runs_there()
    if not found:
        raise NotFoundError(
            f"There is no run in {home() / 'runs'}",
            hint=Hint("Judge without with `zero_shot`, or train one", "train-head"),
        )
    return found[0]


def result_file(cache: Path, run: Path | None, head: str, split: str, list: str | None = None) -> Path:
    """Where a result goes: into the folder of its run; zero-shot results stand beside the runs.

    Args:
        list: name of the list that was judged on, where it is not the run's own: its result replaces no other.
    """
    from glscl.evaluate.run_names import result_name

    return (run or home() / "runs" / f"zero-shot-{head}-{cache.name}") / result_name(split, list)
