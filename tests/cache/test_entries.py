"""A list in any order, with repeats and with gaps, reads as its items do one by one, however these came into the cache.

D embed_dim.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from glscl.cache import reading
from glscl.cache.additions import write_addition
from glscl.cache.creation import StoreSpec, create_library
from glscl.cache.encoded_items import EncodedText, EncodedVideo, text_arrays, video_arrays
from glscl.cache.keys import as_array, text_key, video_key
from glscl.cache.library import Library
from glscl.cache.lists import arrange, make_list
from glscl.cache.schema import STREAMS, Annotations, Status, TextItem, VideoItem
from glscl.cache.shard_arrays import LAYOUT
from glscl.cache.store import Store
from glscl.cache.table import FeatureTable, frame_positions

D, ITEMS = 4, 6
TEXTS = [f"text {number}" for number in range(ITEMS)]
KEYS = {
    "video": as_array(video_key(bytes([number]) * 16) for number in range(ITEMS)),
    "text": as_array(map(text_key, TEXTS)),
}
ROWS = [0, 1, 2, 5, 3, 1]  # frames of each video, tokens of each text
SPEC = StoreSpec(configuration={"backbone": {"name": "made", "pretrained": "seed"}}, embed_dim=D, dtype="float32")


def write_items(root: Path, format: str, cuts: dict[str, list[tuple[list[int], int]]]) -> Library:
    """A cache of all items: additions of some of them in some order, with so many items a shard; then one of the rest."""
    library = create_library(root, SPEC, format)
    for stream in STREAMS:
        rest = [number for number in range(ITEMS) if all(number not in chosen for chosen, _ in cuts[stream])]
        for chosen, shard_items in [*cuts[stream], (rest, 2)]:
            if chosen:
                addition = write_addition(root, stream, KEYS[stream][chosen], shard_items=shard_items)
                library.add(addition)
                for shard in range(addition.num_shards):
                    run = addition.shard_range(shard)
                    write_shard(library, addition, shard, chosen[run.start : run.stop])
    return library


def write_shard(library: Library, addition, shard: int, chosen: list[int]) -> None:
    keys, made = addition.keys_of(shard), []
    for number in chosen:
        rng, rows = np.random.default_rng(number), ROWS[number]
        features = rng.standard_normal((rows, D)).astype(np.float32)
        if addition.stream == "text":
            made.append(
                EncodedText(rng.standard_normal(D).astype(np.float32), features, np.arange(rows, dtype=np.int32))
            )
        else:
            status = Status.OK if rows else Status.TIMED_OUT
            made.append(EncodedVideo(features, np.arange(rows, dtype=np.float32), status, None, 2.5 * number, 25.0, 7))
    if addition.stream == "text":
        arrays = text_arrays(keys, [TEXTS[number] for number in chosen], made, embed_dim=D, dtype="float32")
    else:
        arrays = video_arrays(keys, made, embed_dim=D, dtype="float32")
    failed = [
        key.tobytes().hex() for key, number in zip(keys, chosen) if addition.stream == "video" and not ROWS[number]
    ]
    library.commit(
        addition, shard, arrays, failures=[{"key": key, "reason": None, "status": "timed_out"} for key in failed]
    )


def make_store(library: Library, videos: list[int | None], texts: list[tuple[int | None, int]]) -> Store:
    """A list of entries: items of videos, None for one without a file; and (item, entry of its video or −1) of texts."""
    split = ["train" if row < 0.6 * len(videos) else "test" for row in range(len(videos))]
    asked = arrange(
        Annotations(
            dataset="made",
            videos=[VideoItem(f"v{row}", split[row], None) for row in range(len(videos))],
            texts=[
                TextItem(f"t{row}", f"v{owner}", split[owner] if owner >= 0 else "train", f"{row}")
                for row, (_, owner) in enumerate(texts)
            ],
        )
    )
    texts = [texts[int(item.id[1:])] for item in asked.texts]
    keys = {
        stream: as_array(b"\0" * 16 if number is None else KEYS[stream][number].tobytes() for number in numbers)
        for stream, numbers in (("video", videos), ("text", [number for number, _ in texts]))
    }
    about = {"video_key": keys["video"], "video_content": keys["video"], "text_key": keys["text"]}
    return Store(library, make_list(asked, name="made", family="made", recipe="", **about))


def read_naively(library: Library) -> dict[str, dict[bytes, dict[str, Any]]]:
    """Stream → key → arrays of its one item, through the format's library, shard by shard."""
    found: dict[str, dict[bytes, dict[str, Any]]] = {stream: {} for stream in STREAMS}
    for stream in STREAMS:
        about = library.stream(stream)
        for place in about.places:
            with library.format.opened(library.path / about.commit_of(place).path) as opened:
                arrays = {name: opened.read(name) for name in LAYOUT[stream]}
            for row in range(len(place.items)):
                item = {}
                for name, spec in LAYOUT[stream].items():
                    bounds = arrays[spec.boundaries or name]
                    item[name] = arrays[name][bounds[row] : bounds[row + 1]] if spec.boundaries else arrays[name][row]
                    if spec.along == "boundaries":
                        item[name] = int(bounds[row + 1] - bounds[row])
                found[stream].setdefault(bytes.fromhex(item["id_bytes"].tobytes().decode()), item)
    return found


def expected_arrays(store: Store, stream: str, items: dict[bytes, dict[str, Any]], run: range) -> dict[str, np.ndarray]:
    """What `Store.arrays` should give for a run of entries."""
    keys = store.list.video_key if stream == "video" else store.list.text_key
    names, texts = store.ids(stream), store.captions() if stream == "text" else []
    entries = []
    for row in run:
        item = items.get(keys[row].tobytes())
        if item is None:
            item = {name: np.zeros((0, D) if spec.columns else 0, np.int64) if spec.boundaries else 0
                    for name, spec in LAYOUT[stream].items()}  # fmt: skip
            item |= {"status": int(Status.MISSING), "pooled": np.zeros(D)}
        own = {"id": names[row], **({"text": texts[row]} if stream == "text" else {})}
        for name, text in own.items():
            data = np.frombuffer(text.encode(), np.uint8)
            item = item | {f"{name}_bytes": data, f"{name}_offsets": len(data)}
        entries.append(item)
    found = {}
    for name, spec in LAYOUT[stream].items():
        values = [item[name] for item in entries]
        if spec.along == "boundaries":
            found[name] = np.cumsum([0, *values])
        elif spec.along == "rows":
            found[name] = np.concatenate([np.zeros((0, D) if spec.columns else 0), *values])
        else:
            found[name] = np.array(values).reshape(-1, D) if spec.columns else np.array(values)
    return found


def require_table(store: Store, items: dict[str, dict[bytes, dict[str, Any]]], split: str, frames: int) -> FeatureTable:
    """The table of a split equals what its items say, each text's tokens read once."""
    table, made = FeatureTable.load(store, split, max_frames=frames), store.list
    run = made.splits[split]
    videos = {row: items["video"].get(made.video_key[row].tobytes()) for row in run.videos}
    kept = [row for row, item in videos.items() if item is not None and len(item["values"])]
    texts = [
        row for row in run.texts if int(made.text_video[row]) in kept and made.text_key[row].tobytes() in items["text"]
    ]
    assert table.video_ids == [made.video_ids[row] for row in kept]
    assert table.text_ids == [made.text_ids[row] for row in texts]
    assert table.captions == [made.captions[row] for row in texts]
    assert [kept[row] for row in table.video_of_text.tolist()] == [int(made.text_video[row]) for row in texts]
    width = max(
        1, min(frames, max((len(videos[row]["values"]) for row in run.videos if videos[row] is not None), default=1))
    )
    assert table.frame_features.shape == (len(kept), width, D)
    for position, row in enumerate(kept):
        chosen = frame_positions(len(videos[row]["values"]), width, "uniform")
        np.testing.assert_array_equal(table.frame_features[position][: len(chosen)], videos[row]["values"][chosen])
        np.testing.assert_array_equal(table.frame_times[position][: len(chosen)], videos[row]["times"][chosen])
        assert table.frame_mask[position].tolist() == [True] * len(chosen) + [False] * (width - len(chosen))
        assert not table.frame_features[position][len(chosen) :].any()
    require_texts(table, [items["text"][made.text_key[row].tobytes()] for row in texts])
    return table


def require_texts(table: FeatureTable, wanted: list[dict[str, Any]]) -> None:
    """Pooled features and tokens of every text; a text's tokens stand in the table once."""
    assert len(table.token_values) == sum(len(each["values"]) for each in {id(e): e for e in wanted}.values())
    for row, item in enumerate(wanted):
        batch = table.texts(torch.tensor([row]))
        np.testing.assert_array_equal(batch.text_features[0], item["pooled"])
        np.testing.assert_array_equal(batch.token_features[0][batch.token_mask[0]], item["values"])
        assert int(batch.token_mask.sum()) == len(item["values"])


CUT = st.tuples(st.lists(st.integers(0, ITEMS - 1), min_size=1, unique=True), st.integers(1, 4))
CUTS = st.fixed_dictionaries({stream: st.lists(CUT, max_size=3) for stream in STREAMS})
VIDEOS = st.lists(st.none() | st.integers(0, ITEMS - 1), max_size=7)
OWNED = st.lists(st.tuples(st.none() | st.integers(0, ITEMS - 1), st.integers(-1, 6)), max_size=9)
quiet = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quiet
@given(CUTS, VIDEOS, OWNED, st.tuples(st.integers(0, 7), st.integers(0, 9)), st.just("hdf5"))
@example({"video": [], "text": []}, [*range(ITEMS)], [(n, n) for n in range(ITEMS)], (0, 6), "hdf5")  # as it is stored
@example(
    {"video": [([5, 1], 1)], "text": [([2], 1), ([4, 2, 0], 2)]},
    [3, None, 3, 0],
    [(2, 0), (2, 2), (2, 0)],
    (0, 9),
    "zarr",
)
def test_entries_read_as_their_items_do_one_by_one(tmp_path_factory, cuts, videos, texts, bounds, format):
    library = write_items(tmp_path_factory.mktemp("entries") / "cache", format, cuts)
    texts = [(number, owner if owner < len(videos) else -1) for number, owner in texts]
    store, items = make_store(library, videos, texts), read_naively(library)
    assert store.complete
    for stream in STREAMS:
        start, stop = sorted((min(bounds[0], store.num_items[stream]), min(bounds[1], store.num_items[stream])))
        for run in (range(start, stop), range(store.num_items[stream])):
            found = store.arrays(stream, items=run)
            assert set(found) == set(LAYOUT[stream])
            for name, array in expected_arrays(store, stream, items[stream], run).items():
                np.testing.assert_array_equal(found[name], array, err_msg=f"{stream} {name}")
    for split in store.splits:
        table = require_table(store, items, split, frames=3)
        rows = torch.tensor([n for n in range(table.num_videos - 1, -1, -1) if n % 3 != 1], dtype=torch.int64)
        part = table.subset(rows)
        assert part.video_ids == [table.video_ids[row] for row in rows.tolist()]
        kept = [n for n in range(table.num_texts) if table.video_of_text[n] in rows]
        assert part.text_ids == [table.text_ids[n] for n in kept]
        keys = {id: key.tobytes() for id, key in zip(store.list.text_ids, store.list.text_key)}
        require_texts(part, [items["text"][keys[id]] for id in part.text_ids])


@quiet
@given(CUTS, CUTS)
def test_a_list_gives_the_same_batches_however_its_items_came(tmp_path_factory, one, other):
    videos, texts = [3, 1, None, 4, 3, 5, 0, 2], [(n % ITEMS, n % 8) for n in range(20)]
    tables = [
        make_store(write_items(tmp_path_factory.mktemp("batches") / "cache", "hdf5", cuts), videos, texts).table(
            "train", frames=3
        )
        for cuts in (one, other)
    ]
    for same_video in ("separate", "mask"):
        first, second = (list(table.batches(3, seed=1, same_video=same_video)) for table in tables)
        assert len(first) == len(second) > 1
        for (text, video), (text_too, video_too) in zip(first, second):
            assert all(map(torch.equal, (*text, *video), (*text_too, *video_too)))


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_each_item_that_is_wanted_is_read_once_and_no_other(tmp_path, format, monkeypatch):
    cuts = {"video": [([4, 0, 3], 2)], "text": [([2, 5, 1], 2), ([4], 1)]}
    library = write_items(tmp_path / "cache", format, cuts)
    store = make_store(
        library, [3, 4, 0, 3, 4], [(3, 0), (2, 1), (3, 3), (2, 0), (1, 2), (4, 4), (3, 3), (5, 1), (None, 0)]
    )
    read: Counter[tuple[str, str, int]] = Counter()

    def noted(shard, name, rows, out, filling, original=reading._read):
        numbers = range(rows.start, rows.stop) if isinstance(rows, slice) else rows.tolist()
        read.update((shard.commit.stream, name, shard.commit.items[0] + row) for row in numbers)
        original(shard, name, rows, out, filling)

    monkeypatch.setattr(reading, "_read", noted)
    table = FeatureTable.load(store, None, max_frames=1)
    assert (table.num_videos, table.num_texts) == (4, 7)
    rows = Counter((stream, name) for stream, name, _ in read.elements())
    assert rows == {
        ("video", "status"): 3,
        ("video", "times"): ROWS[3] + ROWS[4],
        ("video", "values"): 2,  # one frame of each of two videos
        ("text", "pooled"): 4,
        ("text", "values"): ROWS[2] + ROWS[3] + ROWS[4] + ROWS[5],  # text 1 has no video
    }
