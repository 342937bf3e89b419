"""What an encoder has read once it never reads again, whichever list asks for it; and a list reads as if it were alone.

The backbone and the decoder are made up (`made_extraction`): they count what they are asked for.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from formats import BOTH
from made_extraction import ORIGIN, Extractor, MadeBackbone, MadePool, named, require_equal, require_reads, write

from glscl.cache import known_files
from glscl.cache.filling import filling
from glscl.cache.library import Library, open_library
from glscl.cache.lists import current_version, versions_of
from glscl.cache.schema import Annotations, Status, TextItem, VideoItem
from glscl.cache.store import open_store
from glscl.cache.upkeep.merge import merge
from glscl.cache.upkeep.summary import summarise
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import CacheBusyError, FingerprintError, InputError, NotFoundError
from glscl.common.progress import Progress
from glscl.extract import engine, pipeline
from glscl.extract.datasets import dataset_entry
from glscl.extract.pipeline import ExtractionSummary, count_encoded
from glscl.extract.videos import CHANGED

# --- a folder that changes --------------------------------------------------------------------------------------------

CLIPS = {"train/a": b"abc", "train/b": b"bcdef", "train/c": b"cd", "test/d": b"defg", "test/e": b"broken"}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five clips with a caption each beside them; one is broken."""
    for name, content in CLIPS.items():
        put(tmp_path / "videos", name, content)
    return tmp_path / "videos"


def put(folder: Path, name: str, content: bytes, caption: str | None = None) -> None:
    write(folder / f"{name}.mp4", content)
    write(folder / f"{name}.txt", caption or f"a caption of {name}")


def move(folder: Path, old: str, new: str, how=os.rename) -> None:
    (folder / new).parent.mkdir(exist_ok=True)
    for suffix in (".mp4", ".txt"):
        how(folder / f"{old}{suffix}", folder / f"{new}{suffix}")


def remove(folder: Path, name: str) -> None:
    for suffix in (".mp4", ".txt"):
        (folder / f"{name}{suffix}").unlink()


def read(folder: Path) -> Annotations:
    return dataset_entry("folder").read(None, folder)


def contents(annotations: Annotations) -> dict[str, bytes | None]:
    return {v.id: None if v.path is None else Path(v.path).read_bytes() for v in annotations.videos}


CHANGES = {  # what happens → contents and captions that are encoded for it, and what is said of it
    "added": (lambda f: put(f, "train/new", b"new"), [b"new"], ["a caption of train/new"], {"new": 1}),
    "renamed": (lambda f: move(f, "train/b", "train/z"), [], [], {"new": 1, "gone": 1, "moved": 1}),
    "moved": (lambda f: move(f, "train/b", "train/deep/b"), [], [], {"new": 1, "gone": 1, "moved": 1}),
    "copied": (lambda f: move(f, "train/b", "train/b2", shutil.copy2), [], [], {"new": 1, "moved": 1}),
    "vanished": (lambda f: remove(f, "train/b"), [], [], {"gone": 1}),
    "replaced": (lambda f: write(f / "train/b.mp4", b"another"), [b"another"], [], {"replaced": 1}),
    "exchanged": (lambda f: (move(f, "train/a", "x"), move(f, "train/b", "train/a"), move(f, "x", "train/b")),
                  [], [], {"replaced": 2}),
    "mended": (lambda f: write(f / "test/e.mp4", b"whole"), [b"whole"], [], {"replaced": 1}),
    "captioned": (lambda f: write(f / "train/b.txt", "a caption of train/b\nanother"), [], ["another"], {}),
    "all at once": (lambda f: (put(f, "test/new", b"new"), move(f, "train/a", "train/z"), remove(f, "test/d"),
                               write(f / "train/b.mp4", b"another"), write(f / "test/e.mp4", b"whole")),
                    [b"another", b"new", b"whole"], ["a caption of test/new"],
                    {"new": 2, "gone": 2, "moved": 1, "replaced": 2}),
}  # fmt: skip


WITH_ZARR_TOO = ("all at once",)


@pytest.mark.parametrize(
    ("change", "format"),
    [
        pytest.param(
            change, format, marks=() if format == "hdf5" or change in WITH_ZARR_TOO else pytest.mark.exhaustive
        )
        for change in CHANGES
        for format in BOTH
    ],
)
def test_of_a_folder_that_changes_only_what_is_new_is_encoded(extractor, folder, tmp_path, change, format):
    before = read(folder)
    first = extractor(before, tmp_path / "cache", format=format)
    assert (first.previous, first.changes["new"], first.encoded["videos"], first.videos) == (None, 5, 5, 4)
    act, videos, texts, told = CHANGES[change]
    act(folder)
    after = read(folder)
    done = extractor(after, tmp_path / "cache", format=format)
    assert (sorted(extractor.spent[0]), extractor.spent[1]) == (videos, texts)
    assert {key: count for key, count in done.changes.items() if count} == told
    assert done.encoded == {"videos": len(videos), "texts": len(texts),
                            "frames": sum(len(content) for content in videos)}  # fmt: skip
    assert done.previous == first.list_hash and done.complete and done.finished_here and not done.already_complete
    store = open_store(tmp_path / "cache")
    distinct = {content for content in contents(after).values()}
    assert done.reused["videos"] == len(distinct) - len(videos) and done.missing == 0
    require_reads(store, after, contents(after))
    extractor(after, tmp_path / "fresh", format=format)
    require_equal(store, open_store(tmp_path / "fresh"))
    assert extractor(after, tmp_path / "cache", format=format).already_complete and extractor.spent == ([], [])
    assert verify(store.library) == []
    old = open_store(tmp_path / "cache", first.list_hash)  # the version before is still what it was
    assert old.ids("video") == [video.id for video in before.videos] and old.complete


def hashed(monkeypatch) -> list[str]:
    """Names of the files that are read to be hashed, from now on."""
    found, real = [], known_files.content_of
    monkeypatch.setattr(known_files, "content_of", lambda path: (found.append(Path(path).name), real(path))[1])
    return found


class Told(Progress):
    """What is shown on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[tuple[str, int]] = []

    def task(self, name, total, unit):
        self.tasks.append((name, total))
        return Progress(quiet=True).task(name, total, unit)


def test_a_file_is_hashed_once_and_again_when_it_was_touched(extractor, folder, tmp_path, monkeypatch):
    found, told = hashed(monkeypatch), Told()

    def again() -> tuple[list[str], list[tuple[str, int]]]:
        found.clear()
        told.tasks.clear()
        extractor(read(folder), tmp_path / "cache", progress=told)
        return sorted(found), [task for task in told.tasks if task[0] == "hash"]

    assert again() == ([f"{name}.mp4" for name in "abcde"], [("hash", 5)])
    assert again() == ([], []), "what is known is not shown"
    os.utime(folder / "train/b.mp4", ns=(5, 5))
    put(folder, "train/f", b"f")
    assert again() == (["b.mp4", "f.mp4"], [("hash", 2)])
    assert extractor.spent[0] == [b"f"], "the same bytes are not decoded again"
    assert again() == ([], [])
    (tmp_path / "cache" / "files.jsonl").unlink()
    assert again()[1] == [("hash", 6)] and extractor.items == []


def test_a_killed_extraction_does_not_hash_again(extractor, folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Library, "commit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extractor(read(folder), tmp_path / "cache")
    found = hashed(monkeypatch)
    extractor(read(folder), tmp_path / "cache")
    assert found == []


def test_empty_files_by_the_hundred_are_one_item_and_no_copies_of_anything(extractor, tmp_path):
    folder = tmp_path / "videos"
    put(folder, "train/a", b"abc")
    for number in range(300):
        write(folder / ("train" if number % 2 else "test") / f"{number}.mp4", b"")
    done = extractor(read(folder), tmp_path / "cache")
    assert (done.videos, len(done.failed), done.encoded["videos"]) == (1, 300, 2)
    assert done.notes == read(folder).notes and {row["status"] for row in done.failed} == {"decode_error"}


def test_composed_and_decomposed_names_are_one_file(extractor, tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "vidéo.mp4") for form in ("NFC", "NFD"))
    assert composed != decomposed
    write(tmp_path / "videos" / decomposed, b"abc")
    write(tmp_path / "table.csv", f"video,caption\n{composed},é\n")
    table = dataset_entry("csv").read(tmp_path / "table.csv", tmp_path / "videos")
    assert extractor(table, tmp_path / "cache").videos == 1
    for name in (composed, decomposed):  # a file system may turn one into the other
        os.rename(next((tmp_path / "videos").iterdir()), tmp_path / "videos" / name)
        again = extractor(dataset_entry("folder").read(None, tmp_path / "videos"), tmp_path / "cache")
        assert extractor.spent[0] == [] and again.videos == 1


# --- tables ---------------------------------------------------------------------------------------------------------


def table(
    tmp_path: Path, *rows: str, name: str = "table.csv", header: str = "video,caption,start,end,split"
) -> Annotations:
    path = write(tmp_path / name, "\n".join([header, *rows]) + "\n")
    return dataset_entry("csv").read(path, tmp_path / "videos")


def test_the_same_times_however_they_are_written_are_one_item(extractor, tmp_path):
    write(tmp_path / "videos" / "a.mp4", b"abcdefghijklmnop")
    rows = [f"a.mp4,{i},{start},15,test" for i, start in enumerate(("12", "12.0", "12.0000004", "12.1"))]
    one = table(tmp_path, *rows)
    done = extractor(one, tmp_path / "cache")
    assert (len(one.videos), done.encoded["videos"], done.encoded["texts"]) == (2, 2, 4)
    require_reads(open_store(tmp_path / "cache"), one, {video.id: b"abcdefghijklmnop" for video in one.videos})
    apart = replace(one, videos=[VideoItem(f"v{i}", "test", one.videos[0].path, start, 15) for i, start in
                                 enumerate((12, 12.0, 12.0000004))], texts=[])  # fmt: skip
    extractor(apart, tmp_path / "cache", origin=named("apart"))
    assert extractor.spent[0] == [] and np.ptp(open_store(tmp_path / "cache", "apart").numbers["video"]) == 0


def test_the_start_of_a_file_is_the_file(extractor, tmp_path):
    path = str(write(tmp_path / "a.mp4", b"abc"))
    videos = [
        VideoItem("whole", "test", path),
        VideoItem("from 0", "test", path, 0.0),
        VideoItem("to 2", "test", path, 0, 2),
    ]
    done = extractor(Annotations(dataset="made", videos=videos, texts=[]), tmp_path / "cache")
    assert done.encoded["videos"] == 2 and done.frames == 3 + 3 + 2


def test_two_tables_of_one_name_are_versions_of_one_list_and_each_can_be_read(extractor, tmp_path):
    write(tmp_path / "videos" / "a.mp4", b"abc")
    write(tmp_path / "other" / "videos" / "a.mp4", b"other")
    one = table(tmp_path, "a.mp4,a dog,,,test")
    two = table(tmp_path / "other", "a.mp4,a cat,,,test")
    first = extractor(one, tmp_path / "cache", origin=named("csv-table"))
    second = extractor(two, tmp_path / "cache", origin=named("csv-table"))
    assert second.previous == first.list_hash and second.changes["replaced"] == 1
    require_reads(open_store(tmp_path / "cache"), two, {"a.mp4": b"other"})
    require_reads(open_store(tmp_path / "cache", first.list_hash), one, {"a.mp4": b"abc"})
    assert current_version(tmp_path / "cache", "csv-table") == second.list_hash


# --- benchmarks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def benchmark(tmp_path):
    """`benchmark("0-5", "6-7")`: a list of the published clips 0 to 5 for training and 6 to 7 for testing."""
    for number in range(10):
        write(tmp_path / "videos" / f"video{number}.mp4", b"a clip %d" % number)

    def ids(run: str) -> list[str]:
        first, last = map(int, run.split("-"))
        return [f"video{number}" for number in range(first, last + 1)]

    def make(train: str, test: str, missing: tuple[str, ...] = ()) -> Annotations:
        videos, texts = [], []
        for split, run in (("train", train), ("test", test)):
            for id in ids(run):
                path = tmp_path / "videos" / f"{id}.mp4"
                videos.append(VideoItem(id, split, str(path) if path.exists() and id not in missing else None))
                texts += [
                    TextItem(f"{id}#{n}", id, split, text) for n, text in enumerate(("somebody talks", f"it is {id}"))
                ]
        return Annotations(dataset="msrvtt", videos=videos, texts=texts)

    return make


def clips(annotations: Annotations) -> dict[str, bytes]:
    return {video.id: b"a clip %d" % int(video.id[5:]) for video in annotations.videos}


def test_lists_of_one_benchmark_share_what_they_share(extractor, benchmark, tmp_path):
    nine, seven, full = benchmark("0-6", "7-8"), benchmark("0-4", "7-8"), benchmark("0-4", "5-9")
    out = tmp_path / "cache"
    first = extractor(seven, out, named("msrvtt-7k", "msrvtt"))
    assert (first.encoded["videos"], first.encoded["texts"], first.texts) == (7, 8, 14), (
        "a repeated caption counts once"
    )
    assert extractor.backbone.texts["somebody talks"] == 1
    second = extractor(nine, out, named("msrvtt-9k", "msrvtt"))
    assert sorted(extractor.spent[0]) == [b"a clip 5", b"a clip 6"] and extractor.spent[1] == [
        "it is video5",
        "it is video6",
    ]
    assert second.reused == {"videos": 7, "texts": 8} and second.previous is None and second.changes["new"] == 9
    third = extractor(full, out, named("msrvtt-full", "msrvtt"))
    assert extractor.spent == ([b"a clip 9"], ["it is video9"]) and (third.videos, third.texts) == (10, 20)
    fourth = extractor(
        benchmark("0-1", "7-7"), out, named("msrvtt-first2", "msrvtt")
    )  # as with a limit, beside the whole
    assert extractor.spent == ([], []) and fourth.finished_here and (fourth.videos, fourth.texts) == (3, 6)
    for name, wanted in (("msrvtt-7k", seven), ("msrvtt-9k", nine), ("msrvtt-full", full)):
        require_reads(open_store(out, name), wanted, clips(wanted))
        extractor(wanted, tmp_path / name)
        require_equal(open_store(out, name), open_store(tmp_path / name))


def test_two_ids_of_one_content_are_two_entries_that_share_an_item(extractor, benchmark, tmp_path):
    nine = benchmark("0-3", "4-5")
    for a, b in ((1, 0), (5, 2)):
        write(tmp_path / "videos" / f"video{a}.mp4", b"a clip %d" % b)
    done = extractor(nine, tmp_path / "cache")
    store = open_store(tmp_path / "cache")
    assert (done.encoded["videos"], done.videos, store.num_items["video"]) == (4, 6, 6)
    assert store.numbers["video"][0] == store.numbers["video"][1]
    assert (
        done.notes
        == store.list.notes
        == [
            "2 videos have the content of others, and count for themselves: video0 = video1, video2 = video5",
            "1 of these in different splits: video2 (train) = video5 (test)",
        ]
    )
    frames = sum(len(b"a clip 0") for _ in range(6))
    assert done.frames == summarise(store.library)["frames"] == store.arrays("video")["offsets"][-1] == frames
    assert done.encoded["frames"] == 4 * len(b"a clip 0")
    with pytest.raises(
        InputError, match="'video2' in split train and 'video5' in test have the same content: .*`strict`"
    ):
        extractor(nine, tmp_path / "cache", strict=True)


def test_captions_of_videos_without_a_file_are_encoded_where_that_is_asked_for(extractor, benchmark, tmp_path):
    wanted = benchmark("0-2", "3-4", missing=("video1", "video3"))
    done = extractor(wanted, tmp_path / "cache")
    assert sorted(extractor.spent[1]) == ["it is video0", "it is video2", "it is video4", "somebody talks"]
    assert (done.missing, done.texts, done.texts_without_video) == (2, 6, 4)
    require_reads(open_store(tmp_path / "cache"), wanted, clips(wanted) | {"video1": None, "video3": None})
    done = extractor(wanted, tmp_path / "cache", all_captions=True)
    assert extractor.spent == ([], ["it is video1", "it is video3"]) and (done.texts, done.texts_without_video) == (
        10,
        4,
    )
    assert extractor(wanted, tmp_path / "cache", all_captions=True).already_complete


def test_of_videos_that_were_deleted_lists_of_the_same_family_find_the_items(extractor, benchmark, tmp_path):
    nine = benchmark("0-6", "7-8")
    extractor(nine, tmp_path / "cache", named("msrvtt-9k", "msrvtt"))
    shutil.rmtree(tmp_path / "videos")
    full = benchmark("0-4", "5-9")
    assert all(video.path is None for video in full.videos)
    done = extractor(full, tmp_path / "cache", named("msrvtt-full", "msrvtt"))
    assert extractor.spent == ([], []) and (done.changes["known_by_id"], done.missing, done.videos) == (9, 1, 9)
    require_reads(open_store(tmp_path / "cache", "msrvtt-full"), full, clips(full) | {"video9": None})
    again = extractor(nine, tmp_path / "cache", named("msrvtt-9k", "msrvtt"))
    assert again.already_complete and again.changes["known_by_id"] == 9
    new = replace(nine, texts=[TextItem("new", "video0", "train", "a new caption")])
    done = extractor(new, tmp_path / "cache", named("msrvtt-new", "msrvtt"))
    assert extractor.spent == ([], ["a new caption"]) and done.missing == 0
    with pytest.raises(
        NotFoundError, match="None of the 9 videos of msrvtt was found, for example 'video0'.*`list` a list"
    ):
        extractor(nine, tmp_path / "cache", named("mine"))
    assert current_version(tmp_path / "cache", "mine") is None


@pytest.mark.parametrize("asking", ["msrvtt-9k", "msrvtt-7k", "msrvtt-new"])
def test_where_lists_disagree_on_a_deleted_video_the_own_current_one_counts_and_else_none(
    extractor, benchmark, tmp_path, asking
):
    one = benchmark("0-1", "2-2")
    extractor(one, tmp_path / "cache", named("msrvtt-9k", "msrvtt"))
    write(tmp_path / "videos" / "video0.mp4", b"another")
    extractor(one, tmp_path / "cache", named("msrvtt-7k", "msrvtt"))
    gone = benchmark("0-1", "2-2", missing=("video0",))
    done = extractor(gone, tmp_path / "cache", named(asking, "msrvtt"))
    expected = {"msrvtt-9k": b"a clip 0", "msrvtt-7k": b"another", "msrvtt-new": None}[asking]
    assert done.changes["known_by_id"] == (expected is not None)
    require_reads(open_store(tmp_path / "cache", asking), gone, clips(gone) | {"video0": expected})


def test_what_counts_in_another_list_is_more_than_what_counted_before(extractor, benchmark, tmp_path):
    one = benchmark("0-1", "2-2")
    extractor(one, tmp_path / "cache", named("msrvtt-9k", "msrvtt"))
    write(tmp_path / "videos" / "video0.mp4", b"another")
    extractor(one, tmp_path / "cache", named("msrvtt-9k", "msrvtt"))
    gone = benchmark("0-1", "2-2", missing=("video0",))
    extractor(gone, tmp_path / "cache", named("msrvtt-7k", "msrvtt"))
    require_reads(open_store(tmp_path / "cache", "msrvtt-7k"), gone, clips(gone) | {"video0": b"another"})


def test_a_version_that_was_not_encoded_says_nothing_of_a_deleted_video(extractor, benchmark, tmp_path, monkeypatch):
    one = benchmark("0-1", "2-2")
    assert killed_after(monkeypatch, 0, lambda: extractor(one, tmp_path / "cache"))
    write(tmp_path / "videos" / "video0.mp4", b"another")
    assert killed_after(monkeypatch, 3, lambda: extractor(one, tmp_path / "cache")), "all but the last shard"
    gone = benchmark("0-1", "2-2", missing=("video0",))
    extractor(gone, tmp_path / "cache")
    require_reads(open_store(tmp_path / "cache"), gone, clips(gone) | {"video0": b"another"})


def test_a_dry_run_counts_what_is_there(extractor, benchmark, tmp_path):
    nine = benchmark("0-3", "4-5")
    assert count_encoded(nine, tmp_path / "cache") == {"videos": 0, "texts": 0}
    extractor(benchmark("0-1", "4-4"), tmp_path / "cache")
    before = sorted(tmp_path.rglob("*"))
    assert count_encoded(nine, tmp_path / "cache", ORIGIN) == {"videos": 3, "texts": 4}
    assert sorted(tmp_path.rglob("*")) == before


# --- files that change while they are read ----------------------------------------------------------------------------


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def vanish(path: Path) -> None:
    path.unlink()


def change(path: Path) -> None:
    write(path, b"changed")


@pytest.mark.parametrize("happens", [vanish, change])
@pytest.mark.parametrize("when", ["before", "during"])
def test_a_file_that_changes_while_it_is_read_poisons_nothing(extractor, folder, tmp_path, happens, when):
    wanted, victim = read(folder), folder / "train/b.mp4"

    def meanwhile(path: str) -> None:
        if victim.exists() and path == str(victim if when == "during" else folder / "train/a.mp4"):
            happens(victim)

    extractor.pool.meanwhile = meanwhile
    done = extractor(wanted, tmp_path / "cache")
    lost = [row for row in done.failed if row["id"] == "train/b.mp4"]
    assert lost == [{"id": "train/b.mp4", "reason": CHANGED, "status": "missing"}]
    assert done.complete and done.videos == 3, "the list can be read, without it"
    extractor.pool.meanwhile = lambda path: None
    if happens is vanish:
        write(victim, b"bcdef")
    after = read(folder)
    again = extractor(after, tmp_path / "cache")
    content = b"bcdef" if happens is vanish else b"changed"
    assert extractor.spent == ([content], []) and again.videos == 4
    require_reads(open_store(tmp_path / "cache"), after, contents(after))
    extractor(after, tmp_path / "fresh")
    require_equal(open_store(tmp_path / "cache"), open_store(tmp_path / "fresh"))
    put(folder, "train/old", b"bcdef", "a caption of train/b")  # what it was when it was hashed
    extractor(read(folder), tmp_path / "cache", named("other"))
    assert extractor.spent == ([] if happens is vanish else [b"bcdef"], [])
    require_reads(open_store(tmp_path / "cache", "other"), read(folder), contents(read(folder)))


def test_an_older_file_of_the_same_size_in_its_place_is_noticed(extractor, folder, tmp_path):
    victim = folder / "train/b.mp4"

    def meanwhile(path: str) -> None:
        if path == str(victim):
            victim.write_bytes(b"BCDEF")
            os.utime(victim, ns=(1, 1))

    extractor.pool.meanwhile = meanwhile
    assert "train/b.mp4" in {row["id"] for row in extractor(read(folder), tmp_path / "cache").failed}


def test_of_copies_one_that_vanished_is_not_the_last_word(extractor, folder, tmp_path):
    move(folder, "train/b", "train/b2", shutil.copy2)
    wanted = read(folder)
    extractor.pool.meanwhile = lambda path: Path(path).unlink() if path.endswith("b.mp4") else None
    assert extractor(wanted, tmp_path / "cache").videos == 3
    extractor.pool.meanwhile = lambda path: None
    again = extractor(wanted, tmp_path / "cache")
    assert (again.videos, again.changes["known_by_id"]) == (5, 1) and extractor.spent[0] == [b"bcdef"]
    assert extractor(wanted, tmp_path / "cache").already_complete and extractor.items == []


def test_a_file_that_cannot_be_hashed_is_told_with_the_reason(extractor, folder, tmp_path, monkeypatch):
    real = known_files.content_of

    def refused(path: Path | str):
        if Path(path).name == "b.mp4":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(known_files, "content_of", refused)
        done = extractor(read(folder), tmp_path / "cache")
    assert {
        "id": "train/b.mp4",
        "reason": "Permission denied",
        "status": "missing",
    } in done.failed and done.missing == 1
    again = extractor(read(folder), tmp_path / "cache")
    assert extractor.spent == ([b"bcdef"], ["a caption of train/b"]) and again.missing == 0


# --- the backbone -----------------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(extractor, monkeypatch) -> list[str]:
    """Backbones that were loaded; what is loaded next has the weights `loaded.weights` of its file."""
    found: list[str] = []

    def load(name, pretrained, **_):
        path = Path(pretrained)
        found.append(pretrained)
        backbone = MadeBackbone(path.read_text() if path.is_file() else "0" * 16)
        backbone.texts = extractor.backbone.texts
        return backbone

    monkeypatch.setattr(engine, "load_backbone", load)
    return found


@pytest.mark.parametrize("asked", ["made", "hf-hub:somebody/made"])
def test_no_backbone_is_loaded_where_there_is_nothing_to_encode(extractor, loaded, folder, tmp_path, asked):
    """Whatever the backbone calls itself."""
    wanted, options = read(folder), {"load": True, "backbone": asked}
    extractor(wanted, tmp_path / "cache", **options)
    assert len(loaded) == 1
    assert extractor(wanted, tmp_path / "cache", **options).already_complete
    move(folder, "train/a", "train/z")
    remove(folder, "test/d")
    done = extractor(read(folder), tmp_path / "cache", **options, shard_videos=7, batch_frames=1, workers=3)
    assert (done.changes["moved"], done.changes["gone"], done.finished_here) == (1, 2, True)
    assert len(loaded) == 1
    put(folder, "train/new", b"new")
    extractor(read(folder), tmp_path / "cache", **options)
    assert len(loaded) == 2 and extractor.spent == ([b"new"], ["a caption of train/new"])


@pytest.mark.parametrize("other", [{"fps": 2.0}, {"max_frames": 3}, {"dtype": "float16"}, {"tokens": False}])
def test_other_settings_are_compared_with_a_backbone_and_refused(extractor, loaded, folder, tmp_path, other):
    extractor(read(folder), tmp_path / "cache", load=True)
    with pytest.raises(FingerprintError, match="made by another encoder"):
        extractor(read(folder), tmp_path / "cache", load=True, **other)
    assert len(loaded) == 2


def test_other_versions_of_packages_are_compared_with_a_backbone_and_taken_where_it_is_the_same(
    extractor, loaded, folder, tmp_path
):
    extractor(read(folder), tmp_path / "cache", load=True)
    newer = replace(ORIGIN, versions={"torch": "3"})
    assert extractor(read(folder), tmp_path / "cache", newer, load=True).already_complete and len(loaded) == 2


def test_changed_weights_are_noticed(extractor, loaded, folder, tmp_path):
    weights = write(tmp_path / "weights.pt", "1" * 16)
    options = {"load": True, "pretrained": str(weights)}
    extractor(read(folder), tmp_path / "cache", **options)
    assert extractor(read(folder), tmp_path / "cache", **options).already_complete and len(loaded) == 1
    os.utime(weights, ns=(7, 7))
    assert extractor(read(folder), tmp_path / "cache", **options).already_complete and len(loaded) == 2
    assert extractor(read(folder), tmp_path / "cache", **options).already_complete and len(loaded) == 2
    write(weights, "2" * 16)
    with pytest.raises(FingerprintError, match="weights"):
        extractor(read(folder), tmp_path / "cache", **options)
    write(weights, "1" * 16)
    (tmp_path / "cache" / "files.jsonl").unlink()
    assert extractor(read(folder), tmp_path / "cache", **options).already_complete and len(loaded) == 4


# --- kills, readers, parts --------------------------------------------------------------------------------------------


class Killed(BaseException): ...


def killed_after(monkeypatch, commits: int, act) -> bool:
    """Whether an action is killed before one more commit than so many."""
    real, left = Library.commit, [commits]

    def commit(self, *args, **options):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return real(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Library, "commit", commit)
        try:
            act()
        except Killed:
            return True
    return False


@pytest.mark.parametrize(
    "other", [pytest.param(False, marks=pytest.mark.exhaustive, id="same"), pytest.param(True, id="other")]
)
@pytest.mark.parametrize("commits", range(6))
def test_after_a_kill_the_same_command_ends_in_the_same_bits(extractor, folder, tmp_path, monkeypatch, commits, other):
    wanted, out = read(folder), tmp_path / "cache"
    extractor(wanted, tmp_path / "whole")
    total = sum(len(open_library(tmp_path / "whole").stream(stream).commits) for stream in ("video", "text"))
    assert killed_after(monkeypatch, commits, lambda: extractor(wanted, out)) == (commits < total) and total == 5
    assert commits < total or current_version(out, "made") is not None
    before = extractor.items
    if other:  # somebody else wants a part of it, and something else
        put(folder, "train/new", b"new")
        videos = [video for video in read(folder).videos if video.id in ("train/b.mp4", "train/new.mp4", "test/e.mp4")]
        ids = {video.id for video in videos}
        few = replace(read(folder), videos=videos, texts=[text for text in read(folder).texts if text.video in ids])
        extractor(few, out, named("other"))
        require_reads(open_store(out, "other"), few, contents(few))
        before += extractor.items
    extractor(wanted, out)
    store = open_store(out, "made")
    require_reads(store, wanted, contents(wanted))
    require_equal(store, open_store(tmp_path / "whole"))
    assert verify(store.library) == []
    assert len(before + extractor.items) <= 10 + 2 * other + 3, "a kill costs the shard that was under way"
    assert extractor(wanted, out).already_complete


def test_readers_go_on_with_the_version_before_until_the_next_is_whole(extractor, folder, tmp_path, monkeypatch):
    first, out = extractor(read(folder), tmp_path / "cache"), tmp_path / "cache"
    old = read(folder)
    kept = contents(old)
    put(folder, "train/new", b"new")
    write(folder / "train/b.mp4", b"another")
    remove(folder, "test/d")
    seen, real = [], Library.commit

    def commit(self, *args, **options):
        store = open_store(out)
        require_reads(store, old, kept)
        seen.append(store.list_hash)
        return real(self, *args, **options)

    monkeypatch.setattr(Library, "commit", commit)
    second = extractor(read(folder), out)
    assert set(seen) == {first.list_hash} and len(seen) == 2 and open_store(out).list_hash == second.list_hash


@pytest.mark.parametrize("left", ["arrays", "list", "addition", "commits"])
def test_whatever_a_kill_leaves_between_two_steps_the_same_command_goes_on(extractor, folder, tmp_path, left):
    """Each step takes away what comes after it: (1) to (6) of the design."""
    wanted, out = read(folder), tmp_path / "cache"
    done = extractor(wanted, out)
    extractor(wanted, tmp_path / "whole")
    (out / "lists" / "made" / "current").unlink()
    if left in ("arrays", "list", "addition"):
        for folder_ in ("commits", "shards"):
            for path in [*(out / folder_).glob("*/*")]:
                if path.name != "zarr.json":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if left in ("arrays", "list"):
        for path in [*(out / "additions").glob("*/*.txt")]:
            path.unlink()
    if left == "arrays":
        (out / "lists" / "made" / f"{done.list_hash}.json").unlink()
    if left == "commits":
        for path in [*(out / "commits").glob("*/????????????????.json")]:
            path.unlink()
    again = extractor(wanted, out)
    assert again.finished_here and not again.already_complete
    assert len(extractor.items) == (0 if left == "commits" else 10)
    require_equal(open_store(out), open_store(tmp_path / "whole"))
    assert verify(open_library(out)) == [] and [*(out / "commits").glob("*/????????????????.json")] != []


def test_a_second_writer_is_refused_and_parts_are_not(extractor, folder, tmp_path):
    out = tmp_path / "cache"
    extractor(read(folder), out)
    put(folder, "train/new", b"new")
    library, made = open_library(out), open_store(out).list
    with filling(library, made), pytest.raises(CacheBusyError, match="is being written by glscl extract"):
        extractor(read(folder), out, named("other"))
    with filling(library, made, part=(1, 2)):
        with pytest.raises(CacheBusyError):
            extractor(read(folder), out)
        assert extractor(read(folder), out, part="2/2").part == "2/2"


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (2, 3, 1)])
def test_parts_of_equal_sight_one_after_the_other_encode_each_item_once(extractor, folder, tmp_path, order):
    wanted, out = read(folder), tmp_path / "cache"
    extractor(wanted, tmp_path / "whole", shard_videos=1, shard_texts=1)
    spent = []
    for part in order:
        done = extractor(wanted, out, part=f"{part}/3", shard_videos=1, shard_texts=1)
        spent += extractor.items
        assert (done.complete, done.finished_here) == (part == order[-1],) * 2 and done.left == 0
        assert extractor(wanted, out, part=f"{part}/3", shard_videos=1, shard_texts=1).already_complete
    assert len(spent) == len(set(spent)) == 10 and len(open_library(out).stream("video").additions) == 1
    require_equal(open_store(out), open_store(tmp_path / "whole"))


def test_a_part_that_sees_less_leaves_what_it_does_not_see_and_says_so(extractor, folder, tmp_path):
    wanted, out = read(folder), tmp_path / "cache"
    extractor(wanted, out, part="1/2")  # leaves the shards of the videos c and d, and of the captions of d and e
    less = replace(
        wanted, videos=[v if v.id != "test/d.mp4" else VideoItem(v.id, v.split, None) for v in wanted.videos]
    )
    done = extractor(less, out, part="2/2")
    assert (done.complete, done.left, done.missing) == (False, 2, 1) and extractor.items == []
    last = extractor(less, out)
    assert last.finished_here and last.left == 0 and extractor.spent[0] == [b"cd"], "what is wanted of it is made"
    require_reads(open_store(out), less, contents(less))
    full = extractor(wanted, out)
    assert full.finished_here and extractor.spent[0] == [b"defg"]
    require_reads(open_store(out), wanted, contents(wanted))


def test_machines_that_have_different_files_are_merged_and_find_the_rest_by_their_ids(extractor, folder, tmp_path):
    wanted = read(folder)
    origin = named("msrvtt-9k", "msrvtt")
    for part, ids in (("a", "ab"), ("b", "cde")):
        videos = [v if v.id[-5] in ids else VideoItem(v.id, v.split, None) for v in wanted.videos]
        extractor(replace(wanted, videos=videos), tmp_path / part, origin)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    nowhere = replace(wanted, videos=[VideoItem(v.id, v.split, None) for v in wanted.videos])
    done = extractor(nowhere, tmp_path / "all", origin)
    assert extractor.spent == ([], []) and done.changes["known_by_id"] == 5
    require_reads(open_store(tmp_path / "all"), wanted, contents(wanted))


@pytest.fixture
def at_once(monkeypatch):
    """`at_once(lists, out)`: each list as a part, all at the same time, in threads; each has a lock, as processes have."""
    pools = threading.local()

    def run(lists: list[Annotations], out: Path) -> tuple[list[ExtractionSummary], list[bytes | str]]:
        found: list[ExtractionSummary | BaseException] = []
        spent: list[bytes | str] = []

        def part(number: int) -> None:
            pools.pool = MadePool()
            made = Extractor(MadeBackbone(), pools.pool)
            try:
                found.append(made(lists[number], out, part=f"{number + 1}/{len(lists)}", shard_videos=1, shard_texts=1))
                spent.extend(made.items)
            except BaseException as error:  # an assertion below tells it
                found.append(error)

        threads = [threading.Thread(target=part, args=(number,)) for number in range(len(lists))]
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "DecodePool", lambda *_, **__: pools.pool)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        done = [each for each in found if isinstance(each, ExtractionSummary)]
        assert len(done) == len(lists), found
        return done, spent

    return run


@pytest.mark.parametrize("count", [2, 3, 4])
def test_parts_of_equal_sight_at_the_same_time_encode_each_item_once(at_once, folder, tmp_path, count):
    wanted, out = read(folder), tmp_path / "cache"
    results, spent = at_once([wanted] * count, out)
    assert [each.finished_here for each in results].count(True) == 1
    assert len(spent) == len(set(spent)) == 10
    assert {each.list_hash for each in results} == {current_version(out, "made")} == {*versions_of(out, "made")}
    require_reads(open_store(out), wanted, contents(wanted))
    assert verify(open_library(out)) == []


def test_parts_of_unequal_sight_at_the_same_time_do_nothing_wrong(at_once, extractor, folder, tmp_path):
    wanted, out = read(folder), tmp_path / "cache"
    unseen = ["train/a.mp4", "train/c.mp4", "test/d.mp4"]
    lists = [
        replace(wanted, videos=[VideoItem(v.id, v.split, None) if v.id == id else v for v in wanted.videos])
        for id in unseen
    ]
    _, spent = at_once(lists, out)
    assert extractor(wanted, out).complete
    assert set(spent) | set(extractor.items) == {*CLIPS.values(), *(f"a caption of {name}" for name in CLIPS)}
    require_reads(open_store(out), wanted, contents(wanted))
    assert verify(open_library(out)) == [] and extractor(wanted, out).already_complete


# --- asking again -----------------------------------------------------------------------------------------------------


def test_what_failed_is_asked_for_again_once_and_the_better_item_counts(extractor, folder, tmp_path, monkeypatch):
    wanted, out = read(folder), tmp_path / "cache"
    busy = {str(folder / "train/a.mp4"): Status.TIMED_OUT, str(folder / "test/d.mp4"): Status.DECODE_ERROR}
    extractor.pool.failing.update(busy)
    assert extractor(wanted, out).videos == 2
    assert extractor(wanted, out).already_complete, "not without being told to"
    extractor.pool.failing.pop(str(folder / "train/a.mp4"))
    begun = killed_after(monkeypatch, 1, lambda: extractor(wanted, out, retry_failed=True))
    assert begun and len(extractor.spent[0]) == 3
    done = extractor(wanted, out, retry_failed=True)
    assert len(extractor.spent[0]) == 1 and done.videos == 3, "what was begun is finished, and nothing asked for twice"
    assert sorted(each.attempt for each in open_library(out).stream("video").additions) == [0, 1]
    extractor.pool.failing.clear()
    last = extractor(wanted, out, retry_failed=True)
    assert sorted(extractor.spent[0]) == [b"broken", b"defg"] and last.videos == 4
    require_reads(open_store(out), wanted, contents(wanted))
    extractor.pool.failing.update(busy)
    worse = extractor(wanted, out, retry_failed=True)
    assert extractor.spent[0] == [b"broken"] and worse.videos == 4
    require_reads(open_store(out), wanted, contents(wanted))
    assert {row["id"] for row in open_store(out).failures()} == {"test/e.mp4"}


# --- what a cache tells -----------------------------------------------------------------------------------------------


def test_nothing_but_lists_and_the_memo_names_an_id_a_path_or_a_list(extractor, folder, tmp_path):
    for name, content in (("train/secretly", b"a secret"), ("test/secretive", b"broken secretly"), ("test/f", b"cut!")):
        put(folder, name, content, "secretly")
    out = tmp_path / "secret"
    victim = folder / "train/secretly.mp4"
    extractor.pool.meanwhile = lambda path: victim.unlink() if path == str(victim) else None
    done = extractor(read(folder), out, named("secret-list"), format="zarr")
    assert {row["status"] for row in done.failed} == {"missing", "decode_error", "partial"}
    names = [
        "store.json",
        *(f"{room}/{stream}" for room in ("additions", "commits", "shards") for stream in ("video", "text")),
    ]
    files = [path for name in names for path in (out / name, *(out / name).rglob("*")) if path.is_file()]
    assert len(files) > 10
    for path in files:
        for word in (b"secret", b"train/", b".mp4", os.fsencode(tmp_path)):
            assert "text_bytes" in path.parts or word not in path.read_bytes(), f"{word!r} in {path}"


@pytest.fixture
def said(extractor, tmp_path, glscl, monkeypatch):
    """`said(*more)`: the lines of `glscl extract` into a cache, without seconds."""
    monkeypatch.setattr(engine, "load_backbone", lambda *_, **__: extractor.backbone)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "home"))

    def run(*more: object) -> list[str]:
        status, out, err = glscl("extract", "--out", "cache", "--backbone", "made", "--pretrained", "seed", *more)
        assert status == 0, err
        return [re.sub(r" in [\d.]+ s.*", " in no time", line) for line in out.splitlines()]

    return run


def test_what_is_said_is_good_english(folder, said):
    run, said = said, lambda *more: run("--dataset", "folder", "--videos", folder, *more)
    last = "1 video with failures (1 not decoded); 1 caption lost its video. Reasons: glscl inspect cache"
    assert said() == [
        "cache: 4 videos, 14 frames, 5 captions in the list folder-videos in no time",
        "  encoded 5 videos and 5 captions",
        last,
    ]
    move(folder, "train/a", "train/z")
    put(folder, "train/new", b"new")
    remove(folder, "test/d")
    assert said() == [
        "cache: 4 videos, 13 frames, 5 captions in the list folder-videos in no time",
        "  encoded 1 video and 1 caption; 4 videos and 4 captions were there already",
        "  since the version before: 2 new (1 known under another name), 2 gone",
        last,
    ]
    assert said() == ["cache is complete already: 4 videos, 13 frames, 5 captions in the list folder-videos", last]
    assert said("--dry-run")[-2:] == [
        "cache has 5 videos and 5 captions of these already",
        "foreseen: nothing is left to encode",
    ]
    move(folder, "train/new", "train/newer", shutil.copy2)
    assert said("--list", "mine") == [
        "note: 1 video has the content of another, and counts for itself: train/new.mp4 = train/newer.mp4",
        "cache: 5 videos, 16 frames, 6 captions in the list mine in no time",
        "  encoded 0 videos and 0 captions; 5 videos and 5 captions were there already",
        last,
    ]
    write(folder / "train/b.mp4", b"another")
    assert said("--part", "2/3") == [
        "note: 1 video has the content of another, and counts for itself: train/new.mp4 = train/newer.mp4",
        "cache: part 2/3 is done in no time",
        "the list folder-videos is not complete until the other parts are done: 4 videos, 11 frames, 6 captions are there",
        "  encoded 0 videos and 0 captions; 4 videos and 5 captions were there already",
        "  since the version before: 1 new (1 known under another name), 1 replaced",
        last.replace("; 1 caption lost its video", ""),
    ]


def test_what_a_deleted_video_keeps_is_said(extractor, tmp_path, said):
    rows = [f"{name}.mp4,a caption,test" for name in "ab"]
    own = write(tmp_path / "own.csv", "\n".join(["video,caption,split", *rows]) + "\n")
    for name in "ab":
        write(tmp_path / "videos" / f"{name}.mp4", name)
    command = ("--dataset", "csv", "--annotations", own, "--videos", tmp_path / "videos")
    assert said(*command) == [
        "cache: 2 videos, 2 frames, 2 captions in the list csv-own in no time",
        "  encoded 2 videos and 1 caption",
    ]
    (tmp_path / "videos" / "b.mp4").unlink()
    assert said(*command) == [
        "cache is complete already: 2 videos, 2 frames, 2 captions in the list csv-own",
        "  1 video without a file keeps what was encoded before",
    ]
    write(tmp_path / "videos" / "a.mp4", "another")
    assert said(*command)[0] == (
        "warning: no video at hand is what the list csv-own had under its id, for example a.mp4, and 1 video without a file "
        "keeps what it had: where these are other videos, give their list a name of its own (--list)"
    )
