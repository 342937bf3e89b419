"""Tables of results and comparisons, and how they are written: for a terminal, Markdown, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from glscl.common.errors import UsageError
from glscl.evaluate.compare.paired import Paired
from glscl.evaluate.published import FINE_TUNED, FROZEN, PUBLISHED, TEST_VIDEOS, Published


class Measured(NamedTuple):
    """A number with its 95 % interval. Text styles put the interval on a line below, CSV into two columns beside."""

    value: float
    low: float
    high: float


Cell = str | float | Measured | None  # None: not measured, or not published


class Row(NamedTuple):
    """Cells of one row. Rows of one section stand together."""

    section: str
    cells: tuple[Cell, ...]


class Table(NamedTuple):
    """A table before it is rendered. Notes stand below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


DIRECTIONS = {"t2v": "text_to_video", "v2t": "video_to_text"}
SHOWN = ("R@1", "R@5", "R@10", "MdR", "MnR")
OURS = {True: "Frozen backbone", False: "Fine-tuned backbone"}
THEIRS = {FROZEN: "Published, frozen backbone", FINE_TUNED: "Published, fine-tuned backbone"}
NOT_COMPARABLE = "A head on a frozen backbone and a model fine-tuned from pixels are not comparable."
INTERVAL_LABEL = "  95 %"
DAGGER = " †"  # stands behind the name of what was selected on the queries it is judged on, in every table and figure
WIDEST = 76  # characters of a cell in a terminal; the other styles give all


def results_tables(
    results: Iterable[Mapping[str, Any]],
    *,
    published: bool = True,
    names: Sequence[str] | None = None,
    p_values: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Table]:
    """One table for each dataset and split; frozen and fine-tuned backbones stand in sections of their own.

    Args:
        results: contents of `result.json` files.
        published: add the published rows of the dataset, in sections of their own.
        names: how to call each result; its head by default, with the run where a head occurs more than once.
        p_values: name -> direction -> p of R@1 against the first result; adds a column.

    Returns:
        Tables in the order in which datasets first occur, one row a method and direction. Every normalisation of a
        result has rows below it, and its extra data is named in the notes.
    """
    results = list(results)
    names = default_names(results) if names is None else list(names)
    if len(names) != len(results):
        raise UsageError(f"{len(names)} names for {len(results)} results")
    columns = ("Method", "Backbone", "Weights", "Direction", *SHOWN, *(() if p_values is None else ("p",)))
    tables = []
    for dataset, split in dict.fromkeys((result["dataset"], result["split"]) for result in results):
        rows, notes = [], ["t2v: text to video; v2t: video to text, group convention. R@K in percent."]
        if p_values is not None:
            notes.append(f"p: R@1 against {names[0]}, a permutation test paired by query.")
        members = [
            (name, result)
            for name, result in zip(names, results)
            if (result["dataset"], result["split"]) == (dataset, split)
        ]
        notes += coverage_notes(members)
        for name, result in members:
            ours, said = _result_rows(name, result, p_values)
            rows += ours
            notes += said
        if any(of.get("transductive") for _, result in members for of in (result.get("normalised") or {}).values()):
            notes.append("*: not what a query gets that comes alone.")
        rows.sort(key=lambda row: list(OURS.values()).index(row.section))
        if published:
            theirs = published_rows(dataset, (result for _, result in members))
            rows += [row for kind, of in theirs for row in _published_rows(kind, of, p_values is not None)]
            notes += [f"Published rows: protocol {name}." for name in dict.fromkeys(of.protocol for _, of in theirs)]
        if {FROZEN, FINE_TUNED} <= {row.cells[2] for row in rows}:
            notes.append(NOT_COMPARABLE)
        tables.append(Table(f"{dataset}, {split}", columns, tuple(rows), tuple(dict.fromkeys(notes))))
    return tables


def paired_table(
    before: str, after: str, tests: Mapping[str, Mapping[str, Paired]], notes: Sequence[str] = ()
) -> Table:
    """The outcome of `glscl.evaluate.compare.paired.paired_test` for some directions.

    Args:
        before, after: names of the runs.
        tests: direction -> result of `paired_test`.
        notes: said below it too.
    """
    rows = tuple(
        Row(
            direction.replace("_", " "),
            (name, of.before, of.after, of.difference, *of.interval_95, p_value(of.p)),
        )
        for direction, metrics in tests.items()
        for name, of in metrics.items()
    )
    columns = ("Metric", before, after, "Difference", "95 % low", "95 % high", "p")
    how = "Permutation test and bootstrap, paired by query."
    return Table(f"{after} against {before}", columns, rows, (how, *notes))


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


def published_rows(dataset: str, results: Iterable[Mapping[str, Any]]) -> list[tuple[str, Published]]:
    """Published results on a dataset, each with "frozen" or "fine-tuned", to stand beside `results`.

    None where no result is of the published test set: another split, or another protocol (MSR-VTT's full test has 2,990
    videos, the published rows are of 1k-A). A gallery that lost videos counts as the one it should have been.
    """
    admitted = (None, TEST_VIDEOS.get(dataset))
    if not any(
        result["dataset"] == dataset
        and result["split"] == "test"
        and (result.get("counts") or {}).get("expected_videos") in admitted
        for result in results
    ):
        return []
    return [(kind, row) for kind, of in PUBLISHED.items() for row in of if row.dataset == dataset]


def coverage_notes(results: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """What of a split was not judged, by (name, result); said once for all results that it holds for."""
    found: dict[str, list[str]] = {}
    for name, result in results:
        counts = result.get("counts") or {}
        short = [
            f"{counts[have]:,} of {counts[expected]:,} published {what}"
            for have, expected, what in (
                ("videos", "expected_videos", "videos"),
                ("texts", "expected_texts", "captions"),
            )
            if counts.get(expected) is not None and counts[have] != counts[expected]
        ]
        if short:
            note = f"judged on {' and '.join(short)}, so not comparable with published numbers"
            found.setdefault(note, []).append(name)
        if counts.get("texts_without_video"):
            note = f"{counts['texts_without_video']:,} captions lost their video and are no queries"
            found.setdefault(note, []).append(name)
    total = len(results)
    return [f"{'All' if len(names) == total > 1 else ', '.join(names)}: {note}." for note, names in found.items()]


def result_notes(name: str, result: Mapping[str, Any]) -> list[str]:
    """What must be said beside the numbers of a result: how it was selected, what its normalisations have seen."""
    notes = [selection_note(name)] if selected_on_test(result) else []
    alike: dict[tuple[str, str, str], list[str]] = {}
    for normalisation, of in (result.get("normalised") or {}).items():
        if of.get("transductive"):
            said = ("sees", "see", "all test queries at once")
        else:
            said = ("uses", "use", f"extra data: {of.get('bank')}")
        alike.setdefault(said, []).append(normalisation)
    notes += [
        f"{name} + {', '.join(names)} {one if len(names) == 1 else several} {what}."
        for (one, several, what), names in alike.items()
    ]
    return notes


def p_value(p: float) -> str:
    """A probability as it is printed."""
    return f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def number(value: float) -> str:
    """A metric as it is printed: one decimal, never "-0.0"."""
    return f"{round(value, 1) + 0.0:.1f}"


def signed(value: float) -> str:
    """A difference as it is printed: with its sign, but for 0."""
    text = minus(number(value))
    return text if text.startswith("−") or float(text) == 0 else f"+{text}"


def minus(text: str) -> str:
    """A printed number with a minus sign instead of a hyphen."""
    return text.replace("-", "−")


def interval(low: float, high: float) -> str:
    """An interval as it is printed."""
    return f"{number(low)}–{number(high)}"


def _result_rows(
    name: str, result: Mapping[str, Any], p_values: Mapping[str, Mapping[str, float]] | None
) -> tuple[list[Row], list[str]]:
    frozen = bool(result["frozen_backbone"])
    about = (result["backbone"], FROZEN if frozen else FINE_TUNED)
    rows = []
    for short, direction in DIRECTIONS.items():
        cells = _metric_cells(result[direction], (result.get("confidence_95") or {}).get(direction))
        p: tuple[Cell, ...] = ()
        if p_values is not None:
            found = p_values.get(name, {}).get(direction)
            p = (None if found is None else p_value(found),)
        rows.append(Row(OURS[frozen], (name, *about, short, *cells, *p)))
    for normalisation, of in (result.get("normalised") or {}).items():
        for short, direction in DIRECTIONS.items():
            if of.get(direction):
                star = " *" if of.get("transductive") else ""
                cells = (f"{name} + {normalisation}{star}", *about, short, *_metric_cells(of[direction]))
                rows.append(Row(OURS[frozen], (*cells, *(() if p_values is None else (None,)))))
    return rows, result_notes(name, result)


def _published_rows(kind: str, row: Published, with_p: bool) -> list[Row]:
    metrics = {"t2v": row.text_to_video, "v2t": row.video_to_text}
    end = (None,) if with_p else ()
    return [
        Row(THEIRS[kind], (row.method, row.backbone, kind, short, *_metric_cells(of), *end))
        for short, of in metrics.items()
        if of
    ]


def _metric_cells(
    metrics: Mapping[str, float], confidence: Mapping[str, Sequence[float]] | None = None
) -> tuple[Cell, ...]:
    cells: list[Cell] = []
    for name in SHOWN:
        value = metrics.get(name)
        if value is not None and confidence and name in confidence:
            cells.append(Measured(float(value), *map(float, confidence[name])))
        else:
            cells.append(value)
    return tuple(cells)


# ---- styles ----------------------------------------------------------------------------------------------------------


def render(table: Table, style: str) -> str:
    """A table as text that ends in a newline.

    Args:
        style: "terminal", "markdown", "csv" (full precision, title and section as first columns) or "latex" (booktabs).
    """
    if style not in STYLES:
        raise UsageError(f"tables are rendered as {', '.join(STYLES)}; found {style!r}")
    return STYLES[style](table)


def one_line(text: str) -> str:
    """Text that cannot break a line or steer a terminal: white space folded, control characters made visible."""
    folded = " ".join(text.split())
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cs") else c for c in folded)


def _text(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return one_line(cell)
    return number(cell.value if isinstance(cell, Measured) else cell)


def _lines(cells: Sequence[Cell]) -> list[list[str]]:
    """The lines of one row: values, and below them the intervals where there are any."""
    lines = [[_text(cell) for cell in cells]]
    if any(isinstance(cell, Measured) for cell in cells):
        below = [interval(cell.low, cell.high) if isinstance(cell, Measured) else "" for cell in cells]
        lines.append([INTERVAL_LABEL, *below[1:]])
    return lines


def _clipped(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def _numeric(table: Table) -> list[bool]:
    """Which columns hold numbers and are aligned to the right."""
    kinds = (int, float, Measured)
    return [any(isinstance(row.cells[i], kinds) for row in table.rows) for i in range(len(table.columns))]


def _sections(table: Table) -> dict[str, list[tuple[Cell, ...]]]:
    sections: dict[str, list[tuple[Cell, ...]]] = {}
    for row in table.rows:
        sections.setdefault(row.section, []).append(row.cells)
    return sections


def _terminal(table: Table) -> str:
    columns = [one_line(name) for name in table.columns]
    sections = {name: [line for row in rows for line in _lines(row)] for name, rows in _sections(table).items()}
    sections = {name: [[*map(_clipped, cells)] for cells in lines] for name, lines in sections.items()}
    lines = [columns, *(cells for of in sections.values() for cells in of)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    pads = [str.rjust if right else str.ljust for right in _numeric(table)]

    def line(cells: Iterable[str]) -> str:
        return "  ".join(pad(cell, width) for pad, cell, width in zip(pads, cells, widths)).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    out = [one_line(table.title), rule, line(columns), rule]
    for section, of in sections.items():
        out += [f"[{section}]"] if len(sections) > 1 else []
        out += map(line, of)
    return "\n".join([*out, rule, *map(one_line, table.notes)]) + "\n"


def _markdown(table: Table) -> str:
    def escape(text: str) -> str:
        return one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(escape(cell) for cell in cells) + " |"

    out = [f"### {escape(table.title)}", "", line(table.columns)]
    out.append("|" + "|".join("---:" if right else "---" for right in _numeric(table)) + "|")
    sections = _sections(table)
    for section, rows in sections.items():
        if len(sections) > 1:
            out.append(line([f"**{section}**", *[""] * (len(table.columns) - 1)]))
        out += [line(cells) for row in rows for cells in _lines(row)]
    return "\n".join([*out, *(line for note in table.notes for line in ("", escape(note)))]) + "\n"


def _csv(table: Table) -> str:
    measured = [any(isinstance(row.cells[i], Measured) for row in table.rows) for i in range(len(table.columns))]

    def expand(cell: Cell, with_interval: bool) -> list[Any]:
        if isinstance(cell, Measured):
            return list(cell)
        plain = "" if cell is None else one_line(cell) if isinstance(cell, str) else cell
        return [plain, "", ""] if with_interval else [plain]

    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    header = [name for column, with_interval in zip(table.columns, measured)
              for name in ([column, f"{column} low", f"{column} high"] if with_interval else [column])]  # fmt: skip
    writer.writerow(["Table", "Section", *header])
    for row in table.rows:
        cells = [value for cell, with_interval in zip(row.cells, measured) for value in expand(cell, with_interval)]
        writer.writerow([table.title, row.section, *cells])
    return file.getvalue()


_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "†": r"\dag{}",
}


def _latex(table: Table) -> str:
    def escape(text: str) -> str:
        return "".join(_LATEX.get(character, character) for character in one_line(text))

    def line(cells: Iterable[str]) -> str:
        return " & ".join(escape(cell) for cell in cells) + r" \\"

    out = [f"% {one_line(table.title)}", *(f"% {one_line(note)}" for note in table.notes)]
    out += [r"\begin{tabular}{" + "".join("r" if right else "l" for right in _numeric(table)) + "}", r"\toprule"]
    out.append(line(table.columns))
    sections = _sections(table)
    for section, rows in sections.items():
        out.append(r"\midrule")
        if len(sections) > 1:
            out.append(rf"\multicolumn{{{len(table.columns)}}}{{l}}{{\textit{{{escape(section)}}}}} \\")
        out += [line(cells) for row in rows for cells in _lines(row)]
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}"]) + "\n"


STYLES: dict[str, Callable[[Table], str]] = {
    "terminal": _terminal,
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
}
