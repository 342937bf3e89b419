"""How a result is called in tables and figures, with a dagger where its numbers are optimistic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DAGGER = " †"  # stands behind the name of what was selected on the queries it is judged on, in every table and figure


def default_names(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """How to call results: by head, with the run where a head occurs more than once."""
    heads = [str(result["head"]) for result in results]
    runs = [result.get("run") for result in results]
    names = [f"{head} ({run})" if heads.count(head) > 1 and run else head for head, run in zip(heads, runs)]
    return [marked(name, result) for name, result in zip(names, results)]


def selected_on_test(result: Mapping[str, Any]) -> bool:
    """Whether the epoch was chosen by the queries that the result is about: such numbers are optimistic."""
    return result.get("selection") == "test" and result.get("split") == "test"


def marked(name: str, result: Mapping[str, Any]) -> str:
    """The name, with `DAGGER` where the result was selected on the test split."""
    return f"{name}{DAGGER}" if selected_on_test(result) and not name.endswith(DAGGER) else name


def selection_note(name: str) -> str:
    """What the dagger says."""
    return f"{name.removesuffix(DAGGER)}{DAGGER} was selected on the test split, so its numbers are optimistic."
