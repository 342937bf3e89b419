"""A gallery entry is a file, or a part of one: not a string, however it is spelled, linked or numbered."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from glscl.cache.keys import content_of
from glscl.common.errors import InputError
from glscl.extract.datasets import DATASETS, first_videos
from glscl.extract.datasets.builder import summary
from glscl.extract.datasets.msrvtt import read as read_msrvtt

READERS = ("csv", "folder", "webdataset")


def table(files, text, videos, name="captions.csv", **options):
    return DATASETS["csv"].read(files("annotations", {name: text}) / name, videos, **options)


def gallery(found):
    return [(video.id, video.split) for video in found.videos]


# --- one file, one entry ----------------------------------------------------------------------------------------------


def test_ids_that_number_the_sentences_do_not_make_a_gallery_of_copies(files):
    videos = files("videos", ["a.mp4", "b.mp4"])
    rows = "".join(f"{i},{name},{i} of {name}\n" for i, name in enumerate(["a.mp4", "b.mp4"] * 3))
    found = table(files, f"id,video,caption\n{rows}", videos)
    assert gallery(found) == [("a.mp4", "test"), ("b.mp4", "test")]
    assert Counter(text.video for text in found.texts) == {"a.mp4": 3, "b.mp4": 3}
    assert "the ids number 6 rows of 2 videos: entries are called after their files" in found.notes


def test_ids_that_number_the_sentences_of_each_table_do_neither(files):
    videos = files("videos", ["a.mp4", "b.mp4"])
    lists = {
        f"{split}.jsonl": "".join(f'{{"id": {i}, "video": "{name}", "caption": "x{i}"}}\n' for i in range(2))
        for split, name in (("train", "a.mp4"), ("test", "b.mp4"))
    }
    found = DATASETS["csv"].read(files("annotations", lists), videos)
    assert gallery(found) == [("a.mp4", "train"), ("b.mp4", "test")]


def test_ids_that_name_the_videos_stay(files):
    rows = "one,a.mp4,x\none,a.mp4,y\ntwo,b.mp4,z\n"
    found = table(files, f"id,video,caption\n{rows}", files("videos", ["a.mp4", "b.mp4"]))
    assert gallery(found) == [("one", "test"), ("two", "test")]


def test_two_ids_of_one_file_are_refused_with_both(files):
    rows = "one,a.mp4,x\none,a.mp4,y\ntwo,b.mp4,z\nthree,b.mp4,w\n"
    with pytest.raises(InputError, match=r"row 5: the ids 'two' and 'three' stand for one video, 'b.mp4'"):
        table(files, f"id,video,caption\n{rows}", files("videos", ["a.mp4", "b.mp4"]))


SPELLINGS = {
    "with and without extension": ("a", "a.mp4"),
    "with and without folder": ("a.mp4", "kitchen/a.mp4"),
    "composed and decomposed": ("café.mp4", unicodedata.normalize("NFD", "café.mp4")),
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_spellings_of_one_file_are_one_entry_with_all_captions(files, kind):
    first, second = SPELLINGS[kind]
    videos = files("videos", ["kitchen/a.mp4", "café.mp4"])
    found = table(files, f"video,caption\n{first},x\n{second},y\n", videos)
    assert gallery(found) == [(first, "test")]
    assert [(text.id, text.text) for text in found.texts] == [(f"{first}#0", "x"), (f"{first}#1", "y")]
    assert any("written in several ways, each one entry: 1," in note for note in found.notes)


@pytest.mark.parametrize("kind", SPELLINGS)
def test_spellings_of_one_file_in_two_splits_are_refused(files, kind):
    first, second = SPELLINGS[kind]
    videos = files("videos", ["kitchen/a.mp4", "café.mp4"])
    with pytest.raises(InputError, match=r"row 3: .* is in split test, but also in train, as .*: both are one file"):
        table(files, f"video,caption,split\n{first},x,train\n{second},y,test\n", videos)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_links_to_one_file_are_one_entry(files, link):
    videos = files("videos", ["a.mp4"])
    link(videos / "a.mp4", videos / "b.mp4")
    found = table(files, "video,caption\na.mp4,x\nb.mp4,y\n", videos)
    assert gallery(found) == [("a.mp4", "test")]
    (videos / "a.txt").write_text("x")
    assert gallery(DATASETS["folder"].read(None, videos)) == [("a.mp4", "test")]
    with pytest.raises(InputError, match="both are one file"):
        table(files, "video,caption,split\na.mp4,x,train\nb.mp4,y,test\n", videos)


def test_times_that_are_decoded_alike_are_one_entry(files):
    rows = "a.mp4,one,0,12\na.mp4,two,,12.0\na.mp4,three,0,12.0000004\na.mp4,four,0,\na.mp4,five,,\n"
    found = table(files, f"video,caption,start,end\n{rows}", files("videos", ["a.mp4"]))
    assert [(video.id, video.end) for video in found.videos] == [("a.mp4@0-12", 12.0), ("a.mp4@0-", None)]
    assert Counter(text.video for text in found.texts) == {"a.mp4@0-12": 3, "a.mp4@0-": 2}


def test_where_no_file_was_looked_for_composed_names_tell(files):
    decomposed = unicodedata.normalize("NFD", "café.mp4")
    found = table(files, f"video,caption\ncafé.mp4,x\n{decomposed},y\n", None)
    assert gallery(found) == [("café.mp4", "test")]


def test_where_no_file_was_looked_for_a_name_without_extension_is_that_with_its_only_one(files):
    found = table(files, "video,caption\na,x\na.mp4,y\nb,x\nb.mp4,y\nb.mkv,z\n", None)
    assert [id for id, _ in gallery(found)] == ["a", "b", "b.mp4", "b.mkv"]
    for videos in (None, files("videos", ["c.mp4"])):
        with pytest.raises(InputError, match="row 3: the video 'a.mp4' is in split test, but also in train, as 'a'"):
            table(files, "video,caption,split\na,x,train\na.mp4,y,test\nc,x,test\n", videos)


# --- one content, one split -------------------------------------------------------------------------------------------


def test_a_copy_in_another_split_is_refused_and_one_in_the_same_counts_twice(files):
    videos = files("videos", {"a.mp4": "the same", "b.mp4": "the same", "c.mp4": "other"})
    with pytest.raises(InputError, match=r"row 3: the video 'b.mp4' is in split test, but 'a.mp4' in train is a copy"):
        table(files, "video,caption,split\na.mp4,x,train\nb.mp4,y,test\n", videos)
    found = table(files, "video,caption,split\na.mp4,x,train\nb.mp4,y,train\nc.mp4,z,test\n", videos)
    assert gallery(found) == [("a.mp4", "train"), ("b.mp4", "train"), ("c.mp4", "test")]


def test_copies_in_folders_named_after_splits_are_refused(files):
    videos = files("videos", {"train/a.mp4": "the same", "test/b.mp4": "the same"})
    with pytest.raises(InputError, match=r"'train/a.mp4' is in split train, but 'test/b.mp4' in test is a copy of it"):
        DATASETS["folder"].read(None, videos)


def test_copies_in_shards_of_two_splits_are_refused_before_anything_is_unpacked(shard, tmp_path):
    for split in ("train", "test"):
        shard(f"shards/{split}/0.tar.gz", {"a.mp4": b"the same", "a.txt": split})
    with pytest.raises(InputError, match="is a copy of it"):
        DATASETS["webdataset"].read(tmp_path / "shards", tmp_path / "videos", dry_run=True)
    assert not (tmp_path / "videos").exists()


def test_who_means_it_may_share(files):
    videos = files("videos", {"a.mp4": "the same", "b.mp4": "the same"})
    text = "video,caption,split\na,x,train\nb.mp4,y,test\na.mp4,z,test\na,w,train\n"
    found = table(files, text, videos, allow_shared=True)
    assert gallery(found) == [("a", "train"), ("b.mp4", "test"), ("a.mp4", "test")]


def test_downloads_that_gave_nothing_are_no_copies(files):
    videos = files("videos", {"a.mp4": "", "b.mp4": ""})
    found = table(files, "video,caption,split\na.mp4,x,train\nb.mp4,y,test\n", videos)
    assert len(found.videos) == 2


def test_only_files_of_one_size_are_read_to_find_copies(files):
    videos = files("videos", {"a.mp4": "one", "b.mp4": "two", "c.mp4": "three", "d.mp4": "33333"})
    asked = []

    def contents(paths):
        asked.extend(paths)
        return [content_of(videos / path)[1] for path in paths]

    table(files, "video,caption,split\na.mp4,x,train\nb.mp4,y,test\nc.mp4,z,train\nd.mp4,w,train\n", videos,
          contents=contents)  # fmt: skip
    assert [os.path.basename(path) for path in asked] == ["a.mp4", "b.mp4"]


# --- splits that are made up ------------------------------------------------------------------------------------------


def clips(count):
    return {f"v{i}.mp4": f"content {i}" for i in range(count)}


def split_of_content(found):
    return {content_of(Path(video.path))[1]: video.split for video in found.videos}


def test_a_renamed_file_keeps_its_split_and_a_copy_shares_it(files):
    videos = files("videos", clips(200))
    before = table(files, "video,caption\n" + "".join(f"{name},x\n" for name in clips(200)), videos)
    renamed = files("renamed", {f"other {i}.mp4": f"content {i}" for i in range(200)} | {"copy.mp4": "content 7"})
    names = [path.name for path in renamed.iterdir()]
    after = table(files, "video,caption\n" + "".join(f"{name},x\n" for name in names), renamed)
    assert len(set(video.split for video in before.videos)) == 3
    assert split_of_content(before) == split_of_content(after)
    assert any("divided by a hash of their content" in note for note in after.notes)


def test_ways_of_reading_one_set_of_videos_divide_it_alike(files, shard, tmp_path):
    videos = files("videos", clips(60) | {f"v{i}.txt": "x" for i in range(60)})
    by_folder = split_of_content(DATASETS["folder"].read(None, videos))
    text = "video,caption\n" + "".join(f"{name},x\n" for name in clips(60))
    assert split_of_content(table(files, text, videos)) == by_folder
    members = {f"{i}.{end}": value for i in range(60) for end, value in (("mp4", f"content {i}"), ("txt", "x"))}
    shards = {name: shard(name, members) for name in ("a.tar", "b.tar.gz")}
    for name, path in shards.items():
        read = DATASETS["webdataset"].read
        planned = read(path, tmp_path / f"out-{name}", dry_run=True)
        found = read(path, tmp_path / f"out-{name}")
        assert (
            gallery(found)
            == gallery(planned)
            == gallery(read(path, None))
            == gallery(read(path, tmp_path / f"out-{name}"))
        )
        assert split_of_content(found) == by_folder


def test_ids_without_a_file_are_shown_beside_files_without_an_id(files):
    """As where a program that took ids for numbers lost the zeros in front."""
    found = table(
        files, "video,caption\n7,x\nb.mp4,y\n", files("videos", {"007.mp4": "1", "b.mp4": "2", "notes.txt": "3"})
    )
    (note,) = (note for note in found.notes if note.startswith("not found below"))
    assert note.endswith("1 video, for example 7; and of no video there: 1 file, for example 007.mp4")


# --- lists of ids -----------------------------------------------------------------------------------------------------

WRITINGS = {
    "with extension": lambda ids: [f"{id}.mp4" for id in ids],
    "in quotes": lambda ids: [f'"{id}"' for id in ids],
    "behind an index": lambda ids: [f"{i},{id}" for i, id in enumerate(ids)],
    "in another case": lambda ids: [id.upper() for id in ids],
    "with blanks inside": lambda ids: [id.replace("_", " ") for id in ids],
}
IDS = ["clip_a_1_2", "clip_b_3_4"]


def lists_of(dataset, ids):
    """The annotation files of a benchmark whose list of test videos is `ids`, but whose captions are of `IDS`."""
    lines = "\n".join(ids)
    return {
        "msvd": {"test_list.txt": lines, "captions_msvd.json": {id: ["a cat"] for id in IDS}},
        "didemo": {"test_list.txt": lines, "test_data.json": [{"video": id, "description": "a cat"} for id in IDS]},
        "vatex": {"test_list.txt": lines, "vatex_data.json": {id: {"enCap": ["a cat"]} for id in IDS}},
        "activitynet": {
            "val_ids.json": ids,
            "val_1.json": {id: {"duration": 9, "timestamps": [[0, 9]], "sentences": ["a cat"]} for id in IDS},
        },
        "msrvtt": {
            "MSRVTT_train.9k.csv": f"video_id\n{lines}\n",
            "MSRVTT_data.json": {
                "videos": [{"video_id": id, "split": "train"} for id in IDS],
                "sentences": [{"video_id": id, "caption": "a cat"} for id in IDS],
            },
        },
    }[dataset]


@pytest.mark.parametrize("writing", WRITINGS)
@pytest.mark.parametrize("dataset", ["msvd", "didemo", "vatex", "activitynet", "msrvtt"])
def test_a_list_whose_ids_match_nothing_is_an_error_that_shows_one(files, dataset, writing):
    ids = WRITINGS[writing](IDS)
    split = "train" if dataset == "msrvtt" else "test"
    with pytest.raises(InputError, match=f"{split}: none of its 2 ids has a caption") as error:
        DATASETS[dataset].read(files("annotations", lists_of(dataset, ids)), None, splits=[split])
    assert repr(ids[0]) in str(error.value) and repr(IDS[0]) in str(error.value)


def test_notes_that_were_taken_before_an_error_come_with_it(files):
    content = lists_of("activitynet", ["v_other"])
    with pytest.raises(InputError) as error:
        DATASETS["activitynet"].read(files("annotations", content), None)
    assert any("train was not read" in note for note in error.value.notes)


def test_ids_of_a_benchmark_that_differ_in_an_extension_are_refused_though_no_file_was_looked_for(files):
    lists = {"train_list.txt": "a\nb\n", "test_list.txt": "a.mp4\n",
             "vatex_data.json": {id: {"enCap": ["x"]} for id in ("a", "b", "a.mp4")}}  # fmt: skip
    with pytest.raises(InputError, match="'a' and 'a.mp4' in train and test are one video"):
        DATASETS["vatex"].read(files("annotations", lists), None)


def test_clips_to_be_held_out_that_are_none_of_those_trained_on_are_an_error_or_counted(files):
    data = {
        "videos": [{"video_id": f"video{i}", "split": "train"} for i in range(4)],
        "sentences": [{"video_id": f"video{i}", "caption": "a cat"} for i in range(4)],
    }
    head = "key,vid_key,video_id,sentence\n"

    def read(*ids):
        rows = "".join(f"ret0,msr0,{id},a dog\n" for id in ids)
        return read_msrvtt(files("a", {"MSRVTT_data.json": data, "MSRVTT_JSFUSION_test.csv": head + rows}), None)

    with pytest.raises(InputError, match="none of its 2 ids is among the clips .* 'clip3'; those are such as 'video0'"):
        read("clip3", "clip4")
    assert any("1 test clip not among the clips of" in note for note in read("video3", "clip4").notes)


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("writing", ["{}.mp4", " {}", "{}", "VIDEO9", "video 9"])
def test_a_test_clip_that_would_be_trained_on_under_another_spelling_is_refused(files, writing, listed):
    data = {
        "videos": [{"video_id": f"video{i}", "split": "train"} for i in range(10)],
        "sentences": [{"video_id": f"video{i}", "caption": "a cat"} for i in range(10)],
    }
    held_out = writing.format("video9")
    test = f"key,vid_key,video_id,sentence\nret0,msr9,{held_out},a dog\n"
    content = {"MSRVTT_data.json": data, "MSRVTT_JSFUSION_test.csv": test}
    if listed:
        content["MSRVTT_train.9k.csv"] = "".join(f"video{i}\n" for i in range(9 if held_out == "video9" else 10))
    root = files("annotations", content)
    if held_out == "video9":
        assert len(read_msrvtt(root, None).videos) == 10
    else:
        with pytest.raises(InputError, match=r"the id '.*' is 'video9' elsewhere, and would not be held out"):
            read_msrvtt(root, None)


def test_one_file_for_two_ids_of_a_benchmark_is_refused(files):
    lists = {"test_list.txt": "a\na.mp4\n", "captions_msvd.json": {"a": ["x"], "a.mp4": ["y"]}}
    with pytest.raises(InputError, match=r"a.mp4 fits two videos of the annotations: a and a.mp4"):
        DATASETS["msvd"].read(files("annotations", lists), files("videos", ["a.mp4"]), splits=["test"])


def test_an_empty_table_of_a_split_is_no_split_without_rows(files):
    lists = {"train.csv": "video,caption\na,x\n", "test.csv": "video,caption\n"}
    with pytest.raises(InputError, match=r"test.csv: no row"):
        DATASETS["csv"].read(files("annotations", lists), None)


# --- a first look -----------------------------------------------------------------------------------------------------


def test_a_limit_counts_the_videos_that_are_there(files):
    videos = files("videos", ["v3.mp4", "v5.mp4", "v7.mp4"])
    found = table(files, "video,caption\n" + "".join(f"v{i}.mp4,x\n" for i in range(9)), videos)
    assert [video.id for video in first_videos(found, 2).videos] == ["v3.mp4", "v5.mp4"]
    assert summary(first_videos(found, 2))["splits"]["test"]["missing"] == 0
    nowhere = table(files, "video,caption\na.mp4,x\nb.mp4,y\n", None)
    assert [video.id for video in first_videos(nowhere, 1).videos] == ["a.mp4"]
