"""Lists meet items through keys: whatever the order in which either came, every entry reads as what it was made from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glscl.cache.additions import write_addition
from glscl.cache.creation import StoreSpec, create_library
from glscl.cache.encoded_items import EncodedText, EncodedVideo, text_arrays, video_arrays
from glscl.cache.keys import as_array, clip, text_key, video_key
from glscl.cache.library import Library, open_library
from glscl.cache.lists import arrange, current_version, list_names, make_current, make_list, read_list, write_list
from glscl.cache.planning import work_for
from glscl.cache.schema import Annotations, Expected, Status, TextItem, VideoItem
from glscl.cache.store import Store, open_store
from glscl.cache.table import FeatureTable
from glscl.common.errors import (
    CacheCorruptError,
    CacheFormatError,
    CacheIncompleteError,
    FingerprintError,
    NotFoundError,
    UsageError,
)

D = 4
SPEC = StoreSpec(configuration={"backbone": {"name": "made", "pretrained": "seed"}}, embed_dim=D, dtype="float32")
FORMATS = ("zarr", "hdf5")


def features_of(key: bytes, rows: int) -> np.ndarray:
    """What the made-up encoder makes of a key."""
    seed = int.from_bytes(key[:8], "little")
    return np.random.default_rng(seed).standard_normal((rows, D)).astype(np.float32)


def frames_of(content: bytes) -> int:
    """A file of this content gives so many frames; none where its first letter says that it is broken."""
    return 0 if content.startswith(b"broken") else 1 + content[-1] % 5


class Encoder:
    """Extracts as the real one does, and counts."""

    def __init__(self) -> None:
        self.videos: list[bytes] = []
        self.texts: list[bytes] = []

    def extract(
        self, root, annotations, contents, *, name="made", shard=3, commits=10**6, format="zarr"
    ) -> Store | None:
        """Make what a list wants; stops, as if killed, after so many commits."""
        library = create_library(root, SPEC, format)
        annotations = arrange(annotations)
        files = [contents.get(video.id) for video in annotations.videos]
        content = as_array(b"\0" * 16 if file is None else file.ljust(16, b".")[:16] for file in files)
        keys = as_array(
            b"\0" * 16 if file is None else video_key(file.ljust(16, b".")[:16], *clip(video.start, video.end))
            for file, video in zip(files, annotations.videos)
        )
        file_of = {key.tobytes(): file for key, file in zip(keys, files) if file is not None}
        there = {video.id for video, file in zip(annotations.videos, files) if file is not None}
        texts = as_array(text_key(text.text) if text.video in there else b"\0" * 16 for text in annotations.texts)
        text_of = {text_key(text.text): text.text for text in annotations.texts}
        made = make_list(
            annotations, name=name, family=name, recipe="", video_key=keys, video_content=content, text_key=texts
        )
        write_list(root, made, format)
        for stream, wanted in (("text", texts), ("video", keys)):
            work = work_for(library, stream, wanted[wanted.any(axis=1)])
            todo = [(place.addition, place.shard) for place in work.finish]
            if len(work.new):
                addition = write_addition(root, stream, work.new, shard_items=shard, attempt=work.attempt)
                library.add(addition)
                todo += [(addition, number) for number in range(addition.num_shards)]
            for addition, number in todo:
                if not commits:
                    return None
                commits -= 1
                self._commit(library, addition, number, file_of, text_of)
            for addition in {addition.name: addition for addition, _ in todo}.values():
                library.settle(addition)
        make_current(root, made)
        return open_store(root, name)

    def _commit(self, library: Library, addition, number, file_of, text_of) -> None:
        run = addition.shard_range(number)
        keys = addition.keys[run.start : run.stop]
        named = [key.tobytes() for key in keys]
        if addition.stream == "video":
            self.videos += named
            videos = []
            for key in named:
                count = frames_of(file_of[key])
                status = Status.OK if count else Status.DECODE_ERROR
                videos.append(EncodedVideo(features_of(key, count), np.arange(count, dtype=np.float32), status, None))
            arrays = video_arrays(keys, videos, embed_dim=D, dtype="float32")
            failures = [
                {"key": key.hex(), "reason": "it is broken", "status": "decode_error"}
                for key, video in zip(named, videos)
                if video.status != Status.OK
            ]
            library.commit(addition, number, arrays, failures=failures)
        else:
            self.texts += named
            made = [text_of[key] for key in named]
            records = [
                EncodedText(
                    features_of(key, 1)[0], features_of(key, 1 + len(text)), np.arange(1 + len(text), dtype=np.int32)
                )
                for key, text in zip(named, made)
            ]
            library.commit(addition, number, text_arrays(keys, made, records, embed_dim=D, dtype="float32"))


def annotations(*rows: tuple[str, str, list[str]], dataset: str = "made") -> Annotations:
    """From (video id, split, captions)."""
    return Annotations(
        dataset=dataset,
        videos=[VideoItem(id, split, None) for id, split, _ in rows],
        texts=[TextItem(f"{id}#{n}", id, split, text) for id, split, texts in rows for n, text in enumerate(texts)],
        expected={"test": Expected(7, 3)},
        notes=["a row was dropped"],
    )


PLAIN = annotations(("a", "train", ["a dog", "a cat"]), ("b", "train", ["a dog"]), ("c", "test", ["rain", "a dog"]))
FILES = {"a": b"one", "b": b"two", "c": b"three"}


def require_reads(store: Store, wanted: Annotations, contents) -> None:
    """Every entry reads as what it was made from, and so does the table of every split."""
    wanted = arrange(wanted)
    assert store.ids("video") == [video.id for video in wanted.videos]
    assert store.ids("text") == [text.id for text in wanted.texts] and store.captions() == [
        t.text for t in wanted.texts
    ]
    video, text = store.arrays("video"), store.arrays("text")
    expected: dict[str, np.ndarray] = {}
    for row, item in enumerate(wanted.videos):
        file = contents.get(item.id)
        key = None if file is None else video_key(file.ljust(16, b".")[:16], *clip(item.start, item.end))
        count = 0 if file is None else frames_of(file)
        found = video["values"][video["offsets"][row] : video["offsets"][row + 1]]
        expected[item.id] = features_of(key, count) if key is not None else np.zeros((0, D), np.float32)
        np.testing.assert_array_equal(found, expected[item.id])
        assert video["status"][row] == (Status.MISSING if file is None else Status.OK if count else Status.DECODE_ERROR)
    for row, item in enumerate(wanted.texts):
        found = text["values"][text["offsets"][row] : text["offsets"][row + 1]]
        there = contents.get(item.video) is not None
        key = text_key(item.text)
        np.testing.assert_array_equal(found, features_of(key, 1 + len(item.text)) if there else np.zeros((0, D)))
    for split in {item.split for item in wanted.videos}:
        table = FeatureTable.load(store, split, max_frames=2)
        kept = [v.id for v in wanted.videos if v.split == split and len(expected[v.id])]
        assert table.video_ids == kept
        texts = [t for t in wanted.texts if t.split == split and t.video in kept]
        assert table.text_ids == [t.id for t in texts] and table.captions == [t.text for t in texts]
        assert [table.video_ids[row] for row in table.video_of_text.tolist()] == [t.video for t in texts]
        for row, id in enumerate(kept):
            frames = (
                expected[id][np.linspace(0, len(expected[id]) - 1, 2, dtype=int)]
                if len(expected[id]) > 2
                else expected[id]
            )
            found = table.frame_features[row][table.frame_mask[row]]
            np.testing.assert_array_equal(found.numpy(), frames)
        for row, item in enumerate(texts):
            batch = table.texts(torch.tensor([row]))
            np.testing.assert_array_equal(
                batch.token_features[0].numpy(), features_of(text_key(item.text), 1 + len(item.text))
            )
            np.testing.assert_array_equal(batch.text_features[0].numpy(), features_of(text_key(item.text), 1)[0])
        if len(kept) > 1:
            part = table.subset(torch.tensor([1]))
            owned = [t for t in texts if t.video == kept[1]]
            assert part.text_ids == [t.id for t in owned]
            for row, item in enumerate(owned):
                found = part.texts(torch.tensor([row])).token_features[0].numpy()
                np.testing.assert_array_equal(found, features_of(text_key(item.text), 1 + len(item.text)))


@pytest.mark.parametrize("format", FORMATS)
def test_a_list_reads_as_it_was_asked_for(tmp_path, format):
    encoder = Encoder()
    store = encoder.extract(tmp_path / "cache", PLAIN, FILES, format=format)
    require_reads(store, PLAIN, FILES)
    assert len(encoder.texts) == 3 and len(encoder.videos) == 3  # "a dog" stands three times
    assert (
        store.complete and store.failures() == [] and "\n" not in repr(store) + repr(store.library) + repr(store.list)
    )
    assert store.list.splits["test"].expected == Expected(7, 3) and store.list.notes == ["a row was dropped"]


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_there_is_never_made_again(tmp_path, format):
    encoder, root = Encoder(), tmp_path / "cache"
    encoder.extract(root, PLAIN, FILES, format=format)
    more = annotations(
        ("c renamed", "test", ["rain"]),
        ("d", "train", ["snow"]),
        ("a", "train", ["a cat", "a bird"]),
        ("copy", "train", []),
    )
    files = {"c renamed": b"three", "a": b"one", "d": b"four", "copy": b"four"}
    before = len(encoder.videos), len(encoder.texts)
    store = encoder.extract(root, more, files, name="more", format=format)
    require_reads(store, more, files)
    assert (len(encoder.videos) - before[0], len(encoder.texts) - before[1]) == (1, 2)
    require_reads(open_store(root, "made"), PLAIN, FILES)
    assert list_names(root) == ["made", "more"]


def test_the_version_before_counts_until_the_next_is_whole(tmp_path):
    encoder, root = Encoder(), tmp_path / "cache"
    first = encoder.extract(root, PLAIN, FILES)
    replaced = FILES | {"a": b"another"}
    assert encoder.extract(root, PLAIN, replaced, commits=0) is None
    assert open_store(root).list_hash == first.list_hash
    require_reads(open_store(root), PLAIN, FILES)
    second = encoder.extract(root, PLAIN, replaced)
    assert second.list_hash != first.list_hash and second.list.annotations == first.list.annotations
    require_reads(second, PLAIN, replaced)
    require_reads(open_store(root, first.list_hash), PLAIN, FILES)
    require_reads(open_store(root, f"made@{first.list_hash}"), PLAIN, FILES)


def test_videos_without_a_file_are_entries_without_an_item(tmp_path):
    files = {"a": b"one", "c": b"broken"}
    store = Encoder().extract(tmp_path / "cache", PLAIN, files)
    require_reads(store, PLAIN, files)
    assert store.failures() == [
        {"id": "b", "reason": "no file found for this id", "status": "missing"},
        {"id": "c", "reason": "it is broken", "status": "decode_error"},
    ]


def test_a_list_that_is_not_whole_says_so(tmp_path):
    encoder, root = Encoder(), tmp_path / "cache"
    encoder.extract(root, PLAIN, FILES, commits=1)
    with pytest.raises(CacheIncompleteError, match="never finished"):
        open_store(root)
    hash = next((root / "lists" / "made").glob("*.json")).stem
    store = open_store(root, hash)
    assert not store.complete
    for read in (lambda: store.arrays("video"), lambda: FeatureTable.load(store, "test"), store.require_complete):
        with pytest.raises(CacheIncompleteError, match="0 of . video items of the list made"):
            read()


def test_several_lists_must_be_told_apart(tmp_path):
    encoder, root = Encoder(), tmp_path / "cache"
    encoder.extract(root, PLAIN, FILES)
    encoder.extract(root, PLAIN, FILES, name="other")
    with pytest.raises(UsageError, match="several lists: made, other"):
        open_store(root)
    with pytest.raises(NotFoundError, match="no list third"):
        open_store(root, "third")
    with pytest.raises(NotFoundError, match="0123"):
        open_store(root, "made@0123456789abcdef")
    for name in ("../x", "..", "/etc", "made@../../x"):
        with pytest.raises(NotFoundError):
            open_store(root, name)


def test_another_encoder_is_refused(tmp_path):
    create_library(tmp_path / "cache", SPEC)
    other = StoreSpec(configuration={"backbone": {"name": "other", "pretrained": "seed"}}, embed_dim=D, dtype="float32")
    with pytest.raises(FingerprintError, match="backbone.name: found 'made', expected 'other'"):
        create_library(tmp_path / "cache", other)
    with pytest.raises(UsageError, match="is a zarr cache; asked for hdf5"):
        create_library(tmp_path / "cache", SPEC, "hdf5")


def test_caches_of_an_earlier_version_are_one_line(tmp_path):
    create_library(tmp_path / "cache", SPEC)
    head = tmp_path / "cache" / "store.json"
    head.write_text(head.read_text().replace("glscl.cache/2", "glscl.cache/1"))
    with pytest.raises(CacheFormatError, match="made by an earlier version. Extract again"):
        open_library(tmp_path / "cache")


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_list_is_one_line(tmp_path, format):
    root = tmp_path / "cache"
    store = Encoder().extract(root, PLAIN, FILES, format=format)
    place = root / "lists" / "made" / f"{store.list_hash}{store.library.format.suffix}"
    record = place.with_name(f"{store.list_hash}.json")
    good = record.read_bytes()
    for old, new in (
        (b'"texts"', b'"tests"'),
        (b"crc32", b"crc33"),
        (b"[\n    0,\n    2", b"[\n    0,\n    9"),
        (b"made", b"mode"),
    ):
        assert old in good
        record.write_bytes(good.replace(old, new))
        with pytest.raises((CacheCorruptError, NotFoundError)):
            open_store(root)
    record.write_bytes(good)
    file = place if place.is_file() else place / "video_key" / "c" / "0" / "0"
    data = bytearray(file.read_bytes())
    at = data.find(store.list.video_key[0].tobytes())
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(CacheCorruptError):
        open_store(root)
    (root / "lists" / "made" / "current").write_text("../../x")
    with pytest.raises(CacheCorruptError, match="expected 16 hexadecimal digits"):
        open_store(root)
    assert current_version(root, "none") is None


def test_a_list_is_written_once(tmp_path):
    root = tmp_path / "cache"
    store = Encoder().extract(root, PLAIN, FILES)
    files = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    write_list(root, store.list, "zarr")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == files
    again = read_list(root, "made", store.list_hash, "zarr")
    assert (again.hash, again.annotations, again.video_ids) == (
        store.list.hash,
        store.list.annotations,
        ["a", "b", "c"],
    )


IDS = st.sampled_from("abcdef")
CONTENTS = st.sampled_from([b"one", b"two", b"three", b"broken", b"four", None])
TEXTS = st.lists(st.sampled_from(["a dog", "a cat", "rain", "snow", "é"]), max_size=3)
ROWS = st.lists(
    st.tuples(IDS, st.sampled_from(["train", "test"]), TEXTS, CONTENTS), max_size=6, unique_by=lambda row: row[0]
)
STEPS = st.lists(st.tuples(ROWS, st.integers(0, 6), st.integers(1, 3)), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_any_history_reads_as_its_lists_say(tmp_path_factory, steps):
    root, encoder = tmp_path_factory.mktemp("history") / "cache", Encoder()
    lists = {}
    for number, (rows, killed, shard) in enumerate(steps):
        wanted, files = annotations(*(row[:3] for row in rows)), {row[0]: row[3] for row in rows}
        name = f"list{number % 2}"
        encoder.extract(root, wanted, files, name=name, shard=shard, commits=killed)  # as if killed, or not
        store = encoder.extract(root, wanted, files, name=name, shard=shard)
        lists[name] = wanted, files
        require_reads(store, wanted, files)
    assert len(encoder.videos) == len(set(encoder.videos)) and len(encoder.texts) == len(set(encoder.texts))
    for name, (wanted, files) in lists.items():
        require_reads(open_store(root, name), wanted, files)
