"""A table, and how it is written: for a terminal, as Markdown, CSV or LaTeX. The report has the renderer for HTML."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from glscl.common.errors import UsageError

INTERVAL_LABEL = "  95 %"
INDENT = "  "
_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
WIDEST = 76  # columns of a cell in a terminal; the other styles give all


class Measured(NamedTuple):
    """A number with its 95 % interval. Text styles put the interval on a line below, CSV into two columns beside.

    Attributes:
        low, high: None where no interval was measured.
        digits: decimals that are printed.
        best: whether it is the best of its column.
    """

    value: float
    low: float | None = None
    high: float | None = None
    digits: int = 1
    best: bool = False

    @property
    def spread(self) -> str:
        """The interval as it is printed; "" where there is none."""
        return "" if self.low is None or self.high is None else interval(self.low, self.high, self.digits)


class Difference(NamedTuple):
    """A difference with its 95 % interval and the probability of one at least as large by chance."""

    value: float
    low: float
    high: float
    p: float
    digits: int = 1


Cell = str | float | Measured | Difference | None  # None: not measured, or not published


class TableRow(NamedTuple):
    """Cells of one row. Rows of one section stand together.

    Attributes:
        kind: "under" where the row belongs to the one above; other words are for style sheets.
        marks: short remarks on what the row is about, each with its kind, such as ("selected on test", "warn").
    """

    section: str
    cells: tuple[Cell, ...]
    kind: str = ""
    marks: tuple[tuple[str, str], ...] = ()


class Table(NamedTuple):
    """A table before it is rendered; notes stand below.

    Attributes:
        title: "" leaves out title and rules in a terminal, where long cells are then kept whole.
        left: columns aligned to the left; None is every column without numbers.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()
    left: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        return f"Table({self.title!r}, {len(self.rows)} rows of {', '.join(self.columns)})"

    @property
    def aligned_left(self) -> list[bool]:
        """Of each column, whether its cells begin rather than end together."""
        if self.left is not None:
            return [i in self.left for i in range(len(self.columns))]
        numbers = (int, float, Measured, Difference)
        return [not any(isinstance(row.cells[i], numbers) for row in self.rows) for i in range(len(self.columns))]

    @property
    def sections(self) -> dict[str, list[TableRow]]:
        """Title → rows, in the order in which sections first occur."""
        sections: dict[str, list[TableRow]] = {}
        for row in self.rows:
            sections.setdefault(row.section, []).append(row)
        return sections


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, left: tuple[int, ...] = (0,)) -> Table:
    """A table without title, sections and rules: columns that line up, those of `left` to the left."""
    return Table("", tuple(columns), tuple(TableRow("", tuple(cells)) for cells in rows), left=left)


def render(table: Table, style: str = "terminal") -> str:
    """A table as text that ends in a newline.

    Args:
        style: "terminal", "markdown", "csv" (full precision, title and section as first columns) or "latex" (booktabs).
    """
    if style not in STYLES:
        raise UsageError(f"tables are rendered as {', '.join(STYLES)}; found {style!r}")
    return STYLES[style](table)


# ---- numbers and texts -----------------------------------------------------------------------------------------------


def one_line(text: str) -> str:
    """Text that cannot break a line or steer a terminal: line breaks and tabs folded, control characters made visible."""
    text = re.sub(r"\s*[^\S ]\s*", " ", text).strip()
    return "".join("\N{REPLACEMENT CHARACTER}" if steers(c) else c for c in text)


def steers(character: str) -> bool:
    """Whether a character moves the cursor, turns the order of what is read (bidirectional controls), or is none at all."""
    return unicodedata.category(character) in ("Cc", "Cs") or character in _BIDIRECTIONAL


def number(value: float, digits: int = 1) -> str:
    """A measured value as it is printed: one decimal by default, never "-0.0"."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def amount(count: int, word: str) -> str:
    """`1 video`, `2,990 videos`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def signed(value: float, digits: int = 1) -> str:
    """A difference as it is printed: with its sign, but for 0."""
    text = minus(number(value, digits))
    return text if text.startswith("−") or float(text) == 0 else f"+{text}"


def minus(text: str) -> str:
    """A printed number with a minus sign instead of a hyphen."""
    return text.replace("-", "−")


def interval(low: float, high: float, digits: int = 1) -> str:
    """An interval as it is printed."""
    return f"{number(low, digits)}–{number(high, digits)}"


def p_value(p: float) -> str:
    """A probability as it is printed."""
    return f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def cell_text(cell: Cell) -> str:
    """What stands in a cell: a text in one line, a number rounded, a dash where there is none."""
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return one_line(cell)
    if isinstance(cell, Measured):
        return number(cell.value, cell.digits)
    if isinstance(cell, Difference):
        return f"{signed(cell.value, cell.digits)} ({interval(cell.low, cell.high, cell.digits)}; p {p_value(cell.p)})"
    return number(cell)


# ---- styles ----------------------------------------------------------------------------------------------------------


def _lines(row: TableRow, *, indent: str = "") -> list[list[str]]:
    """The lines of one row: values, and below them the intervals where there are any."""
    texts = [cell_text(cell) for cell in row.cells]
    if row.kind == "under":
        texts[0] = indent + texts[0]
    lines, below = [texts], [cell.spread if isinstance(cell, Measured) else "" for cell in row.cells]
    if any(below):
        lines.append([INTERVAL_LABEL, *below[1:]])
    return lines


def _width(text: str) -> int:
    """Cells that a terminal shows a text in: CJK and emoji take two each, combining marks none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _clipped(text: str) -> str:
    if _width(text) <= WIDEST:
        return text
    from rich.cells import set_cell_size

    return set_cell_size(text, WIDEST - 1).rstrip() + "…"


def _terminal(table: Table) -> str:
    columns = [one_line(name) for name in table.columns]
    sections = {
        name: [cells for row in rows for cells in _lines(row, indent=INDENT)] for name, rows in table.sections.items()
    }
    if table.title:
        sections = {name: [[*map(_clipped, cells)] for cells in lines] for name, lines in sections.items()}
    lines = [columns, *(cells for section in sections.values() for cells in section)]
    widths = [min(WIDEST, max(map(_width, column))) for column in zip(*lines)]  # a longer cell moves its own line alone

    def line(cells: Sequence[str]) -> str:
        blanks = [" " * (width - _width(cell)) for cell, width in zip(cells, widths)]
        padded = [
            cell + blank if left else blank + cell for cell, blank, left in zip(cells, blanks, table.aligned_left)
        ]
        return "  ".join(padded).rstrip()

    rule = ["─" * (sum(widths) + 2 * (len(widths) - 1))] if table.title else []
    out = [*([one_line(table.title)] if table.title else []), *rule, line(columns), *rule]
    for section, rows in sections.items():
        out += [f"[{section}]"] if len(sections) > 1 else []
        out += map(line, rows)
    return "\n".join([*out, *rule, *map(one_line, table.notes)]) + "\n"


def _markdown(table: Table) -> str:
    def escape(text: str) -> str:
        return one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(escape(cell) for cell in cells) + " |"

    out = [f"### {escape(table.title)}", ""] if table.title else []
    out += [line(table.columns), "|" + "|".join("---" if left else "---:" for left in table.aligned_left) + "|"]
    for section, rows in table.sections.items():
        if len(table.sections) > 1:
            out.append(line([f"**{section}**", *[""] * (len(table.columns) - 1)]))
        out += [line(cells) for row in rows for cells in _lines(row)]
    return "\n".join([*out, *(line for note in table.notes for line in ("", escape(note)))]) + "\n"


def _has_interval(cell: Cell) -> bool:
    return isinstance(cell, Measured | Difference) and cell.low is not None


def _csv(table: Table) -> str:
    spread = [any(_has_interval(row.cells[i]) for row in table.rows) for i in range(len(table.columns))]

    def expand(cell: Cell, with_interval: bool) -> list[Any]:
        if isinstance(cell, Measured | Difference):
            return [cell.value, cell.low, cell.high] if with_interval else [cell.value]
        plain = "" if cell is None else _no_formula(cell) if isinstance(cell, str) else cell
        return [plain, "", ""] if with_interval else [plain]

    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    header = [_no_formula(name) for column, with_interval in zip(table.columns, spread)
              for name in ([column, f"{column} low", f"{column} high"] if with_interval else [column])]  # fmt: skip
    writer.writerow(["Table", "Section", *header])
    for row in table.rows:
        cells = [value for cell, with_interval in zip(row.cells, spread) for value in expand(cell, with_interval)]
        writer.writerow([_no_formula(table.title), _no_formula(row.section), *cells])
    return file.getvalue()


def _no_formula(text: str) -> str:
    """A text that a spreadsheet does not take for something to compute: ids and captions may be anybody's."""
    line = one_line(text)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
}


def _latex(table: Table) -> str:
    def escape(text: str) -> str:
        return "".join(_LATEX.get(character, character) for character in one_line(text))

    def line(cells: Iterable[str]) -> str:
        return " & ".join(escape(cell) for cell in cells) + r" \\"

    out = [f"% {one_line(table.title)}", *(f"% {one_line(note)}" for note in table.notes)]
    out += [r"\begin{tabular}{" + "".join("l" if left else "r" for left in table.aligned_left) + "}", r"\toprule"]
    out.append(line(table.columns))
    for section, rows in table.sections.items():
        out.append(r"\midrule")
        if len(table.sections) > 1:
            out.append(rf"\multicolumn{{{len(table.columns)}}}{{l}}{{\textit{{{escape(section)}}}}} \\")
        out += [line(cells) for row in rows for cells in _lines(row)]
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}"]) + "\n"


STYLES: dict[str, Callable[[Table], str]] = {
    "terminal": _terminal,
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
}
