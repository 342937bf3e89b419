"""The page says what the results say, fetches nothing, survives hostile text and says what it lacks."""

import contextlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from glscl.cache.schema import VideoItem
from glscl.common.errors import InputError
from glscl.common.tables import interval, number
from glscl.evaluate.evaluated_run import EvaluatedRun, open_cache_of, read_evaluated
from glscl.evaluate.metrics import main_metrics, summarise
from glscl.evaluate.report import table_contents
from glscl.evaluate.report.examination import examine
from glscl.evaluate.report.figures import figures_of
from glscl.evaluate.report.page import write_report

VOID = {"meta", "br", "wbr", "img", "path", "use"}


class Page(HTMLParser):
    """Tables by caption, ids, links, tags, text; refuses tags that do not close."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tables, self.ids, self.attributes, self.tags = {}, [], [], []
        self.text, self.open, self.pictures = "", [], 0
        self._table = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)
        if tag == "table":
            self._table = {"caption": "", "rows": [], "scopes": []}
        elif tag == "tr":
            self._table["rows"].append([])
        elif tag in ("td", "th") and self._table is not None:
            self._table["rows"][-1].append("")
            self._table["scopes"].append((tag, dict(attrs).get("scope")))
        elif tag == "span" and self._table and self._table["rows"][-1]:
            self._table["rows"][-1][-1] += "\n"

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open.pop() == tag
        if tag == "table":
            self.tables.setdefault(self._table["caption"].strip(), self._table)
            self._table = None

    def handle_data(self, data):
        self.text += data
        if self._table is not None and "caption" in self.open[-1:]:
            self._table["caption"] += data
        elif self._table is not None and self._table["rows"] and self._table["rows"][-1]:
            self._table["rows"][-1][-1] += data

    def row(self, caption, name):
        """Cells of a table's row: value on the first line, interval on the next."""
        for cells in self.tables[caption]["rows"]:
            if cells[0].split("\n")[0].strip() == name:
                return [[line.strip() for line in cell.split("\n") if line.strip()] for cell in cells[1:]]
        raise AssertionError(f"no row {name!r} in {caption!r}")


def read(judged, *names):
    return [open_cache_of(read_evaluated(getattr(judged, name)))[1] for name in names]


def written(runs, tmp_path, *, figures=False, **options):
    """The page of some runs. Figures take nearly all of the time: only tests that look at them have them drawn."""
    with contextlib.nullcontext() if figures else mock.patch.object(table_contents, "figures_of", lambda *_: ()):
        path = write_report(runs, tmp_path / "report.html", resamples=50, **options)
    return Page(path.read_text(encoding="utf-8"))


def red(video, times):
    return [Image.new("RGB", (64, 48), (200, 30, 30)) for _ in times]


@pytest.fixture(scope="module")
def full(judged, tmp_path_factory):
    """The page of three runs with all there is."""
    runs = [examine(run, judged.store, examples=2) for run in read(judged, "zero_shot", "run", "other")]
    runs[0] = replace(runs[0], name="zero-shot")
    folder = tmp_path_factory.mktemp("page")
    path = write_report(runs, folder / "report.html", thumbnails=red, plots_dir=folder / "plots", resamples=50)
    return runs, path, Page(path.read_text(encoding="utf-8")), folder


def test_the_numbers_of_the_page_are_those_of_the_results(full):
    runs, _, page, _ = full
    names = ["zero-shot", "glscl (run)", "glscl (other) †"]
    for caption, direction in (("Text to video", "text_to_video"), ("Video to text", "video_to_text")):
        for name, run in zip(names, runs):
            cells = page.row(caption, name)
            confidence = run.result["confidence_95"][direction]
            for metric, (value, spread) in zip(main_metrics(), cells, strict=True):
                assert value == number(run.result[direction][metric])
                assert spread == interval(*confidence[metric])
        normalised = runs[0].result["normalised"]["dsl"][direction]
        assert [cell[0] for cell in page.row(caption, "+ dsl")] == [
            number(normalised[metric]) for metric in main_metrics()
        ]


@pytest.mark.parametrize("width", [1280, 400])
def test_tables_fit_and_no_word_of_them_breaks_inside(full, browser, tmp_path, width):
    runs = [replace(run, name=f"{run.title} ({run.title}-20261128-010203)") for run in full[0]]
    path = write_report(runs, tmp_path / "report.html", resamples=50) and tmp_path / "report.html"
    text = re.sub(r"(>−?)\d+\.\d( to)", r"\g<1>−114.5\2", path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(path.as_uri())
    wide = """[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText)"""
    broken = """[...document.querySelectorAll('tbody th, thead th')].filter(cell => {
        const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), range = document.createRange();
        for (let node = walker.nextNode(); node; node = walker.nextNode())
            for (const word of node.data.matchAll(/[^\\s-]+/g)) {
                range.setStart(node, word.index); range.setEnd(node, word.index + word[0].length);
                if (new Set([...range.getClientRects()].map(r => Math.round(r.top))).size > 1) return true;
            }
        return false;
    }).map(cell => cell.innerText)"""
    assert page.evaluate(wide) == [] and page.evaluate(broken) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_chance_is_that_of_the_gallery(full):
    runs, _, page, _ = full
    counts = runs[0].result["counts"]
    value = [cell[0] for cell in page.row("Text to video", "Chance")]
    gallery = counts["videos"]
    assert value == [
        number(v) for v in (100 / gallery, 500 / gallery, 1000 / gallery, (gallery + 1) / 2, (gallery + 1) / 2)
    ]


def test_further_metrics_are_folded_away(full):
    runs, _, page, _ = full
    for direction, key in (("Text to video", "text_to_video"), ("Video to text", "video_to_text")):
        metrics = runs[1].result[key]
        cells = page.row(f"{direction}, R@50 and Rsum", "glscl (run)")
        assert cells[0][0] == f"{metrics['R@50']:.1f}" and len(cells[0]) == 2
        assert cells[1] == [f"{metrics['R@1'] + metrics['R@5'] + metrics['R@10']:.1f}"]


def test_a_given_chance_is_shown(judged, tmp_path):
    of = {"R@1": 1.5, "R@5": 2.5, "R@10": 3.5, "MdR": 4.5, "MnR": 5.5}
    page = written(read(judged, "run"), tmp_path, chance={"text_to_video": of, "video_to_text": of})
    assert [cell[0] for cell in page.row("Video to text", "Chance")] == ["1.5", "2.5", "3.5", "4.5", "5.5"]


def test_runs_are_marked_as_frozen_or_not_and_by_how_they_were_selected(full, judged, tmp_path):
    _, _, page, _ = full
    assert page.text.count("selected on validation") == 2 and page.text.count("selected on test") >= 2
    assert "was selected on the test split" in page.text and "untrained" in page.text
    assert "sees all test queries" in page.text and "extra data" in page.text
    runs = read(judged, "run", "other")
    msrvtt = {"dataset": "msrvtt", "counts": {**runs[0].result["counts"], "expected_videos": 1000}}
    tuned = replace(runs[1], result={**runs[1].result, **msrvtt, "frozen_backbone": False})
    runs = [replace(runs[0], result={**runs[0].result, **msrvtt}), tuned]
    page = written(runs, tmp_path)
    sections = [cells[0].strip() for cells in page.tables["Text to video"]["rows"] if len(cells) == 1]
    assert sections == ["Frozen backbone", "Fine-tuned backbone"]
    assert "not comparable" in page.text and "Published, fine-tuned backbone" in page.text


def test_the_page_fetches_nothing(full):
    _, path, page, _ = full
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert value.startswith(("data:image/jpeg;base64,", "#")), (tag, name, value)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    text = path.read_text()
    assert "http" not in text and "@import" not in text
    assert all(inside.startswith("#") for inside in re.findall(r"url\(([^)]*)\)", text))


def test_the_page_is_sound_and_can_be_navigated(full):
    _, path, page, _ = full
    assert path.read_text().startswith("<!DOCTYPE html>") and "prefers-color-scheme: dark" in path.read_text()
    assert len(page.ids) == len(set(page.ids))
    links = [value[1:] for tag, name, value in page.attributes if tag == "a" and name == "href"]
    assert len(links) >= 6 and set(links) <= set(page.ids)
    for caption, table in page.tables.items():
        assert caption and all(scope for tag, scope in table["scopes"] if tag == "th")
    assert all(value for tag, name, value in page.attributes if tag == "img" and name == "alt")
    assert sum(tag == "svg" for tag in page.tags) == 9


def test_the_figures_are_written_too(full):
    _, _, _, folder = full
    names = {path.name for path in (folder / "plots").iterdir()}
    stems = {"recall", "ranks", "hubness", "validation"}
    expected = {f"{stem}-{way}" for stem in stems for way in ("text-to-video", "video-to-text")} | {"loss"}
    assert names == {f"{name}.{suffix}" for name in expected for suffix in ("png", "pdf")}
    assert all(path.stat().st_size > 3000 for path in (folder / "plots").iterdir())


def test_the_same_runs_give_the_same_bytes(full, tmp_path):
    runs, path, _, _ = full
    again = write_report(runs, tmp_path / "report.html", thumbnails=red, resamples=50)
    assert again.read_bytes() == path.read_bytes()


def test_examples_show_captions_frames_and_weights(full):
    runs, _, page, _ = full
    examination = runs[1].examination
    for example in (*examination.best, *examination.worst):
        assert example.caption in page.text
        for video in example.retrieved:
            assert video.id in page.text
    frames = {(video.id, video.times) for run in runs for example in (*run.examination.best, *run.examination.worst)
              for video in example.retrieved}  # fmt: skip
    shown = sum(tag == "img" for tag in page.tags)
    assert shown == sum(
        len(video.times)
        for run in runs
        for example in (*run.examination.best, *run.examination.worst)
        for video in example.retrieved
    )
    assert frames and "share of the head's attention" in page.text and "cosine of each frame" in page.text


def test_provenance_holds_commands_versions_and_settings(full):
    runs, _, page, _ = full
    for text in ("glscl extract --dataset made", "glscl train-head --head glscl --seed 0", "glscl eval --run run"):
        assert text in page.text
    assert f"torch {runs[0].result['versions']['torch']}" in page.text and "training: torch 0.0.1" in page.text
    assert runs[0].result["cache_fingerprint"] in page.text


HOSTILE = [
    "<script>alert('x')</script>",
    "\" onload='x' <img src=x onerror=alert(1)> &amp; {{ 7 * 7 }}",
    "שלום עולם مرحبا \u202e gnorw",
    "verylongword" * 300,
    "bell \x07 null \x00 lone \ud800",
    "",
]


@pytest.fixture(scope="module")
def hostile_page(judged, tmp_path_factory):
    """One page with figures about as many runs as there are hostile texts, each in all places that a run has for texts."""
    first, run = (examine(found, judged.store, examples=1) for found in read(judged, "run", "run"))
    worst = run.examination.worst[0]
    runs = [replace(first, name="first")]
    for i, caption in enumerate(HOSTILE):
        video = worst.retrieved[0]._replace(id=caption or "x")
        example = worst._replace(caption=caption, text_id=caption, retrieved=(video,))
        hostile = replace(
            run,
            name=f"{i} {caption[:40]}",
            result={**run.result, "cache_fingerprint": f"{i}"},  # a list of failures each
            examination=replace(run.examination, worst=(example,)),
            captions=dict.fromkeys(run.captions, caption),
            failures=[{"id": caption, "reason": caption, "status": "decode_error"}],
            extraction={"command": f"curl {caption} | sh"},
            notes=(caption,),
        )
        runs.append(hostile)
    return written(runs, tmp_path_factory.mktemp("hostile"), title=HOSTILE[0], figures=True)


@pytest.mark.parametrize("caption", HOSTILE)
def test_hostile_text_is_shown_and_never_run(hostile_page, caption):
    page = hostile_page
    plain = "".join("\N{REPLACEMENT CHARACTER}" if c in "\x07\x00" else "?" if c == "\ud800" else c for c in caption)
    assert page.text.count(plain) >= 4  # as caption, id, note and reason
    assert "curl" not in page.text, "a command that cannot be ours is not shown"
    assert "script" not in page.tags and not any(name.startswith("on") for _, name, _ in page.attributes)
    assert [value for tag, name, value in page.attributes if name == "src"] == []
    if len(caption) > 240:
        assert caption[:240] + "…" in page.text
    assert ("bdi", "dir", "auto") in page.attributes


def test_what_lacks_is_left_out_with_a_sentence(judged, tmp_path):
    bare = {k: v for k, v in judged.evaluations["zero_shot"].result.items() if k not in ("confidence_95", "normalised")}
    page = written([EvaluatedRun(result=bare, name="bare")], tmp_path, figures=True)
    assert [cell[0] for cell in page.row("Text to video", "bare")] == [
        number(bare["text_to_video"][m]) for m in main_metrics()
    ]
    assert "Not known: no cache was read" in page.text and "Examples" not in page.text and "Training" not in page.text
    assert sum(tag == "svg" for tag in page.tags) == 2  # recall through the metrics alone
    run = read(judged, "run")[0].with_notes("The ranks of each query are not there.")
    page = written([replace(run, ranks=None, history=())], tmp_path)
    assert "Not shown" in page.text and "The ranks of each query are not there." in page.text


def test_videos_that_cannot_be_had_are_named(judged, tmp_path):
    run = examine(read(judged, "run")[0], judged.store, examples=1)
    page = written([run], tmp_path)
    assert "Without the videos there are no pictures" in page.text and "img" not in page.tags
    asked = []

    def none(video, times):
        asked.append((video, times))

    page = written([run], tmp_path, thumbnails=none)
    assert re.search(r"\d videos gave no pictures of frames, for example ", page.text) and "img" not in page.tags
    assert all(isinstance(video, VideoItem) and len(times) for video, times in asked)
    assert len({video.id for video, _ in asked}) == len(asked)  # no video is decoded twice
    few = written([run], tmp_path, thumbnails=lambda video, times: [])
    assert "gave no pictures" in few.text


def test_long_videos_show_twelve_frames_spread_over_all(judged, tmp_path):
    run = examine(read(judged, "run")[0], judged.store, examples=1)
    times, weights = tuple(float(i) for i in range(50)), tuple(0.02 for _ in range(50))
    worst = run.examination.worst[0]
    video = worst.retrieved[0]._replace(times=times, weights=weights)
    asked = []
    examination = replace(run.examination, best=(), worst=(worst._replace(retrieved=(video,)),))
    page = written(
        [replace(run, examination=examination)], tmp_path, thumbnails=lambda video, times: asked.append(times)
    )
    assert len(asked[0]) == 12 and asked[0][0] == 0 and asked[0][-1] == 49
    assert "38 frames between these are not shown" in page.text


def test_failures_of_extraction_are_listed_and_counted(judged, tmp_path):
    run = read(judged, "run")[0]
    failures = [{"id": f"v{i}", "reason": f"reason {i}", "status": "timed_out"} for i in range(130)]
    counts = {**run.result["counts"], "videos_failed": 130}
    page = written([replace(run, failures=failures, result={**run.result, "counts": counts})], tmp_path)
    assert "reason 99" in page.text and "reason 100" not in page.text and "… and 30 more" in page.text
    assert f"130 of {counts['videos'] + 130} videos gave no frames" in page.text and "timed out" in page.text
    page = written([run], tmp_path)
    assert f"none; all {run.result['counts']['videos']} videos gave frames" in page.text


def test_each_dataset_has_its_own_section(judged, tmp_path):
    one, two = read(judged, "run", "other")
    runs = [one, replace(two, result={**two.result, "split": "val"})]
    training = lambda *of: tuple(each for each in figures_of(*of) if each[0] == "Training")  # noqa: E731
    with mock.patch.object(table_contents, "figures_of", training):
        write_report(runs, tmp_path / "report.html", plots_dir=tmp_path / "plots", resamples=50)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Results: made, test" in page.text and "Results: made, val" in page.text
    assert len(page.ids) == len(set(page.ids)) and (tmp_path / "plots" / "loss-2.png").exists()
    assert "Against" not in page.text


def test_differences_from_the_first_run_are_those_of_the_paired_tests(full):
    from glscl.evaluate.compare.comparison import compare_runs

    runs, _, page, _ = full
    against = compare_runs(runs, published=False, resamples=50).against[0]
    table = next(t for caption, t in page.tables.items() if caption == "Text to video")
    assert table
    test = against.tests["text_to_video"]["MnR"]
    shown = number(abs(test.difference))
    assert re.search(rf"[+−]{re.escape(shown)}", page.text)
    assert f"{against.improved:,} higher, {against.worsened:,} lower, {against.unchanged:,} the same" in page.text


def test_one_query_and_one_video_are_enough(tmp_path):
    metrics = summarise([1.0])
    result = {
        "dataset": "d", "split": "test", "head": "h", "run": None, "backbone": "b", "pretrained": None, "cache": "c",
        "cache_fingerprint": "f", "selection": "last", "frozen_backbone": True, "counts": {"texts": 1, "videos": 1},
        "text_to_video": metrics, "video_to_text": metrics, "video_to_text_caption": metrics,
    }  # fmt: skip
    ranks = dict.fromkeys(("text_to_video", "video_to_text", "video_to_text_caption"), np.array([1.0]))
    run = EvaluatedRun(result=result, ranks=ranks, text_ids=["a"], video_ids=["v"], video_of_text=np.array([0]))
    page = written([run, replace(run, name="again")], tmp_path, figures=True)
    assert page.row("Text to video", "h")[0] == ["100.0"]


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(InputError, match="nothing to report"):
        write_report([], tmp_path / "report.html")
