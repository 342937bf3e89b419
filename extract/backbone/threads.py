"""Pieces of a batch on threads that do not wait for each other.

torch's own threads share every operation of a network and wait, spinning, at the end of each. Where decoding processes want
the same cores, one of them is late at every such end. Threads that share nothing but the list of pieces lose none of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def map_pieces(work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
    """`work` of every piece, in order, on as many threads as torch has.

    Each of them has one of torch's threads to itself, so that the results are the same bits for any number; where there
    are fewer pieces than threads, each has its share.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(pieces))
    if workers <= 1:
        return [work(piece) for piece in pieces]
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            return list(pool.map(work, pieces))
    finally:
        torch.set_num_threads(threads)  # threads to come begin with what was set last, wherever that was
