"""Any text at all in ids, names, captions and messages: it is kept as it is, refused, or made visible."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from glscl.commands.options import _fail, _print_json, _visible, plain
from glscl.common.errors import GlsclError, InputError
from glscl.extract.datasets.text_files import check_id, check_relative_path, fold, parse_json, show, table_records
from glscl.extract.importing.pairing import match

QUICK = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
BIDIRECTIONAL = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
TEXT = st.text(st.characters(), max_size=40)  # half surrogates and control characters included
HERE = Path("captions.csv")


@QUICK
@given(TEXT)
@example("..")
@example("a\x00b")
@example("\ud800")
def test_an_id_is_a_plain_name_or_refused(value):
    try:
        id = check_id(value, HERE, 1)
    except InputError as error:
        assert "\n" not in str(error) and str(error).isprintable()
        return
    assert id == value and id.strip() and "/" not in id and "\\" not in id and "\0" not in id and id not in (".", "..")
    assert id.encode() and len(id.splitlines()) == 1


@QUICK
@given(st.lists(st.sampled_from(["..", ".", "", "a", "b.mp4", "\\", "~", "…"]), max_size=6).map("/".join))
def test_a_relative_path_stays_below_the_folder(value):
    try:
        path = check_relative_path(value, HERE, 1)
    except InputError:
        return
    assert not path.startswith("/")
    assert Path("/videos", path).resolve().is_relative_to("/videos")


@QUICK
@given(st.lists(st.lists(TEXT, min_size=1, max_size=4), max_size=5), st.sampled_from([",", "\t"]))
def test_a_table_gives_cells_or_one_line(rows, delimiter):
    text = "\n".join(delimiter.join(row) for row in rows)
    try:
        found = list(table_records(text, HERE, delimiter=delimiter))
    except InputError as error:
        assert "row" in str(error)
        return
    assert all(isinstance(cell, str) for _, cells in found for cell in cells)


@QUICK
@given(TEXT | st.recursive(st.none() | st.booleans() | st.floats() | TEXT, st.lists).map(repr))
def test_any_text_is_json_or_refused(text):
    with contextlib.suppress(InputError):
        parse_json(text, HERE)


@QUICK
@given(st.lists(TEXT, max_size=6), st.lists(TEXT, max_size=6))
def test_entries_are_matched_to_ids_or_refused(names, ids):
    try:
        found = match(names, ids, Path("features.npz"))
    except InputError:
        return
    assert set(found) <= set(ids) and set(found.values()) <= set(names)
    assert len(set(found.values())) == len(found)


@QUICK
@given(TEXT)
def test_captions_fold_into_one_line_and_stay_folded(text):
    folded = fold(text)
    assert fold(folded) == folded and len(folded.splitlines()) <= 1


@QUICK
@given(TEXT)
@example("\x1b[2J\x1b]0;title\x07")
@example("\udc80")
@example("".join(map(chr, (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))))
def test_what_is_printed_cannot_steer_a_terminal(text):
    visible = _visible(text)
    assert all(c in "\n\t" or (ord(c) >= 32 and not 0x7F <= ord(c) < 0xA0) for c in visible)
    assert not any(unicodedata.bidirectional(c) in BIDIRECTIONAL or c in "\u200e\u200f\u061c" for c in visible)
    visible.encode(), show(text).encode()


@pytest.fixture(scope="module")
def backbone():
    from glscl.extract.backbone.encoder import load_backbone

    return load_backbone("demo", None, words=16, device="cpu")


@settings(max_examples=40, deadline=None)
@given(text=st.text(st.characters(), max_size=200))
@example(text="")
@example(text="<|endoftext|> <start_of_text>" * 9)
@example(text="\ud800\udfff")
@example(text="x" * 100_000)
def test_any_caption_has_a_finite_feature_and_ends_within_its_words(backbone, text):
    encoded = backbone.encode_texts([text])
    assert encoded.text_features.shape == (1, backbone.embed_dim)
    assert 2 <= encoded.token_features.shape[1] <= 16
    assert encoded.text_features.isfinite().all() and encoded.text_features.any()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@QUICK
@given(JSON, st.sampled_from(["utf-8", "ascii", "latin-1", "cp1252"]))
def test_a_result_always_prints_as_json(value, encoding):
    raw = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace")) as out:
        _print_json(plain({"value": value}))
        out.flush()
    json.loads(raw.getvalue().decode(encoding))


@QUICK
@given(TEXT)
def test_an_error_is_one_line_and_its_json_parses(text):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert _fail(str(GlsclError(f"{text} was found", hint="Do this")), 1, as_json=True) == 1
    line = err.getvalue()
    assert line.startswith("glscl: ") and line.count("\n") == 1 and line.endswith("\n")
    told = json.loads(out.getvalue())
    assert told["exit_status"] == 1 and f"glscl: {told['error']}\n" == line


def test_an_endless_message_is_cut(capsys):
    _fail("x" * 1_000_000, 1, as_json=False)
    assert len(capsys.readouterr().err) < 2100


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_terminal_that_lacks_a_letter_is_no_reason_to_fail(monkeypatch, stream):
    from glscl import cli
    from glscl.commands.options import main

    raw = io.BytesIO()
    monkeypatch.setattr(sys, stream, io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    assert main(cli.app, ["inspect", "/nowhere/été", "--json"]) == 1
    getattr(sys, stream).flush()
    assert b"nowhere" in raw.getvalue()
