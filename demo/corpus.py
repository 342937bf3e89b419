"""The demo's corpus on disk: stories rendered to H.264 mp4 files, one annotation file a split, and the reader of both.

<root>/annotations/{train,val,test}.json     written first; every video with its scenes and captions
<root>/videos/<id>.mp4                       written aside and renamed, so a file that is there is whole
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

from glscl.cache.files import refuse_links
from glscl.cache.schema import Annotations, Expected, TextItem, VideoItem
from glscl.common.errors import GlsclError, Hint, InputError, NotFoundError, StorageError, UsageError
from glscl.common.progress import Progress
from glscl.demo.grammar import CAPTIONS, caption_story
from glscl.demo.render import SIDE, draw_frames, frames_of_story
from glscl.demo.world import SPLITS, Story, draw_stories

FORMAT = "glscl.demo/1"  # of the annotation files; raise it when the same seed gives other pictures or captions
FPS = 10
SIZES = {"train": 1000, "val": 100, "test": 250}  # videos
RENDER = Hint("Render it", "extract", {"dataset": "demo"})
RENDER_AGAIN = RENDER._replace(text="Delete it. Render it again")


# ---------------------------------------------------------------------------------------------------------- writing


def write_video(story: Story, path: Path) -> int:
    """Encode a story as H.264 in mp4, FPS frames a second, SIDE × SIDE; the number of frames.

    The file appears under its name only when it is whole. One encoder thread, so equal stories give equal bytes.
    """
    import av

    aside = path.with_name(f".{path.stem}.{os.getpid()}.part")
    frames = 0
    try:
        with av.open(str(aside), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.width = stream.height = SIDE
            stream.pix_fmt = "yuv420p"
            stream.time_base = Fraction(1, FPS)
            stream.thread_count = 1
            stream.options = {"crf": "18", "preset": "superfast", "threads": "1"}
            for picture in draw_frames(story, FPS):
                frame = av.VideoFrame.from_image(picture)
                frame.pts, frame.time_base = frames, Fraction(1, FPS)
                container.mux(stream.encode(frame))
                frames += 1
            container.mux(stream.encode(None))
        os.replace(aside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
    return frames


def _write_json(path: Path, content: Any) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)


def _entry(story: Story, seed: int) -> dict[str, Any]:
    """One video of an annotation file. The id of a caption ends in its kind: `test0001#17:order`."""
    captions = caption_story(story, seed)
    return {
        "id": story.id,
        "file": f"{story.id}.mp4",
        "frames": frames_of_story(story, FPS),
        "story": {"opening": story.opening, "ending": story.ending, "look": story.look},
        "scenes": [asdict(scene) for scene in story.scenes],
        "captions": [
            {"id": f"{story.id}#{k:02d}:{caption.kind}", "text": caption.text, "scenes": list(caption.scenes)}
            for k, caption in enumerate(captions)
        ],
    }


def _read_split(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = f"{path}: no such file; expected annotations of the demo corpus"
        raise NotFoundError(message, hint=RENDER) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}", hint=RENDER_AGAIN) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path} has format {found!r}, expected {FORMAT!r}", hint=RENDER_AGAIN)
    return content


def _plot(entry: dict[str, Any]) -> tuple[Any, Any]:
    """What decides the pictures of a video."""
    return entry["story"], entry["scenes"]


def _forget_stale(annotations: Path, videos: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Remove the mp4 files whose story on disk (as the annotations there tell) is another one, or not told at all."""
    told: dict[str, Any] = {}
    for split in SPLITS:
        with contextlib.suppress(InputError, KeyError, TypeError):
            told.update({entry["id"]: _plot(entry) for entry in _read_split(annotations / f"{split}.json")["videos"]})
    for id, entry in entries.items():
        if told.get(id) != _plot(entry):
            with contextlib.suppress(FileNotFoundError):
                (videos / entry["file"]).unlink()


def render_corpus(
    out: Path,
    *,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[Path, Path]:
    """Render the corpus below `out`, or what of it is not there yet.

    The same seed gives the same annotations and the same pictures; held-out videos do not depend on how many there are
    for training.

    Args:
        out: folder that gets `annotations/` and `videos/`.
        seed: of everything that is drawn by lot.
        sizes: videos of train, val and test; those of `SIZES` where it says nothing.
        workers: rendering processes; None = one a core.
        progress: told of every video.

    Returns:
        The folders of annotations and of videos, ready for `read`.
    Raises:
        UsageError: a negative size, or fewer than one worker.
        StorageError: the disk is full or read-only, or a link stands in `out`.
    """
    sizes = {**SIZES, **(sizes or {})}
    if min(sizes.values()) < 0 or (workers is not None and workers < 1):
        raise UsageError(f"the demo corpus needs sizes of at least 0 and a worker, found {sizes} and workers={workers}")
    out = Path(out)
    annotations, videos = out / "annotations", out / "videos"
    for folder in (out, annotations, videos):
        refuse_links(folder, depth=1)
    stories = list(draw_stories(seed, sizes))
    entries = {story.id: _entry(story, seed) for story in stories}
    try:
        annotations.mkdir(parents=True, exist_ok=True)
        videos.mkdir(parents=True, exist_ok=True)
        _forget_stale(annotations, videos, entries)
        for split in SPLITS:
            content = {
                "format": FORMAT,
                "seed": seed,
                "fps": FPS,
                "videos": [entries[story.id] for story in stories if story.split == split],
            }
            _write_json(annotations / f"{split}.json", content)
        todo = [(story, videos / entries[story.id]["file"]) for story in stories]
        todo = [(story, path) for story, path in todo if not path.exists()]
        with (progress or Progress(quiet=True)).task("render", len(stories), "videos") as task:
            task.advance(len(stories) - len(todo))
            for _ in _render_all(todo, workers or os.cpu_count() or 1):
                task.advance()
    except OSError as error:
        raise StorageError(f"{out}: the demo corpus cannot be written: {error.strerror or error}") from error
    return annotations, videos


def _render_all(todo: list[tuple[Story, Path]], workers: int) -> Iterator[int]:
    """Yield the frames of every video written."""
    workers = min(workers, len(todo))
    if workers <= 1:
        for story, path in todo:
            yield write_video(story, path)
        return
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield from pool.map(write_video, *zip(*todo), chunksize=8)
        except BrokenProcessPool:
            raise GlsclError(
                "a process that rendered the demo corpus was killed, perhaps for lack of memory",
                hint="Run the command again; it goes on where it stopped.",
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------------------------------------------------- reading


def read(
    annotations: Path | None,
    videos: Path | None,
    *,
    splits: Sequence[str] | None = None,
    protocol: str | None = None,
) -> Annotations:
    """The reader of the dataset `demo`. Renders nothing: call `render_corpus` first.

    Args:
        annotations: folder of `{train,val,test}.json`.
        videos: folder of the mp4 files; None leaves every path None.
        splits: which of train, val, test; None = all.
        protocol: there is only one; anything but None is refused.

    Raises:
        NotFoundError: no such folder or file.
        InputError: a file that is not what `render_corpus` writes.
        UsageError: unknown split or protocol.
    """
    if protocol is not None:
        raise UsageError(f"the demo corpus has no protocols, found {protocol!r}")
    wanted = list(splits) if splits else list(SPLITS)
    if unknown := [split for split in wanted if split not in SPLITS]:
        raise UsageError(f"the demo corpus has no split {unknown[0]!r}; its splits are {', '.join(SPLITS)}")
    if annotations is None:
        raise NotFoundError("the demo corpus has no annotations folder yet", hint=RENDER)
    items: list[VideoItem] = []
    texts: list[TextItem] = []
    expected: dict[str, Expected] = {}
    for split in [split for split in SPLITS if split in wanted]:
        path = Path(annotations) / f"{split}.json"
        entries = _read_split(path)["videos"]
        try:
            for entry in entries:
                file = Path(videos) / entry["file"] if videos is not None else None
                found = str(file.absolute()) if file is not None and file.is_file() else None
                items.append(VideoItem(entry["id"], split, found))
                texts += [TextItem(text["id"], entry["id"], split, text["text"]) for text in entry["captions"]]
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: an entry lacks {error}", hint=RENDER_AGAIN) from None
        expected[split] = Expected(captions=len(entries) * CAPTIONS, videos=len(entries))
    return Annotations(dataset="demo", videos=items, texts=texts, expected=expected)
