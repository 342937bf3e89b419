"""Runs side by side: paired tests on their ranks, the queries they differ on, and tables for a terminal or a paper.

N queries that both runs ranked, C clusters (queries drawn together), B resamples.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from glscl.errors import InputError, UsageError
from glscl.evaluate.confidence import METRICS, check_queries, resampled_metrics
from glscl.evaluate.metrics import CUTOFFS, summarise
from glscl.evaluate.published import FINE_TUNED, FROZEN, PUBLISHED, Published

# ---- two runs, query by query ----------------------------------------------------------------------------------------


class Paired(NamedTuple):
    """One metric of two runs on the same queries.

    Attributes:
        before, after: the metric of either run.
        difference: after − before; for R@K more is better, for MdR and MnR less.
        interval_95: [low, high] of the difference, from a bootstrap that draws the same queries for both.
        p: two-sided probability of a difference at least as large if the runs were interchangeable.
    """

    before: float
    after: float
    difference: float
    interval_95: list[float]
    p: float


def paired_test(
    before: Any, after: Any, cluster: Any = None, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Paired]:
    """Is one run better than the other, or did the test queries happen to suit it?

    A permutation test: under the null hypothesis either run could have produced either rank of a query, so the two
    are exchanged at random, cluster by cluster, and p = (1 + differences as large) / (1 + B). It never gives 0.

    Args:
        before, after: (N,) ranks of the same queries in the same order; see `common_queries`.
        cluster: (N,) the video of each query where several share one; None takes each query for itself.
        resamples: B, of both the permutations and the bootstrap.

    Returns:
        Metric -> `Paired`, for the metrics of `glscl.evaluate.metrics.summarise`.

    Raises:
        InputError: no queries, different numbers of them, or ranks that cannot be.
    """
    before, after, cluster, clusters = _check_pair(before, after, cluster)
    if resamples < 1:
        raise UsageError(f"resamples must be at least 1, found {resamples}")
    drawn = [resampled_metrics(ranks, cluster, resamples=resamples, seed=seed) for ranks in (before, after)]
    low, high = np.quantile(drawn[1] - drawn[0], [0.025, 0.975], axis=0)  # same seed and clusters: the same draws

    # What an exchange leaves in place is counted once; of both runs together, it changes nothing.
    ranks, code = np.unique(np.concatenate([before, after]), return_inverse=True)
    code_before, code_after = code[: len(before)], code[len(before) :]
    changed = np.flatnonzero(code_before != code_after)
    together = np.bincount(code, minlength=len(ranks))
    unchanged = np.bincount(np.delete(code_before, changed), minlength=len(ranks))

    def differences(of_before: np.ndarray) -> np.ndarray:
        return _exact_metrics(ranks, together - of_before) - _exact_metrics(ranks, of_before)

    observed = np.abs(differences(np.bincount(code_before, minlength=len(ranks))))
    code_before, code_after, cluster_changed = code_before[changed], code_after[changed], cluster[changed]
    rng = np.random.default_rng(seed)
    as_large = np.zeros(len(METRICS), np.int64)
    for _ in range(resamples):
        exchanged = rng.integers(0, 2, clusters, dtype=np.int8).astype(bool)[cluster_changed]
        one = np.where(exchanged, code_after, code_before)
        as_large += np.abs(differences(unchanged + np.bincount(one, minlength=len(ranks)))) >= observed
    p = (1 + as_large) / (1 + resamples)

    first, second = summarise(before), summarise(after)
    return {
        name: Paired(
            first[name], second[name], second[name] - first[name], [float(low[i]), float(high[i])], float(p[i])
        )
        for i, name in enumerate(METRICS)
    }


class Change(NamedTuple):
    """A query whose rank differs: its position in the ranks, and the rank in either run."""

    query: int
    before: float
    after: float


class Changes(NamedTuple):
    """How many queries rank higher, lower and the same in the second run, and those that moved furthest."""

    improved: int
    worsened: int
    unchanged: int
    most_improved: list[Change]
    most_worsened: list[Change]


def most_changed(before: Any, after: Any, *, top: int = 10) -> Changes:
    """The queries on which two runs differ most, by places gained or lost; equal ones in the order of the queries.

    Args:
        before, after: (N,) ranks of the same queries in the same order.
        top: how many of each kind at most.
    """
    before, after, _, _ = _check_pair(before, after, None)
    gained = before - after

    def furthest(order: np.ndarray) -> list[Change]:
        return [Change(int(i), float(before[i]), float(after[i])) for i in order[:top]]

    order = np.argsort(-gained, kind="stable")
    reverse = np.argsort(gained, kind="stable")
    improved, worsened = int((gained > 0).sum()), int((gained < 0).sum())
    return Changes(
        improved,
        worsened,
        len(gained) - improved - worsened,
        furthest(order[:improved]),
        furthest(reverse[:worsened]),
    )


def common_queries(before: Sequence[str], after: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Positions in both lists of the ids that both have, int64, in the order of the first.

    Runs on caches in which other videos failed have ranked other queries; only common ones can be compared.

    Raises:
        InputError: an id stands twice in a list, or the lists share none.
    """
    for which, ids in (("first", before), ("second", after)):
        if len(set(ids)) != len(ids):
            twice = next(name for i, name in enumerate(ids) if name in set(ids[:i]))
            raise InputError(f"query {twice!r} stands twice in the {which} run")
    position = {name: i for i, name in enumerate(after)}
    pairs = [(i, position[name]) for i, name in enumerate(before) if name in position]
    if not pairs:
        raise InputError(f"the runs share no query: {len(before)} and {len(after)} queries with different ids")
    first, second = np.array(pairs, np.int64).T
    return first, second


def _check_pair(before: Any, after: Any, cluster: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    before, cluster, clusters = check_queries(before, cluster)
    after, _, _ = check_queries(after, None)
    if before.shape != after.shape:
        raise InputError(
            f"the runs ranked {len(before)} and {len(after)} queries; a paired comparison needs the same ones"
        )
    return before, after, cluster, clusters


def _exact_metrics(ranks: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(6,) queries within each cutoff, median rank, sum of ranks: `METRICS` without a division that would round.

    Args:
        ranks: (U,) distinct ranks, rising.
        counts: (U,) queries at each.
    """
    upto = np.cumsum(counts)
    within = np.searchsorted(ranks, CUTOFFS, side="right")
    middle = np.searchsorted(upto, [(upto[-1] - 1) // 2, upto[-1] // 2], side="right")
    hits = np.where(within > 0, upto[within - 1], 0)
    return np.array([*hits, ranks[middle].mean(), (counts * ranks).sum()])


# ---- tables ----------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """Cells of one row; a None was not measured or not published."""

    section: str
    cells: tuple[str | float | None, ...]


class Table(NamedTuple):
    """A table before it is rendered. Rows of one section stand together; notes stand below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


OURS = {True: "Frozen backbone", False: "Fine-tuned backbone"}
THEIRS = {FROZEN: "Published, frozen backbone", FINE_TUNED: "Published, fine-tuned backbone"}
_DIRECTIONS = {"t2v": "text_to_video", "v2t": "video_to_text"}
_SHOWN = ("R@1", "R@5", "R@10", "MdR", "MnR")


def results_tables(
    results: Iterable[Mapping[str, Any]], *, published: bool = True, names: Sequence[str] | None = None
) -> list[Table]:
    """One table for each dataset and split; frozen and fine-tuned backbones stand in sections of their own.

    Args:
        results: contents of `result.json` files.
        published: add the published rows of the dataset, in sections of their own.
        names: how to call each result; its head by default, with the run where a head occurs more than once.

    Returns:
        Tables in the order in which datasets first occur. Every normalisation of a result is a row below it that names
        its extra data in the notes.
    """
    results = list(results)
    names = _names(results) if names is None else list(names)
    if len(names) != len(results):
        raise UsageError(f"{len(names)} names for {len(results)} results")
    columns = ("Method", "Backbone", "Weights", *(f"{short} {name}" for short in _DIRECTIONS for name in _SHOWN))
    tables = []
    for dataset, split in dict.fromkeys((result["dataset"], result["split"]) for result in results):
        rows, notes = [], ["t2v: text to video; v2t: video to text, group convention. R@K in percent."]
        for name, result in zip(names, results):
            if (result["dataset"], result["split"]) == (dataset, split):
                ours, said = _result_rows(name, result)
                rows += ours
                notes += said
        rows.sort(key=lambda row: list(OURS.values()).index(row.section))
        if published:
            theirs = [(kind, row) for kind, of in PUBLISHED.items() for row in of if row.dataset == dataset]
            rows += [_published_row(kind, row) for kind, row in theirs]
            notes += [f"Published rows: protocol {name}." for name in dict.fromkeys(row.protocol for _, row in theirs)]
        if {FROZEN, FINE_TUNED} <= {row.cells[2] for row in rows}:
            notes.append("A head on a frozen backbone and a model fine-tuned from pixels are not comparable.")
        tables.append(Table(f"{dataset}, {split}", columns, tuple(rows), tuple(dict.fromkeys(notes))))
    return tables


def paired_table(before: str, after: str, tests: Mapping[str, Mapping[str, Paired]]) -> Table:
    """The outcome of `paired_test` for some directions.

    Args:
        before, after: names of the runs.
        tests: direction -> result of `paired_test`.
    """
    rows = tuple(
        Row(
            direction.replace("_", " "),
            (name, of.before, of.after, of.difference, *of.interval_95, _p_value(of.p)),
        )
        for direction, metrics in tests.items()
        for name, of in metrics.items()
    )
    columns = ("Metric", before, after, "Difference", "95 % low", "95 % high", "p")
    return Table(f"{after} against {before}", columns, rows, ("Permutation test and bootstrap, paired by query.",))


def render(table: Table, style: str) -> str:
    """A table as text that ends in a newline.

    Args:
        style: "terminal", "markdown", "csv" (full precision, the section as first column) or "latex" (booktabs).
    """
    if style not in STYLES:
        raise UsageError(f"tables are rendered as {', '.join(STYLES)}; found {style!r}")
    return STYLES[style](table)


def _names(results: Sequence[Mapping[str, Any]]) -> list[str]:
    heads = [str(result["head"]) for result in results]
    runs = [result.get("run") for result in results]
    return [f"{head} ({run})" if heads.count(head) > 1 and run else head for head, run in zip(heads, runs)]


def _result_rows(name: str, result: Mapping[str, Any]) -> tuple[list[Row], list[str]]:
    frozen = bool(result["frozen_backbone"])
    about = (result["backbone"], FROZEN if frozen else FINE_TUNED)
    rows, notes = [Row(OURS[frozen], (name, *about, *_metric_cells(result)))], []
    if result.get("selection") == "test":
        notes.append(f"{name} was selected on the test split.")
    for normalisation, of in (result.get("normalised") or {}).items():
        rows.append(Row(OURS[frozen], (f"{name} + {normalisation}", *about, *_metric_cells(of))))
        extra = f"uses extra data: {of['bank']}" if of.get("bank") else "sees all test queries at once"
        notes.append(f"{name} + {normalisation} {extra}.")
    return rows, notes


def _published_row(kind: str, row: Published) -> Row:
    metrics = {"text_to_video": row.text_to_video, "video_to_text": row.video_to_text}
    return Row(THEIRS[kind], (row.method, row.backbone, kind, *_metric_cells(metrics)))


def _metric_cells(result: Mapping[str, Any]) -> tuple[float | None, ...]:
    return tuple((result.get(key) or {}).get(name) for key in _DIRECTIONS.values() for name in _SHOWN)


def _p_value(p: float) -> str:
    return f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def _text(cell: str | float | None, missing: str = "–") -> str:
    if cell is None:
        return missing
    return cell if isinstance(cell, str) else f"{round(cell, 1) + 0.0:.1f}"  # + 0.0: no "-0.0"


def _numeric(table: Table) -> list[bool]:
    """Which columns hold numbers and are aligned to the right."""
    return [any(isinstance(row.cells[i], (int, float)) for row in table.rows) for i in range(len(table.columns))]


def _sections(table: Table) -> dict[str, list[tuple[str | float | None, ...]]]:
    sections: dict[str, list[tuple[str | float | None, ...]]] = {}
    for row in table.rows:
        sections.setdefault(row.section, []).append(row.cells)
    return sections


def _terminal(table: Table) -> str:
    lines = [list(table.columns), *([_text(cell) for cell in row.cells] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    pads = [str.rjust if right else str.ljust for right in _numeric(table)]

    def line(cells: Iterable[str]) -> str:
        return "  ".join(pad(cell, width) for pad, cell, width in zip(pads, cells, widths)).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    out = [table.title, rule, line(table.columns), rule]
    sections = _sections(table)
    for section, rows in sections.items():
        out += [f"[{section}]"] if len(sections) > 1 else []
        out += [line(_text(cell) for cell in cells) for cells in rows]
    return "\n".join([*out, rule, *table.notes]) + "\n"


def _markdown(table: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    out = [f"### {table.title}", "", line(table.columns)]
    out.append("|" + "|".join("---:" if right else "---" for right in _numeric(table)) + "|")
    sections = _sections(table)
    for section, rows in sections.items():
        if len(sections) > 1:
            out.append(line([f"**{section}**", *[""] * (len(table.columns) - 1)]))
        out += [line(_text(cell) for cell in cells) for cells in rows]
    return "\n".join([*out, *(line for note in table.notes for line in ("", note))]) + "\n"


def _csv(table: Table) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["Table", "Section", *table.columns])
    for row in table.rows:
        writer.writerow([table.title, row.section, *("" if cell is None else cell for cell in row.cells)])
    return file.getvalue()


_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
}


def _latex(table: Table) -> str:
    def escape(text: str) -> str:
        return "".join(_LATEX.get(character, character) for character in text)

    def line(cells: Iterable[str]) -> str:
        return " & ".join(escape(cell) for cell in cells) + r" \\"

    out = [f"% {table.title}", *(f"% {note}" for note in table.notes)]
    out += [r"\begin{tabular}{" + "".join("r" if right else "l" for right in _numeric(table)) + "}", r"\toprule"]
    out.append(line(table.columns))
    sections = _sections(table)
    for section, rows in sections.items():
        out.append(r"\midrule")
        if len(sections) > 1:
            out.append(rf"\multicolumn{{{len(table.columns)}}}{{l}}{{\textit{{{escape(section)}}}}} \\")
        out += [line(_text(cell) for cell in cells) for cells in rows]
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}"]) + "\n"


STYLES: dict[str, Callable[[Table], str]] = {
    "terminal": _terminal,
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
}
