"""A page and an API over caches, for people and programs."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from glscl.commands.options import Run, Stopped, command
from glscl.commands.shared import let_import, without_index
from glscl.common.addresses import may_exist
from glscl.common.errors import UsageError
from glscl.common.settings import build
from glscl.common.tables import amount
from glscl.evaluate.serve.settings import ServeSettings


@command(ServeSettings)
def serve(
    run: Run,
    asked: dict[str, Any],
    caches: Annotated[
        list[Path] | None,
        typer.Argument(help="Caches to search; the first is shown. Default: the runs' own, or all there are."),
    ] = None,
    run_folders: Annotated[
        list[Path] | None,
        typer.Option(
            "--run",
            help="Trained head, which orders what the frames find; again for more. Default: none.",
            rich_help_panel="How",
        ),
    ] = None,
    list: Annotated[
        str | None,
        typer.Option(
            "--list", help="Only this list of each cache. Default: all.", metavar="NAME", rich_help_panel="Data"
        ),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="Weights of the backbone, where a cache was made from a file.", metavar="FILE", rich_help_panel="How"
        ),
    ] = None,
    heads: Annotated[
        list[str] | None,
        typer.Option(
            "--head",
            help="Head of a run where it is from outside this package, to let it be imported: package.module:Class; again "
            "for more.",
            metavar="NAME",
            rich_help_panel="How",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.", rich_help_panel="Server")] = False,
) -> None:
    """Serve a page to search videos with, and an API for programs; see docs/search.md."""
    try:
        from glscl.evaluate.serve.server import Server, ServerAddress
    except ImportError as error:
        raise UsageError(
            f"A page needs starlette and uvicorn ({error.name} is not installed)", hint="pip install 'glscl[serve]'"
        ) from error
    from glscl.evaluate.serve.app import Site
    from glscl.evaluate.serve.served_caches import open_catalog

    settings = build(ServeSettings, asked)
    device = run.device()
    for head in heads or []:
        let_import(head)
    runs = [*dict.fromkeys(run_folders or [])]
    place = ServerAddress(settings)
    catalog = open_catalog(
        [*dict.fromkeys(caches or _caches_of(runs))],
        runs,
        list=list,
        weights=pretrained,
        device=device,
        note=_aside(run),
    )
    site = Site(catalog, settings, paths=not place.public, note=_aside(run))
    site.warm()
    if (problem := catalog.first.model().indexes.problem) is not None:
        _aside(run)(without_index(problem))

    def ready() -> None:
        run.say(f"serving {place.url}")
        run.result({"url": place.url, "token": place.token})
        for each in catalog.collections:
            run.say(f"  {each.cache}/{each.name}: {amount(len(each.rows), 'video')}, by {', '.join(each.heads)}")
        if place.public:
            _aside(run)(
                f"warning: whoever has this address, token and all, and can reach {place.host} sees and plays these videos; "
                "what is sent is not encrypted"
            )
        if show:
            webbrowser.open(place.url)

    try:
        Server(site, place, ready=ready).serve_requests()
    except KeyboardInterrupt:
        raise Stopped("Stopped serving") from None


def _aside(run: Run) -> Any:
    """Prints notes on standard error: the first line of standard output is the address."""

    def note(text: str) -> None:
        if run.speaks:
            print(text if text.startswith("warning") else f"note: {text}", file=sys.stderr, flush=True)

    return note


def _caches_of(runs: list[Path]) -> list[Path]:
    """The caches that runs were trained on, where they are still; else all there are."""
    from glscl.commands.default_paths import all_caches
    from glscl.train_head.checkpoint import read_run

    own = [Path(read_run(folder)["cache"]) for folder in runs]
    return [path for path in own if may_exist(path)] or all_caches()
