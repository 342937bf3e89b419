"""One file at a time, whoever asks: jobs in processes that may hang, crash or outgrow their memory, each at its own cost.

A `DecodePool` streams a list of videos; this is for a server, whose next job is not known yet.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from typing import Any, ParamSpec, TypeVar

from pebble import ProcessExpired, ProcessPool

from glscl.common.errors import DecodeError
from glscl.extract.decode.pool import end_pool, wake
from glscl.extract.decode.worker import limit_memory

P = ParamSpec("P")
T = TypeVar("T")
JOBS_PER_WORKER = 500  # then a fresh process takes over, so that what decoders leak stays small
MEMORY = 2 << 30  # bytes that a job may allocate


class JobPool:
    """Processes that run functions on files of strangers.

    Args:
        workers: processes.
        preload: modules that workers will need besides what all decoding needs, imported once before they are forked.

    Use it as a context manager; leaving it ends all workers, whatever they do.
    """

    def __init__(self, workers: int, *, preload: Sequence[str] = ()) -> None:
        self.workers, self._preload = workers, [__name__, *preload]
        self._lock = threading.Lock()
        self._pool: ProcessPool | None = None
        self._closed = False
        self._answers: set[Future[Any]] = set()  # that somebody may wait for

    def __repr__(self) -> str:
        return f"<JobPool of {self.workers} workers>"

    def __enter__(self) -> JobPool:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            pool, self._pool, self._closed = self._pool, None, True
        if pool is not None:
            end_pool(pool)
        for answer in [*self._answers]:  # pebble does not answer for jobs that waited
            with contextlib.suppress(InvalidStateError):
                answer.set_exception(DecodeError("given up"))

    def wake(self) -> None:
        """Starts the process that workers are forked from, and does not wait for its imports."""
        wake(self._preload)

    def warm(self) -> None:
        """Starts the workers now, which takes a second, and not with the first job."""
        with contextlib.suppress(DecodeError):
            self.submit(os.getpid, limit=60.0).result()

    def submit(self, function: Callable[..., T], *arguments: Any, limit: float) -> Future[T]:
        """Begins a job, or queues it behind others. The future gives what the function does, or raises:

        DecodeError: it was not done within `limit` seconds of its own, or its process died. GlsclError: its own.

        Args:
            function: of a module; it and its arguments are pickled.
            limit: seconds, from when a worker takes it.
        """
        answer: Future[T] = Future()
        with self._lock:
            if self._closed:
                answer.set_exception(DecodeError("no more files are decoded: the end has come"))
                return answer
            try:
                self._pool = self._pool or self._start()
                job = self._pool.schedule(function, args=list(arguments), timeout=limit)
            except RuntimeError:  # pebble gave the pool up, as when a worker dies between two jobs
                if self._pool is not None:
                    end_pool(self._pool)
                self._pool = self._start()
                job = self._pool.schedule(function, args=list(arguments), timeout=limit)
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)
        job.add_done_callback(functools.partial(_hand_on, answer=answer, limit=limit))
        answer.add_done_callback(lambda asked: job.cancel() if asked.cancelled() else None)
        return answer

    def _start(self) -> ProcessPool:
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(method)
        self.wake()
        return ProcessPool(self.workers, max_tasks=JOBS_PER_WORKER, initializer=_initialise, context=context)


def _initialise() -> None:
    """A worker leaves Ctrl-C to the server, ends with it, and has so much memory and no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_memory(MEMORY)
    threading.Thread(target=_end_with_server, daemon=True).start()


def _end_with_server() -> None:
    parent: Any = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _hand_on(job: Future[Any], *, answer: Future[Any], limit: float) -> None:
    """What came of a job, as `JobPool.submit` promises it."""
    if answer.done() or not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(job.result())
    except TimeoutError:
        answer.set_exception(DecodeError(f"not done after {limit:g} s"))
    except ProcessExpired as error:
        answer.set_exception(DecodeError(f"the decoding process died (status {error.exitcode})"))
    except (CancelledError, BrokenProcessPool):
        answer.set_exception(DecodeError("given up"))
    except MemoryError:
        answer.set_exception(DecodeError("out of memory"))
    except BaseException as error:
        answer.set_exception(error)
