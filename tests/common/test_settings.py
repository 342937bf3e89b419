"""Settings: layers over defaults, each value checked by the name that a user knows it by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from glscl.common.errors import InputError, NotFoundError, UsageError
from glscl.common.settings import as_dict, build, differences, read_settings_file, setting


@dataclass(frozen=True, kw_only=True)
class Made:
    epochs: int = setting(5, "Passes.", min=1)
    lr: float = setting(1e-4, "Rate.", min=0, max=1)
    betas: tuple[float, float] = setting((0.9, 0.98), "Momenta.")
    head: str | None = setting(None, "Head.", choices=("a", "b"))
    folder: Path | None = setting(None, "Folder.", affects_result=False)
    options: Mapping[str, Any] = setting(dict, "Options.", option=False)
    minimum: float | None = setting(None, "Least score.", name="min")


def test_later_layers_win_and_none_leaves_what_is_below():
    made = build(Made, {"epochs": 3, "lr": 1}, {"epochs": None, "head": "b"}, {"lr": 0.5, "folder": Path("x")})
    assert made == Made(epochs=3, lr=0.5, head="b", folder=Path("x"))
    assert isinstance(made.folder, Path) and build(Made) == Made()


def test_values_keep_their_types_through_json():
    made = Made(betas=(0.5, 0.6), options={"queries": 4})
    assert build(Made, json.loads(json.dumps(as_dict(made)))) == made


@pytest.mark.parametrize(
    "layer, message",
    [
        ({"epoch": 1}, "There is no setting 'epoch'; there are epochs, lr"),
        ({"epochs": "3"}, "`epochs` is '3'; expected int, got str"),
        ({"epochs": True}, "`epochs` is True; expected int"),
        ({"epochs": 0}, "`epochs` is 0; expected at least 1"),
        ({"minimum": float("-inf")}, "`min` is -inf; expected a finite number"),
        ({"lr": 2}, "`lr` is 2; expected 0 to 1|`lr` is 2.0; expected 0 to 1"),
        ({"lr": float("nan")}, "`lr` is nan; expected 0 to 1"),
        ({"head": "c"}, "`head` is 'c'; expected one of a, b"),
        ({"betas": [0.9]}, "`betas` is"),
        ({"folder": 3}, "`folder` is 3"),
    ],
)
def test_what_cannot_be_is_said_by_name(layer, message):
    with pytest.raises(UsageError, match=message):
        build(Made, layer)


def test_settings_that_give_the_same_result_are_no_difference():
    assert differences(Made(folder=Path("a")), Made(folder=Path("b"))) == []
    assert differences(Made(), Made(epochs=6)) == [("epochs", 5, 6)]


def test_files_are_toml_or_json_or_the_record_of_a_run(tmp_path):
    toml, plain, run = tmp_path / "a.toml", tmp_path / "b.json", tmp_path / "run.json"
    toml.write_text("epochs = 3\nbatch-size = 8\n[options]\nqueries = 4\n")
    plain.write_text('{"epochs": 3}')
    run.write_text('{"head": "glscl", "settings": {"epochs": 4}}')
    assert read_settings_file(toml) == {"epochs": 3, "batch_size": 8, "options": {"queries": 4}}
    assert read_settings_file(plain) == {"epochs": 3}
    assert read_settings_file(run) == {"epochs": 4}


@pytest.mark.parametrize(
    "name, text", [("a.toml", "epochs = "), ("a.json", "{"), ("a.json", "[1]"), ("a.json", "[" * 99999)]
)
def test_files_that_are_none_are_one_line(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=name):
        read_settings_file(tmp_path / name)
    with pytest.raises(NotFoundError):
        read_settings_file(tmp_path / "none.toml")
