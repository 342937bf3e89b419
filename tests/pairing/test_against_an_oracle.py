"""Random annotations, spelled, ordered and damaged at random: captions, videos and features meet as a slow oracle says."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.extract.datasets import DATASETS
from glscl.extract.importing.feature_files import open_arrays
from glscl.extract.importing.pairing import frame_readers, text_readers

STEMS = ["a", "b.v1", "c d", "é", "-x", "0", "1", "talk_2-3", "ü.mp4", "v_q"]  # `ü.mp4` becomes a file `ü.mp4.mp4`
FOLDERS = ["", "k/", "k/l/"]


@dataclass(frozen=True)
class Video:
    number: int
    file: str  # relative path
    content: int
    split: str
    there: bool


@dataclass(frozen=True)
class Row:
    video: Video
    written: str
    caption: str


@st.composite
def corpora(draw):
    """(videos, rows, whether splits are given)."""
    divided = draw(st.booleans())
    videos = []
    for number, stem in enumerate(draw(st.lists(st.sampled_from(STEMS), min_size=1, max_size=8, unique=True))):
        copied = [video for video in videos if draw(st.integers(0, 9)) == 0][:1]
        split = draw(st.sampled_from(["train", "val", "test"]))
        videos.append(
            Video(
                number,
                f"{draw(st.sampled_from(FOLDERS))}{stem}.mp4",
                copied[0].content if copied else number,
                copied[0].split if copied else split,
                draw(st.integers(0, 5)) > 0,
            )
        )
    rows = []
    for i in range(draw(st.integers(1, 24))):
        video = draw(st.sampled_from(videos))
        name = video.file.rpartition("/")[2]
        spellings = [video.file, name, f"./{video.file}", name.removesuffix(".mp4"),
                     unicodedata.normalize("NFD", video.file)]  # fmt: skip
        written = draw(st.sampled_from(spellings)) if video.there else video.file
        rows.append(Row(video, written, draw(st.sampled_from([f"caption {i}", f"  spaced   {i} ", "", "the same"]))))
    return videos, rows, divided


def write(folder: Path, rows: list[Row], divided: bool, kind: str) -> Path:
    records = [
        {"video": r.written, "caption": r.caption, **({"split": r.video.split} if divided else {})} for r in rows
    ]
    path = folder / f"captions.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif kind == "json":
        path.write_text(json.dumps(records))
    else:
        out = io.StringIO()
        table = csv.DictWriter(out, sorted(records[0]), delimiter="\t" if kind == "tsv" else ",")
        table.writeheader()
        table.writerows(records)
        path.write_text(out.getvalue())
    return path


def vector(*key: object) -> np.ndarray:
    return np.random.default_rng(list(repr(key).encode())).standard_normal(4).astype(np.float32)


def fold(text: str) -> str:
    return " ".join(text.split())


@settings(max_examples=80, deadline=None)
@given(corpora(), st.sampled_from(["csv", "tsv", "json", "jsonl"]), st.sampled_from(["file", "kept", "caption", "video"]),
       st.sampled_from([None, "train", "test"]))  # fmt: skip
def test_captions_videos_and_features_meet_as_the_oracle_says(corpus, kind, way, wanted):
    videos, rows, divided = corpus
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for video in videos:
            if video.there:
                path = root / "videos" / video.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"content {video.content}")
        (root / "videos").mkdir(exist_ok=True)
        table = write(root, rows, divided, kind)
        listed = {row.video: row for row in rows[::-1]}  # the first way in which each is written counts
        present = {video.split if divided else "test" for video in listed}
        chosen = [wanted] if wanted in present and (divided or wanted == "test") else None
        found = DATASETS["csv"].read(table, root / "videos", splits=chosen)

        kept = [video for video in listed if chosen is None or not divided or video.split in chosen]
        name = {video: listed[video].written.removeprefix("./") for video in listed}
        assert {(v.id, v.path) for v in found.videos} == {
            (name[video], str(root / "videos" / video.file) if video.there else None) for video in kept
        }
        if divided:
            assert {v.id: v.split for v in found.videos} == {name[video]: video.split for video in kept}
        else:
            assert {v.split for v in found.videos} == {"test"}, "so few are all test"

        number = dict.fromkeys(listed, 0)
        expected, written = {}, []
        for row in rows:
            id = f"{name[row.video]}#{number[row.video]}"
            number[row.video] += 1
            written.append((id, row))
            if fold(row.caption) and row.video in kept:
                expected[id] = (name[row.video], fold(row.caption))
        assert {t.id: (t.video, t.text) for t in found.texts} == expected
        for split in ("train", "val", "test"):
            of_split = [t.id for t in found.texts if t.split == split]
            assert of_split == [id for id, _ in written if id in of_split], "in the order of the file"

        frames = {name[video].replace("/", "_"): vector(video.number)[None] for video in kept}
        names = {name[video].replace("/", "_"): name[video] for video in kept}
        np.savez(root / "frames.npz", **{names[key]: rows for key, rows in frames.items()})
        with open_arrays(root / "frames.npz") as arrays:
            for id, read in frame_readers(arrays, found, []).items():
                video = next(video for video in kept if name[video] == id)
                np.testing.assert_array_equal(read().rows, vector(video.number)[None])
        if not expected:
            return
        features(root, way, written, expected)
        with open_arrays(next(root.glob("texts.*"))) as arrays:
            read_by = text_readers(arrays, found, 1, [])
            assert read_by.keys() == expected.keys()
            for id, (_, text) in expected.items():
                np.testing.assert_array_equal(read_by[id]()[0], vector(id, text))


def features(root: Path, way: str, written: list[tuple[str, Row]], expected: dict[str, tuple[str, str]]) -> None:
    """Features of captions as people save them: all rows of the file, those of the captions kept, by caption, by video."""
    rows = [(id, vector(id, expected[id][1]) if id in expected else vector("not used")) for id, _ in written]
    if way == "file":
        np.save(root / "texts.npy", np.stack([row for _, row in rows]))
    elif way == "kept":
        np.save(root / "texts.npy", np.stack([row for id, row in rows if id in expected]))
    elif way == "caption":
        np.savez(root / "texts.npz", **{id: row for id, row in rows if id in expected})
    else:
        videos = dict.fromkeys(video for video, _ in expected.values())
        by_video = {v: np.stack([row for id, row in rows if id.rpartition("#")[0] == v]) for v in videos}
        np.savez(root / "texts.npz", **by_video)
