"""How a command line is made: options over a settings file over defaults, and only what was given is asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from glscl.commands import options
from glscl.commands.options import BY_COMMAS
from glscl.common.settings import build, setting


@dataclass(frozen=True, kw_only=True)
class Brewing:
    minutes: int = setting(4, "How long.", group="Tea", min=1)
    leaf: str = setting("green", "Which.", group="Tea", choices=("green", "black"), default_from="the pot's")
    strain: bool = setting(True, "Strain it.", group="Tea")
    steeping: int = setting(0, "How long it stands.", group="Tea", name="steeping_time")
    seed: int = setting(0, "Seed.", option=False)


@pytest.fixture
def brew(monkeypatch, capsys):
    """Run `brew …`; what the command heard, its exit status and what was printed to standard error."""
    monkeypatch.setattr(options, "COMMANDS", {})
    heard: dict[str, Any] = {}

    @options.command(Brewing)
    def brew(
        run: options.Run,
        asked: dict[str, Any],
        pot: Annotated[Path, typer.Option(help="Which pot.")],
        cups: Annotated[list[str] | None, typer.Option(help="Cups.")] = None,
        guests: Annotated[str | None, typer.Option("--for", help="Names, separated by commas."), BY_COMMAS] = None,
    ) -> None:
        """Brew."""
        heard.update(asked=asked, pot=pot, cups=cups, guests=guests, seed=run.seed)
        heard.update(settings=build(Brewing, {"leaf": "black"}, asked))

    @options.command()
    def pour(run: options.Run) -> None:
        """Pour."""

    app = typer.Typer(pretty_exceptions_enable=False)
    options.register(app, brew, group="Tea")
    options.register(app, pour, group="Tea")

    def call(*arguments: str) -> tuple[dict[str, Any], int, str]:
        heard.clear()
        status = options.main(app, ["brew", *arguments])
        return dict(heard), status, capsys.readouterr().err

    return call


def test_only_what_was_given_is_asked_for(brew):
    heard, status, _ = brew("--pot", "a")
    assert status == 0 and heard["asked"] == {} and heard["settings"] == Brewing(leaf="black")
    heard, _, _ = brew("--pot", "a", "--minutes", "4", "--no-strain", "--seed", "3")
    assert heard["asked"] == {"minutes": 4, "strain": False, "seed": 3} and heard["pot"] == Path("a")


def test_options_override_a_settings_file(brew, tmp_path):
    file = tmp_path / "tea.toml"
    file.write_text('pot = "b"\nminutes = 9\nleaf = "green"\ncups = ["x"]\nseed = 5\n')
    heard, status, error = brew("--config", str(file), "--minutes", "2")
    assert status == 0, error
    assert heard["asked"] == {"minutes": 2, "leaf": "green", "seed": 5} and heard["seed"] == 5
    assert heard["pot"] == Path("b") and heard["cups"] == ["x"]


def test_a_settings_file_calls_an_option_as_the_command_line_does(brew, tmp_path):
    file = tmp_path / "tea.toml"
    file.write_text('pot = "b"\ncups = "x"\nfor = ["Ann", "Bo"]\nsteeping-time = 3\n')
    heard, status, error = brew("--config", str(file))
    assert status == 0, error
    assert (heard["cups"], heard["guests"], heard["asked"]) == (["x"], "Ann,Bo", {"steeping": 3})
    assert brew("--config", str(file), "--for", "Cy")[0]["guests"] == "Cy"


def test_the_record_of_a_run_is_a_settings_file(brew, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"minutes": 7, "seed": 1}}))
    heard, _, _ = brew("--pot", "a", "--config", str(tmp_path / "run.json"))
    assert heard["settings"] == Brewing(minutes=7, leaf="black", seed=1)


@pytest.mark.parametrize(
    "content, message",
    [
        ("minuets = 3", "There is no setting 'minuets'"),
        ('minutes = "3"', "--minutes is '3'; expected int"),
        ("minutes = 0", "--minutes is 0; expected at least 1"),
        ("pot = 3", "--pot is 3; expected Path"),
        ("for = [3]", "--for is 3; expected str"),
        ('device = "abacus"', "--device is 'abacus'"),
        ("", "--pot is needed. Give it on the command line or in the file of --config"),
    ],
)
def test_a_settings_file_is_checked_as_options_are(brew, tmp_path, content, message):
    file = tmp_path / "tea.toml"
    file.write_text(content)
    more = () if not content or "pot" in content else ("--pot", "a")
    _, status, error = brew("--config", str(file), *more)
    assert status == 2 and message in error


@pytest.mark.parametrize("name", ["head", "dataset"])
def test_a_settings_file_runs_no_code(brew, tmp_path, name):
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"settings": {name: "os.path:join", "pot": "a"}}))
    _, status, error = brew("--config", str(file))
    assert status == 2 and "names 'os.path:join' as" in error and "code outside this package" in error


def test_help_says_who_decides(brew):
    leaf = options.COMMANDS["brew"].parameters["leaf"]
    assert leaf.default is None and "Which. Default: the pot's." in str(leaf.annotation.__metadata__[0].help)
    assert options.COMMANDS["brew"].parameters["minutes"].default == 4
