"""The demo's corpus on disk: same seed, same files; resumes; decodes to what was drawn; the reader reads it."""

from __future__ import annotations

import io
import json

import av
import numpy as np
import pytest

from glscl.common.errors import Hint, InputError, NotFoundError, StorageError, UsageError
from glscl.common.progress import Progress
from glscl.demo import corpus
from glscl.demo.grammar import KINDS
from glscl.demo.render import SIDE, draw_card, draw_frames, frames_of_scene, frames_of_story
from glscl.demo.world import draw_stories

SIZES = {"train": 4, "val": 1, "test": 2}


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        return stream.codec_context.name, float(stream.average_rate), frames


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    return corpus.render_corpus(tmp_path_factory.mktemp("demo"), seed=3, workers=1, sizes=SIZES)[0].parent


def test_the_same_seed_gives_the_same_annotations_and_the_same_pictures(rendered, tmp_path):
    again = corpus.render_corpus(tmp_path, seed=3, workers=2, sizes=SIZES)[0].parent
    for split in SIZES:
        name = f"annotations/{split}.json"
        assert (again / name).read_bytes() == (rendered / name).read_bytes()
    files = sorted(path.name for path in (rendered / "videos").iterdir())
    assert files == sorted(path.name for path in (again / "videos").iterdir())
    assert len(files) == sum(SIZES.values())
    for name in files:
        first, second = (decode(root / "videos" / name)[2] for root in (rendered, again))
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first, second, strict=True))


def test_files_are_h264_with_the_right_number_of_frames_at_the_right_times(rendered):
    for story in draw_stories(3, SIZES):
        codec, rate, frames = decode(rendered / "videos" / f"{story.id}.mp4")
        assert codec == "h264" and rate == corpus.FPS
        assert len(frames) == frames_of_story(story, corpus.FPS)
        assert len(frames) == pytest.approx(story.seconds * corpus.FPS, abs=len(story.scenes))
        assert [time for time, _ in frames] == pytest.approx([k / corpus.FPS for k in range(len(frames))])


def test_decoded_frames_look_like_the_drawn_ones(rendered):
    story = next(draw_stories(3, SIZES))
    _, _, frames = decode(rendered / "videos" / f"{story.id}.mp4")
    for (_, decoded), drawn in zip(frames, draw_frames(story, corpus.FPS), strict=True):
        assert decoded.shape == (SIDE, SIDE, 3)
        difference = np.abs(decoded.astype(int) - np.asarray(drawn).astype(int)).mean()
        assert difference < 8  # grey levels: what 4:2:0 chroma and the quantiser cost


def test_a_cut_between_scenes_can_be_seen(rendered):
    story = next(draw_stories(3, SIZES))
    frames = [np.asarray(frame).astype(int) for frame in draw_frames(story, corpus.FPS)]
    steps = [np.abs(b - a).mean() for a, b in zip(frames, frames[1:])]
    cut = round(story.opening * corpus.FPS) + frames_of_scene(story.scenes[0], corpus.FPS) - 1
    assert steps[cut] > 3 * np.median(steps)


def test_cards_stand_before_and_after_the_scenes():
    story = next(story for story in draw_stories(3, {"test": 50}) if story.opening and story.ending)
    frames = [np.asarray(frame) for frame in draw_frames(story, corpus.FPS)]
    first, last = np.asarray(draw_card(story.look)), np.asarray(draw_card(story.look + 1))
    assert sum(np.array_equal(frame, first) for frame in frames) >= round(story.opening * corpus.FPS)
    assert np.array_equal(frames[0], first) and np.array_equal(frames[-1], last)


def test_rendering_again_touches_only_what_is_missing(rendered, tmp_path):
    root, few = tmp_path, {"train": 2, "val": 0, "test": 1}
    corpus.render_corpus(root, seed=3, workers=1, sizes=few)
    kept, lost = root / "videos" / "train0000.mp4", root / "videos" / "train0001.mp4"
    before = kept.stat().st_mtime_ns
    content = lost.read_bytes()
    lost.unlink()
    said = io.StringIO()
    corpus.render_corpus(root, seed=3, workers=1, sizes=few, progress=Progress(stream=said, interval=0))
    assert [line.split()[1] for line in said.getvalue().splitlines()] == ["2/3", "3/3"]
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content


def test_another_seed_replaces_the_videos(tmp_path):
    _, videos = corpus.render_corpus(tmp_path, seed=1, workers=1, sizes={"train": 1, "val": 0, "test": 0})
    before = (videos / "train0000.mp4").read_bytes()
    corpus.render_corpus(tmp_path, seed=2, workers=1, sizes={"train": 1, "val": 0, "test": 0})
    assert (videos / "train0000.mp4").read_bytes() != before


def test_a_rendering_that_fails_leaves_no_half_file(tmp_path, monkeypatch):
    story = next(draw_stories(0, {"test": 1}))

    def stops(story, fps):
        yield from list(draw_frames(story, fps))[:5]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corpus, "draw_frames", stops)
    with pytest.raises(StorageError, match="No space left"):
        corpus.render_corpus(tmp_path, workers=1, sizes={"train": 0, "val": 0, "test": 1})
    assert list((tmp_path / "videos").iterdir()) == []
    monkeypatch.undo()
    corpus.write_video(story, tmp_path / "videos" / "test0000.mp4")
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["test0000.mp4"]


def test_the_corpus_is_rendered_once_and_both_folders_are_given(tmp_path):
    annotations, videos = corpus.render_corpus(tmp_path / "demo", sizes={"train": 1, "val": 0, "test": 0}, workers=1)
    before = (videos / "train0000.mp4").stat().st_mtime_ns
    corpus.render_corpus(tmp_path / "demo", sizes={"train": 1, "val": 0, "test": 0}, workers=1)
    assert (videos / "train0000.mp4").stat().st_mtime_ns == before
    assert len(corpus.read(annotations, videos).texts) == 20


def test_the_reader_gives_every_video_and_caption(rendered):
    found = corpus.read(rendered / "annotations", rendered / "videos")
    assert found.dataset == "demo"
    assert {split: sum(video.split == split for video in found.videos) for split in SIZES} == SIZES
    assert all(video.path for video in found.videos)
    assert len({text.id for text in found.texts}) == len(found.texts) == 20 * sum(SIZES.values())
    split_of = {video.id: video.split for video in found.videos}
    assert all(split_of[text.video] == text.split for text in found.texts)
    assert found.expected["test"].captions == 40


def test_the_id_of_a_caption_tells_its_kind(rendered):
    texts = corpus.read(rendered / "annotations", rendered / "videos", splits=["test"]).texts
    kinds = [text.id.rpartition(":")[2] for text in texts]
    assert {*kinds} <= {*KINDS} and kinds.count("order") == 3 * SIZES["test"]


def test_the_reader_takes_the_splits_that_are_asked_for_and_does_without_videos(rendered):
    found = corpus.read(rendered / "annotations", None, splits=["val"])
    assert [video.split for video in found.videos] == ["val"] and found.videos[0].path is None


def test_a_missing_file_is_a_video_without_path(rendered, tmp_path):
    found = corpus.read(rendered / "annotations", tmp_path)
    assert all(video.path is None for video in found.videos)


def test_the_reader_says_what_is_wrong(rendered, tmp_path):
    with pytest.raises(NotFoundError, match=r"train\.json.*Render it") as error:
        corpus.read(tmp_path, None)
    assert error.value.hint == Hint("Render it", "extract", {"dataset": "demo"})
    with pytest.raises(NotFoundError):
        corpus.read(None, None)
    with pytest.raises(UsageError, match="no split 'dev'"):
        corpus.read(rendered / "annotations", None, splits=["dev"])
    with pytest.raises(UsageError, match="protocol"):
        corpus.read(rendered / "annotations", None, protocol="9k")
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(InputError, match="JSON"):
        corpus.read(tmp_path, None, splits=["train"])
    (tmp_path / "train.json").write_text(json.dumps({"format": "other/1"}))
    with pytest.raises(InputError, match="other/1"):
        corpus.read(tmp_path, None, splits=["train"])
    (tmp_path / "train.json").write_text(json.dumps({"format": corpus.FORMAT, "videos": [{"id": "a"}]}))
    with pytest.raises(InputError, match="file"):
        corpus.read(tmp_path, tmp_path, splits=["train"])


def test_sizes_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(UsageError, match="at least 0"):
        corpus.render_corpus(tmp_path, sizes={"train": -1})
