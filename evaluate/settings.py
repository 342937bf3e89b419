"""What an evaluation can be told: declared once, for the command line, for a settings file and for Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glscl.common.errors import UsageError
from glscl.common.settings import Settings, cluster_address, setting

ZERO_SHOT_HEADS = (
    "mean_pool",
    "query_scoring",
    "best_frames",
    "projection",
)  # those whose start is the backbone's own score
WEIGHTS = ("best", "last")
COMBINATIONS = ("mean", "scaled")


def matrix_file(path: Path | str) -> Path:
    """A file for a matrix. Raises UsageError for one that numpy would give another name."""
    if Path(path).suffix != ".npy":
        raise UsageError(f"`save_similarity` is {str(path)!r}; expected the name of an .npy file")
    return Path(path)


@dataclass(frozen=True, kw_only=True, repr=False)
class EvaluateSettings(Settings):
    """Settings of an evaluation of a run, of several runs as one, or of a head that needs no training."""

    combine: str = setting(
        "mean",
        "How several runs' similarities are averaged: as they are, or each scaled by its temperature.",
        group="What",
        choices=COMBINATIONS,
        default_from="mean",
    )
    head: str = setting(
        "mean_pool",
        f"Head to judge untrained, one of {', '.join(ZERO_SHOT_HEADS)}; or a head of one's own that a run has, "
        "package.module:Class, to let it run.",
        group="What",
        metavar="NAME",
        default_from="mean_pool",
    )
    weights: str = setting("best", "Which epoch of the run.", group="What", choices=WEIGHTS, default_from="best")
    split: str = setting("test", "Split to judge on.", group="Data")
    max_frames: int | None = setting(
        None, "Frames of a video to look at.", min=1, option=False, default_from="as the run was trained"
    )
    frame_position: Literal["uniform", "first", "last"] | None = setting(
        None, "Which frames where there are more.", option=False, default_from="as the run was trained"
    )
    normalise: tuple[str, ...] = setting((), "Hubness normalisations, by name.", group="Metrics", option=False)
    qb_norm_beta: float | None = setting(
        None,
        "β of QB-Norm.",
        group="Metrics",
        min=0,
        option=False,
        default_from="the recipe's: 50 on ActivityNet, else 70",
    )
    best_frames: int | None = setting(
        None,
        "Also judge with the mean cosine of the K frames of a video that fit a caption best added to every score; untrained.",
        group="Metrics",
        metavar="K",
        min=1,
    )
    best_frames_weight: float = setting(1.0, "What that mean is multiplied by before.", group="Metrics", min=0)
    confidence: bool = setting(True, "Whether metrics have bootstrap intervals.", group="Metrics", option=False)
    seed: int = setting(0, "Of the bootstrap.", min=0, option=False)
    engine: str = setting(
        "local",
        "`ray`: scored by parts on the machines of a Ray cluster, for galleries that one does not hold; ranks are the same.",
        group="Speed",
        choices=("local", "ray"),
        affects_result=False,
    )
    address: str = cluster_address()
    qrels: Path | None = setting(
        None,
        "Also judge with several right videos a caption: TREC qrels, a .csv or .tsv with caption, video and grade, or FIRE's .json.",
        group="Metrics",
        metavar="FILE",
    )
    trec_run: Path | None = setting(
        None, "Write the rankings to this file, as trec_eval reads them.", group="Output", metavar="PATH"
    )
    save_similarity: Path | None = setting(
        None,
        "Write the matrix, texts on rows, to this .npy file, and its ids to a .json file beside it.",
        group="Output",
        metavar="PATH",
        parse=matrix_file,
    )
