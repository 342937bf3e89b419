"""Lists: hashes that follow what was asked for, items brought together by split, and files that may hold anything."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from glscl.cache.formats import STORES
from glscl.cache.keys import as_array, text_key
from glscl.cache.lists import (
    CacheList,
    arrange,
    current_version,
    from_arrays,
    list_arrays,
    list_names,
    list_record,
    make_current,
    make_list,
    read_list,
    read_record,
    runs_of,
    valid_name,
    versions_of,
    write_list,
)
from glscl.cache.schema import Annotations, Expected, Split, TextItem, VideoItem
from glscl.cache.store import open_store
from glscl.common.errors import CacheCorruptError, GlsclError, InputError, NotFoundError, StorageError

VIDEOS = [
    VideoItem("a", "train", "/x/a.mp4"),
    VideoItem("ü", "train", "/x/ü.mp4", 0, 2.5),
    VideoItem("", "test", "/x/c.mp4", 12, 13.0),
    VideoItem("gone", "test", None),
]
TEXTS = [
    TextItem("t", "a", "train", "a man"),
    TextItem("", "a", "train", ""),
    TextItem("ü#0", "ü", "train", "zwölf Boxkämpfer"),
    TextItem("c#0", "", "test", "a man"),
    TextItem("nobody's", "not listed", "test", "\udc80"),
]
ASKED = Annotations(dataset="made", videos=VIDEOS, texts=TEXTS, expected={"test": Expected(1000, None)}, notes=["note"])


def listed(asked: Annotations = ASKED, *, name: str = "made", content: str = "c", **about) -> CacheList:
    """A list whose videos have the keys of their paths."""
    keys = as_array(b"\0" * 16 if v.path is None else (content + v.path).encode().rjust(16)[-16:] for v in asked.videos)
    told = {"family": name, "recipe": "recipe", "text_key": as_array(text_key(text.text) for text in asked.texts)}
    return make_list(asked, name=name, video_key=keys, video_content=keys, **told | about)


def same(one: CacheList, other: CacheList) -> bool:
    ours, theirs = vars(one), vars(other)
    return all(
        np.array_equal(value, theirs[key]) if isinstance(value, np.ndarray) else value == theirs[key]
        for key, value in ours.items()
    )


@pytest.mark.parametrize("format", STORES)
@pytest.mark.parametrize("asked", [ASKED, Annotations(dataset="none", videos=[], texts=[])], ids=["some", "none"])
def test_a_list_reads_back_as_it_was_made(tmp_path, format, asked):
    made = listed(
        asked,
        unreadable={"gone": "permission denied"},
        known_by_id=1,
        command="glscl extract",
        settings={"fps": 1.0},
        created="2026-11-28T12:00:00Z",
        versions={"torch": "3"},
    )
    write_list(tmp_path, made, format)
    assert same(read_list(tmp_path, "made", made.hash, format), made)
    make_current(tmp_path, made)
    assert (list_names(tmp_path), versions_of(tmp_path, "made")) == (["made"], [made.hash])
    assert current_version(tmp_path, "made") == made.hash and list((tmp_path / "partial").iterdir()) == []
    assert "\n" not in repr(made)


def test_splits_are_runs_and_times_whole_microseconds():
    made = listed()
    none = Expected(None, None)
    assert made.splits == {
        "train": Split(range(2), range(3), none),
        "test": Split(range(2, 4), range(3, 5), Expected(1000, None)),
    }
    assert made.text_video.tolist() == [0, 0, 1, 2, -1]
    assert (made.video_start.tolist(), made.video_end.tolist()) == (
        [-1, -1, 12_000_000, -1],
        [-1, 2_500_000, 13_000_000, -1],
    )
    assert runs_of(Annotations(dataset="x", videos=[], texts=[TextItem("t", "v", "dev", "")])) == {
        "dev": Split(range(0), range(1), none)
    }


def changed(**fields) -> Annotations:
    return dataclasses.replace(ASKED, **fields)


def test_every_part_of_what_was_asked_for_counts_in_the_hashes_and_where_files_lie_does_not():
    moved = [structs.replace(v, path=v.path and v.path.replace("/x/", "/elsewhere/")) for v in VIDEOS]
    keys = {"video_key": listed().video_key, "video_content": listed().video_content}
    plain = listed()
    same_list = [
        make_list(changed(videos=moved), name="other", family="f", recipe="", text_key=plain.text_key, **keys),
        listed(changed(notes=[], expected={}, dataset="other"), command="x", created="y", unreadable={"gone": "z"}),
    ]
    assert {(made.annotations, made.hash) for made in same_list} == {(plain.annotations, plain.hash)}
    first, second, third, last = VIDEOS
    others = [
        changed(videos=[structs.replace(first, id="b"), second, third, last]),
        changed(videos=[structs.replace(first, split="val"), second, third, last]),
        changed(videos=[first, structs.replace(second, end=2.6), third, last]),
        changed(videos=[first, structs.replace(second, start=1), third, last]),
        changed(videos=[second, first, third, last]),
        changed(videos=VIDEOS[:-1]),
        changed(texts=[structs.replace(TEXTS[0], text="a woman"), *TEXTS[1:]]),
        changed(texts=[structs.replace(TEXTS[0], id="u"), *TEXTS[1:]]),
        changed(texts=[structs.replace(TEXTS[0], video="ü"), *TEXTS[1:]]),
        changed(texts=TEXTS[:-1]),
        changed(texts=[TEXTS[1], TEXTS[0], *TEXTS[2:]]),
    ]
    made = [listed(each) for each in others]
    assert len({each.annotations for each in [plain, *made]}) == len(made) + 1
    assert len({each.hash for each in [plain, *made]}) == len(made) + 1
    replaced = listed(content="d")
    assert replaced.annotations == plain.annotations and replaced.hash != plain.hash


def test_items_of_a_split_are_brought_together():
    videos = [VideoItem(str(i), ("test", "train")[i % 2], None) for i in range(6)]
    texts = [TextItem(f"{v.id}#0", v.id, v.split, "x") for v in videos]
    found = arrange(Annotations(dataset="mixed", videos=videos, texts=texts, notes=["kept"]))
    assert [v.id for v in found.videos] == ["0", "2", "4", "1", "3", "5"] == [t.video for t in found.texts]
    assert runs_of(found)["train"].videos == range(3, 6) and found.notes == ["kept"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"videos": [*VIDEOS, VIDEOS[0]]}, "video id 'a' of made stands twice"),
        ({"texts": [*TEXTS, TEXTS[0]]}, "caption id 't' of made stands twice"),
        ({"texts": [structs.replace(TEXTS[0], split="test"), *TEXTS[1:]]}, "'train': a video belongs to one split"),
    ],
)
def test_annotations_that_contradict_themselves_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        arrange(dataclasses.replace(ASKED, **change))


@pytest.mark.parametrize(
    ("text", "name"),
    [("msrvtt-9k", "msrvtt-9k"), ("my videos/2", "my-videos-2"), ("../x", "x"), ("", "list"), ("...", "list"), ("a" * 100, "a" * 100)],
)  # fmt: skip
def test_anything_becomes_the_name_of_a_folder(text, name):
    assert valid_name(text) == name


def test_names_that_ascii_does_not_tell_apart_stay_apart():
    texts = ["csv-日本", "csv-中国", "日本", "中国", "csv-é", "csv-e", "a" * 300, "a" * 301, "x 😀", "x 😎"]
    names = [valid_name(text) for text in texts]
    assert len({*names}) == len(names)
    assert names[0].startswith("csv-") and valid_name("csv-e\u0301") == valid_name("csv-é")


NAMES = st.text(max_size=30)


@given(NAMES)
def test_a_valid_name_is_one_name_below_a_folder(text):
    name = valid_name(text)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) and valid_name(name) == name


def test_folders_of_other_names_are_no_lists(tmp_path):
    for name in ("good", ".hidden", "-x", "a b", "ü"):
        (tmp_path / "lists" / name).mkdir(parents=True)
    (tmp_path / "lists" / "file").touch()
    (tmp_path / "lists" / "good" / "0123456789abcdef.json").touch()  # a name that a killed writer reserved
    (tmp_path / "lists" / "good" / "notes.json").write_text("{}")
    assert list_names(tmp_path) == ["good"] and versions_of(tmp_path, "good") == []


# --- files that may hold anything ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["../x", "../../../etc/passwd", "", "\0", "0123456789ABCDEF", "0123456789abcdef0", "é" * 99]
)
def test_what_is_no_hash_names_no_version(tmp_path, text):
    write_list(tmp_path, listed(), "hdf5")
    (tmp_path / "lists" / "made" / "current").write_text(text)
    with pytest.raises(CacheCorruptError, match="current holds .*, expected 16 hexadecimal digits"):
        current_version(tmp_path, "made")


@pytest.mark.parametrize(
    "name, version", [("../made", None), ("made", "../../x"), ("made", "0123456789abcdef"), ("", None)]
)
def test_a_version_that_is_not_there_is_named(tmp_path, name, version):
    made = listed()
    write_list(tmp_path, made, "hdf5")
    with pytest.raises(NotFoundError, match="it has made"):
        read_list(tmp_path, name, version or made.hash, "hdf5")


def test_a_current_that_is_a_folder_is_one_line(tmp_path):
    (tmp_path / "lists" / "made" / "current").mkdir(parents=True)
    with pytest.raises(CacheCorruptError, match="current cannot be read: Is a directory"):
        current_version(tmp_path, "made")
    with pytest.raises(StorageError, match="a file stands where a folder is expected, or the reverse"):
        make_current(tmp_path, listed())


def test_a_version_counts_until_another_does(tmp_path):
    one, other = listed(), listed(content="d")
    assert [make_current(tmp_path, made) for made in (one, one, other, other, one)] == [True, False, True, False, True]
    assert current_version(tmp_path, "made") == one.hash


def changed_record(made: CacheList, path: tuple, value) -> bytes:
    """The record of a list with one value replaced; its arrays are those of the list."""
    told = structs.asdict(list_record(made, list_arrays(made), f"lists/made/{made.hash}.h5"))
    told = json.loads(json.dumps(told, default=structs.asdict))
    *way, last = path
    inner = told
    for step in way:
        inner = inner[step]
    assert inner.get(last, None) != value
    inner[last] = value
    return json.dumps(told).encode()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("schema",), "glscl.list/2", "schema"),
        (("name",), "other", "it is other@"),
        (("hash",), "0" * 16, "it is made@0000"),
        (("annotations",), "0" * 16, "its content is that of"),
        (("path",), "../../secret.h5", "its arrays are said to be '../../secret.h5'"),
        (("path",), "/etc/passwd", "its arrays are said to be"),
        (("arrays",), {}, "video_id_bytes"),
        (("arrays", "text_key", "shape"), [10**12, 16], "text_key has the shape"),
        (("arrays", "text_key", "crc32"), 1, "text_key is not what was written"),
        (("splits", "train", "videos"), [0, 5], "split 'train' is 0 to 5 of 4"),
        (("splits", "train", "videos"), [-1, 2], "split 'train' is -1 to 2"),
        (("splits", "train", "texts"), [3, 2], "split 'train' is 3 to 2"),
        (("splits", "train", "texts"), [0, 10**18], "split 'train' is 0 to 1000000000000000000"),
        (("splits", "train", "texts"), [0, 2], "its content is that of"),
        (("splits",), {}, "its content is that of"),
        (("splits",), [], "splits"),
        (("notes",), [1], "notes"),
        (("unreadable",), [{"id": 1}], "unreadable"),
        (("known_by_id",), "x", "known_by_id"),
        (("settings",), [], "settings"),
        (("versions",), {"a": 1}, "versions"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_record_is_checked_field_by_field(tmp_path, path, value, words):
    made = listed()
    write_list(tmp_path, made, "hdf5")
    record = tmp_path / "lists" / "made" / f"{made.hash}.json"
    record.write_bytes(changed_record(made, path, value))
    with pytest.raises(CacheCorruptError, match=words) as caught:
        read_list(tmp_path, "made", made.hash, "hdf5")
    assert "\n" not in str(caught.value) and str(record) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[", b"[]", b"null", b"[" * 100_000, b'{"name":' * 10_000, b"\xff"])
def test_a_record_that_is_none_is_one_line(tmp_path, data):
    made = listed()
    write_list(tmp_path, made, "hdf5")
    record = tmp_path / "lists" / "made" / f"{made.hash}.json"
    record.write_bytes(data)
    with pytest.raises(CacheCorruptError if data else NotFoundError) as caught:
        read_list(tmp_path, "made", made.hash, "hdf5")
    assert "\n" not in str(caught.value)
    if data:
        with pytest.raises(CacheCorruptError, match="cannot be read"):
            read_record(record)


def offsets(name: str, values: list[int]):
    return name, lambda _: np.array(values, np.int64)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("video_key", lambda a: a[:, :8], r"video_key is uint8\[4, 8\]"),
        ("video_key", lambda a: a.astype(np.uint16), "video_key is uint16"),
        ("video_content", lambda a: a[:3], "video_content has 3 rows, expected 4"),
        ("video_start", lambda a: a.astype(np.float64), "video_start is float64"),
        ("video_end", lambda a: a[:0], "video_end has 0 rows, expected 4"),
        ("text_video", lambda a: np.full_like(a, 4), "text_video names videos that are not there, of 4"),
        ("text_video", lambda a: np.full_like(a, -2), "text_video names videos"),
        (*offsets("text_offsets", [0, 5, 5, 22, 27, 32]), "text_offsets does not rise from 0 to"),
        (*offsets("text_offsets", [1, 5, 5, 22, 27, 31]), "text_offsets does not rise"),
        (*offsets("video_id_offsets", [0, 10**15, 1, 3, 7]), "video_id_offsets does not rise"),
        ("text_bytes", lambda a: np.full_like(a, 0xFF), "not UTF-8"),
        ("video_id_bytes", lambda a: a[::-1].copy(), "UTF-8|its content"),
        ("text_key", lambda a: a[::-1].copy(), "its content is that of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arrays_are_checked_though_their_checksums_agree(name, make, words):
    made = listed()
    arrays = list_arrays(made)
    arrays[name] = make(arrays[name])
    with pytest.raises((ValueError, CacheCorruptError), match=words):
        from_arrays(list_record(made, arrays, "anywhere"), arrays)


@pytest.mark.parametrize("format", STORES)
def test_arrays_that_flip_a_bit_are_cut_or_are_not_there_are_one_line(tmp_path, format):
    made, rng = listed(), random.Random(0)
    write_list(tmp_path / "good", made, format)
    good = tmp_path / "good" / "lists" / "made" / f"{made.hash}{STORES[format].suffix}"
    files = sorted(p.relative_to(good) for p in good.rglob("*") if p.is_file()) or [good.relative_to(good)]
    for round in range(60):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        file = tmp_path / "bad" / good.relative_to(tmp_path / "good") / rng.choice(files)
        data = bytearray(file.read_bytes())
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        file.write_bytes(data if round % 3 == 0 else data[:at])
        if round % 3 == 2:
            file.unlink()
        try:
            assert same(read_list(tmp_path / "bad", "made", made.hash, format), made)
        except GlsclError as error:
            assert isinstance(error, CacheCorruptError) and "\n" not in str(error) and made.hash in str(error)


def test_a_list_is_found_by_the_name_that_was_given(small_cache):
    cache = small_cache().fill()
    write_list(cache.path, dataclasses.replace(cache.list, name=valid_name("日本 2")), cache.header["format"])
    assert open_store(cache.path, f"日本 2@{cache.list_hash}").list_name == valid_name("日本 2")
