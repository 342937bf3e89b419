"""Commands about a cache that is there: what is in it, is it whole, the same in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glscl.cache.schema import FORMATS
from glscl.commands.options import COMMANDS, OneOf, Run, command
from glscl.commands.printing import print_cache, print_repair
from glscl.commands.shared import CacheArgument
from glscl.commands.wording import hint_text
from glscl.common.errors import CacheCorruptError, Hint, StorageError
from glscl.common.tables import amount


@command()
def inspect(
    run: Run,
    cache: CacheArgument,
    list: Annotated[
        str | None, typer.Option("--list", help="List to count splits and failures of: NAME, NAME@HASH or HASH.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything back: checksums, finite values, boundaries, keys.")
    ] = False,
) -> None:
    """Say what is in a cache, what failed and why; with --verify, whether all of it can still be read."""
    from glscl.cache.library import open_library
    from glscl.cache.store import resume_hint
    from glscl.cache.upkeep.summary import summarise
    from glscl.cache.upkeep.verification import Unread, count_shards
    from glscl.cache.upkeep.verification import verify as verify_cache

    library, report = open_library(cache), {}
    unreadable = None
    try:
        report = summarise(library, list)
    except CacheCorruptError as error:  # with `verify` all problems are told, not only the first
        if not verify:
            raise
        unreadable = error
    else:
        again = {
            row["hash"]: hint_text(resume_hint(library, row["name"], "", command=row["command"]), COMMANDS)
            for row in report["lists"]
            if not row["complete"]
        }
        print_cache(run, report, again)
    if verify:
        shards = count_shards(library)
        with run.progress.task("verify", shards, "shards") as task:
            report["problems"] = verify_cache(library, progress=task.advance)
        run.say(
            f"verified {amount(shards, 'shard')}: {amount(len(report['problems']), 'problem') if report['problems'] else 'no problems'}"
        )
        for line in report["problems"]:
            run.say(f"  {line}")
    if problems := report.get("problems"):
        told = f"{cache} has {amount(len(problems), 'problem')}; the first: {problems[0]}"
        if all(isinstance(line, Unread) for line in problems):  # nothing of that is damage
            raise StorageError(told, first=problems[0].first)
        raise CacheCorruptError(
            told,
            hint=Hint("Set aside what is damaged, then run the commands that it tells", "repair", {"": cache}),
        )
    if unreadable is not None:
        raise unreadable
    run.result(report)


@command()
def repair(
    run: Run,
    cache: CacheArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Drop what killed runs left in a cache and set damaged shards aside, so that the next extract makes them again."""
    from glscl.cache.library import open_library
    from glscl.cache.upkeep.repair import repair as repair_cache
    from glscl.cache.upkeep.verification import count_shards

    with run.progress.task("read back", count_shards(open_library(cache)), "shards") as task:
        report = repair_cache(cache, dry_run=dry_run, progress=task.advance)
    again = [hint_text(hint, COMMANDS) for hint in report.resume]
    print_repair(run, report, again)
    run.result(report.as_dict() | {"commands": again})


@command()
def convert(
    run: Run,
    cache: Annotated[Path, typer.Argument(help="Cache to read: a folder, or a flat .h5 file or .zarr group.")],
    out: Annotated[
        Path, typer.Argument(help="*.h5 or *.zarr: one flat file or group. Any other name: a cache folder.")
    ],
    format: Annotated[
        str | None, typer.Option(help="Format of a cache folder; the other one by default."), OneOf(FORMATS)
    ] = None,
    list: Annotated[
        list[str] | None,
        typer.Option(
            "--list", help="Only this list: NAME, NAME@HASH or HASH; again for more. Default: all that are current."
        ),
    ] = None,
) -> None:
    """Write lists and their items again: in the other format, or as one ordinary HDF5 file or Zarr group to share.

    Items that no list names are left out, and what was encoded bit by bit lies together afterwards.
    """
    from glscl.cache.library import open_library
    from glscl.cache.upkeep.convert import check_name
    from glscl.cache.upkeep.convert import convert as convert_library
    from glscl.cache.upkeep.summary import bytes_on_disk

    check_name(out, format)
    library = open_library(cache)
    convert_library(library, out, format=format, lists=list or ())
    size = bytes_on_disk(out)
    run.say(f"{out}: {size / 1e6:.1f} MB, fingerprint {library.fingerprint}")
    run.result({"out": out, "bytes": size, "fingerprint": library.fingerprint})
