"""A made-up encoder that extracts as the real one does, and counts; what it was asked for, and whether that reads back.

D embed_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st

from glscl.cache.additions import write_addition
from glscl.cache.creation import StoreSpec, create_library
from glscl.cache.encoded_items import EncodedText, EncodedVideo, text_arrays, video_arrays
from glscl.cache.keys import as_array, clip, text_key, video_key
from glscl.cache.library import Library
from glscl.cache.lists import CacheList, arrange, make_current, make_list, write_list
from glscl.cache.planning import work_for
from glscl.cache.schema import Annotations, Expected, Status, TextItem, VideoItem
from glscl.cache.store import Store, open_store
from glscl.cache.table import FeatureTable

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


class Wanted(NamedTuple):
    """A list; by stream the keys that it wants; and what they are of: key → content of a file, key → text."""

    made: CacheList
    keys: dict[str, np.ndarray]
    files: dict[bytes, bytes]
    texts: dict[bytes, str]


def list_of(annotations: Annotations, contents, name: str = "made") -> Wanted:
    """What a list of these annotations asks for, where the files are `contents`."""
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
    made = make_list(
        annotations, name=name, family=name, recipe="", video_key=keys, video_content=content, text_key=texts
    )
    wanted = {"text": texts[texts.any(axis=1)], "video": keys[keys.any(axis=1)]}
    return Wanted(made, wanted, file_of, {text_key(text.text): text.text for text in annotations.texts})


class Encoder:
    """Extracts as the real one does, and counts.

    Attributes:
        failing: contents that it cannot decode though they are in order, as on a busy machine.
        partial: contents of which it says that frames are lacking.
    """

    failing: frozenset[bytes] = frozenset()
    partial: frozenset[bytes] = frozenset()

    def __init__(self) -> None:
        self.videos: list[bytes] = []
        self.texts: list[bytes] = []

    def extract(
        self, root, annotations, contents, *, name="made", shard=3, commits=10**6, format="zarr"
    ) -> Store | None:
        """Make what a list wants; stops, as if killed, after so many commits."""
        library = create_library(root, SPEC, format)
        wanted = list_of(annotations, contents, name)
        made, file_of, text_of = wanted.made, wanted.files, wanted.texts
        write_list(root, made, format)
        for stream, keys in wanted.keys.items():
            work = work_for(library, stream, keys)
            todo = [(place.addition, place.shard) for place in work.finish]
            if len(work.new):
                addition = write_addition(root, stream, work.new, shard_items=shard, attempt=work.attempt)
                library.add(addition)
                todo += [(addition, number) for number in range(addition.num_shards)]
            for addition, number in todo:
                if not commits:
                    return None
                commits -= 1
                self.commit(library, addition, number, file_of, text_of)
            for addition in {addition.name: addition for addition, _ in todo}.values():
                library.settle(addition)
        make_current(root, made)
        return open_store(root, name)

    def commit(self, library: Library, addition, number, file_of, text_of) -> None:
        run = addition.shard_range(number)
        keys = addition.keys[run.start : run.stop]
        named = [key.tobytes() for key in keys]
        if addition.stream == "video":
            self.videos += named
            videos = []
            for key in named:
                count = 0 if file_of[key] in self.failing else frames_of(file_of[key])
                lacking = Status.PARTIAL if file_of[key] in self.partial else Status.OK
                status = lacking if count else Status.DECODE_ERROR
                videos.append(EncodedVideo(features_of(key, count), np.arange(count, dtype=np.float32), status, None))
            arrays = video_arrays(keys, videos, embed_dim=D, dtype="float32")
            failures = [
                {"key": key.hex(), "reason": "it is broken", "status": video.status.name.lower()}
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


IDS = st.sampled_from("abcdef")
CONTENTS = st.sampled_from([b"one", b"two", b"three", b"broken", b"four", None])
TEXTS = st.lists(st.sampled_from(["a dog", "a cat", "rain", "snow", "é"]), max_size=3)
ROWS = st.lists(
    st.tuples(IDS, st.sampled_from(["train", "test"]), TEXTS, CONTENTS), max_size=6, unique_by=lambda row: row[0]
)
STEPS = st.lists(st.tuples(ROWS, st.integers(0, 6), st.integers(1, 3)), min_size=1, max_size=4)
