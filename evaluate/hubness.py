"""Hubness normalisation: lower the gallery items that answer too many queries.

Q queries, G gallery items, N queries of a bank.

Every function maps `similarity` (Q, G), queries on rows, to new scores (Q, G). Only the order along a row has a
meaning: one direction of retrieval is one call, with that direction's own bank, and video to text is a call on the
transpose. `normalised_ranks` does both calls. A bank holds the scores of other queries (training captions, say) with
the same gallery: `bank` (N, G). What sees the other test queries is called transductive: its numbers are not those of
a query that comes alone.

Sums of exponentials are taken in logarithms and in float64, so no β overflows. `log=True` returns the logarithm of the
score, which orders a row without any loss; `log=False` returns the score divided by its row's maximum, where entries
beyond e^-745 of the best become 0. All results are float64, of the kind of `similarity`: array or tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glscl.common.errors import InputError, UsageError
from glscl.evaluate.ranks import TEXT_TO_VIDEO, as_scores, require_finite, retrieval_ranks


def qb_norm(similarity: Any, bank: Any, *, k: int = 1, beta: float = 20.0, theta: int = 1, log: bool = False) -> Any:
    """QB-Norm, the dynamic inverted softmax (Bogolin et al. 2022, equation 5).

    Hubs are the gallery items that are among the top `k` of at least `theta` bank rows. The row of a query whose best
    item is a hub becomes `exp(βS_qg) / Σ_n exp(βB_ng)`, up to a factor a row; other rows stay as they are. Items that
    tie for the last place of a top k, or for the best, all count.

    The paper takes k=1, β=20, θ=1, the defaults. DiCoSA and GLSCL take β=70 (ActivityNet 50) and θ=3 for text to video,
    5 for video to text: `NORMALISATIONS["qb-norm"].options`.

    Raises:
        InputError: shapes that do not fit.
        NonFiniteError: NaN or infinity.
    """
    return OnlineQBNorm(bank, k=k, beta=beta, theta=theta)(similarity, log=log)


def inverted_softmax(similarity: Any, bank: Any, *, beta: float = 20.0, log: bool = False) -> Any:
    """Inverted softmax (Smith et al. 2017): `exp(βS_qg) / Σ_n exp(βB_ng)` for every row, up to a factor a row."""
    _at_least(0.0, beta=beta)
    scores, bank = _scores(similarity), _bank(bank, similarity)
    return _finish(beta * scores - torch.logsumexp(beta * bank, 0), similarity, log)


def dual_softmax(similarity: Any, *, beta: float = 100.0) -> Any:
    """DSL at test time (Cheng et al. 2021, CAMoE): `S · softmax over queries of βS`. Transductive."""
    _at_least(0.0, beta=beta)
    scores = _scores(similarity)
    return _like(scores * torch.softmax(beta * scores, 0), similarity)


def csls(similarity: Any, bank: Any = None, *, k: int = 10) -> Any:
    """Cross-domain similarity local scaling (Conneau et al. 2018): `2 S_qg − r_q − r_g`.

    `r_q` is the mean of the query's `k` best gallery items, `r_g` the mean of the item's `k` best queries: those of the
    bank, or without one the test queries themselves (transductive). All are taken where there are fewer than `k`.
    """
    _at_least(1, k=k)
    scores = _scores(similarity)
    queries = scores if bank is None else _bank(bank, similarity)
    return _like(2 * scores - _mean_of_best(scores, k, 1)[:, None] - _mean_of_best(queries, k, 0), similarity)


def nnn(similarity: Any, bank: Any, *, k: int = 128, alpha: float = 0.75) -> Any:
    """Nearest neighbour normalisation (Chowdhury et al. 2024): `S_qg − α · mean of the k largest of B_:g`.

    One bias an item, so an index can hold it. The whole column is taken where the bank has fewer than `k` rows.
    """
    return OnlineNNN(bank, k=k, alpha=alpha)(similarity)


def dual_inverted_softmax(
    similarity: Any,
    query_bank: Any,
    gallery_bank: Any,
    *,
    beta1: float = 1 / 1.99,
    beta2: float = 3.0,
    log: bool = False,
) -> Any:
    """DualIS of DBNorm (Wang et al. 2023): two inverted softmaxes multiplied.

    `exp(β1 S_qg) / Σ_n exp(β1 B_ng) · exp(β2 S_qg) / Σ_m exp(β2 A_mg)`, up to a factor a row.

    Args:
        query_bank: B (N, G), bank queries with the gallery.
        gallery_bank: A (M, G), bank items of the gallery's own kind with the gallery: training videos with test videos.
    """
    _at_least(0.0, beta1=beta1, beta2=beta2)
    scores, queries, items = _scores(similarity), _bank(query_bank, similarity), _bank(gallery_bank, similarity)
    bias = torch.logsumexp(beta1 * queries, 0) + torch.logsumexp(beta2 * items, 0)  # (G,)
    return _finish((beta1 + beta2) * scores - bias, similarity, log)


def sinkhorn(similarity: Any, bank: Any = None, *, beta: float = 100.0, iterations: int = 4, log: bool = False) -> Any:
    """Sinkhorn scaling (Yakovlev et al. 2023): `v_g exp(βS_qg)`, up to a factor a row.

    `v` makes the columns of `diag(u) exp(βB) diag(v)` sum to 1 after `iterations` times scaling its rows to sum 1, then
    its columns. Rows never scaled would give the inverted softmax. Without a bank B is S itself (transductive).
    """
    _at_least(1, iterations=iterations)
    _at_least(0.0, beta=beta)
    scores = beta * _scores(similarity)
    kernel = scores if bank is None else beta * _bank(bank, similarity)  # (N, G)
    columns = kernel.new_zeros(kernel.shape[1])
    for _ in range(iterations):
        rows = -torch.logsumexp(kernel + columns, 1)  # (N,)
        columns = -torch.logsumexp(kernel + rows[:, None], 0)  # (G,)
    return _finish(scores + columns, similarity, log)


class OnlineQBNorm:
    """QB-Norm fitted on a bank, for queries as they come. See `qb_norm`.

    Attributes:
        hubs: (G,) bool.
        log_sums: (G,) float64, `log Σ_n exp(βB_ng)`.
    """

    def __init__(self, bank: Any, *, k: int = 1, beta: float = 20.0, theta: int = 1) -> None:
        _at_least(1, k=k, theta=theta)
        _at_least(0.0, beta=beta)
        scores = _scores(bank, what="bank")
        last_of_top = scores.topk(min(k, scores.shape[1]), dim=1).values[:, -1:]
        self.beta = beta
        self.hubs = (scores >= last_of_top).sum(0) >= theta
        self.log_sums = torch.logsumexp(beta * scores, 0)

    def __call__(self, similarity: Any, *, log: bool = False) -> Any:
        """(G,) or (Q, G) scores of one query or several with the bank's gallery -> the same shape, normalised."""
        scores = _scores(_rows(similarity), columns=len(self.hubs))
        hubs, log_sums = self.hubs.to(scores.device), self.log_sums.to(scores.device)
        asks_hub = ((scores == scores.amax(1, keepdim=True)) & hubs).any(1)
        scores[asks_hub] = _scaled(self.beta * scores[asks_hub] - log_sums, log)
        return _like(scores, similarity)


class OnlineNNN:
    """NNN fitted on a bank, for queries as they come. See `nnn`.

    Attributes:
        bias: (G,) float64, what is subtracted from every score of an item.
    """

    def __init__(self, bank: Any, *, k: int = 128, alpha: float = 0.75) -> None:
        _at_least(1, k=k)
        self.bias = alpha * _mean_of_best(_scores(bank, what="bank"), k, 0)

    def __call__(self, similarity: Any) -> Any:
        """(G,) or (Q, G) scores of one query or several with the bank's gallery -> the same shape, normalised."""
        scores = _scores(_rows(similarity), columns=len(self.bias))
        return _like(scores - self.bias.to(scores.device), similarity)


def online(name: str, bank: Any, *, direction: str) -> Callable[[Any], Any]:
    """What a normalisation of `ONLINE` makes of one query (G,) or several (Q, G), fitted on a bank once.

    Options are those of `NORMALISATIONS`, so a query gets what it gets in an evaluation, whatever comes beside it.

    Args:
        name: one of `ONLINE`.
        bank: (N, G) scores of the bank's queries with the gallery.
        direction: "text_to_video" or "video_to_text".

    Raises:
        UsageError: the normalisation sees more than a bank and one query.
    """
    if name not in ONLINE:
        raise UsageError(f"`normalise` is {name!r}; one query at a time can be normalised by {', '.join(ONLINE)}")
    options = dict(NORMALISATIONS[name].options[direction])
    if name == "nnn":
        return OnlineNNN(bank, **options)
    log = options.pop("log")
    return partial(OnlineQBNorm(bank, **options), log=log)


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """An entry of `NORMALISATIONS`.

    Attributes:
        function: similarity, then the banks it needs, then options -> scores.
        banks: keyword names of the banks it needs.
        transductive: whether a query's result depends on the other test queries.
        options: direction -> the options it is run with.
        summary: one line for help and reports.
    """

    function: Callable[..., Any]
    banks: tuple[str, ...] = ("bank",)
    transductive: bool = False
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    summary: str

    @property
    def needs_bank(self) -> bool:
        return bool(self.banks)

    def apply(
        self,
        similarity: Any,
        *,
        direction: str,
        banks: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """The normalised scores of one direction, in the form that orders rows exactly.

        Args:
            similarity: (Q, G), queries of that direction on rows.
            direction: "text_to_video" or "video_to_text".
            banks: what `self.banks` names; others are ignored.
            options: those that are not as in `self.options`.

        Raises:
            UsageError: a bank is missing.
        """
        missing = [name for name in self.banks if (banks or {}).get(name) is None]
        if missing:
            raise UsageError(f"{self.function.__name__} needs {' and '.join(missing)}: {self.summary}")
        given = {name: (banks or {})[name] for name in self.banks}
        return self.function(similarity, **given, **{**self.options.get(direction, {}), **(options or {})})


def _both(**options: Any) -> dict[str, dict[str, Any]]:
    return {"text_to_video": options, "video_to_text": options}


NORMALISATIONS: dict[str, Normalisation] = {
    "qb-norm": Normalisation(
        function=qb_norm,
        options={
            "text_to_video": {"k": 1, "beta": 70.0, "theta": 3, "log": True},
            "video_to_text": {"k": 1, "beta": 70.0, "theta": 5, "log": True},
        },
        summary="querybank normalisation with the thresholds of DiCoSA and GLSCL; a bank of training queries",
    ),
    "inverted-softmax": Normalisation(
        function=inverted_softmax,
        options=_both(beta=20.0, log=True),
        summary="every row divided by the bank's sum of exponentials; a bank of training queries",
    ),
    "dsl": Normalisation(
        function=dual_softmax,
        banks=(),
        transductive=True,
        options=_both(beta=100.0),
        summary="dual softmax over all test queries at once",
    ),
    "csls": Normalisation(
        function=csls,
        banks=(),
        transductive=True,
        options=_both(k=10),
        summary="local scaling by the 10 nearest on each side, over all test queries at once",
    ),
    "nnn": Normalisation(
        function=nnn,
        options=_both(k=128, alpha=0.75),
        summary="one bias a gallery item from its 128 nearest of a bank of training queries",
    ),
    "dual-is": Normalisation(
        function=dual_inverted_softmax,
        banks=("query_bank", "gallery_bank"),
        options=_both(beta1=1 / 1.99, beta2=3.0, log=True),
        summary="inverted softmax over a bank of training queries and one of training items of the gallery's kind",
    ),
    "sinkhorn": Normalisation(
        function=sinkhorn,
        options=_both(beta=100.0, iterations=4, log=True),
        summary="4 rounds of scaling rows and columns of a bank of training queries",
    ),
}


ONLINE = ("nnn", "qb-norm")  # those of one query at a time


def known_normalisations(names: Sequence[str]) -> Sequence[str]:
    """`names` again; UsageError for one that is not there."""
    for name in names:
        if name not in NORMALISATIONS:
            raise UsageError(f"there is no normalisation {name!r}; choose from {', '.join(NORMALISATIONS)}")
    return names


def normalised_ranks(
    name: str,
    similarity: Any,
    video_of_text: Any = None,
    *,
    text_to_video: Mapping[str, Any] | None = None,
    video_to_text: Mapping[str, Any] | None = None,
    conventions: Sequence[str] = ("group", "caption"),
    options: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Ranks of both directions after a normalisation, each direction with its own bank.

    Args:
        name: a key of `NORMALISATIONS`.
        similarity: (T, V), texts on rows.
        video_of_text: as in `glscl.evaluate.ranks.retrieval_ranks`.
        text_to_video: banks for that direction: `bank` (or `query_bank`) holds texts by the V videos, `gallery_bank`
            videos by the V videos.
        video_to_text: banks for that direction: `bank` (or `query_bank`) holds videos by the T texts, `gallery_bank`
            texts by the T texts.
        conventions: for video to text; none leaves that direction out, and its bank is not asked for.
        options: those that are not as in `NORMALISATIONS`.

    Returns:
        As `glscl.evaluate.ranks.retrieval_ranks`.
    """
    if name not in NORMALISATIONS:
        raise UsageError(f"unknown normalisation {name!r}; there are {', '.join(NORMALISATIONS)}")
    entry, scores = NORMALISATIONS[name], as_scores(similarity)
    rows = entry.apply(scores, direction="text_to_video", banks=text_to_video, options=options)
    ranks = retrieval_ranks(rows, video_of_text, conventions=())
    if conventions:
        columns = entry.apply(scores.T, direction="video_to_text", banks=video_to_text, options=options).T
        both = retrieval_ranks(columns, video_of_text, conventions=conventions)
        ranks.update((direction, values) for direction, values in both.items() if direction != TEXT_TO_VIDEO)
    return ranks


def _scores(similarity: Any, *, what: str = "similarity", columns: int | None = None) -> Tensor:
    """A float64 copy, checked."""
    scores = as_scores(similarity, what=what)
    if not scores.numel():
        raise InputError(f"{what} is empty: shape {tuple(scores.shape)}")
    if columns is not None and scores.shape[1] != columns:
        raise InputError(f"{what} has {scores.shape[1]} gallery columns, the bank has {columns}")
    return require_finite(
        scores.to(torch.float64, copy=True), lambda row: f"{what} row {row}", lambda column: f"gallery item {column}"
    )


def _bank(bank: Any, similarity: Any) -> Tensor:
    """A bank as float64 beside `similarity`, whose gallery it must share."""
    scores, columns = _scores(bank, what="bank"), as_scores(similarity).shape[1]
    if scores.shape[1] != columns:
        raise InputError(f"similarity has {columns} gallery columns, the bank has {scores.shape[1]}")
    return scores.to(as_scores(similarity).device)


def _rows(similarity: Any) -> Any:
    """One query (G,) as a matrix of one row."""
    similarity = similarity if isinstance(similarity, Tensor) else np.asarray(similarity)
    return similarity[None] if similarity.ndim == 1 else similarity


def _scaled(logarithms: Tensor, log: bool) -> Tensor:
    return logarithms if log else torch.exp(logarithms - logarithms.amax(1, keepdim=True))


def _finish(logarithms: Tensor, similarity: Any, log: bool) -> Any:
    return _like(_scaled(logarithms, log), similarity)


def _like(scores: Tensor, similarity: Any) -> Any:
    """The result as what was given: a tensor for a tensor, else an array; one row for one row."""
    if isinstance(similarity, Tensor):
        return scores.reshape(similarity.shape)
    return scores.numpy().reshape(np.shape(similarity))


def _mean_of_best(scores: Tensor, k: int, dim: int) -> Tensor:
    return scores.topk(min(k, scores.shape[dim]), dim=dim).values.mean(dim)


def _at_least(smallest: float, **values: float) -> None:
    """Whole numbers must reach `smallest`; a β, given with 0.0, must be above it."""
    for name, value in values.items():
        if not (value > 0 if smallest == 0 else value >= smallest):
            bound = "above 0" if smallest == 0 else f"at least {smallest}"
            raise UsageError(f"{name} must be {bound}, found {value}")
