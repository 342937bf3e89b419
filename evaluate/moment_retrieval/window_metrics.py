"""How well moments that were found fit those that are right: R1@IoU, mAP over IoU, mean IoU.

n moments found, best first; m right ones; a annotators of one right moment; all in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RECALLS = (0.5, 0.7)
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))  # of mAP, as in QVHighlights
MEASURES = (*(f"R1@{at}" for at in RECALLS), "mAP", "mAP@0.5", "mAP@0.75", "mIoU")


def overlap(found: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n, 2) and (a, 2) windows → (n, a) intersection over union, 0 where both are empty."""
    start, end = (pick(found[:, None, i], right[None, :, i]) for i, pick in ((0, np.maximum), (1, np.minimum)))
    shared = np.clip(end - start, 0, None)
    either = np.ptp(found, axis=1)[:, None] + np.ptp(right, axis=1)[None] - shared
    return np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)


def agreement(found: np.ndarray, moments: Sequence[np.ndarray]) -> np.ndarray:
    """(n, m) IoU of each window found (n, 2) with each right moment (a, 2).

    Of several annotators (DiDeMo has four) the second best counts: what is found must overlap with two of them so much
    (Escorcia et al. 2019, arXiv 1907.12763).
    """
    columns = [np.sort(overlap(found, windows), axis=1)[:, -min(2, len(windows))] for windows in moments]
    return np.stack(columns, axis=1)


def average_precision(iou: np.ndarray, threshold: float) -> float:
    """Area under the interpolated precision over recall, from 0 to 1, of n moments in order against m right ones.

    Each takes of the right ones that it overlaps with by `threshold` the best that no earlier one took, and counts as wrong
    where there is none.
    """
    n, m = iou.shape
    taken, hits = np.zeros(m, bool), np.zeros(n, bool)
    for row in range(n):
        free = np.where(taken, -1.0, iou[row])
        best = int(free.argmax())
        if free[best] >= threshold:
            taken[best] = hits[row] = True
    precision = np.cumsum(hits) / np.arange(1, n + 1)
    at_least = np.maximum.accumulate(precision[::-1])[::-1]  # the best at this recall or above
    return float(at_least[hits].sum() / m)


def window_metrics(found: Sequence[np.ndarray], right: Sequence[Sequence[np.ndarray]]) -> dict[str, float]:
    """`MEASURES` in percent, means over captions, and `queries`, how many captions.

    `R1@θ`: whether the first moment found overlaps with a right one by θ at least. `mAP`: mean over the ten `THRESHOLDS`.
    `mIoU`: overlap of the first moment found with the right one that it fits best.

    Args:
        found: for each caption (n, 2) windows, best first, n ≥ 1.
        right: for each caption its right moments, each (a, 2).
    """
    sums = np.zeros(len(MEASURES))
    for windows, moments in zip(found, right, strict=True):
        iou = agreement(windows, moments)
        first = float(iou[0].max())
        precisions = {at: average_precision(iou, at) for at in THRESHOLDS}
        mean = sum(precisions.values()) / len(precisions)
        sums += [*(first >= at for at in RECALLS), mean, precisions[0.5], precisions[0.75], first]
    mean = 100 * sums / max(len(found), 1)
    return {**dict(zip(MEASURES, mean.tolist())), "queries": len(found)}
