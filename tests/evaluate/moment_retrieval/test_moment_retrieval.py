"""When a caption happens: files as they are distributed, formulas against slow ones, a head judged on a cache."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from glscl.common.errors import InputError, NotFoundError
from glscl.evaluate.moment_retrieval.judge_moments import judge_moments
from glscl.evaluate.moment_retrieval.window_metrics import (
    MEASURES,
    THRESHOLDS,
    agreement,
    average_precision,
    overlap,
    window_metrics,
)
from glscl.evaluate.moment_retrieval.windows import moments_of_captions, read_windows
from glscl.evaluate.settings import EvaluateSettings
from glscl.extract.datasets import read_dataset


def slow_overlap(a, b):
    """Of two windows in tenths of a second, by counting tenths."""
    a, b = ({*range(round(10 * w[0]), round(10 * w[1]))} for w in (a, b))
    return len(a & b) / len(a | b) if a | b else 0.0


def slow_average_precision(found, right, threshold):
    """By the definition: at each rank the precision and recall; the area under the highest precision at a recall or above."""
    left, hits = [*map(tuple, right)], 0
    points = []
    for rank, window in enumerate(found, 1):
        best = max(left, key=lambda each: slow_overlap(window, each), default=None)
        if best is not None and slow_overlap(window, best) >= threshold:
            left.remove(best)
            hits += 1
        points.append((hits / len(right), hits / rank))
    recalls = sorted({recall for recall, _ in points if recall})
    steps = zip([0.0, *recalls], recalls)
    return sum((high - low) * max(p for r, p in points if r >= high) for low, high in steps)


@pytest.fixture
def drawn():
    """Windows on tenths of a second: found, and right ones that differ, of 40 captions."""
    random = np.random.default_rng(5)

    def windows(count):
        edges = np.sort(random.choice(120, (count, 2), replace=True) / 10, axis=1)
        return edges + np.array([0, 0.1])

    return [windows(random.integers(1, 8)) for _ in range(40)], [windows(random.integers(1, 4)) for _ in range(40)]


def test_measures_are_their_definitions(drawn):
    found, right = drawn
    moments = [[window[None] for window in each] for each in right]
    assert overlap(found[0], right[0]) == pytest.approx(
        np.array([[slow_overlap(a, b) for b in right[0]] for a in found[0]])
    )
    first = [max(slow_overlap(of[0], each) for each in here) for of, here in zip(found, right)]
    precision = {
        at: np.mean([slow_average_precision(of, here, at) for of, here in zip(found, right)]) for at in THRESHOLDS
    }
    expected = {
        **{f"R1@{at}": 100 * np.mean([f >= at for f in first]) for at in (0.5, 0.7)},
        "mAP": 100 * np.mean([*precision.values()]),
        "mAP@0.5": 100 * precision[0.5],
        "mAP@0.75": 100 * precision[0.75],
        "mIoU": 100 * np.mean(first),
        "queries": 40,
    }
    measured = window_metrics(found, moments)
    assert measured == pytest.approx(expected) and tuple(measured)[:-1] == MEASURES
    assert 0 < measured["R1@0.7"] < measured["R1@0.5"], "the draw must tell them apart"


def test_a_right_moment_is_taken_once_and_wrong_ones_before_it_cost():
    iou = np.array([[0.9, 0.0], [0.8, 0.0], [0.0, 0.6]])
    assert average_precision(iou, 0.5) == pytest.approx((1 + 2 / 3) / 2), "the second of the same moment is a wrong one"
    assert average_precision(iou, 0.7) == pytest.approx(1 / 2) and average_precision(iou, 0.95) == 0
    assert average_precision(np.array([[0.1], [0.7]]), 0.5) == pytest.approx(1 / 2)


def test_of_several_annotators_two_must_agree_with_what_is_found():
    seen = np.array([[0.0, 5], [0, 5], [20, 25], [0, 10]])
    found = np.array([[0.0, 5], [20, 25], [0, 10]])
    assert agreement(found, [seen])[:, 0] == pytest.approx([1.0, 0.0, 0.5])
    best = [sorted((slow_overlap(w, s) for s in seen), reverse=True)[1] for w in found]
    assert agreement(found, [seen])[:, 0] == pytest.approx(best)
    assert overlap(np.zeros((1, 2)), np.zeros((1, 2))) == 0, "two empty windows share nothing"


FILES = {
    "charades_sta_test.txt": "A 2.5 6.9##a man  sits.\nA 0 1##a man sits.\nB 3.0 1.0##a dog##barks\n",
    "tvr_val_release.jsonl": '{"vid_name": "A", "desc": "a man sits.", "ts": [2.5, 6.9], "duration": 60}\n',
    "highlight_val.jsonl": '{"vid": "A", "query": "a man sits.", "relevant_windows": [[2.5, 6.9], [8, 10]]}\n',
    "val_1.json": '{"A": {"duration": 9, "timestamps": [[2.5, 6.9], [0, 1]], "sentences": [" a man sits.", "he leaves"]}}',
    "test_data.json": '[{"video": "A", "description": "a man sits.", "times": [[0, 0], [0, 1], [5, 5], [0, 0]]}]',
    "own.csv": "caption,start,end,video\na man sits.,2.5,6.9,A\na man sits.,0:00:08,10,A\n",
    "own.tsv": "start\tend\tcaption\n2.5\t6.9\tA#0\n",
}
MOMENTS = {
    "charades_sta_test.txt": [("A", "a man sits.", [[[2.5, 6.9]]]), ("A", "a man sits.", [[[0, 1]]]), ("B", "a dog##barks", [[[1, 3]]])],
    "tvr_val_release.jsonl": [("A", "a man sits.", [[[2.5, 6.9]]])],
    "highlight_val.jsonl": [("A", "a man sits.", [[[2.5, 6.9]], [[8, 10]]])],
    "val_1.json": [("A", "a man sits.", [[[2.5, 6.9]]]), ("A", "he leaves", [[[0, 1]]])],
    "test_data.json": [("A", "a man sits.", [[[0, 5], [0, 10], [25, 30], [0, 5]]])],
    "own.csv": [("A", "a man sits.", [[[2.5, 6.9]], [[8, 10]]])],
    "own.tsv": [("", "A#0", [[[2.5, 6.9]]])],
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_as_they_are_distributed(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    found = [(w.video, w.caption, [m.tolist() for m in w.moments]) for w in read_windows(tmp_path / name)]
    assert found == MOMENTS[name]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "A 2.5##x\n", "line 1: found 'A 2.5##x', expected `video start end##sentence`"),
        ("a.txt", "A 2.5 x##x\n", "line 1: end is 'x', expected seconds"),
        ("a.jsonl", '{"vid": "A", "query": "x"}\n', "line 1: no 'relevant_windows'"),
        ("a.jsonl", '{"vid": "A", "query": "x", "relevant_windows": []}\n', "line 1: 'relevant_windows' is empty"),
        ("a.json", '[{"video": "A", "description": "x", "times": []}]', "there is no window"),
        ("a.json", '{"A": {"sentences": ["x"], "timestamps": []}}', "1 sentences and 0 timestamps"),
        ("a.json", '[{"video": "A", "description": "x", "times": [[1]]}]', "expected a window"),
        ("a.csv", "caption,start\nx,1\n", "found the columns 'caption', 'start'; expected caption, start, end"),
        ("a.csv", "caption,start,end\nx,1\n", "row 2: found 2 cells, expected 3"),
        ("a.csv", "caption,start,end\n", "holds no moment"),
        ("a.xml", "<a/>", "is no file of moments"),
    ],
)
def test_files_that_are_none_say_where(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_windows(tmp_path / name)
    with pytest.raises(NotFoundError):
        read_windows(tmp_path / "not-there.csv")


def test_captions_are_known_by_video_and_words_by_id_and_in_order_where_words_repeat(tmp_path):
    (tmp_path / "a.txt").write_text(FILES["charades_sta_test.txt"])
    written = read_windows(tmp_path / "a.txt")
    ids, captions, videos = ["A#0", "A#1", "B#0", "C#0"], ["a man sits.", "a man sits.", "x", "a dog##barks"], [*"AABC"]
    found = moments_of_captions(written, ids, captions, videos)
    assert {row: [m.tolist() for m in moments] for row, moments in found.items()} == {
        0: [[[2.5, 6.9]]],
        1: [[[0, 1]]],
    }, "each its own; the dog is of another video"
    alone = moments_of_captions(written, ids[:1], captions[:1], videos[:1])
    assert [m.tolist() for m in alone[0]] == [[[2.5, 6.9]], [[0, 1]]], "which of the two it is cannot be known"
    (tmp_path / "a.tsv").write_text(FILES["own.tsv"])
    assert [*moments_of_captions(read_windows(tmp_path / "a.tsv"), ids, captions, videos)] == [0]
    with pytest.raises(
        InputError, match="none of the 3 captions with moments .* 'a man sits.' of A, judged is 'x' of B"
    ):
        moments_of_captions(written, ids[2:3], captions[2:3], videos[2:3])


def test_a_head_is_judged_by_the_moments_of_search(judged, tmp_path):
    """Frames that are the caption itself are the moment, and the one cosine heads agree with `Model.search`."""
    store = judged.store
    table = store.table("test", frames=None)
    owner = table.video_of_text.tolist()
    rows = []
    for text, video in enumerate(owner):
        cosines = np.asarray(
            (table.frame_features[video].float() @ table.text_features[text].float())
            / table.frame_features[video].float().norm(dim=-1)
        )[: int(table.frame_mask[video].sum())]
        best = float(table.frame_times[video][int(cosines.argmax())])
        rows.append({"caption": table.text_ids[text], "start": best, "end": best + 1.0})
    path = tmp_path / "moments.csv"
    path.write_text("caption,start,end\n" + "".join(f"{r['caption']},{r['start']},{r['end']}\n" for r in rows))
    heads = [judge_moments(store, None, path, EvaluateSettings(head=head)) for head in ("mean_pool", "best_frames")]
    assert heads[0] == heads[1] and heads[0]["queries"] == len(rows) == heads[0]["captions"]
    from glscl.evaluate.search.model import zero_shot

    model, overlaps = zero_shot(store), []
    for row, video in zip(rows, owner):
        text = rows.index(row)
        query = model.listed(table.video_ids[video])._replace(vector=table.text_features[text].float(), itself=None)
        hit = next(h for h in model.find(query._replace(frames=None), top=99) if h.video == table.video_ids[video])
        overlaps.append(slow_overlap((hit.moments[0].start, hit.moments[0].end), (row["start"], row["end"])))
    assert heads[0]["mIoU"] == pytest.approx(100 * np.mean(overlaps), abs=1e-3)
    assert heads[0]["R1@0.5"] == pytest.approx(100 * np.mean([each >= 0.5 for each in overlaps]))
    trained = judge_moments(store, judged.run, path)
    assert trained["queries"] == len(rows) and trained != heads[0], "a trained head scores the frames by itself"


def test_the_command_judges_moments_and_says_so(judged, tmp_path, glscl):
    path = tmp_path / "moments.csv"
    captions = judged.store.list.text_ids
    path.write_text("caption,start,end\n" + "".join(f"{id},0,1\n" for id in itertools.islice(reversed(captions), 5)))
    out = tmp_path / "result.json"
    options = ["eval", "--cache", judged.store.path, "--moments", path]
    status, printed, _ = glscl(*options, "--zero-shot", "--out", out)
    assert status == 0 and "when 5 of" in printed and "R1@0.5" in printed
    moments = json.loads(out.read_text())["moments"]
    assert moments["queries"] == 5 and moments["file"] == str(path)
    status, _, said = glscl(*options, "--run", judged.run, "--run", judged.other)
    assert status == 2 and "--moments judges one head" in said


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "place", "count", "annotators"),
    [("activitynet_captions", "ActivityNet/val_1.json", 17_505, {1}), ("didemo_captions", "DiDeMo/test_data.json", 3_932, {4, 5, 7})],
)  # fmt: skip
def test_real_files_name_every_caption_of_their_test_set(real_data, name, place, count, annotators):
    path = real_data / "annotations" / place
    texts = read_dataset(name, path.parent, splits=["test"]).texts
    columns = ([text.id for text in texts], [text.text for text in texts], [text.video for text in texts])
    found = moments_of_captions(read_windows(path), *columns)
    assert len(found) == len(texts) == count and {len(found[row]) for row in found} == {1}
    assert {len(moment) for moments in found.values() for moment in moments} == annotators
