"""Judging where a caption has several right videos, some more so than others: TREC's files, and the measures for them.

T texts, V videos, Q queries.

A judgement is (caption id, video id, grade); a grade above 0 is right. Files are TREC's qrels (`caption 0 video grade`, apart
by blanks), a table with the columns caption, video and perhaps grade, where a caption may also be named by its words, or the JSON
files of FIRE (Rodriguez et al. 2022, arXiv 2210.05038), extra judgements for the tests of MSR-VTT 1k-A and MSVD. A caption's own
video is always right: with the highest grade of the caption where the file says none or 0, with the file's grade where it says one above.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glscl.cache.files import write_atomically
from glscl.common.errors import InputError, NotFoundError
from glscl.evaluate.ranks import TEXT_TO_VIDEO, VIDEO_TO_TEXT
from glscl.extract.datasets.text_files import fold, member, read_json, refuse, show

CUTOFF = 10  # of nDCG
RECALLS = (1, 5, 10)
DEPTH = 1000  # lines a query of a run file
MEASURES = (f"nDCG@{CUTOFF}", "mAP", "R-precision", *(f"recall@{k}" for k in RECALLS), *(f"any@{k}" for k in RECALLS))

FIRE_GRADES = {"relevant": "1", "irrelevant": "0"}

Qrels = Mapping[str, Mapping[str, float]]  # caption (id or words) → video id → grade


def read_qrels(path: Path) -> Qrels:
    """Judgements from a file: TREC's qrels, a .csv or .tsv table with the columns caption, video and perhaps grade, FIRE's .json.

    Raises:
        NotFoundError: there is no such file.
        InputError: a line that is no judgement, or two grades of one pair.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no file of judgements {path}")
    found: dict[str, dict[str, float]] = {}
    for line, caption, video, text in _rows(path):
        try:
            grade = float(text)
        except ValueError:
            grade = float("nan")
        if not 0 <= grade < 64:
            raise InputError(f"{path}, line {line}: the grade is {text[:40]!r}; expected a number from 0 to 63")
        if found.setdefault(caption, {}).setdefault(video, grade) != grade:
            raise InputError(f"{path}, line {line}: {caption[:80]} and {video[:80]} have two grades")
    if not found:
        raise InputError(f"{path} holds no judgement")
    return found


def _rows(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Line, caption, video and grade of every judgement of a file."""
    if path.suffix.lower() == ".json":
        yield from _fire(path)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}") from None
    if path.suffix.lower() in (".csv", ".tsv"):
        rows = csv.DictReader(text.splitlines(), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        if not {"caption", "video"} <= {*(rows.fieldnames or ())}:
            expected = "caption, video and perhaps grade"
            raise InputError(f"{path} has the columns {', '.join(rows.fieldnames or ())[:200]}; expected {expected}")
        for row in rows:
            if not row["caption"] or not row["video"]:
                raise InputError(f"{path}, line {rows.line_num}: a judgement needs a caption and a video")
            yield rows.line_num, row["caption"], row["video"], row.get("grade") or "1"
        return
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words and len(words) != 4:
            raise InputError(f"{path}, line {number}: {len(words)} words; expected `caption 0 video grade`")
        if words:
            yield number, words[0], words[2], words[3]


def _fire(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Judgements as FIRE's files have them: captions by their words, pairs on which annotators disagreed left out.

    `{"annotations": [{"query": …, "video_id": …, "label": "relevant" or "irrelevant", …}, …], "disagreements": […], …}`
    """
    found = member(read_json(path, dict), "annotations", list, path, "(whole file)")
    for row, entry in enumerate(found, 1):
        query, video, label = (member(entry, key, str, path, row) for key in ("query", "video_id", "label"))
        if label not in FIRE_GRADES:
            refuse(path, row, f"the label is {show(label)}, expected {' or '.join(FIRE_GRADES)}")
        yield row, fold(query), video, FIRE_GRADES[label]


def grades(
    qrels: Qrels, text_ids: Sequence[str], captions: Sequence[str], video_ids: Sequence[str], video_of_text: Any
) -> np.ndarray:
    """(T, V) float64 grades of all pairs; judgements of captions and videos that are not there are left out.

    Raises:
        InputError: no judgement is of these captions and videos.
    """
    column = {name: number for number, name in enumerate(video_ids)}
    made, used = np.zeros((len(text_ids), len(video_ids))), 0
    own = np.asarray(video_of_text, np.int64)
    for row, names in enumerate(zip(text_ids, captions)):
        for name in dict.fromkeys(names):
            for video, grade in qrels.get(name, {}).items() if name else ():
                if video in column:
                    made[row, column[video]] = grade
                    used += 1
        if not made[row, own[row]]:
            made[row, own[row]] = made[row].max() or 1.0
    if not used:
        raise InputError(
            f"none of the judgements of {len(qrels):,} captions is of a caption and a video that are judged; ids here are like "
            f"{text_ids[0]} and {video_ids[0]}, in the file {next(iter(qrels))[:80]}"
        )
    return made


def graded_metrics(similarity: Tensor, grade: np.ndarray) -> dict[str, dict[str, float]]:
    """`MEASURES` of both directions, means over queries that have a right answer, in percent, and how many those are.

    `nDCG@10` has gain 2^grade − 1 and discount log2(1 + rank); the others ask whether a grade is above 0. `recall@K` is the share
    of the right ones among the first K, `any@K` whether there is one. Equal scores count with the one whose place is later first, as
    in trec_eval, whose places are ids.

    Args:
        similarity: (T, V).
        grade: (T, V), from `grades`.
    """
    scores = similarity.detach().cpu().numpy()
    return {TEXT_TO_VIDEO: _measured(scores, grade), VIDEO_TO_TEXT: _measured(scores.T, grade.T)}


def _measured(scores: np.ndarray, grade: np.ndarray) -> dict[str, float]:
    sums, queries = np.zeros(len(MEASURES)), 0
    for row, graded in zip(scores, grade):
        right = int((graded > 0).sum())
        if right:
            queries += 1
            order = len(row) - 1 - np.argsort(-row[::-1], kind="stable")
            sums += _of_query(graded[order], right)
    mean = 100 * sums / max(queries, 1)
    return {**dict(zip(MEASURES, mean.tolist())), "queries": queries}


def _of_query(graded: np.ndarray, right: int) -> np.ndarray:
    """`MEASURES`, from 0 to 1, of grades in the order of a ranking."""
    discount = 1 / np.log2(np.arange(2, CUTOFF + 2))

    def gain(of: np.ndarray) -> float:
        return float(((2.0 ** of[:CUTOFF] - 1) * discount[: len(of)]).sum())

    ndcg = gain(graded) / gain(-np.sort(-graded))
    places = np.flatnonzero(graded > 0) + 1  # rising
    precision = (np.arange(1, right + 1) / places).mean()
    at = [int((places <= k).sum()) for k in RECALLS]
    return np.array([ndcg, precision, (places <= right).mean(), *(n / right for n in at), *(float(n > 0) for n in at)])


def write_trec_run(
    path: Path, similarity: Tensor, text_ids: Sequence[str], video_ids: Sequence[str], *, tag: str
) -> None:
    """Write the best videos of every caption, 1,000 at most, as TREC's programs read them: `caption Q0 video rank score tag`.

    Raises:
        InputError: an id with a blank in it, which the format cannot hold.
        StorageError: the disk is full or failing.
    """
    for name in (*text_ids, *video_ids):
        if len(name.split()) != 1:
            raise InputError(f"the id {name[:80]!r} has a blank in it, which a TREC file cannot hold")
    found = torch.topk(similarity, min(DEPTH, similarity.shape[1]), dim=1)
    word, lines = "-".join(tag.split()) or "glscl", []
    for text, scores, columns in zip(text_ids, found.values.tolist(), found.indices.tolist()):
        for rank, (score, column) in enumerate(zip(scores, columns), 1):
            lines.append(f"{text} Q0 {video_ids[column]} {rank} {score:.9g} {word}\n")
    write_atomically(path, "".join(lines).encode())
