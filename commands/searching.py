"""Commands that use a run: find videos and captions, write vectors for an index."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glscl.commands.options import OneOf, Run, command, command_line
from glscl.commands.printing import lines_of, print_captions, print_hits
from glscl.commands.shared import CacheOption, HeadOfRunOption, ListOption, let_import, open_cache, without_index
from glscl.common.errors import Hint, NotFoundError, UsageError
from glscl.common.settings import build
from glscl.common.tables import amount
from glscl.common.tar_members import TarMember
from glscl.evaluate.search.settings import SearchSettings
from glscl.evaluate.settings import ZERO_SHOT_HEADS
from glscl.extract.datasets.video_files import split_extension

if TYPE_CHECKING:
    from glscl.cache.store import Store
    from glscl.evaluate.search.answers import MomentHit, VideoHit
    from glscl.evaluate.search.model import Model, Query


PLAYERS = {"mpv": "--start={start:.3f}", "vlc": "--start-time={start:.3f}", "ffplay": "-ss {start:.3f}"}


@command(SearchSettings)
def search(
    run: Run,
    asked: dict[str, Any],
    sentence: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to look for, in plain words and in quotes; - reads a sentence a line.", metavar="SENTENCE"
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--and", help="A sentence that should fit too; again for more.", metavar="TEXT", rich_help_panel="What"
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--not", help="A sentence that should not fit; again for more.", metavar="TEXT", rich_help_panel="What"
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="A picture, a video file, or the id of a video of the list, to find what looks like it.",
            metavar="FILE|ID",
            rich_help_panel="What",
        ),
    ] = None,
    start: Annotated[
        float | None, typer.Option(help="Of `like`: from this second on.", min=0, rich_help_panel="What")
    ] = None,
    end: Annotated[
        float | None, typer.Option(help="Of `like`: up to this second.", min=0, rich_help_panel="What")
    ] = None,
    video: Annotated[
        Path | None, typer.Option(help="A video file, to find captions for it instead.", rich_help_panel="What")
    ] = None,
    run_folder: Annotated[
        Path | None,
        typer.Option(
            "--run", help="Trained head, which orders what the frames find. Default: none.", rich_help_panel="How"
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            help=f"Head that needs no training: {', '.join(ZERO_SHOT_HEADS)}; or the run's own where it is from outside "
            "this package, package.module:Class, to let it be imported. Default: best_frames.",
            metavar="NAME",
            rich_help_panel="How",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Cache to search. Default: the run's own, or the only one.", rich_help_panel="Data"),
    ] = None,
    list: ListOption = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="Weights of the backbone, where the cache was made from a file.", metavar="FILE", rich_help_panel="How"
        ),
    ] = None,
    play: Annotated[bool, typer.Option("--open", help="Play the best moment.", rich_help_panel="Answers")] = False,
    m3u: Annotated[
        Path | None, typer.Option(help="Write a playlist of the moments to this file.", rich_help_panel="Answers")
    ] = None,
) -> None:
    """Find videos and moments for a sentence, a picture or a clip; or captions for a video file."""
    from glscl.evaluate.search.playing import write_playlist

    text = _one_sentence(sentence)
    if sum(each is not None for each in (text, like, video)) != 1:
        raise UsageError("Give a sentence, `like=FILE` or `video=FILE`")
    if video is not None and not video.is_file():
        raise NotFoundError(f"There is no video file {video}")
    if text is None and (also or without):
        raise UsageError("`and` and `not` go with a sentence")
    settings = build(SearchSettings, asked)
    _check_part(like, start, end)
    _check_settings(settings, captions=video is not None, played=play or m3u is not None)
    run.device()  # one that is not there is said first
    let_import(head)
    store = open_cache(cache, run_folder, list)
    _check_cache(settings, store, imported_frames=video is not None or (like is not None and Path(like).is_file()))
    model = _model(run, store, run_folder, head or ("mean_pool" if settings.normalise or video else "best_frames"))
    if like is None or Path(like).is_file():
        model.load_backbone(pretrained, texts_only=text is not None)
    if settings.max_frames is not None:
        model.frames = settings.max_frames
    about = {
        "head": model.name,
        "run": run_folder,
        "cache": store.path,
        "list": store.list_name,
        "split": settings.split,
    }
    about["exact"] = _say_what_is_searched(run, model, settings, run_folder, captions=video is not None)

    def answered(query: Query) -> Sequence[dict[str, Any]]:
        hits = model.answer(query, settings)
        if hits:
            print_hits(run, hits, settings.normalise)
        else:
            run.say(_why_nothing(model, query, settings))
        if m3u is not None:
            run.say(f"{amount(write_playlist(m3u, hits), 'moment')} in {m3u}")
            _say_what_players_miss(run, hits)
        if play:
            _play(run, hits)
        return [hit.as_dict() for hit in hits]

    def bank() -> str:
        return model.searching(settings.split, settings.normalise).bank if settings.normalise else "none"

    if text == "-":
        found = []
        for line in lines_of(sys.stdin, "look for: " if sys.stdin.isatty() else None):
            _say_doubts(run, model, line)
            found.append({"query": line, "hits": answered(model.sentence(line))})
            run.say()
            if not run.heard:
                break
        run.result({"searches": found, **about, "bank": bank()})
    elif video is not None:
        hits = model.search_captions(video, top=settings.top, split=settings.split, normalise=settings.normalise)
        print_captions(run, hits, settings.normalise)
        run.result({"query": video, "hits": [hit._asdict() for hit in hits], **about, "bank": bank()})
    else:
        _say_doubts(run, model, *([text] if text else []), *(also or []), *(without or []))
        query = model.sentence(text, also=also or (), without=without or ()) if text else _likeness(
            model, str(like), start, end
        )  # fmt: skip
        run.result({"query": text or like, "hits": answered(query), **about, "bank": bank()})


def _say_doubts(run: Run, model: Model, *sentences: str) -> None:
    """What of the sentences may not be understood."""
    for line in dict.fromkeys(line for sentence in sentences for line in model.backbone.doubts(sentence)):
        run.note(line)


def _one_sentence(words: list[str] | None) -> str | None:
    """The sentence that was typed. Raises UsageError for none, and for several words without quotes."""
    if words is None or not words:
        return None
    if len(words) > 1:
        raise UsageError(
            f"{len(words)} words were given one by one",
            hint=Hint("Put the sentence in quotes", "search", {"": " ".join(words)}),
        )
    if not words[0].strip():
        raise UsageError("The sentence is empty", hint=Hint("Say what to look for", "search", {"": "a dog runs"}))
    return words[0]


def _check_part(like: str | None, start: float | None, end: float | None) -> None:
    """Raise UsageError for a part of what has none."""
    if start is None and end is None:
        return
    given = "start" if start is not None else "end"
    if like is None or (Path(like).is_file() and _is_picture(Path(like))):
        raise UsageError(f"`{given}` goes with a video file or the id of a video, given as `like`")
    if end is not None and not Path(like).is_file():
        raise UsageError("`end` goes with a video file; of a video of the list `start` says the second to look at")
    if start is not None and end is not None and start >= end:
        raise UsageError(f"The part from {start:g} s to {end:g} s is empty")


def _check_settings(settings: SearchSettings, *, captions: bool, played: bool) -> None:
    """Raise UsageError for settings that this search would leave out."""
    asked = {
        "folder": settings.folder,
        "shortest": settings.shortest,
        "longest": settings.longest,
        "min": settings.minimum,
        "by": "moment" if settings.by == "moment" else None,
        "exact": settings.exact or None,
    }
    narrowed = next((name for name, value in asked.items() if value is not None), None)
    other = (
        "video" if captions else "normalise" if settings.normalise else "max_frames" if settings.max_frames else None
    )
    if narrowed is not None and other is not None:
        raise UsageError(f"`{narrowed}` goes with a search of every frame, not with `{other}`")
    if captions and (played or settings.moments > 1):
        raise UsageError("`video` finds captions, which have no moments")


def _check_cache(settings: SearchSettings, store: Store, *, imported_frames: bool) -> None:
    """Raise UsageError for what this cache cannot be asked, before a model is loaded."""
    if imported_frames and "text_backbone" in store.configuration:
        raise UsageError(f"{store.place} holds imported frame features: how they were made from pixels is not known")
    if settings.normalise is not None and "train" not in store.splits:
        raise UsageError(
            f"`normalise` needs a bank of training captions and {store.place} has no split train",
            hint="Search without `normalise`",
        )


def _is_picture(path: Path) -> bool:
    """By its name: what Pillow knows and no container of videos has."""
    from PIL import Image

    return path.suffix.lower() in Image.registered_extensions() and split_extension(path.name)[1] == ""


def _likeness(model: Model, like: str, start: float | None, end: float | None) -> Query:
    """What a picture, a clip or a video of the list shows."""
    path = Path(like)
    if not path.is_file():
        try:
            return model.listed(like, time=start)
        except NotFoundError as error:
            raise NotFoundError(
                f"There is no file {like}, and the list {model.cache.list_name} has no such video"
            ) from error
    return model.picture(path) if _is_picture(path) else model.clip(path, start=start, end=end)


def _say_what_is_searched(
    run: Run, model: Model, settings: SearchSettings, folder: Path | None, *, captions: bool
) -> bool:
    """Whether every frame, or whatever else is searched, is looked at: True unless an approximate index is used."""
    from glscl.evaluate.search.answers import Where

    exact = True
    if captions or settings.normalise or settings.max_frames:
        table = model.searching(settings.split, settings.normalise).table
        count = f"{amount(table.num_texts, 'caption')}" if captions else f"{amount(table.num_videos, 'video')}"
    else:
        index = model.index(Where.of(settings), exact=settings.exact)
        exact = index.is_exact
        count = f"{amount(index.num_videos, 'video')} with {amount(index.num_frames, 'frame')}"
        count += "" if exact else " in an approximate index"
        if model.indexes.problem is not None:
            run.note(without_index(model.indexes.problem))
    by = f"zero-shot {model.name}" if folder is None else f"{model.name} ({folder})"
    run.say(f"{count} of {model.cache.path}{f', split {settings.split}' if settings.split else ''}, by {by}")
    return exact


def _why_nothing(model: Model, query: Query, settings: SearchSettings) -> str:
    """What to say where no answer is left: how near the best one came to the score that was asked for."""
    best = model.answer(query, replace(settings, minimum=None, top=1))
    if not best:
        return "nothing else is there to be found"
    return f"no {settings.by} reaches {settings.minimum:g}; the best has {best[0].score:.3f}"


def _player_for(path: str, start: float) -> list[str] | None:
    """The command that plays a file from a second on, with the first player there is; else the system's own, from its
    beginning; None where there is none."""
    for name, option in PLAYERS.items():
        if program := shutil.which(name):
            return [program, *option.format(start=start).split(), path]
    opener = shutil.which("open" if sys.platform == "darwin" else "xdg-open")
    return None if opener is None else [opener, path]


def _say_what_players_miss(run: Run, hits: Sequence[VideoHit | MomentHit]) -> None:
    inside = [hit.video for hit in hits if hit.path is not None and TarMember.at(hit.path) is not None]
    if inside:
        run.note(f"left out of the playlist: {amount(len(inside), 'video')} in tars, which players do not open")


def _play(run: Run, hits: Sequence[VideoHit | MomentHit]) -> None:
    """Play the best moment whose file is there."""
    hit = next((hit for hit in hits if hit.path is not None), None)
    if hit is None or hit.path is None:
        run.note("none of the files is there to be played")
        return
    if (member := TarMember.at(hit.path)) is not None:
        archive, name = shlex.quote(member.archive), shlex.quote(Path(member.name).name)
        run.note(
            f"{member.name} lies in {member.archive}, which players do not open; `glscl serve` shows it there, and "
            f"`tail -c +{member.offset + 1} {archive} | head -c {member.size} > {name}` takes it out"
        )
        return
    command = _player_for(hit.path, hit.moments[0].start)
    if command is None:
        run.note("no player was found; mpv, vlc and ffplay begin at the moment")
        return
    if Path(command[0]).stem not in PLAYERS and hit.moments[0].start:
        run.note("the system's own player begins at the beginning; mpv, vlc and ffplay begin at the moment")
    subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _model(run: Run, store: Store, folder: Path | None, head: str) -> Model:
    """The head of a run, or one that needs no training, on a cache."""
    from glscl.evaluate.search.model import load_run, zero_shot

    if folder is None:
        return zero_shot(store, head, device=run.device())
    return load_run(folder, store, device=run.device())


@command()
def index(
    run: Run,
    cache: Annotated[
        Path | None, typer.Argument(help="Folder of the cache. Default: the only one there is.", metavar="CACHE")
    ] = None,
    recall: Annotated[
        float,
        typer.Option(
            help="Share of the exact best ten videos that it shall find.", min=0, max=1, rich_help_panel="How"
        ),
    ] = 0.95,
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="Weights of the backbone, where the cache was made from a file.", metavar="FILE", rich_help_panel="How"
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="ray: segments are made on the machines of a Ray cluster.", rich_help_panel="How"),
        OneOf(("local", "ray")),
    ] = "local",
    address: Annotated[str, typer.Option(help="Of the Ray cluster, as in extract.", rich_help_panel="How")] = "auto",
) -> None:
    """Make an approximate index of all frames of a cache, for a million of them and more, or add what the cache gained.

    A search and a server use it while it has all videos of the list. Needs faiss: pip install 'glscl[index]'.
    """
    from glscl.cache.library import open_library
    from glscl.commands.default_paths import the_cache
    from glscl.common.ray_cluster import RayCluster
    from glscl.evaluate.search.approximate import faiss_module, items_with_frames, make_index

    faiss_module()
    workers = RayCluster(address) if engine == "ray" else None
    library = open_library(cache or the_cache())
    device = run.device()

    def encode(sentences: Sequence[str]) -> Any:
        from glscl.extract.backbone.encoder import backbone_of_cache

        run.note("the cache has too few captions to choose with: built-in sentences are encoded")
        backbone = backbone_of_cache(library.configuration, library.path, pretrained, device=device)
        return backbone.encode_texts(sentences).text_features

    frames = int(items_with_frames(library)[1].sum())
    with run.progress.task("index", frames, "frames") as task:
        about = make_index(library, recall=recall, encode=encode, added=task.advance, workers=workers)
    run.say(
        f"{amount(about.frames, 'frame')} in {amount(about.count, 'cell')}, {amount(len(about.segments), 'segment')}; "
        f"a query looks into {about.probes:,}"
    )
    run.say(
        f"recall@10 {about.recall:.3f} of the exact answer, on {about.queries}; {about.milliseconds:.2f} ms a query, "
        f"every frame {about.exact_milliseconds:.2f} ms"
    )
    if about.recall < recall:
        run.note(f"the recall is below {recall}: the index finds no more")
    run.result({"cache": library.path, **about.as_dict()})


@command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder to write to.", rich_help_panel="Output")],
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="Run to export. Default: the newest.", rich_help_panel="What")
    ] = None,
    zero_shot: Annotated[
        bool,
        typer.Option("--zero-shot", help="Vectors of zero-shot mean_pool instead of a run.", rich_help_panel="What"),
    ] = False,
    head: HeadOfRunOption = None,
    cache: CacheOption = None,
    list: ListOption = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split to make vectors of; all takes the whole list. Default: test, of frames all.",
            rich_help_panel="Data",
        ),
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            help="npy, safetensors: one vector a video and one a caption, of a head; faiss: an index of every stored frame; "
            "npy-files, npz, h5, webdataset, parquet, lance: frames, captions and tokens as they are stored, by name.",
            rich_help_panel="Output",
        ),
        OneOf(("npy", "safetensors", "faiss", "parquet", "lance", "npy-files", "npz", "h5", "webdataset")),
    ] = "npy",
    pooled: Annotated[
        bool,
        typer.Option("--pooled", help="By name: one vector a video, the mean of its frames.", rich_help_panel="Output"),
    ] = False,
    names: Annotated[
        str,
        typer.Option(help="By name: call videos by their id or their content.", rich_help_panel="Output"),
        OneOf(("id", "content")),
    ] = "id",
) -> None:
    """Write vectors for an index, or features as other programs read them: a head's, of every frame, or as they are stored."""
    from glscl.commands.default_paths import newest_run
    from glscl.evaluate.exporting.features import FEATURE_FORMATS
    from glscl.evaluate.exporting.vectors import FORMATS, check_indexable, export_vectors
    from glscl.evaluate.judged_lists import about_list
    from glscl.train_head.checkpoint import read_run

    if zero_shot and run_folder is not None:
        raise UsageError("--run and --zero-shot exclude each other")
    if to not in FEATURE_FORMATS and (pooled or names != "id"):
        raise UsageError(f"`pooled` and `names` go with {', '.join(FEATURE_FORMATS)}; `to` is {to}")
    if to not in FORMATS:
        if run_folder is not None or head is not None:
            raise UsageError(f"`to={to}` writes frames as they are stored, without a run or a head")
        if to in FEATURE_FORMATS:
            how = {"to": to, "split": None if split == "all" else split, "pooled": pooled, "names": names}
            _export_features(run, open_cache(cache, None, list), out, how)
            return
        _export_frames(run, open_cache(cache, None, list), out, None if split == "all" else split)
        return
    split = split or "test"
    run.device()  # one that is not there is said first
    let_import(head)
    folder = None if zero_shot else run_folder or newest_run()
    store = open_cache(cache, folder, list)
    model = _model(run, store, folder, "mean_pool")
    check_indexable(model.head)
    done = export_vectors(
        model.head,
        model.table(None if split == "all" else split),
        out,
        to=to,
        about={
            "head": "mean_pool, zero-shot" if folder is None else read_run(folder)["head"],
            "run": None if folder is None else str(folder),
            "cache": store.place,
            "cache_fingerprint": store.fingerprint,
            **about_list(store.list),
            "split": split,
            "command": command_line(),
        },
    )
    run.say(
        f"{out}: {amount(done.videos, 'video')} and {amount(done.texts, 'caption')}, {done.dim}-d, in {', '.join(done.files)}"
    )
    run.result(done.as_dict())


def _export_features(run: Run, store: Store, out: Path, how: dict[str, Any]) -> None:
    from glscl.evaluate.exporting.features import export_features
    from glscl.evaluate.judged_lists import about_list

    about = {"cache": store.place, "cache_fingerprint": store.fingerprint, **about_list(store.list)}
    about |= {"split": how["split"], "command": command_line()}
    done = export_features(store, out, about=about, **how)
    items = f"{amount(done.videos, 'video')} and {amount(done.texts, 'caption')}"
    run.say(f"{out}: {items}, {done.dim}-d, in {', '.join(done.files)}")
    if any(done.left_out.values()):
        left = [amount(done.left_out[key], name) for key, name in (("videos", "video"), ("texts", "caption"))]
        run.note(f"{' and '.join(left)} without features, or of a video without, are left out")
    run.result(done.as_dict())


def _export_frames(run: Run, store: Store, out: Path, split: str | None) -> None:
    from glscl.evaluate.exporting.frame_vectors import export_frames
    from glscl.evaluate.judged_lists import about_list

    about = {
        "cache": store.place,
        "cache_fingerprint": store.fingerprint,
        **about_list(store.list),
        "split": split,
        "command": command_line(),
    }
    with run.progress.task("export", store.count_frames(), "frames") as task:
        done = export_frames(store, out, split=split, about=about, progress=task.advance)
    run.say(
        f"{out}: {amount(done.frames, 'frame')} of {amount(done.videos, 'video')}, {done.dim}-d, in {', '.join(done.files)}"
    )
    run.result(done.as_dict())
