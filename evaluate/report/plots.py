"""Figures of a report: recall curves, rank histograms, hubness, training. Each is drawn once, for a page and for paper.

In a page a figure is inline SVG whose colours and font are the page's own, so it follows its light and dark theme; as a
file it is PNG or PDF on white.
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from rich.cells import cell_len, set_cell_size

from glscl.cache.files import write_atomically
from glscl.common.tables import one_line
from glscl.evaluate.metrics import CUTOFFS

# Ink and series of the light theme, each with the variable of the page it stands for. No two are alike, so a colour in
# the SVG says which variable it becomes.
INK, MUTED, GRID = "#1c2127", "#626b76", "#dfe3e8"
SERIES = ("#0b6bb5", "#c8500a", "#0a7d57", "#9a3b8f", "#8a6a00", "#55606e")
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)
}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (7, 1.5, 1.5, 1.5)), (0, (2.5, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
WIDTH, HEIGHT = 4.1, 2.9  # inches: fits a phone without shrinking the letters
LEGEND_ROW = 0.15

_STYLE: dict[Any, Any] = {  # matplotlib's stubs know no name but as a Literal
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "glscl",
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Plot:
    """A figure with what it says in words.

    Attributes:
        key: name of its files, unique in a report.
        title: what is shown.
        summary: one sentence for people who cannot see it.
        figure: the drawing.
    """

    key: str
    title: str
    summary: str
    figure: Figure

    def svg(self) -> str:
        """Inline SVG in the page's colours, without any address outside the page."""
        buffer = io.StringIO()
        self._save(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return _for_page(buffer.getvalue(), self.key, self.title, self.summary)

    def write(self, folder: Path) -> list[Path]:
        """Write `<key>.png` and `<key>.pdf`, the same bytes for the same data. Raises StorageError."""
        paths = []
        for suffix, options in (
            ("png", {"dpi": 200, "metadata": {"Title": self.title, "Software": None}}),
            ("pdf", {"metadata": {"Title": self.title, "CreationDate": None, "Creator": None, "Producer": None}}),
        ):
            bytes_ = io.BytesIO()
            self._save(bytes_, format=suffix, facecolor="white", **options)
            paths.append(folder / f"{self.key}.{suffix}")
            write_atomically(paths[-1], bytes_.getvalue())
        return paths

    def _save(self, target: Any, **options: Any) -> None:
        with _style():
            self.figure.savefig(target, **options)


def recall_curve(
    key: str,
    title: str,
    runs: Sequence[tuple[str, Mapping[str, Any], np.ndarray | None, Mapping[str, Sequence[float]] | None]],
    *,
    gallery: int,
    item: str,
    order: Sequence[str],
) -> Plot:
    """Recall@K over K, with 95 % intervals at the usual cutoffs and the line of chance.

    Args:
        runs: name, metrics, ranks (Q,) or None, and confidence_95 of the direction or None; without ranks the curve
            goes through the metrics' cutoffs alone.
        gallery: how many items compete.
        item: what they are, for the axis.
        order: names of all runs of the page, which fix the colours.
    """
    with _axes(key) as (figure, axes):
        steps = np.unique(np.geomspace(1, max(gallery, 2), 80).round().astype(int))
        for i, (name, metrics, ranks, confidence) in enumerate(runs):
            cutoffs = [k for k in CUTOFFS if k <= gallery]
            at = np.array([metrics[f"R@{k}"] for k in cutoffs])
            colour, dash, marker = _look(name, order)
            if ranks is not None:
                recall = np.searchsorted(np.sort(ranks), steps, side="right") / len(ranks) * 100
                axes.plot(steps, recall, color=colour, linestyle=dash, label=_label(name))
            else:
                axes.plot(cutoffs, at, color=colour, linestyle=dash, label=_label(name))
            below_above = None
            if confidence:
                edges = np.array([confidence[f"R@{k}"] for k in cutoffs])  # (K, 2)
                below_above = np.abs(edges - at[:, None]).T
            shift = 1.05 ** (i - (len(runs) - 1) / 2)  # side by side, so that intervals do not cover each other
            axes.errorbar(
                np.array(cutoffs) * shift,
                at,
                below_above,
                fmt=marker,
                color=colour,
                markersize=3.5,
                elinewidth=1,
                capsize=0,
            )
        axes.plot(steps, steps / gallery * 100, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.2, label="chance")
        axes.set_xscale("log")
        axes.set_xlim(0.8, max(gallery, 2) * 1.05)
        axes.set_ylim(0, 103)  # a marker at 100 is seen whole
        _count_axis(axes.xaxis, [k for k in (1, 5, 10, 50, 100, 500, 1000, 5000, 10**4, 10**5, 10**6) if k <= gallery])
        axes.set_xlabel(f"K of {gallery:,} {item}, log scale")
        axes.set_ylabel("Recall@K (% of queries)")
        _legend(figure, axes)
    best = max(runs, key=lambda run: run[1]["R@1"])
    summary = f"{title}. At K = 1 the best is {best[0]} with {best[1]['R@1']:.1f} %, chance is {100 / gallery:.2g} %."
    return Plot(key, title, summary, figure)


def rank_histogram(
    key: str, title: str, runs: Sequence[tuple[str, np.ndarray]], *, gallery: int, order: Sequence[str]
) -> Plot:
    """Share of queries whose target ranks 1, 2-5, 6-10, …

    Args:
        runs: name and ranks (Q,).
        gallery: how many items compete, the last rank there can be.
        order: as in `recall_curve`.
    """
    edges = [0, *(k for k in (1, 5, 10, 50, 100, 500, 1000, 5000, 10**4, 10**5, 10**6) if k < gallery), gallery]
    labels = [f"{low + 1:,}" if high == low + 1 else f"{low + 1:,}–{high:,}" for low, high in itertools.pairwise(edges)]
    with _axes(key) as (figure, axes):
        width = 0.8 / len(runs)
        for i, (name, ranks) in enumerate(runs):
            share = np.diff(np.searchsorted(np.sort(ranks), edges, side="right")) / len(ranks) * 100
            where = np.arange(len(labels)) + (i - (len(runs) - 1) / 2) * width
            axes.bar(where, share, width * 0.92, color=_look(name, order)[0], label=_label(name))
        turned = sum(map(len, labels)) > 36  # beyond, they would touch
        slant = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"} if turned else {}
        axes.set_xticks(range(len(labels)), labels, **slant)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel(f"Rank of the right answer among {gallery:,}")
        axes.set_ylabel("Queries (%)")
        axes.set_ylim(0, None)
        _legend(figure, axes)
    shares = [f"{name} has {np.mean(ranks <= 1) * 100:.1f} % at rank 1" for name, ranks in runs]
    return Plot(key, title, f"{title}. {'; '.join(shares)}.", figure)


def hubness(
    key: str,
    title: str,
    runs: Sequence[tuple[str, np.ndarray]],
    *,
    neighbours: int,
    item: str,
    queries: int,
    order: Sequence[str],
) -> Plot:
    """How often each gallery item is among the nearest neighbours of a query, most frequent first.

    Args:
        runs: name and occurrences (G,).
        neighbours: k.
        item: what the gallery holds. queries: how many ask. order: as in `recall_curve`.
    """
    with _axes(key) as (figure, axes):
        for name, counts in runs:
            colour, dash, _ = _look(name, order)
            ordered = np.sort(counts)[::-1]
            where, values = _thinned(ordered)
            axes.plot(where, values, color=colour, linestyle=dash, label=_label(name), drawstyle="steps-mid")
        mean = neighbours * queries / max(1, len(runs[0][1]))
        axes.axhline(mean, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.2, label="all alike")
        axes.set_xlim(0, 100)
        most = max(int(counts.max()) for _, counts in runs)
        logarithmic = most > 20 * max(1.0, mean)  # a few hubs would press all others to the ground
        if logarithmic:
            axes.set_yscale("symlog", linthresh=1, linscale=0.5)
            axes.set_ylim(0, most * 1.3)
            _count_axis(axes.yaxis, [0, *(count for count in (1, 10, 100, 1000, 10**4, 10**5, 10**6) if count <= most)])
        else:
            axes.set_ylim(0, None)
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.set_xlabel(f"{item.capitalize()}, most often found first (%)")
        axes.set_ylabel(f"Times in the top {neighbours}{' (log)' if logarithmic else ''}")
        _legend(figure, axes)
    most = "; ".join(f"{name}: the most frequent is found {int(counts.max()):,} times" for name, counts in runs)
    return Plot(key, title, f"{title}. {most}; {mean:.3g} times if all were alike.", figure)


def training_curve(
    key: str,
    title: str,
    runs: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    label: str,
    order: Sequence[str],
) -> Plot:
    """A quantity over epochs.

    Args:
        runs: name, epochs, values.
        label: of the y axis, with its unit. order: as in `recall_curve`.
    """
    with _axes(key) as (figure, axes):
        for name, epochs, values in runs:
            colour, dash, marker = _look(name, order)
            few = len(epochs) <= 30
            axes.plot(
                epochs,
                values,
                color=colour,
                linestyle=dash,
                marker=marker if few else None,
                markersize=3.5,
                label=_label(name),
            )
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        last = max(max(epochs) for _, epochs, _ in runs)
        axes.set_xlim(min(min(epochs) for _, epochs, _ in runs) - 0.3, last + 0.3)
        axes.set_xlabel("Epoch")
        axes.set_ylabel(label)
        _legend(figure, axes)
    ends = "; ".join(f"{name} ends at {values[-1]:.3g}" for name, _, values in runs)
    return Plot(key, title, f"{title}. {ends}.", figure)


# ---- drawing ---------------------------------------------------------------------------------------------------------


@contextmanager
def _style() -> Iterator[None]:
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a run's name in a script the font lacks
        yield


@contextmanager
def _axes(key: str) -> Iterator[tuple[Figure, Axes]]:
    with _style():
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        figure.set_gid(key)
        yield figure, figure.add_subplot()


def _look(name: str, order: Sequence[str]) -> tuple[str, Any, str]:
    """Colour, line style and marker of a run: the same in every figure, and told apart without colour too."""
    i = list(order).index(name)
    return SERIES[i % len(SERIES)], _DASHES[(i + i // len(SERIES)) % len(_DASHES)], _MARKERS[i % len(_MARKERS)]


def _label(name: str, width: int = 28) -> str:
    """A name for a legend: not too long, and not beginning with what matplotlib takes for "no entry"."""
    name = one_line(name) or " "
    name = name if cell_len(name) <= width else f"{set_cell_size(name, width - 1).rstrip()}…"
    return f" {name}" if name.startswith("_") else name


def _legend(figure: Figure, axes: Axes) -> None:
    """A legend above the axes, where it hides nothing; many rows make the figure higher, not the axes lower."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(cell_len, labels))
    columns = 4 if longest <= 8 else 3 if longest <= 12 else 2 if longest <= 20 else 1
    figure.set_figheight(HEIGHT + LEGEND_ROW * max(0, -(-len(labels) // columns) - 2))
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=min(columns, len(labels)),
        handlelength=2.2,
        columnspacing=1.2,
        borderpad=0.1,
        labelspacing=0.3,
    )


def _count_axis(axis: Any, ticks: Sequence[int]) -> None:
    axis.set_major_locator(NullLocator())
    axis.set_ticks(list(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _thinned(ordered: np.ndarray, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """At most `points` of a falling line, with the share of items (%) at which each stands."""
    chosen = np.unique(np.linspace(0, len(ordered) - 1, min(points, len(ordered))).round().astype(int))
    return (chosen + 0.5) / len(ordered) * 100, ordered[chosen]


# ---- from a drawing to a part of a page ------------------------------------------------------------------------------

_ID = re.compile(r'\s+id="([^"]*)"')
_REFERENCE = re.compile(r'(?:url\(#|href="#)([^")]*)')


def _for_page(svg: str, key: str, title: str, summary: str) -> str:
    """Strip what only a file needs, make ids unique to the figure, and give colours and font to the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    svg = svg.replace("xlink:href=", "href=")
    used = set(_REFERENCE.findall(svg))
    svg = _ID.sub(lambda found: f' id="{key}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{key}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S).replace("font-family: 'DejaVu Sans'; ", "")
    box = re.search(r'viewBox="([^"]*)"', svg)
    name = escape(title, {'"': "&quot;"})
    opening = (
        f'<svg class="plot" viewBox="{box[1] if box else ""}" role="img" aria-labelledby="{key}-title {key}-desc">'
        f'<title id="{key}-title">{name}</title><desc id="{key}-desc">{escape(summary)}</desc>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1).strip()
