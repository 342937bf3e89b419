"""Tables of one's own: what is read, and the one line that says what is wrong."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from glscl.cache.schema import Annotations
from glscl.common.errors import GlsclError, InputError, NotFoundError, UsageError
from glscl.extract.datasets.builder import summary
from glscl.extract.datasets.csv_file import read

PLAIN = "video,caption,split\na.mp4,a cat,train\nb.mp4,a dog,test\na.mp4,a small cat,train\n"


@pytest.fixture
def table(files):
    """`table(content, name)` → Annotations, with the videos a.mp4, b.mp4 and sub/c.mp4."""

    def make(content, name="captions.csv", **options) -> Annotations:
        folder = files("annotations", {name: content})
        videos = files("videos", ["a.mp4", "b.mp4", "sub/c.mp4"])
        return read(folder / name, videos, **options)

    return make


def pairs(annotations: Annotations) -> list[tuple[str, str, str]]:
    return [(text.video, text.split, text.text) for text in annotations.texts]


EXPECTED = [("a.mp4", "train", "a cat"), ("a.mp4", "train", "a small cat"), ("b.mp4", "test", "a dog")]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (PLAIN, "captions.csv"),
        (PLAIN.replace("\n", "\r\n"), "captions.csv"),
        ("\ufeff" + PLAIN, "captions.csv"),
        (PLAIN.rstrip("\n"), "captions.csv"),
        (PLAIN.replace(",", "\t"), "captions.tsv"),
        (PLAIN.replace(",", "\t"), "captions.csv"),
        (PLAIN.replace(",", ";"), "captions.csv"),
        (PLAIN.replace("video,caption,split\n", ""), "captions.csv"),
        (PLAIN.replace("\n", "\n\n"), "captions.csv"),
        ("Split, Video ,CAPTION\ntrain,a.mp4,a cat\nTest,b.mp4,a dog\ntraining,a.mp4,a small cat\n", "captions.csv"),
        (",video_id,sentence,split\n1,a.mp4,a cat,train\n2,b.mp4,a dog,test\n3,a.mp4,a small cat,train\n", "c.csv"),
        (
            '{"video": "a.mp4", "captions": ["a cat", "a small cat"], "split": "train"}\n\n'
            '{"video": "b.mp4", "caption": "a dog", "split": "test"}',
            "captions.jsonl",
        ),
        (
            [
                {"video": "a.mp4", "caption": ["a cat", "a small cat"], "split": "train", "more": None},
                {"video": "b.mp4", "caption": "a dog", "split": "test"},
            ],
            "captions.json",
        ),
        (
            {
                "train": [{"video": "a.mp4", "captions": ["a cat", "a small cat"]}],
                "test": [{"video": "b.mp4", "caption": "a dog"}],
            },
            "captions.json",
        ),
        (
            {
                "video": ["a.mp4", "a.mp4", "b.mp4"],
                "caption": ["a cat", "a small cat", "a dog"],
                "split": ["train", "train", "test"],
            },
            "captions.json",
        ),
        (
            {
                "split": {"0": "train", "7": "train", "3": "test"},
                "text": {"0": "a cat", "7": "a small cat", "3": "a dog"},
                "path": {"0": "a.mp4", "7": "a.mp4", "3": "b.mp4"},
            },
            "captions.json",
        ),
    ],
)
def test_the_same_rows_in_any_form_read_the_same(table, content, name):
    found = table(content, name)
    assert pairs(found) == EXPECTED
    assert [(v.id, v.split) for v in found.videos] == [("a.mp4", "train"), ("b.mp4", "test")]
    assert [t.id for t in found.texts] == ["a.mp4#0", "a.mp4#1", "b.mp4#0"]
    assert all(v.path.endswith(v.id) for v in found.videos)
    assert found.notes == []


def test_a_map_from_video_to_captions_is_read(table):
    found = table({"a.mp4": ["a cat", "a small cat"], "b.mp4": "a dog"}, "captions.json")
    assert pairs(found) == [(v, "test", t) for v, _, t in EXPECTED]


def test_quoted_cells_hold_commas_quotes_and_newlines(table):
    found = table('video,caption\r\na.mp4,"she said ""no"",\r\n then  left"\r\n')
    assert found.texts[0].text == 'she said "no", then left'
    assert found.texts[0].original == 'she said "no",\r\n then  left'


def test_the_original_is_kept_only_where_folding_changed_it(table):
    found = table("video,caption\na.mp4,a cat\nb.mp4, a\u00a0dog\u2003\n")
    assert [(t.text, t.original) for t in found.texts] == [("a cat", None), ("a dog", " a\u00a0dog\u2003")]


def test_splits_are_runs_and_keep_the_order_of_the_file(table):
    rows = [("sub/c.mp4", "test"), ("a.mp4", "train"), ("x.mp4", "val"), ("b.mp4", "test"), ("y.mp4", "train")]
    found = table("video,caption,split\n" + "".join(f"{v},of {v},{s}\n" for v, s in rows))
    order = ["a.mp4", "y.mp4", "x.mp4", "sub/c.mp4", "b.mp4"]
    assert [v.id for v in found.videos] == order
    assert [t.video for t in found.texts] == order


def test_parts_of_a_video_are_gallery_entries_of_their_own(table):
    found = table(
        "video,caption,start,end\na.mp4,one,0,12.5\na.mp4,two,12.5,17\na.mp4,two again,12.50,17\na.mp4,rest,17,\n"
    )
    assert [(v.id, v.start, v.end) for v in found.videos] == [
        ("a.mp4@0-12.5", 0, 12.5),
        ("a.mp4@12.5-17", 12.5, 17),
        ("a.mp4@17-", 17, None),
    ]
    assert len({v.path for v in found.videos}) == 1
    assert [t.id for t in found.texts] == ["a.mp4@0-12.5#0", "a.mp4@12.5-17#0", "a.mp4@12.5-17#1", "a.mp4@17-#0"]


def test_an_id_column_names_the_entry(table):
    found = table([{"id": 7, "video": "a.mp4", "start": 1, "end": 2, "caption": "x"}], "c.json")
    assert [(v.id, v.start) for v in found.videos] == [("7", 1.0)]


def test_videos_are_found_by_path_by_name_and_by_id(table):
    found = table("video\nsub/c.mp4\nb\n./a.mp4\nc\nsub//c.mp4\n")
    assert [(v.id, v.path is None) for v in found.videos] == [
        ("sub/c.mp4", False),
        ("b", False),
        ("a.mp4", False),
    ]
    assert any("written in several ways, each one entry: 1, sub/c.mp4 = c" in note for note in found.notes)
    assert found.texts == []
    assert {v.split for v in found.videos} == {"test"}


def test_missing_files_have_no_path_and_are_counted(table):
    found = table("video,caption\na.mp4,x\ngone.mp4,y\n")
    assert summary(found)["splits"]["test"] == {
        "captions": 2,
        "videos": 2,
        "found": 1,
        "missing": 1,
        "expected_captions": None,
        "expected_videos": None,
    }
    assert summary(found)["missing_examples"] == {"test": ["gone.mp4"]}


def test_empty_captions_are_dropped_and_their_rows_named(table):
    found = table('video,caption,split\na.mp4,a cat,train\nb.mp4,,test\na.mp4,"  \n",train\n')
    assert pairs(found) == [("a.mp4", "train", "a cat")]
    assert [v.id for v in found.videos] == ["a.mp4", "b.mp4"]
    assert any("dropped 2 empty captions" in note and "captions.csv, row 3, 4" in note for note in found.notes)


def test_without_splits_videos_are_divided_by_hash_and_the_note_says_so(table):
    rows = [f"v{i}.mp4,caption {k} of {i}" for i in range(500) for k in range(2)]
    found = table("video,caption\n" + "\n".join(rows))
    sizes = {name: row["videos"] for name, row in summary(found)["splits"].items()}
    assert sum(sizes.values()) == 500
    assert 370 < sizes["train"] < 430 and 30 < sizes["val"] < 75 and 30 < sizes["test"] < 75
    assert "divided by a hash" in found.notes[0]
    again = table("video,caption\n" + "\n".join(reversed(rows)) + "\nanother.mp4,x\n")
    splits = {v.id: v.split for v in again.videos}
    assert all(splits[v.id] == v.split for v in found.videos)


@pytest.mark.parametrize("count", [1, 19, 20, 21, 30])
def test_few_videos_are_all_test_and_more_fill_every_split(table, count):
    found = table("video,caption\n" + "".join(f"v{i}.mp4,x\n" for i in range(count)))
    assert {v.split for v in found.videos} == ({"test"} if count < 20 else {"train", "val", "test"})


def test_parts_of_one_file_stay_together_when_divided(table):
    found = table("video,caption,start,end\n" + "".join(f"v{i % 40}.mp4,x,{i},{i + 1}\n" for i in range(400)))
    splits: dict[str, set[str]] = {}
    for video in found.videos:
        splits.setdefault(video.id.split("@")[0], set()).add(video.split)
    assert len(splits) == 40 and all(len(found) == 1 for found in splits.values())


def test_videos_without_caption_are_test_where_splits_were_made_up(table):
    found = table("video,caption\n" + "".join(f"v{i}.mp4,x\n" for i in range(40)) + "a.mp4,\n")
    assert next(v for v in found.videos if v.id == "a.mp4").split == "test"


def test_chosen_splits_alone_are_returned(table):
    found = table(PLAIN, splits=["test"])
    assert pairs(found) == [("b.mp4", "test", "a dog")]
    assert [v.id for v in found.videos] == ["b.mp4"]
    with pytest.raises(InputError, match="no video in split val; it has train, test"):
        table(PLAIN, splits=["val"])
    with pytest.raises(UsageError, match="no split 'vall'"):
        table(PLAIN, splits=["vall"])
    with pytest.raises(UsageError, match="no protocol 'x'"):
        table(PLAIN, protocol="x")


@pytest.mark.parametrize("splits", [None, ["test"]])
def test_a_video_in_two_splits_is_refused_with_row_and_both(table, splits):
    with pytest.raises(InputError, match=r"captions.csv, row 4: the video 'a.mp4' is in split test, but also in train"):
        table("video,caption,split\na.mp4,x,train\nb.mp4,y,test\na.mp4,z,test\n", splits=splits)


def test_parts_of_one_file_in_two_splits_are_pointed_out(table):
    found = table("video,caption,split,start,end\na.mp4,x,train,0,5\na.mp4,y,test,5,9\n")
    assert len(found.videos) == 2
    assert any("different splits" in note for note in found.notes)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "c.csv", "the file is empty; expected the columns video,caption"),
        ("\n \n", "c.csv", "the file is empty"),
        ("video,caption\n", "c.csv", "no row"),
        ("[]", "c.json", "no row"),
        ("clip,caption\na.mp4,x\n", "c.csv", "row 1: no video column; found 'clip', 'caption'; expected"),
        ("video,words\na.mp4,x\n", "c.csv", "row 1: no caption column; found 'video', 'words'"),
        ("video,caption,caption\na.mp4,x,y\n", "c.csv", "2 columns are named caption"),
        (
            "video,caption\na.mp4,x\nb.mp4,y,z\n",
            "c.csv",
            "row 3: 3 cells, expected 2 as in the first row.*double quotes",
        ),
        ("video,caption,split\na.mp4,x\n", "c.csv", "row 2: 2 cells, expected 3"),
        ("a.mp4,one, two, three\n", "c.csv", "row 1: no header and 4 cells"),
        ('video,caption\na.mp4,"x\nb.mp4,y\n', "c.csv", "row 2: up to line 3: unexpected end of data"),
        ('video,caption\na.mp4,"x"y\n', "c.csv", "row 2"),
        (b"video,caption\na.mp4,x\nb.mp4,caf\xe9\n", "c.csv", "line 3: byte 0xe9 is not UTF-8.*Save it as UTF-8"),
        ("video,caption\na.mp4,x\n".encode("utf-16"), "c.csv", "the file is UTF-16"),
        (
            "video,caption,split\na.mp4,x,holdout\n",
            "c.csv",
            "row 2: the split is 'holdout', expected train, val or test",
        ),
        ("video,caption,split\na.mp4,x,test\nb.mp4,y,\n", "c.csv", "row 3: no split for 'b.mp4'"),
        ("video,caption\n,x\n", "c.csv", "row 2: the video is empty"),
        ("video,caption\n../a.mp4,x\n", "c.csv", "row 2: the video '../a.mp4' leaves the folder of videos"),
        ("video,caption\nsub/../../a.mp4,x\n", "c.csv", "leaves the folder"),
        ("video,caption\nsub\\a.mp4,x\n", "c.csv", "row 2: .* has a back slash; expected forward slashes"),
        ("video,caption\n/etc/passwd,x\n", "c.csv", "row 2: the video '/etc/passwd' is not below the folder of videos"),
        ("video,caption\na\x07.mp4,x\n", "c.csv", "row 2: .* has a control character"),
        ("video,caption,start,end\na.mp4,x,5,5\n", "c.csv", "row 2: the part ends at 5 s, not after its start 5 s"),
        ("video,caption,start,end\na.mp4,x,soon,5\n", "c.csv", "row 2: start is 'soon', expected seconds"),
        ("video,caption,start,end\na.mp4,x,nan,5\n", "c.csv", "start is 'nan'"),
        ("video,caption,start,end\na.mp4,x,-1,5\n", "c.csv", "start is '-1'"),
        ("video,caption,id\na.mp4,x,one\nb.mp4,y,one\n", "c.csv", "row 3: the id 'one' stands for two different files"),
        ('{"video": "a.mp4"}\n{"video": \n', "c.jsonl", "line 2, column 11: not JSON"),
        ('{"caption": "x"}\n', "c.jsonl", "line 1: no 'video'; found 'caption'"),
        ('{"video": "a.mp4", "caption": 7}\n', "c.jsonl", "line 1: the caption is 7, expected a string"),
        ('{"video": "a.mp4", "captions": ["x", null]}\n', "c.jsonl", "line 1: captions are .*, expected strings"),
        ('{"video": ["a.mp4"]}\n', "c.jsonl", "line 1: found .* as video, expected a string"),
        ('{"video": "a.mp4", "caption": "\\ud800"}\n', "c.jsonl", "line 1: the caption .* is not valid Unicode"),
        ('{"video": "a\\ud800.mp4"}\n', "c.jsonl", "line 1: the video .* is not valid Unicode"),
        ("7", "c.json", "expected a list of objects"),
        ("[7]", "c.json", "entry 1: found 7, expected an object"),
        ("[" * 100_000, "c.json", "not JSON"),
        ('{"train": {"a.mp4": "x"}}', "c.json", "expected a list of objects"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(table, content, name, message):
    with pytest.raises(InputError, match=message) as error:
        table(content, name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_absolute_paths_are_read_below_the_folder_or_without_one(files):
    videos = files("videos", ["sub/c.mp4"])
    path = files("annotations", {"c.csv": f"video,caption\n{videos}/sub/c.mp4,x\n"}) / "c.csv"
    assert [(v.id, v.path) for v in read(path, videos).videos] == [("sub/c.mp4", f"{videos}/sub/c.mp4")]
    found = read(path, None)
    assert [(v.id, v.path) for v in found.videos] == [(f"{videos}/sub/c.mp4", f"{videos}/sub/c.mp4")]
    assert found.texts[0].id == f"{videos}/sub/c.mp4#0"


def test_without_a_folder_nothing_is_found_and_the_note_says_so(files):
    found = read(files("annotations", {"c.csv": PLAIN}) / "c.csv", None)
    assert all(v.path is None for v in found.videos)
    assert any("no folder of videos was given" in note for note in found.notes)


def test_a_folder_with_one_table_or_one_a_split_is_read(files):
    assert pairs(read(files("one", {"c.csv": PLAIN, "notes.md": "x"}), None)) == EXPECTED
    found = read(
        files("many", {"train.csv": "video,caption\na,x\n", "test.jsonl": '{"video": "b", "caption": "y"}'}), None
    )
    assert pairs(found) == [("a", "train", "x"), ("b", "test", "y")]
    with pytest.raises(InputError, match=r"2 annotation files: a.csv, b.csv"):
        read(files("two", {"a.csv": PLAIN, "b.csv": PLAIN}), None)
    with pytest.raises(NotFoundError, match="no annotation file"):
        read(files("none", {"notes.md": "x"}), None)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"gone.csv: no such file"):
        read(tmp_path / "gone.csv", None)
    with pytest.raises(NotFoundError, match="Give `annotations=FILE"):
        read(None, None)


# ------------------------------------------------------------------------------------------------ properties

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SPLIT = st.sampled_from(["", "train", "val", "test", "dev", "foo"])
VIDEO = st.text(max_size=6) | st.sampled_from(["a.mp4", "b.mp4", "../x", "/a", "a/b"])


def annotations_or_our_error(path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        found = read(path, path.parent)
    except GlsclError as error:
        assert "\n" not in str(error) and "\x00" not in str(error)
    else:
        ids = {video.id for video in found.videos}
        assert len(ids) == len(found.videos)
        assert len({text.id for text in found.texts}) == len(found.texts)
        assert all(text.video in ids and text.text and text.text == " ".join(text.text.split()) for text in found.texts)
        splits = [video.split for video in found.videos]
        assert splits == sorted(splits, key=["train", "val", "test"].index)


@FUZZ
@given(data=st.binary(max_size=80), suffix=st.sampled_from(["csv", "tsv", "jsonl", "json", "txt"]))
@example(data=b"\xef\xbb\xbf\xff", suffix="csv")
@example(data=b"video\n\x00", suffix="csv")
@example(data=b"\r\x0c", suffix="csv")
def test_any_bytes_are_annotations_or_a_clear_error(tmp_path, data, suffix):
    annotations_or_our_error(tmp_path / f"fuzz.{suffix}", data)


@FUZZ
@given(
    rows=st.lists(st.tuples(VIDEO, st.text(max_size=8), SPLIT, st.sampled_from(["", "1", "x", "-2", "1e400"]))),
    header=st.booleans(),
    delimiter=st.sampled_from(",\t;"),
)
def test_any_rows_are_annotations_or_a_clear_error(tmp_path, rows, header, delimiter):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    if header:
        writer.writerow(["video", "caption", "split", "start"])
    writer.writerows(rows)
    annotations_or_our_error(tmp_path / "fuzz.csv", out.getvalue().encode("utf-8", "surrogatepass"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["a.mp4", "train"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["video", "caption", "captions", "split", "start", "end", "id", "train"]), inner
        )
    ),
    max_leaves=12,
)


@FUZZ
@given(value=JSON | st.lists(st.fixed_dictionaries({"video": VIDEO, "caption": JSON, "split": SPLIT}), max_size=4))
def test_any_json_is_annotations_or_a_clear_error(tmp_path, value):
    annotations_or_our_error(tmp_path / "fuzz.json", json.dumps(value).encode())
    annotations_or_our_error(tmp_path / "fuzz.jsonl", json.dumps(value).encode())


CAPTION = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30)


@FUZZ
@given(captions=st.lists(CAPTION, min_size=1, max_size=8))
def test_captions_survive_a_table_up_to_white_space(tmp_path, captions):
    out = io.StringIO(newline="")
    csv.writer(out).writerows([("video", "caption"), *(("a.mp4", caption) for caption in captions)])
    (tmp_path / "t.csv").write_bytes(out.getvalue().encode())
    found = read(tmp_path / "t.csv", None)
    assert [t.text for t in found.texts] == [" ".join(c.split()) for c in captions if c.split()]
    assert [t.original if t.original is not None else t.text for t in found.texts] == [c for c in captions if c.split()]
