"""A function over batches, on threads that do not wait for each other.

torch's own threads share every operation of a network and wait, spinning, at the end of each. Where decoding processes want
the same cores, one of them is late at every such end. Threads that share nothing but the list of batches lose none of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def thread_map(work: Callable[[Batch], Result], batches: Sequence[Batch]) -> list[Result]:
    """`work` of every batch, in order, on as many threads as torch has.

    Each of them has one of torch's threads to itself, so that the results are the same bits for any number; where there
    are fewer batches than threads, each has its share.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(batches))
    if workers <= 1:
        return [work(batch) for batch in batches]
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            return list(pool.map(work, batches))
    finally:
        torch.set_num_threads(threads)  # threads to come begin with what was set last, wherever that was
