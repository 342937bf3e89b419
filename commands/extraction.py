"""Commands that fill a cache: from videos, from the features of others, from parts made apart."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glscl.commands.options import ANYWHERE, COMMANDS, Run, command, command_line
from glscl.commands.printing import print_extraction, print_failures, print_forecast, print_splits
from glscl.commands.shared import CacheFolderOption, DatasetOption, share_of
from glscl.commands.typed_commands import with_option
from glscl.commands.wording import hint_text, worded
from glscl.common.devices import cores
from glscl.common.errors import CacheCorruptError, FingerprintError, Hint, UsageError
from glscl.common.progress import counted
from glscl.common.ray_cluster import ray_module
from glscl.common.settings import build, home
from glscl.common.tables import amount
from glscl.extract.settings import ExtractSettings, ImportSettings, ListSettings

if TYPE_CHECKING:
    from glscl.cache.known_files import KnownFiles
    from glscl.cache.library import Library
    from glscl.cache.schema import Annotations
    from glscl.common.hub import Repository
    from glscl.extract.datasets import DatasetEntry
    from glscl.extract.listing import ListOrigin


def _as_for_a_run(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings that extract what a run was trained on, of its run.json; of the record of a list those it was extracted with."""
    if "cache_configuration" not in record:
        return record["settings"]
    from glscl.extract.pipeline import settings_of

    return settings_of(record["cache_configuration"])


@command(ListSettings, ExtractSettings, of_run=_as_for_a_run)
def extract(
    run: Run,
    asked: dict[str, Any],
    dataset: DatasetOption,
    videos: Annotated[
        Path | None,
        typer.Option(
            help="Folder or address with the videos. Default: datasets/<name>/videos.", rich_help_panel="Data"
        ),
        ANYWHERE,
    ] = None,
    out: CacheFolderOption = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N videos of each split.", rich_help_panel="Data", min=1)
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Read the annotations, find the files; print counts, and what is foreseen of size and time. Decodes nothing, and "
            "needs no videos.",
            rich_help_panel="Data",
        ),
    ] = False,
) -> None:
    """Encode every frame and caption with CLIP into a cache. Resumes by itself; a finished cache is left alone."""
    from glscl.cache.files import written
    from glscl.cache.known_files import KnownFiles
    from glscl.extract.backbone.catalog import defaults_for
    from glscl.extract.beginning import first_videos_begun
    from glscl.extract.datasets import dataset_entry, first_videos
    from glscl.extract.decode.pool import wake

    entry = dataset_entry(dataset)
    wanted = build(ListSettings, share_of(ListSettings, asked))
    names = wanted.split_names
    settings = build(
        ExtractSettings, defaults_for(entry.defaults, asked.get("backbone") or ExtractSettings.backbone), asked
    )
    if settings.sampling == "public":
        settings = dataclasses.replace(settings, sampling=entry.public_rule)
    out = out or home() / "caches" / f"{entry.name}-{_as_name(settings.backbone)}"
    fresh = not dry_run and settings.engine == "local" and not written(out / "store.json")
    if fresh:
        wake([settings.transform_module, "glscl.cli"])  # while the list is read; workers import what began the program
    at_once = fresh and run.launch.world == 1 and run.common.device in ("auto", "cpu")  # no device can be missing
    if not (dry_run or at_once):
        _check_engine(run, settings)
    root = home() / "datasets" / entry.name
    if dataset == "demo" and wanted.annotations is None:
        _render_demo(run, root)
    if videos is not None or not (dry_run or dataset == "csv") or (root / "videos").is_dir():
        videos = videos or root / "videos"
    annotations = _annotations_folder(entry, wanted.annotations)
    known = KnownFiles.read(out)
    found = entry.read(
        annotations,
        videos,
        splits=names,
        protocol=wanted.protocol,
        dry_run=dry_run,
        contents=partial(_contents, run, known),
        allow_shared=wanted.allow_shared,
    )
    if limit:
        found = first_videos(found, limit)
    own = videos or annotations if entry.name == "folder" else annotations
    origin = _origin(entry, settings.list or _list_name(entry, wanted, own, limit))
    if dry_run:
        _foresee(run, settings, found, out, origin, known, usual_seconds=entry.seconds)
        return
    with first_videos_begun(found, settings) if at_once and settings.part is None else nullcontext():
        if at_once:
            _check_engine(run, settings)  # torch is imported
        for line in found.notes:
            run.note(line)
        done = _extract(run, settings, found, out, origin, known)
    if run.launch.world == 1 or done.finished_here or (done.already_complete and done.complete):
        run.result({**done.as_dict(), "notes": _worded(done.notes)})


def _foresee(
    run: Run,
    settings: ExtractSettings,
    found: Annotations,
    out: Path,
    origin: ListOrigin,
    known: KnownFiles,
    *,
    usual_seconds: float | None,
) -> None:
    """Print what an extraction would do. `usual_seconds`: as `forecast` takes them."""
    from torch import device

    from glscl.extract.datasets.builder import summary
    from glscl.extract.forecast import forecast
    from glscl.extract.pipeline import count_encoded, in_force

    splits = summary(found)
    for line in found.notes:
        run.note(line)
    print_splits(run, splits)
    there = count_encoded(found, out, origin, known, progress=run.progress)
    if any(there.values()):
        items = f"{amount(there['videos'], 'video')} and {amount(there['texts'], 'caption')}"
        run.say(f"{out} has {items} of these already")
    foreseen = forecast(found, in_force(settings, out, device("cpu")), there=there, usual_seconds=usual_seconds)
    print_forecast(run, foreseen, settings.workers or cores())
    run.result(
        {
            **splits,
            "notes": _worded(found.notes),
            "encoded_already": there,
            "foreseen": dataclasses.asdict(foreseen),
        }
    )


def _contents(run: Run, known: KnownFiles, paths: Sequence[str]) -> Sequence[bytes | OSError]:
    """Hash files, at once where they are known."""
    with counted(run.progress, "hash", "files") as tell:
        return known.contents(paths, progress=tell)


def _worded(notes: Sequence[str]) -> list[str]:
    return [worded(line, COMMANDS) for line in notes]


def _annotations_folder(entry: DatasetEntry, given: Path | None) -> Path | None:
    """Where the annotations are looked for; None where the reader needs none."""
    default = home() / "datasets" / entry.name / "annotations"
    if given is None and (default.exists() or not entry.own):
        return default
    return given


def _origin(entry: DatasetEntry, name: str) -> ListOrigin:
    """Of the list that this command makes. In benchmarks an id means the same video in every list."""
    from glscl.common.versions import versions
    from glscl.extract.listing import ListOrigin

    return ListOrigin(
        name=name,
        family="" if entry.own else entry.name,
        recipe=entry.recipe,
        command=with_option(command_line(), "--part", None),
        versions=versions(),
    )


def _list_name(entry: DatasetEntry, wanted: ListSettings, own: Path | None, limit: int | None) -> str:
    """What a list is called: the data set and its protocol, or one's own file or folder, and what share of it is read."""
    about = wanted.protocol or next(iter(entry.protocols), "")
    if entry.own and own is not None:
        path = own.resolve()
        about = path.stem if entry.name == "csv" or path.is_file() else path.name
    parts = (entry.name, about, *(wanted.split_names or ()), f"first{limit}" if limit else "")
    return "-".join(part for part in parts if part)


def _as_name(text: str) -> str:
    """A name with a scheme or an organisation as part of a folder's name."""
    return text.replace("/", "-").replace(":", "-")


def _render_demo(run: Run, root: Path) -> None:
    from glscl.demo.corpus import render_corpus

    render_corpus(root, seed=run.seed, progress=run.progress)


def _extract(run: Run, settings: ExtractSettings, found: Any, out: Path, origin: ListOrigin, known: KnownFiles) -> Any:
    from glscl.extract.part import Part
    from glscl.extract.pipeline import extract as extract_features

    launch = run.launch
    part = Part.parse(settings.part).among(launch.rank, launch.world)
    settings = dataclasses.replace(
        settings,
        part=None if part.whole else str(part),
        workers=settings.workers or max(1, cores() // launch.local_world),
    )
    run.in_force(settings)
    with _where(run, settings) as device:
        done = extract_features(found, out, settings, origin=origin, device=device, progress=run.progress, known=known)
    for line in done.notes[len(found.notes) :]:  # what was found out on the way
        run.note(line)
    print_extraction(run, out, done)
    return done


def _check_engine(run: Run, settings: ExtractSettings) -> None:
    """Say what is missing to encode before anything is read."""
    if settings.engine == "local":
        run.device()
        return
    if run.launch.world > 1:
        raise UsageError(f"`engine={settings.engine}` takes one process; this launch has {run.launch.world}")
    ray_module()


def _where(run: Run, settings: ExtractSettings) -> Any:
    """Entered, the device of this machine that encodes, or the engine that has others do it."""
    if settings.engine == "local":
        return nullcontext(run.device())
    from glscl.extract.cluster.ray_engine import RayEngine

    return RayEngine(settings, settings.address, encoders=settings.encoders)


@command(ListSettings, ImportSettings)
def import_features(
    run: Run,
    asked: dict[str, Any],
    dataset: DatasetOption,
    features: Annotated[
        Path,
        typer.Option(
            help="Frame features: a folder with a file a video, or one file by video.", rich_help_panel="Data"
        ),
    ],
    text_features: Annotated[
        Path | None,
        typer.Option(help="Caption features: by caption or by video, or one array in order.", rich_help_panel="Data"),
    ] = None,
    token_features: Annotated[
        Path | None, typer.Option(help="Token features: by caption, or one array in order.", rich_help_panel="Data")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the cache. Default: caches/<dataset>-<name>.", rich_help_panel="Data"),
    ] = None,
) -> None:
    """Make a cache from features that others extracted, with the captions of a dataset. No video is needed."""
    from glscl.extract.backbone.catalog import defaults_for
    from glscl.extract.datasets import dataset_entry
    from glscl.extract.importing.import_features import FeatureFiles
    from glscl.extract.importing.import_features import import_features as import_arrays

    entry = dataset_entry(dataset)
    wanted = build(ListSettings, share_of(ListSettings, asked))
    names = wanted.split_names
    words = {"max_words": entry.max_words}
    settings = build(ImportSettings, defaults_for(words, asked["backbone"]) if asked.get("backbone") else words, asked)
    files = FeatureFiles(features, text_features, token_features)
    files.check(settings.backbone)
    if settings.backbone is not None:
        run.device()  # one that is not there is said first
    annotations = _annotations_folder(entry, wanted.annotations)
    found = entry.read(
        annotations,
        None,
        splits=names,
        protocol=wanted.protocol,
        dry_run=True,
        allow_shared=wanted.allow_shared,
    )
    out = out or home() / "caches" / f"{entry.name}-{_as_name(settings.name or 'features')}"
    run.in_force(settings)
    done = import_arrays(
        found,
        files,
        out,
        settings,
        origin=_origin(entry, settings.list or _list_name(entry, wanted, annotations, None)),
        device=run.device() if settings.backbone is not None else "cpu",
        progress=run.progress,
    )
    for line in done.notes:
        run.note(line)
    state = " is complete already" if done.already_complete else ""
    counts = f"{amount(done.videos, 'video')}, {amount(done.frames, 'frame')}, {amount(done.texts, 'caption')}"
    run.say(f"{out}{state}: {counts}")
    print_failures(run, out, done)
    run.result({**done.as_dict(), "notes": _worded(done.notes)})


@command()
def merge(
    run: Run,
    out: Annotated[Path, typer.Argument(help="Folder of the merged cache; there already, or new.")],
    parts: Annotated[list[Path], typer.Argument(help="Folders that `glscl extract --part` filled, or addresses.")],
    copy: Annotated[bool, typer.Option("--copy", help="Copy the files even where they could be linked.")] = False,
) -> None:
    """Bring what several caches of one encoder hold together, without copying where the file system has links."""
    _merge(run, out, parts, copy=copy)


@command()
def push(
    run: Run,
    cache: Annotated[Path, typer.Argument(help="Folder of the cache, or with hf:// of a run.")],
    address: Annotated[str, typer.Argument(help="Where it goes: s3://…, gs://…, az://… or hf://[datasets/]USER/NAME.")],
    license: Annotated[str | None, typer.Option(help="With hf://: licence that the card states.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With hf://: a new repository is for everybody.")] = False,
) -> None:
    """Put a cache at an address, where `--cache` reads it from anywhere, or a cache or run on the Hugging Face Hub.

    Sends only what is not there; goes on after a kill.
    """
    from glscl.cache.library import open_library
    from glscl.cache.upkeep.transfer import push as push_cache
    from glscl.cache.upkeep.verification import count_shards

    if address.startswith("hf:"):
        _push_to_hub(run, cache, address, license, public)
        return
    if license is not None or public:
        raise UsageError("`license` and `public` go with hf:// addresses")
    with run.progress.task("push", count_shards(open_library(cache)), "shards") as task:
        done = push_cache(cache, address, progress=task.advance)
    sent = f"{amount(done.shards, 'shard')} sent ({done.bytes / 1e6:.1f} MB in all), {done.there:,} there already"
    run.say(f"{done.address}: {sent}; lists: {', '.join(done.lists) or 'none that is complete'}")
    if done.forgotten:
        hint = Hint("Delete them", "repair", {"": done.address})
        left = amount(done.forgotten, "file")
        run.note(f"{left} of shards there that nothing names, of a writer that was killed. {hint_text(hint, COMMANDS)}")
    run.result(done.as_dict())


def _push_to_hub(run: Run, folder: Path, address: str, license: str | None, public: bool) -> None:
    from glscl.cache.known_files import FILE
    from glscl.cache.library import open_library
    from glscl.commands.hub_cards import cache_card, run_card
    from glscl.common.hub import Repository, push_folder

    where = Repository.at(address)
    if (folder / "run.json").is_file():
        card, leave = run_card(folder, where.address, license), ["*.lock"]
    else:
        library = open_library(folder)
        if library.mirror is not None or library.is_flat:
            raise UsageError(
                f"{library.place} is not a cache folder here, of which all can be sent", hint="Pull it first"
            )
        card = cache_card(library, where.address, license)
        leave = ["partial/*", "locks/*", "damaged/*", "*.lock", FILE, *_kept_there(library, where)]
    url = push_folder(folder, where, card, leave=leave, public=public)
    run.say(f"{folder}: pushed to {url}")
    run.result({"folder": str(folder), "address": where.address, "url": url})


def _kept_there(library: Library, where: Repository) -> list[str]:
    """Files of a cache that stand in a repository otherwise and stay: nothing of a cache is replaced but what version counts.

    Raises:
        FingerprintError: a cache of another encoder is there.
        UsageError: a shard of ours is there as another machine made it.
    """
    from glscl.common.hub import read_file, replaced_by

    other = replaced_by(library.path, where)
    if "store.json" in other:
        theirs = json.loads(read_file(where, "store.json"))
        if any(theirs.get(key) != library.header.get(key) for key in ("fingerprint", "format", "stored_frames")):
            raise FingerprintError(
                f"{where.address} holds a cache of another encoder, or in another format, than {library.place}",
                hint="Push to another repository",
            )
    shards = [name for name in other if name.startswith(("commits/", "additions/"))]
    if shards:
        raise UsageError(
            f"{where.address} holds {shards[0]} as another extraction made it",
            hint=Hint("Bring both together and push that", "merge", {"": ["OUT", where.address, library.path]}),
        )
    return [name for name in other if not (name.startswith("lists/") and name.endswith("/current"))]


@command()
def pull(
    run: Run,
    source: Annotated[str, typer.Argument(help="Address of the cache, or with hf:// of a run.")],
    out: Annotated[Path, typer.Argument(help="Folder to bring it to; there already, or new.")],
) -> None:
    """Bring a whole cache from an address into a folder, checksums compared; a cache of the same encoder there gains it.

    From the Hugging Face Hub (hf://) a cache or a run comes into a folder of its own.
    """
    if source.startswith("hf:"):
        _pull_from_hub(run, source, out)
    else:
        _merge(run, out, [Path(source)], copy=False)


def _pull_from_hub(run: Run, source: str, out: Path) -> None:
    from glscl.cache.files import listed, refuse_links, written
    from glscl.cache.library import open_library
    from glscl.cache.lock import hold_file
    from glscl.cache.upkeep.verification import count_shards, verify
    from glscl.common.hub import Repository, begun, pull_folder
    from glscl.train_head.checkpoint import read_run

    where = Repository.at(source)
    if written(out / "store.json") or (out / "run.json").exists():
        raise UsageError(f"{out} is a cache or a run already", hint="Choose another folder with `out`")
    with hold_file(
        out.resolve(), what="pull"
    ):  # beside it: where anything is in the folder the Hub's library says no error
        if not begun(out) and listed(out):
            raise UsageError(f"{out} holds other files", hint="Choose another folder with `out`")
        refuse_links(out)
        pull_folder(where, out)
    if (out / "run.json").is_file():
        found = f"a run of {read_run(out)['head']}"
    else:
        library = open_library(out)
        with run.progress.task("verify", count_shards(library), "shards") as task:
            problems = verify(library, progress=task.advance)
        if problems:
            raise CacheCorruptError(f"{out} is not what was pushed: {problems[0]}", hint="Delete it, and pull again")
        found = f"{amount(len(library.stream('video').index), 'video')}, {amount(len(library.stream('text').index), 'caption')}"
    run.say(f"{out}: {found}, from {where.address}")
    run.result({"out": str(out), "address": where.address})


def _merge(run: Run, out: Path, parts: list[Path], *, copy: bool) -> None:
    from glscl.cache.upkeep.merge import merge as merge_caches

    done = merge_caches(parts, out, copy=copy)
    files = f"{amount(done.linked, 'file')} linked, {done.copied:,} copied"
    items = f"{amount(done.videos, 'video')} and {amount(done.texts, 'caption')}"
    state = f"not complete: {items} are there" if done.pending else f"complete with {items}"
    run.say(f"{out}: {amount(done.shards, 'new shard')} ({files}); {state}")
    for line in done.notes:
        run.note(line)
    for row, hint in zip(done.pending, done.resume):
        waits = " and ".join(
            amount(row[key], name) for key, name in (("video", "video"), ("text", "caption")) if row[key]
        )
        run.say(f"the list {row['list']} waits for {waits}. {hint_text(hint, COMMANDS)}")
    run.result(done.as_dict())
