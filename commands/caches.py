"""Commands about a cache that is there: what is in it, is it whole, the same in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glscl.commands.options import COMMANDS, OneOf, Run, command
from glscl.commands.printing import print_cache, print_repair
from glscl.commands.shared import CacheArgument
from glscl.commands.wording import hint_text
from glscl.common.errors import CacheCorruptError


@command()
def inspect(
    run: Run,
    cache: CacheArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything back: checksums, finite values, boundaries.")
    ] = False,
) -> None:
    """Say what is in a cache, what failed and why; with --verify, whether all of it can still be read."""
    from glscl.cache.store import open_store
    from glscl.cache.upkeep.summary import summarise
    from glscl.cache.upkeep.verification import verify as verify_store

    store = open_store(cache)
    report = summarise(store)
    print_cache(run, report)
    if verify:
        shards = sum(len(store.commits(stream)) for stream in ("video", "text"))
        with run.progress.task("verify", shards, "shards") as task:
            report["problems"] = verify_store(store, progress=task.advance)
        run.say(f"verified {shards} shards: {len(report['problems']) or 'no'} problems")
        for line in report["problems"]:
            run.say(f"  {line}")
    if report.get("problems"):
        raise CacheCorruptError(
            f"{cache} has {len(report['problems'])} problems; the first: {report['problems'][0]}",
            hint=f"Make the damaged shards again: glscl repair {cache}, then {hint_text(store.resume_hint(''), COMMANDS)}",
        )
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

    library = open_library(cache)
    shards = sum(library.num_shards(stream) for stream in ("video", "text"))
    with run.progress.task("read back", shards, "shards") as task:
        report = repair_cache(cache, dry_run=dry_run, progress=task.advance)
    again = hint_text(report.resume, COMMANDS)
    print_repair(run, report, again)
    run.result(report.as_dict() | {"command": again})


@command()
def convert(
    run: Run,
    cache: Annotated[Path, typer.Argument(help="Cache to read: a folder, or a flat .h5 file or .zarr group.")],
    out: Annotated[
        Path, typer.Argument(help="*.h5 or *.zarr: one flat file or group. Any other name: a cache folder.")
    ],
    format: Annotated[
        str | None, typer.Option(help="Format of a cache folder; the other one by default."), OneOf(("zarr", "hdf5"))
    ] = None,
) -> None:
    """Write a complete cache again: in the other format, or as one ordinary HDF5 file or Zarr group to share."""
    from glscl.cache.store import open_store
    from glscl.cache.upkeep.convert import check_name
    from glscl.cache.upkeep.convert import convert as convert_store
    from glscl.cache.upkeep.summary import bytes_on_disk

    check_name(out, format)
    store = open_store(cache)
    convert_store(store, out, format=format)
    size = bytes_on_disk(out)
    run.say(f"{out}: {size / 1e6:.1f} MB, fingerprint {store.fingerprint}")
    run.result({"out": out, "bytes": size, "fingerprint": store.fingerprint})
