"""Figures say what they show, on paper and in a page."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from glscl.evaluate.confidence import confidence_95
from glscl.evaluate.metrics import summarise
from glscl.evaluate.report import plots

NAMES = ["zero-shot", "glscl"]


def some_ranks(scale, n=200, seed=0):
    return np.minimum(np.floor(np.random.RandomState(seed).exponential(scale, n)) + 1, 100)


def recall(names=NAMES, key="recall", ranks=True, confidence=True):
    rows = []
    for i, name in enumerate(names):
        of = some_ranks(20 / (i + 1))
        rows.append(
            (name, summarise(of), of if ranks else None, confidence_95(of, resamples=20) if confidence else None)
        )
    return plots.recall_curve(key, "Recall, text to video", rows, gallery=100, item="videos", order=names)


def histogram(names=NAMES, key="ranks"):
    rows = [(name, some_ranks(20 / (i + 1))) for i, name in enumerate(names)]
    return plots.rank_histogram(key, "Ranks, text to video", rows, gallery=100, order=names)


def hubness(names=NAMES, key="hubs"):
    rows = [(name, np.random.RandomState(i).poisson(10, 50)) for i, name in enumerate(names)]
    return plots.hubness(key, "Hubness", rows, neighbours=10, item="videos", queries=50, order=names)


def training(names=NAMES, key="loss"):
    rows = [(name, [1, 2, 3], [3.0, 2.0, 1.5 - i]) for i, name in enumerate(names)]
    return plots.training_curve(key, "Training loss", rows, label="Mean loss of an epoch", order=names)


ALL = pytest.mark.parametrize("draw", [recall, histogram, hubness, training])


@ALL
def test_a_figure_has_labelled_axes_a_legend_and_a_sentence(draw):
    plot = draw()
    (axes,) = plot.figure.axes
    assert len(axes.get_xlabel()) > 4 and len(axes.get_ylabel()) > 4
    labels = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert labels[:2] == NAMES
    assert plot.summary.startswith(plot.title) and plot.summary.endswith(".")
    svg = plot.svg()
    for text in (axes.get_xlabel(), axes.get_ylabel(), *NAMES):
        assert text in svg
    assert "%" in axes.get_xlabel() + axes.get_ylabel() or draw is training


@ALL
def test_files_are_written_and_the_same_data_gives_the_same_bytes(draw, tmp_path):
    first, second = draw().write(tmp_path / "a"), draw().write(tmp_path / "b")
    assert [path.suffix for path in first] == [".png", ".pdf"]
    assert first[0].read_bytes().startswith(b"\x89PNG") and first[1].read_bytes().startswith(b"%PDF")
    for one, other in zip(first, second):
        assert one.stat().st_size > 3000 and one.read_bytes() == other.read_bytes()
    assert draw().svg() == draw().svg()


@ALL
def test_a_figure_in_a_page_follows_its_theme_and_fetches_nothing(draw):
    svg = draw().svg()
    ET.fromstring(svg)
    assert "http" not in svg and "<style" not in svg and "DejaVu" not in svg
    assert not any(colour in svg for colour in plots.VARIABLES)
    assert "var(--ink)" in svg and "var(--series-1)" in svg
    assert 'role="img"' in svg and "<title" in svg and "<desc" in svg
    assert not set(re.findall(r"#[0-9a-fA-F]{6}\b", svg)) - {"#000000", "#ffffff"}


@ALL
def test_figures_of_one_page_share_no_id(draw):
    first, second = draw(key="one").svg(), draw(key="two").svg()
    ids = [re.findall(r'\bid="([^"]*)"', svg) for svg in (first, second)]
    assert ids[0] and not set(ids[0]) & set(ids[1])
    for svg, own in zip((first, second), ids):
        assert len(own) == len(set(own))
        assert set(re.findall(r'(?:url\(#|href="#)([^")]*)', svg)) <= set(own)


@ALL
def test_names_are_shown_as_they_are(draw):
    names = ["_private $x^2$", "<script>alert('&')</script>", "many words in a very long name of a run"]
    svg = draw(names).svg()
    assert "<script" not in svg and "&lt;script&gt;" in svg
    texts = [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]
    assert any("_private $x^2$" in text for text in texts)
    assert any(text.startswith("many words") and text.endswith("…") for text in texts)


def test_a_run_has_one_colour_in_all_figures():
    def colour(plot, label):
        (axes,) = plot.figure.axes
        return next(line.get_color() for line in axes.get_lines() if line.get_label() == label)

    alone = plots.training_curve("x", "t", [("glscl", [1], [2.0])], label="Mean loss", order=NAMES)
    assert colour(alone, "glscl") == colour(recall(), "glscl") == colour(hubness(), "glscl") == plots.SERIES[1]
    looks = {plots._look(name, list("abcdefghijkl")) for name in "abcdefghijkl"}
    assert len(looks) == 12


def test_the_recall_curve_goes_through_the_metrics():
    plot = recall()
    line = plot.figure.axes[0].get_lines()[0]
    curve = dict(zip(line.get_xdata().tolist(), line.get_ydata().tolist()))
    expected = summarise(some_ranks(20))
    for k in (1, 5, 10):
        assert curve[k] == pytest.approx(expected[f"R@{k}"])
    assert max(curve) == 100 and curve[100] == 100


def test_a_recall_curve_needs_neither_ranks_nor_intervals():
    line = recall(ranks=False, confidence=False).figure.axes[0].get_lines()[0]
    assert line.get_xdata().tolist() == [1, 5, 10, 50]
    assert line.get_ydata().tolist() == [summarise(some_ranks(20))[f"R@{k}"] for k in (1, 5, 10, 50)]


def test_the_histogram_counts_every_query_once_ties_too():
    ranks = np.array([1, 1.5, 2, 5, 5.5, 10, 11, 100])
    plot = plots.rank_histogram("k", "t", [("a", ranks)], gallery=100, order=["a"])
    (axes,) = plot.figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2–5", "6–10", "11–50", "51–100"]
    assert [patch.get_height() * 8 / 100 for patch in axes.patches] == pytest.approx([1, 3, 2, 1, 1])
    plot = plots.rank_histogram("k", "t", [("a", np.array([1.0, 2, 3]))], gallery=3, order=["a"])
    assert [label.get_text() for label in plot.figure.axes[0].get_xticklabels()] == ["1", "2–3"]


def test_bins_of_a_large_gallery_are_slanted_so_that_they_do_not_touch():
    def angles(gallery):
        plot = plots.rank_histogram("k", "t", [("a", np.array([1.0, gallery]))], gallery=gallery, order=["a"])
        return {label.get_rotation() for label in plot.figure.axes[0].get_xticklabels()}

    assert angles(250) == {0.0} and angles(5000) == {25.0}


def test_few_hubs_among_many_are_drawn_on_a_logarithmic_axis_that_says_so():
    def axes(counts):
        figure = plots.hubness("k", "t", [("a", counts)], neighbours=1, item="videos", queries=100, order=["a"]).figure
        return figure.axes[0]

    even, spiky = axes(np.ones(100, int)), axes(np.r_[100, np.zeros(99, int)])
    assert even.get_yscale() == "linear" and "log" not in even.get_ylabel()
    assert spiky.get_yscale() == "symlog" and spiky.get_ylabel().endswith("(log)")
    assert [label.get_text() for label in spiky.get_yticklabels()] == ["0", "1", "10", "100"]
    assert spiky.get_lines()[0].get_ydata().tolist() == [100, *[0] * 99]  # zeros are on it too


def test_a_gallery_of_one_and_a_single_epoch_can_be_drawn():
    one = np.array([1.0])
    plots.recall_curve("k", "t", [("a", summarise(one), one, None)], gallery=1, item="videos", order=["a"]).svg()
    plots.rank_histogram("k", "t", [("a", one)], gallery=1, order=["a"]).svg()
    plots.hubness("k", "t", [("a", np.array([1]))], neighbours=1, item="videos", queries=1, order=["a"]).svg()
    plots.training_curve("k", "t", [("a", [1], [2.0])], label="Mean loss", order=["a"]).svg()


@ALL
@pytest.mark.parametrize("count", [1, 7])
def test_a_legend_hides_nothing_however_many_runs_there_are(draw, count):
    figure = draw([f"a run with a long name {i}" for i in range(count)]).figure
    figure.draw_without_rendering()
    (axes,), (legend,) = figure.axes, figure.legends
    box = legend.get_window_extent()
    assert not box.overlaps(axes.get_window_extent()) and not box.overlaps(axes.yaxis.label.get_window_extent())
    assert axes.get_window_extent().height > 0.5 * plots.HEIGHT * figure.dpi
