"""Columns, cells and keys are checked for what they hold: one reading is read, none or several are refused with the place."""

from __future__ import annotations

import pytest

from glscl.common.errors import InputError
from glscl.extract.datasets import DATASETS

CLIP = "1004_A_00.00.01.000-00.00.02.000"
TIMES = "00.00.01.000\t00.00.02.000\t00.00.01.000\t00.00.02.000"


def table(files, text, name="captions.csv", **options):
    return DATASETS["csv"].read(files("annotations", {name: text}) / name, None, **options)


def captions(found):
    return [(text.video, text.text) for text in found.texts]


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_first_line_that_excel_writes_says_what_separates(files):
    found = table(files, '\ufeffsep=;\r\nvideo;caption;split\r\na.mp4;"a cat; a dog, too";test\r\n')
    assert captions(found) == [("a.mp4", "a cat; a dog, too")]


def test_times_of_a_clock_with_hours_are_seconds_and_others_are_refused(files):
    row = "video,caption,start,end\na.mp4,x,{},0:01:05\n"
    (video,) = table(files, row.format("0:01:02.5")).videos
    assert (video.start, video.end) == (62.5, 65.0)
    for cell in ("1:02", "0:61:00", "0:00:60", "-1", "nan", '"62,5"', "00:01:02:12"):
        with pytest.raises(InputError, match=r"row 2: start is .* expected seconds, a number from 0, or h:mm:ss"):
            table(files, row.format(cell))


def test_words_for_an_empty_cell_are_told(files):
    found = table(files, "video,caption\na.mp4,nan\nb.mp4,None\nc.mp4,my nan\n")
    assert len(found.texts) == 3
    assert any(
        note.startswith("2 captions of the word nan, none or null") and note.endswith("row 2, 3")
        for note in found.notes
    )


def test_a_video_at_an_address_is_refused(files):
    with pytest.raises(InputError, match=r"row 2: the video 'https://x.org/a.mp4' is an address"):
        table(files, "video,caption\nhttps://x.org/a.mp4,x\n")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (f"\tid\tstart\n0\t{CLIP}\t{TIMES}\tHe sits.\n", "row 1"),
        (f"0\t{CLIP}\t{TIMES}\tHe sits.\n", "row 1: the aligned start is '1004_A"),
        (
            f"{CLIP}\t{TIMES}\tHe sits.\nvideo\ta\tb\tc\td\tsentence\n",
            "row 2: the aligned start is 'a', expected a time",
        ),
        (f"{CLIP}\t{TIMES.replace('00.00.02.000', '2', 1)}\tHe sits.\n", "row 1: the aligned end is '2'"),
    ],
)
def test_a_table_of_clips_saved_again_is_refused_with_row_and_column(files, text, place):
    with pytest.raises(InputError, match=place):
        DATASETS["lsmdc"].read(files("a", {"LSMDC16_annos_val.csv": text}), None, splits=["val"])


def test_a_table_of_clips_as_it_is_distributed_is_read(files):
    text = f"{CLIP}\t{TIMES}\tHe sits, and waits.\n{CLIP}\t{TIMES}\tHe\tstands.\n"
    found = DATASETS["lsmdc"].read(files("a", {"LSMDC16_annos_val.csv": text}), None, splits=["val"])
    assert captions(found) == [(CLIP, "He sits, and waits."), (CLIP, "He stands.")]


@pytest.mark.parametrize(
    "text",
    [
        "video;caption\na.mp4;he sits, and waits\nb.mp4;he stands, too\n",
        "video\tcaption\na.mp4\the sits, and waits\nb.mp4\the stands, too\n",
        "caption, in words;video;caption\nx;a.mp4;he sits, and waits\ny;b.mp4;he stands, too\n",
        "a.mp4;he sits, and waits\nb.mp4;he stands, too\n",
        "a;he sits, and waits\nb;he stands, too, he sits\n",
        "a.mp4\the sits, and waits; still\nb.mp4\the stands, too\n",
    ],
)
def test_the_separator_is_the_one_by_which_a_table_makes_sense(files, text):
    found = table(files, text)
    assert [video.id.removesuffix(".mp4") for video in found.videos] == ["a", "b"]
    assert all(text.text.startswith("he") and ", " in text.text for text in found.texts)


def test_a_table_that_makes_sense_by_two_separators_is_refused(files):
    with pytest.raises(InputError, match=r"row 1: the cells can be separated by ',' or ';'.*Name the columns"):
        table(files, "a;one, two\nb;three, four\n")


def test_a_header_in_the_middle_is_left_out_and_said(files):
    found = table(files, "video,caption\na,x\nvideo,caption\nb,y\nvideo,caption\n")
    assert captions(found) == [("a", "x"), ("b", "y")]
    assert any(note.endswith("captions.csv, row 3, 5") and "stands again" in note for note in found.notes)


@pytest.mark.parametrize("text", ["video,caption\na,x\ncaption,video\ny,b\n", "a,x\nb,y\nvideo,caption\nc,z\n"])
def test_another_header_in_the_middle_is_refused(files, text):
    with pytest.raises(
        InputError, match=r"row 3: found 'caption', 'video', another|row 3: found 'video', 'caption', another"
    ):
        table(files, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,a.mp4\n1,b.mp4\n", "row 1: the caption is 'a.mp4', the name of a file"),
        (
            "he sits,a.mp4\nhe stands,b.mp4\n",
            "row 1: the caption is 'a.mp4', the name of a file, and so is every other",
        ),
        ("0,a.mp4,a cat\n1,b.mp4,a dog\n", "row 1: the split is 'a cat'"),
    ],
)
def test_columns_in_another_order_are_not_taken_for_video_and_caption(files, text, message):
    with pytest.raises(InputError, match=message):
        table(files, text)


def test_a_list_in_a_cell_is_several_captions(files):
    found = table(files, 'video,caption\na,"[\'a cat\', ""a dog\'s bone""]"\nb,[music]\nc,"[1, 2]"\n')
    assert captions(found) == [("a", "a cat"), ("a", "a dog's bone"), ("b", "[music]"), ("c", "[1, 2]")]
    assert captions(table(files, [{"video": "a", "text": "('a cat', 'a dog')"}], "c.json")) == [
        ("a", "a cat"), ("a", "a dog"),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"row 2: the caption is .*, a list whose strings no comma separates"):
        table(files, "video,caption\na,['a cat' 'a dog']\n")


@pytest.mark.parametrize("value", ["1_0", "1:30", "0x10", "１２", "12 s", "1,5", "nan", "inf", "-1"])
def test_what_only_looks_like_a_number_is_none(files, value):
    with pytest.raises(InputError, match=r"row 2: end is '.*', expected seconds"):
        table(files, f'video,caption,end\na,x,"{value}"\n')
    with pytest.raises(InputError, match=r"'end' is|end is"):
        table(files, [{"video": "a", "caption": "x", "end": value}], "c.json")


@pytest.mark.parametrize("value", ["12", " 12.50 ", "1.25e1", ".5", "+3"])
def test_numbers_as_people_write_them_are_read(files, value):
    assert table(files, f"video,caption,end\na,x,{value}\n").videos[0].end == float(value)


def test_columns_that_mean_nothing_here_are_named(files):
    found = table(files, "video,caption,set,fps,\na,x,train,25,\nb,y,test,25,\n")
    assert any(note.startswith("columns not used: 'set', 'fps': ") for note in found.notes)
    found = table(files, [{"video": "a", "caption": "x", "lang": "en", "description": "y", "url": None}], "c.json")
    assert any(note.startswith("columns not used: 'lang', 'description': ") for note in found.notes)


@pytest.mark.parametrize(("start", "end"), [("start", "end"), ("start_time", "end_time"), ("start_sec", "end_seconds")])
def test_times_are_found_by_the_names_that_they_have(files, start, end):
    found = table(files, f"video,caption,{start},{end}\na,x,1,2\na,y,2,3\n")
    assert [(video.start, video.end) for video in found.videos] == [(1, 2), (2, 3)]


# --- objects ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "place"),
    [
        ('{"a.mp4": ["x"], "b.mp4": ["y"], "a.mp4": ["z"]}', "c.json", "the key 'a.mp4' stands twice"),
        ('{"video": "a", "caption": "x"}\n{"video": "a", "caption": "x", "caption": "y"}', "c.jsonl",
         "line 2: the key 'caption' stands twice"),
        ('{"train": [{"video": "a"}], "train": [{"video": "b"}]}', "c.json", "the key 'train' stands twice"),
    ],
)  # fmt: skip
def test_a_key_that_stands_twice_is_refused(files, text, name, place):
    with pytest.raises(InputError, match=place):
        table(files, text, name)


def test_a_key_that_stands_twice_in_a_benchmark_is_refused(files):
    text = '{"v_a": {"duration": 3, "sentences": ["x"]}, "v_a": {"duration": 3, "sentences": ["y"]}}'
    with pytest.raises(InputError, match="the key 'v_a' stands twice"):
        DATASETS["activitynet"].read(files("a", {"val_1.json": text}), None, splits=["test"])


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"caption": "x"}, ["x"]),
        ({"caption": None, "captions": ["x", "y"]}, ["x", "y"]),
        ({"caption": "", "captions": ["x", "y"]}, ["x", "y"]),
        ({"caption": "x", "captions": ["x", "y"]}, ["x", "y"]),
        ({"caption": "z", "captions": ["x", "x"]}, ["z", "x", "x"]),
        ({"caption": "", "text": "x"}, ["x"]),
        ({"text": ["x", "y"]}, ["x", "y"]),
        ({"captions": []}, []),
    ],
)
def test_every_caption_of_an_object_is_read_whatever_key_holds_it(files, entry, expected):
    found = table(files, [{"video": "a", **entry}], "c.json")
    assert [text.text for text in found.texts] == expected


def test_columns_of_different_rows_are_refused(files):
    for columns in ({"video": ["a", "b"], "caption": ["x"]}, {"video": {"0": "a"}, "caption": {"1": "x"}}):
        with pytest.raises(InputError, match="found the columns 'video', 'caption' of different rows"):
            table(files, columns, "c.json")


# --- benchmarks -------------------------------------------------------------------------------------------------------


def test_lists_saved_again_with_an_index_are_read_by_their_header(files):
    test = ",key,vid_key,video_id,sentence\n0,ret0,msr1,video1,a dog\n1,ret1,msr2,video2,a cat\n"
    found = DATASETS["msrvtt"].read(files("a", {"MSRVTT_JSFUSION_test.csv": test}), None, splits=["test"])
    assert captions(found) == [("video1", "a dog"), ("video2", "a cat")]


def test_lists_put_together_say_where_their_header_stands_again(files):
    head, rows = "key,vid_key,video_id,sentence\n", ["ret0,msr1,video1,a dog\n", "ret1,msr2,video2,a cat\n"]
    text = "".join(head + row for row in rows)
    found = DATASETS["msrvtt"].read(files("a", {"MSRVTT_JSFUSION_test.csv": text}), None, splits=["test"])
    assert captions(found) == [("video1", "a dog"), ("video2", "a cat")]
    assert any("the header where it stands again" in note and note.endswith("row 3") for note in found.notes)


def test_a_column_that_stands_twice_is_refused(files):
    test = "key,video_id,video_id,sentence\nret0,msr1,video1,a dog\n"
    with pytest.raises(InputError, match="row 1: the header is .* each once"):
        DATASETS["msrvtt"].read(files("a", {"MSRVTT_JSFUSION_test.csv": test}), None, splits=["test"])


def test_a_list_in_a_caption_of_a_benchmark_is_read_or_refused(files):
    test = "key,vid_key,video_id,sentence\nret0,msr1,video1,\"['a dog', 'a cat']\"\n"
    found = DATASETS["msrvtt"].read(files("a", {"MSRVTT_JSFUSION_test.csv": test}), None, splits=["test"])
    assert captions(found) == [("video1", "a dog"), ("video1", "a cat")]
    lists = {"test_list.txt": "a", "captions_msvd.json": {"a": ["['a dog', 'a cat']"]}}
    with pytest.raises(InputError, match="entry 'a': the caption is .*, a list, expected one caption"):
        DATASETS["msvd"].read(files("b", lists), None, splits=["test"])
