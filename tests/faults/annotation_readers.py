"""Readers of annotations under hostile input: small good files of every dataset, and the call that reads them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

from hostile_reader import Reader
from msgspec import structs

CLIPS = [f"video{i}" for i in range(6)]
CAPTIONS = [f"a made-up thing {i}, “moving” déjà vu" for i in range(6)]
SPLITS = ["train", "train", "train", "val", "test", "test"]


def _dataset(name: str, file: str | None = None, protocol: str | None = None) -> Any:
    def read(folder: Path, _: Path | None) -> dict[str, Any]:
        from glscl.extract.datasets import DATASETS
        from glscl.extract.datasets.base import summary

        annotations = folder / file if file else folder
        videos = folder.parent / "out" if name == "webdataset" else folder.parent / "videos"
        read = DATASETS[name].read(annotations, videos, protocol=protocol)
        assert not any(video.path and "outside" in video.path for video in read.videos)
        assert len({text.id for text in read.texts}) == len(read.texts)
        return summary(read) | {
            "texts": [structs.asdict(text) for text in read.texts],
            "videos": [structs.asdict(video) for video in read.videos],
        }

    return read


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _table(delimiter: str) -> bytes:
    rows = [("video", "caption", "split", "start", "end", "id")]
    rows += [(f"a/{v}.mp4", f'"{c}"', s, "1.5", "4", f"{v}-x") for v, c, s in zip(CLIPS, CAPTIONS, SPLITS)]
    return "\n".join(delimiter.join(row) for row in rows).encode()


def _objects() -> list[dict[str, Any]]:
    return [
        {"video": f"{v}.mp4", "captions": [c, "another"], "split": s, "start": 0, "end": 2.5}
        for v, c, s in zip(CLIPS, CAPTIONS, SPLITS)
    ]


def _msrvtt() -> dict[str, bytes]:
    official = ["train", "train", "train", "validate", "test", "test"]
    videos = [{"category": 1, "video_id": v, "start time": 0.0, "split": s, "id": 1} for v, s in zip(CLIPS, official)]
    sentences = [
        {"caption": f" {c} {k}", "video_id": v, "sen_id": k} for v, c in zip(CLIPS, CAPTIONS) for k in range(2)
    ]
    return {
        "MSRVTT_data.json": _json({"info": {}, "videos": videos, "sentences": sentences}),
        "MSRVTT_JSFUSION_test.csv": b"key,vid_key,video_id,sentence\nret0,m4,video4,one paints\nret1,m5,video5,one sings\n",
        "MSRVTT_train.9k.csv": b"video_id\nvideo2\nvideo0\nvideo1\nvideo3\n",
    }


def _lists(ids: list[str]) -> dict[str, bytes]:
    parts = {"train": ids[:3], "val": ids[3:4], "test": ids[4:]}
    return {f"{split}_list.txt": "\n".join(names).encode() for split, names in parts.items()}


def _msvd() -> dict[str, bytes]:
    captions = {v: [c.split(), ["two", "words"]] for v, c in zip(CLIPS, CAPTIONS)}
    return {**_lists(CLIPS), "raw-captions.pkl": pickle.dumps(captions, protocol=2)}


def _didemo() -> dict[str, bytes]:
    ids = [f"1@N0_{v}.mov" for v in CLIPS]
    rows = [{"video": v, "description": f"{c}\n", "times": [[0, 1]], "annotation_id": 3} for v, c in zip(ids, CAPTIONS)]
    data = {"train": rows[:3], "val": rows[3:4], "test": rows[4:]}
    return {**_lists(ids), **{f"{split}_data.json": _json(part) for split, part in data.items()}}


def _lsmdc() -> dict[str, bytes]:
    def part(names: list[str]) -> bytes:
        time = "00.01.02.003"
        return "\n".join(
            "\t".join([f"1_{v}_{time}-{time}", time, time, time, time, "SOMEONE nods."]) for v in names
        ).encode()

    return {
        "LSMDC16_annos_training.csv": part(CLIPS[:3]),
        "LSMDC16_annos_val.csv": part(CLIPS[3:4]),
        "LSMDC16_challenge_1000_publictect.csv": part(CLIPS[4:]),
    }


def _activitynet() -> dict[str, bytes]:
    def entries(names: list[str]) -> bytes:
        return _json(
            {
                f"v_{n}": {"duration": 8.25, "timestamps": [[0, 3.5], [3, 8]], "sentences": ["It is.", " It was."]}
                for n in names
            }
        )

    return {
        "train.json": entries(CLIPS[:4]),
        "train_ids.json": _json([f"v_{n}" for n in CLIPS[:4]]),
        "val_1.json": entries(CLIPS[4:]),
        "val_ids.json": _json([f"v_{n}" for n in CLIPS[4:]]),
    }


def _vatex() -> dict[str, bytes]:
    return {**_lists(CLIPS), "vatex_data.json": _json({v: {"enCap": [c, "more"]} for v, c in zip(CLIPS, CAPTIONS)})}


def _vatex_official() -> dict[str, bytes]:
    rows = [{"videoID": v, "enCap": [c, "more"], "chCap": ["一"]} for v, c in zip(CLIPS, CAPTIONS)]
    files = {"vatex_training_v1.0.json": _json(rows[:3]), "vatex_validation_v1.0.json": _json(rows[3:])}
    return {**_lists(CLIPS), **files}


def _youcook2() -> dict[str, bytes]:
    def entry(i: int) -> dict[str, Any]:
        steps = [{"segment": [2 * k, 2 * k + 2], "id": k, "sentence": f"cut {i}"} for k in range(2)]
        subset = "validation" if i > 3 else "training"
        return {"duration": 9.5, "subset": subset, "recipe_type": "7", "annotations": steps}

    return {
        "youcookii_annotations_trainval.json": _json({"database": {v: entry(i) for i, v in enumerate(CLIPS)}}),
        "validation_youcook.csv": b"end,start,task,text,video_id\n9,5,1,stir it,video4\n20,10,1,fry it,video5\n",
    }


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for i, (clip, caption) in enumerate(zip(CLIPS[:3], CAPTIONS)):
            text = {f"{clip}.txt": caption.encode()} if i else {f"{clip}.json": _json({"caption": caption})}
            for name, content in ({f"{clip}.mp4": b"pixels"} | text).items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


ANNOTATIONS = [
    Reader("csv", {"captions.csv": _table(",")}, _dataset("csv", "captions.csv")),
    Reader("tsv", {"captions.tsv": _table("\t")}, _dataset("csv", "captions.tsv")),
    Reader("jsonl", {"c.jsonl": b"\n".join(json.dumps(o).encode() for o in _objects())}, _dataset("csv", "c.jsonl")),
    Reader("json", {"c.json": _json(_objects())}, _dataset("csv", "c.json")),
    Reader("json-by-video", {"c.json": _json(dict(zip(CLIPS, map(list, zip(CAPTIONS)))))}, _dataset("csv", "c.json")),
    Reader(
        "json-by-split", {"c.json": _json({"train": _objects()[:3], "test": _objects()[4:]})}, _dataset("csv", "c.json")
    ),
    Reader("folder", {f"{c}.txt": f"{t}\nmore".encode() for c, t in zip(CLIPS, CAPTIONS)}, _dataset("folder")),
    Reader("webdataset", {"0.tar": _tar()}, _dataset("webdataset"), writes=True),
    Reader("webdataset-gz", {"0.tgz": gzip.compress(_tar(), mtime=0)}, _dataset("webdataset"), writes=True),
    Reader("msrvtt", _msrvtt(), _dataset("msrvtt")),
    Reader("msrvtt-full", _msrvtt(), _dataset("msrvtt", protocol="full")),
    Reader("msvd", _msvd(), _dataset("msvd")),
    Reader("didemo", _didemo(), _dataset("didemo")),
    Reader("lsmdc", _lsmdc(), _dataset("lsmdc")),
    Reader("activitynet", _activitynet(), _dataset("activitynet")),
    Reader("vatex", _vatex(), _dataset("vatex")),
    Reader("vatex-official", _vatex_official(), _dataset("vatex")),
    Reader("youcook2", _youcook2(), _dataset("youcook2")),
    Reader("youcook2-mil-nce", _youcook2(), _dataset("youcook2", protocol="mil-nce")),
]
