"""The command line. It only wires: the commands stand in `commands/`, each calls one room after another."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from typing import Annotated

import typer

from glscl.commands.backbones import adopt, backbones, fetch
from glscl.commands.caches import convert, inspect, repair
from glscl.commands.completion import ASKED, answer, completion
from glscl.commands.demo import demo
from glscl.commands.doctor import doctor
from glscl.commands.extraction import extract, import_features, merge, pull, push
from glscl.commands.judging import compare, eval, leaderboard, report
from glscl.commands.options import main as run_command_line
from glscl.commands.options import register
from glscl.commands.searching import export, index, search
from glscl.commands.serving import serve
from glscl.commands.training import finetune, import_checkpoint, train_head

COMMAND_GROUPS = {  # heading → commands, as `glscl --help` and docs/cli.md list them
    "Everything at once": (demo,),
    "Caches": (extract, inspect, repair, merge, convert, push, pull, import_features),
    "Backbones": (backbones, fetch),
    "Heads": (train_head, finetune, import_checkpoint, adopt),
    "Judging": (eval, compare, leaderboard, report),
    "Searching": (search, serve, index, export),
    "This machine": (doctor, completion),
}

app = typer.Typer(
    name="glscl",
    help="Encode every frame and caption with CLIP once; then train and judge text-video retrieval heads in seconds.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for heading, functions in COMMAND_GROUPS.items():
    for function in functions:
        register(app, function, group=heading)


def main() -> None:
    """Entry point of the console script."""
    gc.set_threshold(50_000)  # imports make objects by the 100,000 that stay, not to be looked through again and again
    atexit.register(gc.freeze)  # nor at the end
    sys.exit(answer(sys.argv[1:]) if ASKED in os.environ else run_command_line(app))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from glscl import __version__

        print(f"glscl {__version__}")
        raise typer.Exit()
