"""What several commands take and do alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glscl.commands.options import COMMANDS, NEW_CACHE, OneOf
from glscl.commands.wording import hint_text
from glscl.common.addresses import may_exist
from glscl.common.errors import GlsclError, Hint
from glscl.extract.datasets import DATASETS

if TYPE_CHECKING:
    from glscl.cache.store import Store

DatasetOption = Annotated[
    str,
    typer.Option(
        help=f"How the annotations are read: {', '.join(DATASETS)}, hf:USER/NAME of the Hugging Face Hub, or package.module:reader; see docs/datasets.md.",
        metavar="NAME",
        rich_help_panel="Data",
    ),
]
CacheFolderOption = Annotated[
    Path | None,
    typer.Option(help="Folder or address of the cache. Default: caches/<dataset>-<backbone>.", rich_help_panel="Data"),
    NEW_CACHE,
]
CacheArgument = Annotated[Path, typer.Argument(help="Folder or address of the cache.")]
RunFolderOption = Annotated[
    Path | None, typer.Option(help="Folder of the run. Default: runs/<head>-<time>.", rich_help_panel="Data")
]
HeadOfRunOption = Annotated[
    str | None,
    typer.Option(
        "--head",
        help="Head of the run where it is from outside this package, to let it be imported: package.module:Class.",
        metavar="NAME",
        rich_help_panel="What",
    ),
]
SourceOption = Annotated[
    str,
    typer.Option(help="Program that made it; auto tells it by the names of the weights.", rich_help_panel="Head"),
    OneOf(("auto", "glscl", "clip4clip", "xclip", "xpool", "drl", "dicosa")),
]
UntoldOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        help="Option of the head that weights cannot tell, such as mask_padding=false; repeat for more.",
        metavar="KEY=VALUE",
        rich_help_panel="Head",
    ),
]
VideosOption = Annotated[
    Path | None,
    typer.Option(help="Folder with the videos. Default: where extraction found them.", rich_help_panel="Data"),
]
CacheOption = Annotated[
    Path | None, typer.Option(help="Cache. Default: the run's own, or the only one.", rich_help_panel="Data")
]
ListOption = Annotated[
    str | None,
    typer.Option(
        "--list",
        help="List of the cache: NAME, NAME@HASH for a version of it, or HASH. Default: the run's own version, or the "
        "only list.",
        metavar="NAME",
        rich_help_panel="Data",
    ),
]
RunsArgument = Annotated[
    list[Path], typer.Argument(help="Run folders or result files; the first is what others are compared with.")
]
ResultsOption = Annotated[str, typer.Option(help="Which results of the folders.", rich_help_panel="Data")]
ResultsListOption = Annotated[
    str | None,
    typer.Option(
        "--list",
        help="Which results of the folders: those on this list. Default: those on each run's own.",
        metavar="NAME",
        rich_help_panel="Data",
    ),
]
JudgeOption = Annotated[
    bool, typer.Option("--judge", help="Judge first what was not judged so.", rich_help_panel="Data")
]
MovedCacheOption = Annotated[
    Path | None, typer.Option(help="Where the cache is now. Default: where it was.", rich_help_panel="Data")
]


def let_import(head: str | None) -> None:
    """Import the head that a user names as package.module:Class: naming it is the word to run it, for runs that have it too."""
    if head is not None and ":" in head:
        from glscl.train_head.heads import head_class

        head_class(head)


def open_cache(given: Path | None, run_folder: Path | None = None, list: str | None = None) -> Store:
    """The cache named on the command line, else the one that a run was made from, else the only one there is.

    Seen at the list that is named, else at the version that the run was made from, else at the only list.
    """
    from glscl.cache.store import open_store
    from glscl.commands.default_paths import the_cache
    from glscl.train_head.checkpoint import read_run
    from glscl.train_head.run_cache import open_recorded

    if run_folder is None:
        return open_store(given or the_cache(), list)
    record = read_run(run_folder)
    where = given or (None if may_exist(record["cache"]) else the_cache())
    return open_recorded(record, where, list)


def without_index(problem: GlsclError) -> str:
    """What to say where a cache has an approximate index that is not used."""
    hint = hint_text(problem.hint, COMMANDS) if isinstance(problem.hint, Hint) else problem.hint or ""
    return f"every frame is looked at: {problem.message}{hint and f'. {hint}'}"


def share_of(kind: type, asked: dict[str, Any]) -> dict[str, Any]:
    """Take what belongs to one kind of settings out of what was asked for."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: asked.pop(name) for name in list(asked) if name in names}
