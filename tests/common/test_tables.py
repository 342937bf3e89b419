"""Tables line up in a terminal, can be read back in every style, and no text in them can break anything."""

from __future__ import annotations

import csv
import io

import pytest
from rich.cells import cell_len

from glscl.common.errors import UsageError
from glscl.common.tables import STYLES, Difference, Measured, Table, TableRow, one_line, plain_table, render

TABLE = Table(
    "A & B",
    ("Method", "R@1", "50_%"),
    (TableRow("Ours", ("a|b_c", 31.25, None)), TableRow("Theirs", ('d,"e" ~ \\', 9.96, -0.04))),
    ("A note.",),
)


def test_terminal_tables_line_up():
    text = render(TABLE, "terminal")
    lines = text.splitlines()
    assert lines[0] == "A & B" and lines[2].split() == ["Method", "R@1", "50_%"] and lines[-1] == "A note."
    cells = [line for line in lines if line.startswith(("a|b_c", "d,"))]
    assert [line.index(value) + len(value) for line, value in zip(cells, ["31.2", "10.0"])] == [len(lines[2]) - 6] * 2
    assert cells[0].endswith("–") and cells[1].endswith(" 0.0")
    assert "[Ours]" in lines and "[Theirs]" in lines


def test_markdown_tables_have_as_many_cells_in_every_line():
    lines = [line for line in render(TABLE, "markdown").splitlines() if line.startswith("|")]
    assert lines[1] == "|---|---:|---:|"
    assert {line.replace("\\|", "").count("|") for line in lines} == {4}
    assert "a\\|b_c" in lines[3] and "**Theirs**" in lines[4]


def test_csv_keeps_every_digit_and_the_section():
    rows = list(csv.reader(io.StringIO(render(TABLE, "csv"))))
    assert rows[0] == ["Table", "Section", "Method", "R@1", "50_%"]
    assert rows[1] == ["A & B", "Ours", "a|b_c", "31.25", ""]
    assert rows[2] == ["A & B", "Theirs", 'd,"e" ~ \\', "9.96", "-0.04"]


def test_latex_escapes_what_latex_would_read():
    text = render(TABLE, "latex")
    assert r"Method & R@1 & 50\_\% \\" in text and r"a|b\_c & 31.2 & -- \\" in text
    assert r"\textasciitilde{} \textbackslash{} & 10.0 & 0.0 \\" in text
    assert r"\begin{tabular}{lrr}" in text and r"\multicolumn{3}{l}{\textit{Theirs}} \\" in text
    assert text.count(r"\midrule") == 2


def test_a_hostile_caption_cannot_break_a_table_or_a_terminal():
    nasty = "one | two\nthree \x1b[31mred\x07 <b>& $x_1$ \ud800"
    table = Table("t", ("Caption", "Rank"), (TableRow("", (nasty, 1.0)), TableRow("", ("plain", 2.0))))
    for style in STYLES:
        text = render(table, style)
        assert not {"\x1b", "\x07", "\ud800"} & set(text), style
        assert sum("plain" in line for line in text.splitlines()) == 1
    rows = list(csv.reader(io.StringIO(render(table, "csv"))))
    assert len(rows) == 3 and rows[1][2] == one_line(nasty)
    markdown = [line for line in render(table, "markdown").splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in markdown} == {3} and "<b>" not in "".join(markdown)
    assert r"\textless{}b\textgreater{}\& \$x\_1\$" in render(table, "latex")


def test_a_terminal_cuts_long_cells_and_a_file_keeps_them():
    table = Table("t", ("Caption",), (TableRow("", ("word " * 100,)),))
    assert max(map(len, render(table, "terminal").splitlines())) < 80
    assert render(table, "csv").count("word") == 100


def test_a_table_without_a_title_is_bare_and_keeps_long_cells():
    table = plain_table(["split", "videos"], [["train", "1,000"], ["word " * 30, "9"]])
    lines = render(table).splitlines()
    assert lines[0].split() == ["split", "videos"] and len(lines) == 3
    assert lines[2].startswith("word word") and lines[2].count("word") == 30 and lines[2].endswith("     9")


def test_what_belongs_to_the_row_above_is_indented_in_a_terminal_alone():
    rows = (TableRow("", ("a", 1.0)), TableRow("", ("b", Measured(2.0, 1.0, 3.0)), "under"))
    table = Table("", ("", "R@1"), rows)
    assert render(table).splitlines()[2:] == ["  b         2.0", "  95 %  1.0–3.0"]
    assert "| b | 2.0 |" in render(table, "markdown")


def test_a_value_has_the_decimals_it_asks_for():
    table = Table("t", ("", "MRR"), (TableRow("", ("a", Measured(0.4321, 0.4, 0.5, digits=3))),))
    assert "0.432" in render(table) and "0.400–0.500" in render(table, "markdown")
    assert render(table, "csv").splitlines() == ["Table,Section,,MRR,MRR low,MRR high", "t,,a,0.4321,0.4,0.5"]
    alone = Table("t", ("", "MRR"), (TableRow("", ("a", Measured(0.4321, digits=3))),))
    assert render(alone, "csv").splitlines()[1] == "t,,a,0.4321"


def test_a_difference_says_its_interval_and_how_likely_it_is_by_chance():
    table = Table("t", ("", "R@1"), (TableRow("", ("a", Difference(-1.25, -2.0, 0.5, 0.04))),))
    assert "−1.2 (-2.0–0.5; p 0.0400)" in render(table)


def test_an_unknown_style_is_refused():
    with pytest.raises(UsageError, match="terminal, markdown, csv, latex"):
        render(TABLE, "html")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", " ="])
def test_a_text_is_no_formula_to_a_spreadsheet(start):
    hostile = f'{start}HYPERLINK("http://example.org")'
    table = Table(hostile, (hostile, "R@1"), (TableRow(hostile, (hostile, Measured(-1.5))),))
    header, row = csv.reader(io.StringIO(render(table, "csv")))
    for cell in (header[2], *row[:3]):
        assert cell.startswith("'") and cell.endswith('HYPERLINK("http://example.org")')
    assert row[3] == "-1.5", "numbers stay numbers"


def test_no_text_turns_the_order_of_what_is_read():
    for character in "\u202e\u2066\u2069\u200f":
        table = Table("t", ("id",), (TableRow("", (f"video{character}4pm.exe",)),))
        assert all(character not in render(table, style) for style in ("terminal", "markdown", "csv", "latex"))


def test_columns_line_up_behind_wide_characters():
    rows = [["厨房.mp4", "一只猫", 1.0], ["a.mp4", "a cook 🍳", 22.0], ["é", "e\u0301 acute", 3.0]]
    lines = render(plain_table(["video", "caption", "n"], rows, left=(0, 1))).splitlines()
    assert {cell_len(line) for line in lines} == {cell_len(lines[0])}
    assert (
        len({cell_len(line[: line.index(word)]) for line, word in zip(lines[1:], ("一只猫", "a cook", "e\u0301"))}) == 1
    )
    cut = render(Table("t", ("a",), (TableRow("", ("猫" * 60,)),))).splitlines()[4]
    assert cut.endswith("…") and cell_len(cut) in (75, 76)
