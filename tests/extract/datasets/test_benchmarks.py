"""Every benchmark in small, made-up files of its own layout, with the traps of the real ones; then the real ones."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glscl.cache.schema import Annotations
from glscl.common.errors import GlsclError, InputError, NotFoundError, UsageError
from glscl.extract.datasets import DATASETS
from glscl.extract.datasets.builder import summary


def ids(annotations: Annotations, split: str | None = None) -> list[str]:
    return [video.id for video in annotations.videos if split in (None, video.split)]


def texts(annotations: Annotations, split: str | None = None) -> list[tuple[str, str]]:
    return [(text.video, text.text) for text in annotations.texts if split in (None, text.split)]


def found(annotations: Annotations) -> dict[str, str]:
    return {video.id: Path(video.path).name for video in annotations.videos if video.path}


# ------------------------------------------------------------------------------------------------ MSR-VTT


def msrvtt_json() -> dict:
    """Clips 0-2 train, 3 validate, 4-6 official test; 5 and 6 are the 1k-A test."""
    split = ["train", "train", "train", "validate", "test", "test", "test"]
    videos = [
        {"category": 1, "url": "u", "video_id": f"video{i}", "start time": 0.0, "end time": 9.5, "split": s, "id": i}
        for i, s in enumerate(split)
    ]
    order = [4, 0, 3, 1, 6, 2, 5]
    sentences = [
        {
            "caption": f" made up {k} of {i}" if k else f"made up {k} of {i}",
            "video_id": f"video{i}",
            "sen_id": 3 * n + k,
        }
        for n, i in enumerate(order)
        for k in range(3)
    ]
    return {"info": {}, "videos": videos, "sentences": sentences}


JSFUSION = "key,vid_key,video_id,sentence\nret0,msr6,video6,somebody paints\nret1,msr5,video5,somebody sings\n"


@pytest.fixture
def msrvtt(files):
    return files(
        "msrvtt",
        {
            "MSRVTT_data.json": msrvtt_json(),
            "MSRVTT_JSFUSION_test.csv": JSFUSION,
            "MSRVTT_train.9k.csv": "video_id\nvideo2\nvideo0\nvideo1\nvideo4\nvideo3\n",
            "MSRVTT_train.7k.csv": "video_id\nvideo0\nvideo3\nvideo1\nvideo2\n",
        },
    )


def test_msrvtt_9k_trains_on_every_caption_and_tests_on_one(msrvtt, files):
    videos = files("videos", ["video6.mp4", "all/video0.webm"])
    read = DATASETS["msrvtt"].read(msrvtt, videos)
    assert ids(read, "train") == ["video2", "video0", "video1", "video4", "video3"]
    assert ids(read, "test") == ["video6", "video5"]
    assert texts(read, "test") == [("video6", "somebody paints"), ("video5", "somebody sings")]
    assert texts(read, "train")[:4] == [("video4", f"made up {k} of 4") for k in range(3)] + [
        ("video0", "made up 0 of 0")
    ]
    assert len(texts(read, "train")) == 15
    assert [t.original for t in read.texts[:2]] == [None, " made up 1 of 4"]
    assert [t.id for t in read.texts if t.video == "video0"] == ["video0#0", "video0#1", "video0#2"]
    assert found(read) == {"video6": "video6.mp4", "video0": "video0.webm"}
    assert read.expected["train"] == (180_000, 9_000) and read.expected["test"] == (1_000, 1_000)


def test_msrvtt_7k_and_full_differ_in_their_splits(msrvtt):
    seven = DATASETS["msrvtt"].read(msrvtt, None, protocol="7k")
    assert ids(seven, "train") == ["video0", "video3", "video1", "video2"]
    assert ids(seven, "test") == ["video6", "video5"]
    full = DATASETS["msrvtt"].read(msrvtt, None, protocol="full")
    assert [(s, ids(full, s)) for s in ("train", "val", "test")] == [
        ("train", ["video0", "video1", "video2"]),
        ("val", ["video3"]),
        ("test", ["video4", "video5", "video6"]),
    ]
    assert len(full.texts) == 21
    with pytest.raises(UsageError, match=r"msrvtt \(protocol 9k\) has no split 'val'"):
        DATASETS["msrvtt"].read(msrvtt, None, splits=["val"])


@pytest.mark.parametrize("protocol", ["9k", "7k", "full"])
def test_msrvtt_from_the_two_official_files_is_the_same(msrvtt, protocol):
    whole = DATASETS["msrvtt"].read(msrvtt, None, protocol=protocol)
    content = msrvtt_json()
    (msrvtt / "MSRVTT_data.json").unlink()
    for name, official in (("train_val", ("train", "validate")), ("test", ("test",))):
        videos = [v for v in content["videos"] if v["split"] in official]
        inside = {v["video_id"] for v in videos}
        sentences = [s for s in content["sentences"] if s["video_id"] in inside]
        (msrvtt / f"{name}_videodatainfo.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    pair = DATASETS["msrvtt"].read(msrvtt, None, protocol=protocol)
    assert pair.videos == whole.videos
    assert sorted(pair.texts, key=lambda item: item.id) == sorted(whole.texts, key=lambda item: item.id)


@pytest.mark.parametrize("protocol", ["9k", "7k"])
def test_msrvtt_training_clips_follow_where_their_list_is_missing(msrvtt, protocol):
    listed = DATASETS["msrvtt"].read(msrvtt, None, protocol=protocol)
    (msrvtt / f"MSRVTT_train.{protocol}.csv").unlink()
    derived = DATASETS["msrvtt"].read(msrvtt, None, protocol=protocol)
    assert sorted(derived.videos, key=lambda item: item.id) == sorted(listed.videos, key=lambda item: item.id)
    assert derived.texts == listed.texts
    assert any("follow from the other files" in note for note in derived.notes)


def test_msrvtt_reads_the_splits_whose_files_are_there_and_names_the_others(msrvtt):
    (msrvtt / "MSRVTT_data.json").unlink()
    read = DATASETS["msrvtt"].read(msrvtt, None)
    assert summary(read)["splits"]["train"]["videos"] == 0
    assert len(ids(read, "test")) == 2
    assert "train was not read" in read.notes[0] and "MSRVTT_data.json" in read.notes[0]
    with pytest.raises(NotFoundError, match=r"has no MSRVTT_data.json or train_val_videodatainfo.json"):
        DATASETS["msrvtt"].read(msrvtt, None, splits=["train"])


def test_msrvtt_lists_without_header_or_final_newline_read_the_same(msrvtt):
    with_header = DATASETS["msrvtt"].read(msrvtt, None)
    (msrvtt / "MSRVTT_train.9k.csv").write_text("video2\r\nvideo0\r\nvideo1\r\nvideo4\r\nvideo3")
    assert DATASETS["msrvtt"].read(msrvtt, None).videos == with_header.videos


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("MSRVTT_JSFUSION_test.csv", "key,video,sentence\nret0,video5,x\n", "the columns video_id, sentence"),
        ("MSRVTT_JSFUSION_test.csv", JSFUSION + "ret2,msr4,video4,a, b\n", "row 4: 5 cells, expected 4"),
        ("MSRVTT_JSFUSION_test.csv", "", "the file is empty"),
        (
            "MSRVTT_train.9k.csv",
            "video_id\nvideo0\nvideo6\n",
            "row 3: the video 'video6' is in split train, but also in test",
        ),
        ("MSRVTT_train.9k.csv", "video_id\nvideo0\n../video1\n", "row 3: the video id '../video1' is a path"),
        ("MSRVTT_data.json", "[]", "found a list, expected an object"),
        ("MSRVTT_data.json", "{", "line 1, column 2: not JSON"),
        ("MSRVTT_data.json", {"videos": []}, "no 'sentences'; found 'videos'"),
        (
            "MSRVTT_data.json",
            {"sentences": [{"caption": 7, "video_id": "video0"}]},
            "entry 1: 'caption' is 7, expected a string",
        ),
        ("MSRVTT_data.json", {"sentences": ["x"]}, "entry 1: found a string, expected an object with 'video_id'"),
    ],
)
def test_msrvtt_files_that_are_wrong_are_named_with_row(msrvtt, files, name, content, message):
    files("msrvtt", {name: content})
    with pytest.raises(InputError, match=message) as error:
        DATASETS["msrvtt"].read(msrvtt, None)
    assert name in str(error.value)


# ------------------------------------------------------------------------------------------------ MSVD


CAPTIONS = {
    "-aB_3xYz012_5_15": [["a", "made", "up", "squirrel"], ["it", "s", "nuts"]],
    "zz-zz_zz012_1_2": [["rain"]] * 3,
    "unused_id12_0_1": [["nobody", "reads", "this"]],
    "abcdefghijk_9_99": [["a", "cup"], []],
}


@pytest.fixture
def msvd(files):
    return files(
        "msvd",
        {
            "train_list.txt": "-aB_3xYz012_5_15\nno_caption1_1_2",
            "val_list.txt": "abcdefghijk_9_99",
            "test_list.txt": "zz-zz_zz012_1_2\n",
            "raw-captions.pkl": pickle.dumps(CAPTIONS, protocol=2),
        },
    )


def test_msvd_makes_every_caption_a_text(msvd, files):
    read = DATASETS["msvd"].read(msvd, files("videos", ["-aB_3xYz012_5_15.avi", "zz-zz_zz012_1_2.avi"]))
    assert texts(read, "train") == [("-aB_3xYz012_5_15", "a made up squirrel"), ("-aB_3xYz012_5_15", "it s nuts")]
    assert texts(read, "test") == [("zz-zz_zz012_1_2", "rain")] * 3
    assert found(read) == {"-aB_3xYz012_5_15": "-aB_3xYz012_5_15.avi", "zz-zz_zz012_1_2": "zz-zz_zz012_1_2.avi"}
    assert ids(read) == ["-aB_3xYz012_5_15", "abcdefghijk_9_99", "zz-zz_zz012_1_2"]
    assert any("dropped 1 video without caption in raw-captions.pkl: no_caption1_1_2" in note for note in read.notes)
    assert any("dropped 1 empty caption" in note and "abcdefghijk_9_99" in note for note in read.notes)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_msvd_reads_pickles_of_every_protocol_and_the_json_form(msvd, protocol):
    first = DATASETS["msvd"].read(msvd, None)
    (msvd / "raw-captions.pkl").write_bytes(pickle.dumps(CAPTIONS, protocol=protocol))
    assert DATASETS["msvd"].read(msvd, None).texts == first.texts
    (msvd / "raw-captions.pkl").unlink()
    joined = {id: [" ".join(words) for words in captions] for id, captions in CAPTIONS.items()}
    (msvd / "captions_msvd.json").write_text(json.dumps(joined))
    assert DATASETS["msvd"].read(msvd, None).texts == first.texts


def test_msvd_reads_pickles_written_by_python_2(msvd):
    (msvd / "raw-captions.pkl").write_bytes(b"(dp0\nS'zz-zz_zz012_1_2'\np1\n(lp2\n(lp3\nS'caf\\xc3\\xa9'\np4\naas.")
    assert texts(DATASETS["msvd"].read(msvd, None, splits=["test"])) == [("zz-zz_zz012_1_2", "café")]


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_msvd_refuses_pickles_that_could_run_code(msvd, tmp_path):
    (msvd / "raw-captions.pkl").write_bytes(pickle.dumps({"a": Bomb(tmp_path / "harm")}))
    with pytest.raises(InputError, match=r"raw-captions.pkl: not a pickle of plain containers.*(_?io)\.open"):
        DATASETS["msvd"].read(msvd, None)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a pickle"),
        (pickle.dumps(CAPTIONS)[:-20], "not a pickle"),
        (b"\x80\x02Q.", "not a pickle"),
        (pickle.dumps([1]), "found list, expected dict"),
        (
            pickle.dumps({"zz-zz_zz012_1_2": "rain"}),
            "entry 'zz-zz_zz012_1_2': found 'rain', expected a list of captions",
        ),
        (pickle.dumps({"zz-zz_zz012_1_2": [7]}), "found 7, expected a caption"),
        (pickle.dumps({"zz-zz_zz012_1_2": [[7]]}), "expected a caption"),
        (pickle.dumps({"zz-zz_zz012_1_2": [1 << 99_999]}), "found a value of type int, expected a caption"),
    ],
)
def test_msvd_captions_that_are_wrong_are_refused(msvd, data, message):
    (msvd / "raw-captions.pkl").write_bytes(data)
    with pytest.raises(InputError, match=message):
        DATASETS["msvd"].read(msvd, None)


def test_msvd_refuses_a_test_video_in_training(msvd):
    (msvd / "train_list.txt").write_text("zz-zz_zz012_1_2\n")
    with pytest.raises(
        InputError, match=r"test_list.txt, line 1: the video 'zz-zz_zz012_1_2' is in split test, but also"
    ):
        DATASETS["msvd"].read(msvd, None)


# ------------------------------------------------------------------------------------------------ DiDeMo


def moment(video: str, description: str, start: int = 0) -> dict:
    times = [[start, start]] * 4
    return {
        "num_segments": 6,
        "description": description,
        "dl_link": "",
        "times": times,
        "video": video,
        "annotation_id": 1,
    }


DIDEMO = ["10@N01_1_aa.mov", "10@N01_2_bb.", "10@N01_3_cc.null", "10@N01_4_dd.divx"]


@pytest.fixture
def didemo(files):
    rows = [
        moment(DIDEMO[0], "a boat leaves\nthe harbour ", 5),
        moment(DIDEMO[1], "Waves"),
        moment("99@N09_9_unlisted.mp4", "nobody lists this"),
        moment(DIDEMO[0], " the sail is raised", 0),
        moment(DIDEMO[2], "a kite"),
        moment(DIDEMO[3], "a goat"),
    ]
    return files(
        "didemo", {"test_list.txt": "\n".join(DIDEMO) + "\n", "test_data.json": rows, "train_list.txt": "x.mp4\n"}
    )


def test_didemo_joins_the_descriptions_in_the_order_of_the_file(didemo):
    read = DATASETS["didemo"].read(didemo, None)
    assert [(t.id, t.text) for t in read.texts][:2] == [
        ("10@N01_1_aa.mov#0", "a boat leaves the harbour the sail is raised"),
        ("10@N01_2_bb.#0", "Waves"),
    ]
    assert all((v.start, v.end) == (0, 31) for v in read.videos)
    assert ids(read) == DIDEMO
    assert any("dropped 1 description of 1 video of test_data.json" in n and "unlisted" in n for n in read.notes)
    assert any("train was not read" in n and "train_data.json" in n for n in read.notes)


@pytest.mark.parametrize(
    "names",
    [DIDEMO, [f"{id}.mp4" for id in DIDEMO], [f"sub/{id.rpartition('.')[0]}.mp4" for id in DIDEMO]],
    ids=["as the id", "as the downloader names them", "converted"],
)
def test_didemo_files_are_found_under_every_convention(didemo, files, names):
    read = DATASETS["didemo"].read(didemo, files("videos", names))
    assert found(read) == {id: Path(name).name for id, name in zip(DIDEMO, names)}


# ------------------------------------------------------------------------------------------------ LSMDC


def lsmdc_row(clip: str, sentence: str) -> str:
    return "\t".join([clip, "00.00.01.000", "00.00.03.000", "00.00.01.000", "00.00.03.000", sentence])


A = "0001_Made_Up_00.00.01.000-00.00.03.000"
B = "0001_Made_Up_00.00.01.000-00.00.03.500"


def test_lsmdc_reads_tabs_keeps_dots_and_counts_what_it_drops(files):
    rows = [
        lsmdc_row(A, 'SOMEONE says, "no" and leaves.'),
        lsmdc_row(A, "He waits. "),
        "",
        lsmdc_row(B, "").rstrip("\t"),
        lsmdc_row(B, "A\tdog\x85barks"),
        lsmdc_row(B, " "),
    ]
    name = "LSMDC16_annos_training.csv"
    annotations = files("lsmdc", {name: "\r\n".join(rows)})
    read = DATASETS["lsmdc"].read(annotations, files("videos", [f"0001_Made_Up/{A}.avi", f"0001_Made_Up/{B}.avi"]))
    assert texts(read) == [(A, 'SOMEONE says, "no" and leaves.'), (A, "He waits."), (B, "A dog barks")]
    assert found(read) == {A: f"{A}.avi", B: f"{B}.avi"}
    assert any("dropped 2 empty captions" in note and "row 4, 6" in note for note in read.notes)
    assert any("1 sentence held a tab" in note for note in read.notes)
    assert sum("was not read" in note for note in read.notes) == 2


def test_lsmdc_test_clips_come_from_the_thousand(files):
    name = "LSMDC16_challenge_1000_publictect.csv"
    root = files("lsmdc", {name: lsmdc_row(A, "x") + "\n", "LSMDC16_annos_test.csv": lsmdc_row(B, "y") + "\n"})
    assert ids(DATASETS["lsmdc"].read(root, None)) == [A]


def test_lsmdc_read_with_commas_is_refused_by_row(files):
    root = files("lsmdc", {"LSMDC16_annos_val.csv": lsmdc_row(A, "x") + "\n" + lsmdc_row(A, "x").replace("\t", ",")})
    with pytest.raises(InputError, match=r"LSMDC16_annos_val.csv, row 2: 1 cell separated by tabs, expected 6"):
        DATASETS["lsmdc"].read(root, None)


# ------------------------------------------------------------------------------------------------ ActivityNet


def scene(*sentences: str, duration: float = 9.2) -> dict:
    return {"duration": duration, "timestamps": [[0, 1]] * len(sentences), "sentences": list(sentences)}


@pytest.fixture
def activitynet(files):
    return files(
        "activitynet",
        {
            "train.json": {"v_aaaaaaaaaa0": scene("A made-up dance.", " They\nbow.", duration=82.73)},
            "train_ids.json": ["v_aaaaaaaaaa0", "v_aaaaaaaaaa9"],
            "val_1.json": {"v_-bbbbbbbbb1": scene("One.", duration=10), "v__ccccccccc2": scene(" Two. ", duration=0.2)},
            "val_ids.json": ["v__ccccccccc2", "v_-bbbbbbbbb1"],
            "val_2.json": {"v_-bbbbbbbbb1": scene("Never read.")},
        },
    )


def test_activitynet_joins_sentences_and_ends_at_the_duration_rounded_up(activitynet):
    read = DATASETS["activitynet"].read(activitynet, None)
    assert [(v.id, v.split, v.start, v.end) for v in read.videos] == [
        ("v_aaaaaaaaaa0", "train", 0, 83),
        ("v__ccccccccc2", "test", 0, 1),
        ("v_-bbbbbbbbb1", "test", 0, 10),
    ]
    assert [t.text for t in read.texts] == ["A made-up dance. They bow.", "Two.", "One."]
    assert read.texts[0].original == "A made-up dance.  They\nbow."
    assert any("train: dropped 1 video without caption: v_aaaaaaaaaa9" in note for note in read.notes)


@pytest.mark.parametrize("prefix", ["v_", "", "ab"])
def test_activitynet_files_are_found_with_any_prefix(activitynet, files, prefix):
    names = [f"{prefix}-bbbbbbbbb1.mp4", f"{prefix}_ccccccccc2.mkv"]
    read = DATASETS["activitynet"].read(activitynet, files("videos", names), splits=["test"])
    assert sorted(found(read).values()) == sorted(names)


def test_activitynet_without_ids_keeps_the_order_of_the_captions(activitynet):
    (activitynet / "val_ids.json").unlink()
    read = DATASETS["activitynet"].read(activitynet, None, splits=["test"])
    assert ids(read) == ["v_-bbbbbbbbb1", "v__ccccccccc2"]
    assert any("no val_ids.json" in note for note in read.notes)


def test_activitynet_by_caption_makes_every_sentence_a_query_for_the_whole_video(activitynet):
    whole, read = (DATASETS[name].read(activitynet, None) for name in ("activitynet", "activitynet_captions"))
    assert read.videos == whole.videos and read.dataset == "activitynet_captions"
    assert [(t.id, t.text) for t in read.texts] == [
        ("v_aaaaaaaaaa0#0", "A made-up dance."),
        ("v_aaaaaaaaaa0#1", "They bow."),
        ("v__ccccccccc2#0", "Two."),
        ("v_-bbbbbbbbb1#0", "One."),
    ]


def test_didemo_by_description_makes_every_one_a_query_for_the_same_videos(files):
    data = [{"video": "a.mov", "description": " One\nhere. "}, {"video": "b", "description": "Two"}]
    data.append({"video": "a.mov", "description": "Three"})
    folder = files("didemo", {"test_list.txt": "b\na.mov\n", "test_data.json": json.dumps(data)})
    whole, read = (DATASETS[name].read(folder, None) for name in ("didemo", "didemo_captions"))
    assert read.videos == whole.videos and [video.end for video in read.videos] == [31.0, 31.0]
    assert [(t.id, t.text) for t in read.texts] == [("b#0", "Two"), ("a.mov#0", "One here."), ("a.mov#1", "Three")]


def test_charades_sta_reads_sentences_of_whole_videos_and_names_lines_that_are_none(files):
    text = "AAAA1 0.0 6.9##a person reads.\nBBBB2 1 2.5##one sits down.\nAAAA1 7 9##they leave.\n"
    folder = files("charades", {"charades_sta_test.txt": text})
    read = DATASETS["charades_sta"].read(folder, None)
    assert [(v.id, v.split, v.start) for v in read.videos] == [("AAAA1", "test", None), ("BBBB2", "test", None)]
    assert texts(read, "test") == [("AAAA1", "a person reads."), ("BBBB2", "one sits down."), ("AAAA1", "they leave.")]
    for line, message in (("AAAA1 0.0##x", "expected `video start end##sentence`"), ("AAAA1 0 x##y", "end is 'x'")):
        files("charades", {"charades_sta_test.txt": text + line})
        with pytest.raises(InputError, match=f"charades_sta_test.txt, (line|row) 4: .*{message}"):
            DATASETS["charades_sta"].read(folder, None)


def test_tvr_reads_sentences_of_whole_clips_and_tests_on_the_released_validation_part(files):
    rows = [("show_a", "She sits."), ("show_b", "He reads."), ("show_a", "They leave.")]
    lines = [json.dumps({"vid_name": v, "desc": d, "ts": [0.0, 2.5], "duration": 60.0, "desc_id": 1}) for v, d in rows]
    folder = files("tvr", {"tvr_val_release.jsonl": "\n".join(lines)})
    read = DATASETS["tvr"].read(folder, None)
    assert [(v.id, v.split, v.start) for v in read.videos] == [("show_a", "test", None), ("show_b", "test", None)]
    assert texts(read, "test") == rows
    for line, message in (("{", "line 4"), ('{"vid_name": "show_c"}', "desc")):
        files("tvr", {"tvr_val_release.jsonl": "\n".join([*lines, line])})
        with pytest.raises(InputError, match=message):
            DATASETS["tvr"].read(folder, None)


def test_activitynet_says_what_its_validation_part_is_called(activitynet):
    with pytest.raises(UsageError, match=r"val_1 is read as split test.*no split 'val'"):
        DATASETS["activitynet"].read(activitynet, None, splits=["val"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"sentences": []}, "no 'duration'; found 'sentences'"),
        ({"duration": "9", "sentences": []}, "'duration' is '9', expected a number"),
        ({"duration": -1, "sentences": []}, "duration is -1, expected seconds"),
        ({"duration": 9, "sentences": [7]}, "the sentences are .*, expected strings"),
        ([], "found a list, expected an object"),
    ],
)
def test_activitynet_entries_that_are_wrong_are_named(activitynet, files, entry, message):
    files("activitynet", {"train.json": {"v_aaaaaaaaaa0": entry}})
    with pytest.raises(InputError, match=f"train.json, entry 'v_aaaaaaaaaa0': {message}"):
        DATASETS["activitynet"].read(activitynet, None)


# ------------------------------------------------------------------------------------------------ VATEX


@pytest.mark.parametrize("layout", ["whole", "official"])
def test_vatex_reads_ten_captions_a_clip_from_either_layout(files, layout):
    captions = {f"-x{i}_000001_000011": [f"made up {k} of {i}" for k in range(10)] for i in range(4)}
    content: dict[str, object] = {
        "train_list.txt": "-x2_000001_000011\n-x0_000001_000011\n",
        "val_list.txt": "-x1_000001_000011",
        "test_list.txt": "-x3_000001_000011\n-x9_000001_000011\n",
    }
    rows = [{"videoID": id, "enCap": value, "chCap": ["…"]} for id, value in captions.items()]
    if layout == "whole":
        content["vatex_data.json"] = {row["videoID"]: row for row in rows}
    else:
        content["vatex_training_v1.0.json"] = [rows[0], rows[2]]
        content["vatex_validation_v1.0.json"] = [rows[1], rows[3]]
    read = DATASETS["vatex"].read(files("vatex", content), files("videos", ["-x0_000001_000011.mp4"]))
    assert [(s, ids(read, s), len(texts(read, s))) for s in ("train", "val", "test")] == [
        ("train", ["-x2_000001_000011", "-x0_000001_000011"], 20),
        ("val", ["-x1_000001_000011"], 10),
        ("test", ["-x3_000001_000011"], 10),
    ]
    assert list(found(read)) == ["-x0_000001_000011"]
    assert any("dropped 1 video without caption: -x9" in note for note in read.notes)


# ------------------------------------------------------------------------------------------------ YouCook2


@pytest.fixture
def youcook2(files):
    def recipe(subset: str, *steps: tuple[float, float, str]) -> dict:
        annotations = [{"segment": [s, e], "id": i, "sentence": t} for i, (s, e, t) in enumerate(steps)]
        return {"duration": 99.5, "subset": subset, "recipe_type": "1", "annotations": annotations}

    database = {
        "-aaaaaaaaa0": recipe("training", (9, 12, "peel  it"), (12, 20.5, "boil it"), (30, 30, "no time")),
        "_bbbbbbbbb1": recipe("validation", (1, 2, "stir"), (1, 2, "stir again")),
    }
    table = "end,start,task,text,video_id\n20,10,226,serve it,_bbbbbbbbb1\n"
    return files(
        "youcook2", {"youcookii_annotations_trainval.json": {"database": database}, "validation_youcook.csv": table}
    )


def test_youcook2_makes_every_step_an_entry_of_its_own(youcook2, files):
    videos = files("videos", ["training/1/-aaaaaaaaa0.mkv", "validation/1/_bbbbbbbbb1.mp4"])
    read = DATASETS["youcook2"].read(youcook2, videos)
    assert [(v.id, v.split, v.start, v.end, Path(v.path).name) for v in read.videos] == [
        ("-aaaaaaaaa0@9-12", "train", 9, 12, "-aaaaaaaaa0.mkv"),
        ("-aaaaaaaaa0@12-20.5", "train", 12, 20.5, "-aaaaaaaaa0.mkv"),
        ("_bbbbbbbbb1@1-2", "test", 1, 2, "_bbbbbbbbb1.mp4"),
    ]
    assert [t.text for t in read.texts] == ["peel it", "boil it", "stir", "stir again"]
    assert any("dropped 1 clip(s) that end before they start: -aaaaaaaaa0@30-30" in note for note in read.notes)


def test_youcook2_takes_the_test_clips_of_milnce_where_asked(youcook2):
    read = DATASETS["youcook2"].read(youcook2, None, protocol="mil-nce")
    assert [(v.id, v.start, v.end) for v in read.videos if v.split == "test"] == [("_bbbbbbbbb1@10-20", 10, 20)]
    assert len(ids(read, "train")) == 2


def test_youcook2_refuses_a_training_video_in_the_test_list(youcook2):
    (youcook2 / "validation_youcook.csv").write_text("end,start,task,text,video_id\n20,10,1,serve,-aaaaaaaaa0\n")
    with pytest.raises(InputError, match="'-aaaaaaaaa0' is in split test, but also in train"):
        DATASETS["youcook2"].read(youcook2, None, protocol="mil-nce")


# ------------------------------------------------------------------------------------------------ anything at all

FILES = {
    "msrvtt": ["MSRVTT_data.json", "MSRVTT_JSFUSION_test.csv", "MSRVTT_train.9k.csv"],
    "msvd": ["train_list.txt", "raw-captions.pkl"],
    "didemo": ["val_list.txt", "val_data.json"],
    "didemo_captions": ["val_list.txt", "val_data.json"],
    "lsmdc": ["LSMDC16_annos_val.csv"],
    "activitynet": ["train_ids.json", "train.json"],
    "activitynet_captions": ["val_1.json"],
    "charades_sta": ["charades_sta_train.txt"],
    "tvr": ["tvr_val_release.jsonl"],
    "vatex": ["train_list.txt", "vatex_data.json"],
    "youcook2": ["youcookii_annotations_trainval.json"],
}
KEYS = ["videos", "sentences", "video_id", "caption", "split", "database", "subset", "annotations", "segment", "a"]
KEYS += ["sentence", "duration", "enCap", "video", "description", "vid_name", "desc"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["a", "train", "training", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=15,
)
CONTENT = st.binary(max_size=40) | JSON.map(lambda v: json.dumps(v).encode()) | JSON.map(lambda v: pickle.dumps(v))
CONTENT |= st.sampled_from([b"a\n", b"video_id\na\n", b"video_id,sentence\na,b\n", b"a\tb\tc\td\te\tf\n", b'["a"]'])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("name", FILES)
def test_any_content_is_annotations_or_a_clear_error(tmp_path, name, data):
    for file in FILES[name]:
        (tmp_path / file).write_bytes(data.draw(CONTENT, label=file))
    try:
        read = DATASETS[name].read(tmp_path, tmp_path)
    except GlsclError as error:
        assert "\n" not in str(error)
    else:
        assert len(set(ids(read))) == len(read.videos) > 0
        assert all(t.text and t.video in set(ids(read)) for t in read.texts)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60).map(lambda tail: b"\x80\x04" + tail) | st.binary(max_size=60))
def test_any_pickle_is_a_plain_value_or_a_clear_error(tmp_path_factory, data):
    from glscl.extract.datasets.msvd import read_plain_pickle

    path = tmp_path_factory.mktemp("pickle") / "x.pkl"
    path.write_bytes(data)
    try:
        value = read_plain_pickle(path, object)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert type(value).__module__ == "builtins"


# ------------------------------------------------------------------------------------------------ the real ones

REAL = [
    ("msrvtt", "9k", "MSRVTT", {"train": (180_000, 9_000), "test": (1_000, 1_000)}),
    ("msrvtt", "7k", "MSRVTT", {"train": (140_200, 7_010), "test": (1_000, 1_000)}),
    ("msrvtt", "full", "MSRVTT", {"train": (130_260, 6_513), "val": (9_940, 497), "test": (59_800, 2_990)}),
    ("msvd", None, "MSVD", {"train": (48_774, 1_200), "val": (4_290, 100), "test": (27_763, 670)}),
    ("didemo", None, "DiDeMo", {"val": (1_065, 1_065), "test": (1_004, 1_004)}),
    ("didemo_captions", None, "DiDeMo", {"val": (4_109, 1_065), "test": (3_932, 1_004)}),
    ("lsmdc", None, "LSMDC", {"test": (1_000, 1_000)}),
    ("activitynet", None, "ActivityNet", {"train": (10_009, 10_009), "test": (4_917, 4_917)}),
    ("activitynet_captions", None, "ActivityNet", {"train": (37_421, 10_009), "test": (17_505, 4_917)}),
    ("youcook2", "official", "YouCook2", {"train": (10_337, 10_337), "test": (3_492, 3_491)}),
    ("youcook2", "mil-nce", "YouCook2", {"train": (10_337, 10_337), "test": (3_350, 3_349)}),
]


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "protocol", "folder", "sizes"), REAL)
def test_real_files_have_the_published_sizes(real_data, name, protocol, folder, sizes):
    read = DATASETS[name].read(real_data / "annotations" / folder, real_data / "videos", protocol=protocol)
    counted = summary(read)["splits"]
    for split, size in sizes.items():
        assert (counted[split]["captions"], counted[split]["videos"]) == size
        assert (counted[split]["expected_captions"], counted[split]["expected_videos"]) == size
    assert {split for split, row in counted.items() if row["videos"]} == set(sizes)
    assert DATASETS[name].expected[protocol or ""].keys() == counted.keys()


@pytest.mark.real_data
def test_real_msrvtt_keeps_its_order_and_its_duplicate_captions(real_data):
    read = DATASETS["msrvtt"].read(real_data / "annotations/MSRVTT", real_data / "videos")
    test = texts(read, "test")
    assert test[0] == ("video9770", "a person is connecting something to system")
    assert len({caption for _, caption in test}) == 995
    assert len(found(read)) == 13
    assert not any(text.text != " ".join(text.text.split()) for text in read.texts)
    derived = [video.id for video in read.videos if video.split == "train"]
    assert derived[0] == "video0" and len(set(derived)) == 9_000


@pytest.mark.real_data
def test_real_msvd_and_activitynet_clips_are_found(real_data):
    msvd = DATASETS["msvd"].read(real_data / "annotations/MSVD", real_data / "videos")
    assert len(found(msvd)) == 4 and "j2Dhf-xFUxU_13_20" in found(msvd)
    activitynet = DATASETS["activitynet"].read(real_data / "annotations/ActivityNet", real_data / "videos")
    assert found(activitynet) == {v: f"{v}.mp4" for v in ("v_ZNVhz7ctTq0", "v_GGSY1Qvo990")}
    assert sum("dropped 15 videos" in n or "dropped 9 videos" in n for n in activitynet.notes) == 2


@pytest.mark.real_data
def test_real_didemo_drops_what_no_list_names(real_data):
    read = DATASETS["didemo"].read(real_data / "annotations/DiDeMo", None)
    assert any("of 29 videos of val_data.json" in note for note in read.notes)
    assert any("of 33 videos of test_data.json" in note for note in read.notes)
    assert sum(video.id.endswith(".") for video in read.videos) == 12 + 27


@pytest.mark.real_data
def test_real_vatex_lists_without_captions_say_what_is_missing(real_data):
    with pytest.raises(NotFoundError, match=r"vatex_data.json or vatex_training"):
        DATASETS["vatex"].read(real_data / "annotations/VATEX", None)


@pytest.mark.real_data
def test_real_webvid_table_is_read_as_it_is(real_data):
    read = DATASETS["csv"].read(real_data / "annotations/webvid_sample/test_webvid.csv", None)
    assert len(read.texts) == 20


@pytest.mark.real_data
def test_all_real_captions_of_the_clips_are_found_by_path(real_data):
    read = DATASETS["csv"].read(real_data / "captions.csv", real_data / "videos")
    assert len(read.texts) == len(read.videos) == 70
    assert all(video.path for video in read.videos)
