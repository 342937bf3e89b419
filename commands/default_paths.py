"""Where caches, runs and results are looked for when no path is given: below `$GLSCL_HOME`."""

from __future__ import annotations

import re
import time
from pathlib import Path

from glscl.common.errors import Hint, NotFoundError, UsageError
from glscl.common.settings import home

_CACHE_MARKS = ("store.json", "head/zarr.json")


def all_caches() -> list[Path]:
    """Every cache there is, by name. Raises NotFoundError where there is none."""
    folder = home() / "caches"
    found = sorted(
        p for p in folder.glob("*") if p.suffix == ".h5" or any((p / mark).is_file() for mark in _CACHE_MARKS)
    )
    if not found:
        raise NotFoundError(
            f"There is no cache in {folder}",
            hint=Hint("Name one with `cache`, or make one", "extract", {"dataset": "NAME"}),
        )
    return found


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


def new_run(head: str) -> Path:
    """`runs/<head>-<time>`, not there yet; of package.module:Class the class."""
    name = re.sub(r"[\w.]+:", "", head)
    base = home() / "runs" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, count = base, 1
    while path.exists():
        count += 1
        path = base.with_name(f"{base.name}-{count}")
    return path


def newest_run() -> Path:
    """The run that was written last. Raises NotFoundError where there is none."""
    folder = home() / "runs"
    found = sorted(folder.glob("*/run.json"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise NotFoundError(
            f"There is no run in {folder}",
            hint=Hint("Judge without with `zero_shot`, or train one", "train-head"),
        )
    return found[-1].parent


def result_file(cache: Path, run: Path | None, head: str, split: str, list: str | None = None) -> Path:
    """Where a result goes: into the folder of its run; zero-shot results stand beside the runs.

    Args:
        list: name of the list that was judged on, where it is not the run's own: its result replaces no other.
    """
    from glscl.evaluate.run_names import result_name

    return (run or home() / "runs" / f"zero-shot-{head}-{cache.name}") / result_name(split, list)
