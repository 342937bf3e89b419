"""All heads that fit a cache, trained over several seeds, judged alike, in one table.

leaderboard.json          the rows
seed=<n>,head=<name>/     the run of each training, with its result

S seeds, N queries.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glscl.cache.files import dump_json, write_atomically
from glscl.cache.store import Store
from glscl.common.errors import UsageError
from glscl.common.tables import Measured, Table, TableRow, amount
from glscl.common.versions import versions
from glscl.evaluate.confidence import confidence_95
from glscl.evaluate.evaluated_run import EvaluatedRun, not_judged, read_evaluated
from glscl.evaluate.evaluation import evaluate_run, validation_metrics, write_result
from glscl.evaluate.paired import paired_test
from glscl.evaluate.ranks import DIRECTIONS, TEXT_TO_VIDEO, VIDEO_TO_TEXT
from glscl.evaluate.settings import EvaluateSettings
from glscl.train_head.heads import HEAD_NAMES, build_head, head_class
from glscl.train_head.reports import Reporter
from glscl.train_head.sweeping.sweep import Outcome, sweep_points, train_sweep

BY_NAME_ALONE = ("tight_transf",)  # a transformer pass a pair: hours where the others take minutes
SHOWN = ((TEXT_TO_VIDEO, "R@1"), (TEXT_TO_VIDEO, "R@10"), (TEXT_TO_VIDEO, "MnR"), (VIDEO_TO_TEXT, "R@1"))


@dataclass(frozen=True, kw_only=True)
class LeaderboardRow:
    """A head's row.

    Attributes:
        head: its name.
        runs: a folder a seed.
        metrics: direction → metric → (mean over seeds, low, high), the interval of 95 % from a bootstrap that draws the same
            videos in all seeds.
        deviation: of R@1 text to video over seeds; None of one seed.
        p: of that R@1's difference from the first row's by chance; None of the first row.
        parameters: numbers that are learned.
        seconds: of training a seed, median.
        scoring: seconds of encoding and scoring the split, median.
    """

    head: str
    runs: Sequence[Path]
    metrics: Mapping[str, Mapping[str, tuple[float, float, float]]]
    deviation: float | None
    p: float | None = None
    parameters: int
    seconds: float
    scoring: float


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Rows, best R@1 text to video first; `left_out` says which heads are not there, and why."""

    split: str
    rows: Sequence[LeaderboardRow]
    left_out: Mapping[str, str]

    def table(self) -> Table:
        short = {TEXT_TO_VIDEO: "t→v", VIDEO_TO_TEXT: "v→t"}
        columns = [
            "head",
            *(f"{short[d]} {name}" for d, name in SHOWN),
            "± seeds",
            "p",
            "learned",
            "train s",
            "score s",
        ]
        rows = []
        for row in self.rows:
            cells = [Measured(*row.metrics[d][name]) for d, name in SHOWN]
            spread = None if row.deviation is None else f"{row.deviation:.1f}"
            p = None if row.p is None else f"{row.p:.3f}"
            costs = (f"{row.parameters:,}", f"{row.seconds:.1f}", f"{row.scoring:.2f}")
            rows.append(TableRow("", (row.head, *cells, spread, p, *costs)))
        seeds = len(self.rows[0].runs) if self.rows else 0
        notes = (
            f"Means over {amount(seeds, 'seed')}; intervals of 95 % draw videos; p tests R@1 text to video against the first row. "
            "Seconds are medians a seed on this machine: of training, of encoding and scoring the split.",
            f"The order is of the split {self.split} itself: a head that is chosen by it has been selected on it.",
            *(f"{head} is left out: {reason}." for head, reason in self.left_out.items()),
        )
        return Table(f"Heads on the split {self.split}", tuple(columns), tuple(rows), notes)

    def as_dict(self) -> dict[str, Any]:
        rows = [{**vars(row), "runs": [str(run) for run in row.runs]} for row in self.rows]
        return {"split": self.split, "rows": rows, "left_out": dict(self.left_out)}


def fitting_heads(store: Store, asked: Sequence[str] = ("all",)) -> tuple[list[str], dict[str, str]]:
    """The heads that can learn from a cache, and of the others the reason.

    Args:
        asked: names, or "all": every head of the package but `BY_NAME_ALONE`.

    Raises:
        UsageError: an unknown name, none left, or a head that is asked for by name and does not fit.
    """
    every = "all" in asked
    names = [*dict.fromkeys([*(HEAD_NAMES if every else ()), *(name for name in asked if name != "all")])]
    fits, left = [], {}
    for name in names:
        if name in BY_NAME_ALONE and name not in asked:
            left[name] = "it runs a transformer on every pair; name it to have it"
            continue
        reason = _misfit(name, store)
        if reason is None:
            fits.append(name)
        elif name in asked:
            raise UsageError(f"{name} does not fit {store.place}: {reason}")
        else:
            left[name] = reason
    if not fits:
        raise UsageError(f"no head fits {store.place}")
    return fits, left


def _misfit(name: str, store: Store) -> str | None:
    if head_class(name).needs_tokens and not store.has_tokens:
        return "it reads token features, which the cache has not"
    try:
        with torch.device("meta"):
            build_head(name, embed_dim=store.embed_dim)
    except UsageError as error:
        return error.message
    return None


def leaderboard(
    store: Store,
    out: Path,
    asked: Mapping[str, Any],
    *,
    heads: Sequence[str] = ("all",),
    seeds: int = 3,
    device: torch.device | str = "cpu",
    reporter: Reporter | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Leaderboard:
    """Train and judge all heads; what is in `out` already is not done again.

    Args:
        store: an open cache.
        out: folder of the runs.
        asked: settings of training that all share, such as `epochs`; see `glscl.train_head.settings.resolve`.
        heads: see `fitting_heads`.
        seeds: trainings a head, of seeds from 0.
        device: where to train and judge.
        reporter, say: hear how it goes.

    Raises:
        UsageError: see `fitting_heads` and `sweep_points`, or `out` was begun with other settings.
        Others: see `train_sweep` and `evaluate_run`.
    """
    fits, left = fitting_heads(store, heads)
    grid = {"seed": [str(seed) for seed in range(seeds)], "head": fits}  # a stopped one has every head alike
    points = sweep_points(
        asked, grid, dataset=store.recipe, embed_dim=store.embed_dim, device_type=torch.device(device).type
    )
    trained = train_sweep(
        store, out, points, device=device, validate=validation_metrics, reporter=reporter, announce=say
    )
    split = EvaluateSettings().split
    judged: dict[str, dict[int, tuple[Outcome, EvaluatedRun]]] = {}
    for outcome in sorted(trained, key=lambda each: [point.name for point in points].index(each.point)):
        head = outcome.changes["head"]
        if outcome.error is not None:
            left[head] = f"its training failed ({outcome.error})"
            continue
        if not_judged([outcome.run]) or _of_other_data(read_evaluated(outcome.run), store):
            say(f"judging {outcome.point}")
            write_result(outcome.run / "result.json", evaluate_run(store, outcome.run, device=device))
        judged.setdefault(head, {})[outcome.changes["seed"]] = outcome, read_evaluated(outcome.run)
    rows = [_row_of(head, [*of.values()]) for head, of in judged.items() if head not in left]
    rows.sort(key=lambda row: -row[0].metrics[TEXT_TO_VIDEO]["R@1"][0])
    judged_rows = [row if number == 0 else _against(row, runs, rows[0][1]) for number, (row, runs) in enumerate(rows)]
    board = Leaderboard(split=split, rows=judged_rows, left_out=left)
    about = {"cache": store.place, "cache_fingerprint": store.fingerprint, "list_hash": store.list_hash}
    write_atomically(out / "leaderboard.json", dump_json({**about, **board.as_dict(), "versions": versions()}))
    return board


def _of_other_data(run: EvaluatedRun, store: Store) -> bool:
    """Whether a result is of another version of the list, or its ranks are lost."""
    of = (run.result.get("cache_fingerprint"), run.result.get("list_hash"))
    return of != (store.fingerprint, store.list_hash) or run.ranks is None


def _row_of(head: str, found: Sequence[tuple[Outcome, EvaluatedRun]]) -> tuple[LeaderboardRow, list[EvaluatedRun]]:
    runs = [run for _, run in found]
    metrics: dict[str, dict[str, tuple[float, float, float]]] = {}
    for direction in DIRECTIONS:
        metrics[direction] = {
            name: (statistics.mean(run.result[direction][name] for run in runs), low, high)
            for name, (low, high) in confidence_95(*_together(runs, direction)).items()
        }
    firsts = [run.result[TEXT_TO_VIDEO]["R@1"] for run in runs]
    seconds = [run.result["seconds"] for run in runs]
    return (
        LeaderboardRow(
            head=head,
            runs=[outcome.run for outcome, _ in found],
            metrics=metrics,
            deviation=statistics.stdev(firsts) if len(firsts) > 1 else None,
            parameters=int((runs[0].run or {}).get("parameters", 0)),
            seconds=statistics.median(outcome.seconds for outcome, _ in found),
            scoring=statistics.median(spent["encode"] + spent["score"] for spent in seconds),
        ),
        runs,
    )


def _together(runs: Sequence[EvaluatedRun], direction: str) -> tuple[np.ndarray, np.ndarray]:
    """(S·N,) ranks of all seeds, and the video of each: drawn, or exchanged, in all seeds alike."""
    ranks = [run.ranks[direction] for run in runs if run.ranks is not None]
    cluster = runs[0].clusters(direction)
    cluster = np.arange(len(ranks[0])) if cluster is None else cluster
    return np.concatenate(ranks), np.tile(cluster, len(ranks))


def _against(row: LeaderboardRow, runs: list[EvaluatedRun], first: list[EvaluatedRun]) -> LeaderboardRow:
    ranks, cluster = _together(runs, TEXT_TO_VIDEO)
    leaders, _ = _together(first, TEXT_TO_VIDEO)
    if len(ranks) != len(leaders):
        return row
    return LeaderboardRow(**{**vars(row), "p": paired_test(leaders, ranks, cluster)["R@1"].p})
