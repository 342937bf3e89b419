"""How a result is called: its file, and its name in tables and figures, with a mark where its numbers are optimistic."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# They stand behind the name, in every table and figure, of what was selected on the queries it is judged on, and of what
# was trained on videos it is judged on.
SELECTED, SEEN = "†", "‡"
_MARKS = re.compile(f" [{SELECTED}{SEEN}]+$")


def result_name(split: str, list: str | None = None) -> str:
    """File of a result in its folder, such as `result-val@msrvtt-full.json`.

    Args:
        split: what was judged; "test" is not named.
        list: name of the list, where it is not the one that the run was trained on.
    """
    return f"result{'' if split == 'test' else f'-{split}'}{f'@{list}' if list else ''}.json"


def default_names(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """How to call results: by head, with the run where a head occurs more than once."""
    heads = [str(result["head"]) for result in results]
    runs = [result.get("run") for result in results]
    names = [f"{head} ({run})" if heads.count(head) > 1 and run else head for head, run in zip(heads, runs)]
    return [marked(name, result) for name, result in zip(names, results)]


def selected_on_test(result: Mapping[str, Any]) -> bool:
    """Whether the epoch was chosen by the queries that the result is about: such numbers are optimistic."""
    return result.get("selection") == "test" and result.get("split") == "test"


def seen_in_training(result: Mapping[str, Any]) -> str | None:
    """A warning where some of the judged videos are known to have been trained on; None elsewhere."""
    counts = result.get("counts") or {}
    seen = counts.get("videos_seen_in_training")
    if not seen:
        return None
    return f"{seen:,} of the {counts['videos']:,} videos were seen in training: the numbers do not tell how it does on others"


def marked(name: str, result: Mapping[str, Any]) -> str:
    """The name, with the marks that its numbers need."""
    marks = SELECTED * selected_on_test(result) + SEEN * (seen_in_training(result) is not None)
    return f"{plain_name(name)} {marks}" if marks else name


def plain_name(name: str) -> str:
    """The name without marks."""
    return _MARKS.sub("", name)


def mark_notes(name: str, result: Mapping[str, Any]) -> list[str]:
    """What the marks of a name say, a sentence each."""
    plain, seen, notes = plain_name(name), seen_in_training(result), []
    if selected_on_test(result):
        notes.append(f"{plain} {SELECTED} was selected on the test split, so its numbers are optimistic.")
    if seen:
        notes.append(f"{plain} {SEEN}: {seen}.")
    return notes
