"""Files of when captions happen: as Charades-STA, TVR, QVHighlights, ActivityNet Captions and DiDeMo are distributed, or a table.

a annotators of one moment, T captions.

    charades_sta_test.txt     `AO8RW 0.0 6.9##a person is putting a book on a shelf.`
    tvr_val_release.jsonl     `{"vid_name": …, "desc": …, "ts": [32.4, 44.2]}`
    highlight_val.jsonl       `{"vid": …, "query": …, "relevant_windows": [[0, 16], [40, 52]]}`
    val_1.json                `{"v_uqiMw7tQ1Cc": {"timestamps": [[0.3, 5.1]], "sentences": ["…"], …}, …}`
    test_data.json            `[{"video": …, "description": …, "times": [[2, 3], [2, 2], …]}, …]`: DiDeMo, pieces of 5 seconds
    moments.csv, moments.tsv  columns caption (an id, or its words), start, end and perhaps video; a row a moment
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glscl.common.errors import InputError
from glscl.extract.datasets.columns import number
from glscl.extract.datasets.text_files import (
    fold,
    member,
    parse_json,
    read_json,
    read_lines,
    read_text,
    refuse,
    show,
    table_records,
)

PIECE = 5.0  # seconds of DiDeMo's pieces, which are numbered from 0, the last one included

Moments = list[np.ndarray]  # the moments of one caption, each (a, 2): start and end in seconds as each annotator saw it


class Written(NamedTuple):
    """One caption of a file: its video ("" where it does not say), its words or id, and when it happens."""

    video: str
    caption: str
    moments: Moments


def read_windows(path: Path) -> list[Written]:
    """The captions of a file with their moments, in its order; of a table, the rows of one caption together.

    Raises:
        NotFoundError, InputError: the file is not there, or a line of it is nothing that is listed above.
    """
    kind = path.suffix.lower()
    readers = {".txt": _charades_sta, ".jsonl": _json_lines, ".json": _json, ".csv": _table, ".tsv": _table}
    if kind not in readers:
        raise InputError(f"{path} is no file of moments; expected one of {', '.join(readers)} (docs/results.md)")
    found = [*readers[kind](path)]
    if not found:
        raise InputError(f"{path} holds no moment")
    return found


def _charades_sta(path: Path) -> Iterator[Written]:
    for row, line in read_lines(path):
        where, mark, sentence = line.partition("##")
        words = where.split()
        if not mark or len(words) != 3:
            refuse(path, row, f"found {show(line)}, expected `video start end##sentence`")
        yield Written(words[0], fold(sentence), [_moment([words[1:]], path, row)])


def _json_lines(path: Path) -> Iterator[Written]:
    for row, line in read_lines(path):
        entry = parse_json(line, path, row)
        video, caption, times = ("vid", "query", "relevant_windows")
        if isinstance(entry, dict) and "vid_name" in entry:
            video, caption, times = ("vid_name", "desc", "ts")
        windows = member(entry, times, list, path, row)
        windows = [windows] if times == "ts" else windows
        if not windows:
            refuse(path, row, f"{times!r} is empty, expected a window, [start, end]")
        moments = [_moment([window], path, row) for window in windows]
        yield Written(member(entry, video, str, path, row), fold(member(entry, caption, str, path, row)), moments)


def _json(path: Path) -> Iterator[Written]:
    content = read_json(path, (dict, list))
    if isinstance(content, list):
        for row, entry in enumerate(content, 1):
            pieces = [_window(each, path, row) for each in member(entry, "times", list, path, row)]
            moment = _moment([(PIECE * first, PIECE * (last + 1)) for first, last in pieces], path, row)
            words = fold(member(entry, "description", str, path, row))
            yield Written(member(entry, "video", str, path, row), words, [moment])
        return
    for video, entry in content.items():
        sentences = member(entry, "sentences", list, path, show(video))
        times = member(entry, "timestamps", list, path, show(video))
        if len(sentences) != len(times) or not all(isinstance(each, str) for each in sentences):
            refuse(path, show(video), f"{len(sentences)} sentences and {len(times)} timestamps; expected one of each")
        for sentence, window in zip(sentences, times):
            yield Written(video, fold(sentence), [_moment([window], path, show(video))])


def _table(path: Path) -> Iterator[Written]:
    rows = table_records(read_text(path), path, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    names = [cell.strip() for cell in next(rows, (0, []))[1]]
    if not {"caption", "start", "end"} <= {*names}:
        refuse(
            path,
            1,
            f"found the columns {', '.join(map(show, names[:8]))}; expected caption, start, end and perhaps video",
        )
    found: dict[tuple[str, str], Moments] = {}
    for row, cells in rows:
        if len(cells) != len(names):
            refuse(path, row, f"found {len(cells)} cells, expected {len(names)}")
        of = dict(zip(names, cells))
        moment = _moment([(of["start"], of["end"])], path, row)
        found.setdefault((of.get("video", "").strip(), fold(of["caption"])), []).append(moment)
    for (video, caption), moments in found.items():
        yield Written(video, caption, moments)


def _moment(windows: Sequence[Any], path: Path, row: int | str) -> np.ndarray:
    """(a, 2) float64 seconds. One that ends before it begins is turned round. Raises InputError for what is no window."""
    made = np.array([_window(window, path, row) for window in windows], np.float64).reshape(-1, 2)
    if not len(made):
        refuse(path, row, "there is no window, expected [start, end]")
    if (made[:, 0] > made[:, 1]).any():  # published files hold a few
        made = np.sort(made, axis=1)
    return made


def _window(window: Any, path: Path, row: int | str) -> tuple[float, float]:
    if not isinstance(window, list | tuple) or len(window) != 2:
        refuse(path, row, f"found {show(window)}, expected a window, [start, end]")
    return number(window[0], "start", path, row), number(window[1], "end", path, row)


def moments_of_captions(
    written: Sequence[Written], text_ids: Sequence[str], captions: Sequence[str], video_of_text: Sequence[str]
) -> Mapping[int, Moments]:
    """The moments of those of T captions that the file names: row of the caption → its moments.

    A caption is known by its video and its words, by its id, or, where the file names no video, by its words alone. Where the
    words stand several times for one video, in the file as often as here, the first is the first; else all of their moments count.

    Args:
        video_of_text: (T,) ids.

    Raises:
        InputError: not one of them is named.
    """
    told: dict[tuple[str, str], list[Moments]] = defaultdict(list)
    for each in written:
        told[each.video, each.caption].append(each.moments)
    rows: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, (id, caption, video) in enumerate(zip(text_ids, captions, video_of_text)):
        known = ((video, caption), (video, id), ("", id), ("", caption))
        if key := next((key for key in known if key in told), None):
            rows[key].append(row)
    found: dict[int, Moments] = {}
    for key, places in rows.items():
        every = [moment for moments in told[key] for moment in moments]
        apart = len(told[key]) == len(places)
        found.update((row, told[key][i] if apart else every) for i, row in enumerate(places))
    if not found:
        first = written[0]
        raise InputError(
            f"none of the {len(written):,} captions with moments is judged: the file has {show(first.caption)} of "
            f"{first.video or 'no video'}, judged is {show(captions[0])} of {video_of_text[0]}",
            hint="Where a data set joins the captions of a video, extract its captions apart (docs/datasets.md)",
        )
    return found
