"""MTEB's video retrieval sets: pairs by the captions that MTEB has, MSVD's to the character, and sizes that are compared."""

from __future__ import annotations

import json

import pytest

from glscl.common.errors import InputError, NotFoundError, UsageError
from glscl.extract.datasets import DATASETS
from glscl.extract.datasets.mteb import EXPECTED, SETS

MTEB = DATASETS["mteb"]


def pairs(read):
    assert {video.id for video in read.videos} == {text.video for text in read.texts}
    return [(text.id, text.text) for text in read.texts]


@pytest.fixture
def msrvtt(files):
    rows = "ret0,msr0,video7,A man cooks.\nret1,msr1,video8,a dog\nret2,msr2,video9,a dog\nret3,msr3,video5,a cat\n"
    return files("msrvtt", {"MSRVTT_JSFUSION_test.csv": "key,vid_key,video_id,sentence\n" + rows})


def test_pairs_are_those_of_mtebs_captions_in_its_order(msrvtt):
    (msrvtt / "mteb.txt").write_text("a dog\na  man cooks\n")
    read = MTEB.read(msrvtt, None)
    assert pairs(read) == [("video8#0", "a dog"), ("video7#0", "a man cooks")]
    assert [video.id for video in read.videos] == ["video7", "video8"] and {v.split for v in read.videos} == {"test"}
    assert read.expected == EXPECTED["msrvtt"] and read.dataset == "mteb"
    assert any("1 caption of several videos, the first taken: video8" in note for note in read.notes)
    assert any("2 captions of 17 characters; MTEB's set has 879 of 43,882" in note for note in read.notes)


def test_what_is_not_there_is_said(msrvtt):
    with pytest.raises(NotFoundError, match="has no mteb.txt, the captions of mteb/MSR-VTT, one a line"):
        MTEB.read(msrvtt, None)
    (msrvtt / "mteb.txt").write_text("a dog\na bird\n")
    with pytest.raises(InputError, match="mteb.txt, line 2: no video left has the caption 'a bird'"):
        MTEB.read(msrvtt, None)
    with pytest.raises(UsageError, match="for testing alone"):
        MTEB.read(msrvtt, None, splits=["train"])


def test_vatex_and_the_second_annotation_of_activitynet_are_read(files):
    vatex = [{"videoID": "a_1", "enCap": ["One.", "Two."]}, {"videoID": "b_2", "enCap": ["Three."]}]
    folder = files("vatex", {"vatex_public_test_english_v1.1.json": json.dumps(vatex), "mteb.txt": "three\none\n"})
    assert pairs(MTEB.read(folder, None, protocol="vatex")) == [("b_2#0", "three"), ("a_1#0", "one")]
    said = {"v_a": {"duration": 9, "timestamps": [[0, 1], [2, 3]], "sentences": [" He runs. ", "He sits."]}}
    folder = files("anet", {"val_2.json": json.dumps(said), "mteb.txt": "He runs. He sits.\n"})
    read = MTEB.read(folder, None, protocol="activitynet")
    assert pairs(read) == [("v_a#0", "He runs. He sits.")] and read.videos[0].end == 9


def test_every_protocol_is_there_with_its_size():
    assert MTEB.protocols == tuple(SETS) and MTEB.expected == EXPECTED


@pytest.mark.real_data
def test_msvds_distinct_first_captions_are_mtebs_to_the_character(real_data):
    read = MTEB.read(real_data / "annotations/MSVD", None, protocol="msvd")
    assert len(read.texts) == len(read.videos) == 660 and sum(len(text.text) for text in read.texts) == 27_769
    assert not any("MTEB's set has" in note for note in read.notes)
