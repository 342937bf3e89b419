"""Decodes many videos in processes that may hang, crash or outgrow their memory, each at the cost of one video."""

from __future__ import annotations

import collections
import functools
import io
import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from pebble import ProcessExpired, ProcessPool

from glscl.cache.schema import Status
from glscl.common.devices import cores
from glscl.common.errors import DecodeError, StorageError, UsageError
from glscl.common.signals import Interrupts
from glscl.extract.decode.staging import decode_from_anywhere
from glscl.extract.decode.video import Decoding, FrameChunk, VideoDone, VideoTask, decode_video
from glscl.extract.decode.worker import SPOOL_WINDOW, DecodeFunction, Spool, WorkerSettings, decode_task, initialise

POLL_SECONDS = 0.02
WORKER_MODULES = ("glscl.extract.decode.worker", "av", "PIL.Image")  # what every worker needs
SPOOL_PREFIX = "glscl-frames-"
TASKS_PER_WORKER = 500  # then a fresh process takes over, so that what decoders leak stays small
AHEAD_BYTES = 256 << 20  # decoded frames that may lie ready while the reader is busy
MAX_RESTARTS = 3  # of the whole pool without one video finished in between
END_SECONDS = 5.0  # for killed workers, and the threads that look after them, to be gone


class DecodePool:
    """A pool of decoding processes.

    Args:
        decoding: how; with its decoder "auto" a video whose worker hung or died is asked for once more.
        workers: processes; None is one a core.
        ahead: videos that may lie ready while the reader is busy, where the latest ones were so small that they fit
            AHEAD_BYTES.
        decode: stand-in for `decode_video`; picklable.

    Raises:
        UsageError: settings that cannot work, such as a `prepare` that cannot be pickled.

    Use it as a context manager; leaving it ends all workers and removes what they wrote.
    """

    def __init__(
        self,
        decoding: Decoding,
        *,
        workers: int | None = None,
        ahead: int = 64,
        decode: DecodeFunction = decode_video,
    ) -> None:
        workers = cores() if workers is None else workers
        if workers < 1:
            raise UsageError(f"decode workers: found {workers}; expected at least 1")
        self.decoding, self.workers = decoding, workers
        self.in_flight = workers + max(4, workers // 2)  # at first; more where videos prove small
        self._ahead = ahead
        self._sizes: collections.deque[int] = collections.deque(maxlen=32)  # bytes of the frames of the latest videos
        self._settings = functools.partial(WorkerSettings, decoding, decode)
        try:
            self._preload = modules_of(pickle.dumps(self._settings(spool="")))
        except Exception as error:  # anything may come out of foreign code
            raise UsageError(f"preprocessing cannot be sent to decode workers: {error}") from error
        self._spool_bytes = self.in_flight * (SPOOL_WINDOW + 1) * decoding.chunk_bytes
        self._names = (f"v{number}" for number in itertools.count())
        self._pool: ProcessPool | None = None
        self._spool: Spool | None = None
        self._lock: FileLock | None = None
        self._restarts = 0
        self._interrupts = Interrupts()
        self._begun: dict[Future[Any], _Job] = {}  # before anybody asked for them

    def __repr__(self) -> str:
        return f"<DecodePool of {self.workers} workers, {self.decoding.sampling}>"

    def __enter__(self) -> DecodePool:
        try:
            self._interrupts.watch()
            with self._interrupts.held():
                folder, self._lock = make_spool_folder(self._spool_bytes)
                self._spool = Spool(folder)
                self._pool = self._start()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        """Ends the workers and removes the spool, whatever has come to be of both; an interrupt waits until that is done."""
        try:
            with self._interrupts.held():
                pool, spool, lock = self._pool, self._spool, self._lock
                self._pool = self._spool = self._lock = None
                try:
                    if pool is not None:
                        end_pool(pool)
                finally:
                    if lock is not None:
                        lock.release()
                    if spool is not None:
                        shutil.rmtree(spool.folder, ignore_errors=True)
        finally:
            self._interrupts.release()

    def begin(self, tasks: Iterable[VideoTask]) -> None:
        """Begins with the first of some files on this machine, as many as are under way at first; `decode` goes on with them.

        That is, with those that are among the first it is asked for, the same part of a file with the same stamp, whatever
        their `item`; the others are given up.
        """
        for task in {task._replace(item=0): None for task in itertools.islice(tasks, self.in_flight)}:
            self._submit(_Job(task, self.decoding.decoder), self._begun)

    def decode(self, tasks: Iterable[VideoTask]) -> Iterator[FrameChunk | VideoDone]:
        """Decodes `tasks`, taking more from the iterable than there are workers, and yields as results come.

        How many more: what `ahead` and AHEAD_BYTES allow, going by the latest videos.

        Chunks of one video come in time order and before its VideoDone; videos may interleave. Closing the iterator
        gives up the videos under way.

        Raises:
            DecodeError: the workers themselves fail, whatever the video. StorageError: no room for frames under way, or a
            video at an address cannot be had.
        """
        if self._pool is None or self._spool is None:
            raise UsageError("a DecodePool decodes between entering and leaving its with-block")
        yield from decode_from_anywhere(self._decode, tasks)

    def _decode(self, tasks: Iterable[VideoTask]) -> Iterator[FrameChunk | VideoDone]:
        """`decode` of files on this machine."""
        assert self._spool is not None
        source = iter(tasks)
        running: dict[Future[Any], _Job] = {}
        more = True
        try:
            if self._begun:
                source = itertools.chain(self._go_on(source, running), source)
            while True:
                while more and len(running) < self._room():
                    task = next(source, None)
                    if task is None:
                        more = False
                    else:
                        self._submit(_Job(VideoTask(*task), self.decoding.decoder), running)
                if not running:
                    return
                finished = self._wait(running)
                for job in list(running.values()):
                    yield from self._spooled(job)
                for future in finished:
                    if future not in running:  # handed to a new pool meanwhile
                        continue
                    job = running.pop(future)
                    yield from self._spooled(job)
                    yield from self._finish(job, future, running)
        finally:
            with self._interrupts.held():
                self._give_up(running)

    def _go_on(self, source: Iterator[VideoTask], running: dict[Future[Any], _Job]) -> list[VideoTask]:
        """Takes over what was begun of the first tasks, and gives up the rest. Returns those that were not begun."""
        begun = {job.task[1:]: (future, job) for future, job in self._begun.items()}
        self._begun, others = {}, []
        with self._interrupts.held():
            for task in (VideoTask(*task) for task in itertools.islice(source, self.in_flight)):
                future, job = begun.pop(task[1:], (None, None))
                if future is None or job is None:
                    others.append(task)
                else:
                    job.task, running[future] = task, job
            self._give_up(dict(begun.values()))
        return others

    def _give_up(self, running: dict[Future[Any], _Job]) -> None:
        for future, job in running.items():
            future.cancel()
            if self._spool is not None:
                self._spool.discard(job.name)

    def _room(self) -> int:
        """Videos that may be under way or lie finished: so many that workers go on while the reader encodes a batch."""
        if not self._sizes:
            return self.in_flight
        fitting = AHEAD_BYTES // max(1, *self._sizes)
        return max(self.in_flight, self.workers + min(self._ahead, fitting))

    def _wait(self, running: dict[Future[Any], _Job]) -> set[Future[Any]]:
        """What has finished after a moment. Gives up videos that took too long, by a clock that nobody sets."""
        with self._interrupts.held():
            finished = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED).done
            now = time.monotonic()
            for future, job in running.items():
                if not future.running():
                    continue
                if job.running_since is None or job.running_since < self._interrupts.continued:
                    job.running_since = now
                if now - job.running_since > self.decoding.video_limit:
                    job.overdue = future.cancel()  # pebble ends its worker
            return finished

    def _start(self) -> ProcessPool:
        assert self._spool is not None
        packed = pickle.dumps(self._settings(spool=str(self._spool.folder)))
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            wake(self._preload)
        return ProcessPool(
            max_workers=self.workers,
            max_tasks=TASKS_PER_WORKER,
            initializer=initialise,
            initargs=(packed, str(self._spool.folder)),
            context=context,
        )

    def _submit(self, job: _Job, running: dict[Future[Any], _Job]) -> None:
        job.begin(next(self._names))
        arguments = (job.task, job.name, job.decoder, job.last_time)
        assert self._pool is not None
        with self._interrupts.held():
            try:
                future = self._pool.schedule(decode_task, args=arguments)
            except RuntimeError as error:  # pebble gave the pool up, as when a worker dies between two videos
                self._restart(error, running)
                future = self._pool.schedule(decode_task, args=arguments)
            running[future] = job

    def _restart(self, error: BaseException, running: dict[Future[Any], _Job]) -> None:
        """Starts the pool anew and hands it the videos that the old one still owed."""
        assert self._pool is not None and self._spool is not None
        self._restarts += 1
        if self._restarts > MAX_RESTARTS:
            raise DecodeError(
                f"decode workers die before they can work: {str(error) or type(error).__name__}",
                hint='A script of your own that extracts must do so below `if __name__ == "__main__":`, because they import it',
            ) from error
        with self._interrupts.held():
            end_pool(self._pool)
            self._pool = self._start()
            for future, job in list(running.items()):
                if not future.done() or future.cancelled() or future.exception() is not None:
                    del running[future]
                    self._spool.discard(job.name)
                    self._submit(job, running)

    def _spooled(self, job: _Job) -> Iterator[FrameChunk]:
        assert self._spool is not None
        while (chunk := self._spool.take(job.name, job.chunks, job.task.item)) is not None:
            job.count(chunk)
            job.chunks += 1
            yield chunk

    def _finish(
        self, job: _Job, future: Future[Any], running: dict[Future[Any], _Job]
    ) -> Iterator[FrameChunk | VideoDone]:
        assert self._spool is not None
        try:
            with self._interrupts.held():
                done, chunk = future.result()
        except ProcessExpired as error:
            stalled = job.stalled(self._spool)
            self._spool.discard(job.name)
            if stalled and job.began < self._interrupts.continued:  # all of us stood still: no fault of the video
                self._submit(job, running)
                return
            if stalled:
                status, reason = Status.TIMED_OUT, f"no progress for {self.decoding.time_limit:g} s"
            else:
                status, reason = Status.DECODE_ERROR, f"decoder process died ({_cause(error.exitcode)})"
        except (BrokenProcessPool, CancelledError) as error:
            if not job.overdue:
                running[future] = job
                self._restart(error, running)
                return
            self._spool.discard(job.name)
            status, reason = Status.TIMED_OUT, f"not finished after {self.decoding.video_limit:g} s"
        except OSError as error:
            raise StorageError(f"{self._spool.folder}: frames under way cannot be written: {error}") from error
        except Exception as error:
            raise DecodeError(f"decode workers fail: {type(error).__name__}: {error}") from error
        else:
            self._restarts = 0
            if chunk is not None:
                job.count(chunk)
                yield chunk._replace(item=job.task.item)
            self._sizes.append(job.bytes)
            notes = [*job.notes, *([done.decoder_note] if done.decoder_note else [])]
            note = "; ".join(notes) or None
            yield done._replace(item=job.task.item, frames=job.frames, decoder_note=note)
            return
        self._restarts = 0
        if job.decoder == "auto":
            job.notes.append(f"first attempt: {reason}")
            job.decoder = "pyav"
            self._submit(job, running)
            return
        yield VideoDone(
            item=job.task.item,
            status=Status.PARTIAL if job.frames else status,
            reason=reason,
            decoder=job.decoder if job.frames else "none",
            seconds=time.monotonic() - job.started,
            frames=job.frames,
            decoder_note="; ".join(job.notes) or None,
        )


class _Job:
    """One video under way: what was asked, and what has come."""

    def __init__(self, task: VideoTask, decoder: str) -> None:
        self.task, self.decoder = task, decoder
        self.notes: list[str] = []
        self.frames = self.bytes = 0
        self.last_time: float | None = None
        self.started = time.monotonic()
        self.begin("")

    def begin(self, name: str) -> None:
        """Begins an attempt; chunks of earlier ones that were not read are forgotten."""
        self.name, self.chunks = name, 0
        self.began = time.monotonic()
        self.running_since: float | None = None
        self.overdue = False

    def count(self, chunk: FrameChunk) -> None:
        self.frames += len(chunk.frames)
        self.bytes += chunk.frames.nbytes + sum(map(len, chunk.jpegs))
        self.last_time = float(chunk.times[-1])

    def stalled(self, spool: Spool) -> bool:
        """Whether the worker that died left word that it had stood still."""
        try:
            return spool.stall_report(self.name).stat().st_size > 0
        except OSError:
            return False


def _cause(exitcode: int) -> str:
    return f"signal {-exitcode}" if exitcode < 0 else f"exit status {exitcode}"


def modules_of(packed: bytes) -> list[str]:
    """What workers import to unpack what they are sent, for the fork server to have ready.

    Without it every worker would import torch by itself, for the transforms of torchvision in the preprocessing.
    """
    modules: list[str] = []

    class Recorder(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            modules.append(module)
            return super().find_class(module, name)

    Recorder(io.BytesIO(packed)).load()
    return [module for module in dict.fromkeys(modules) if module not in ("__main__", "builtins")]


def make_spool_folder(space: int) -> tuple[Path, FileLock]:
    """A new private folder for frames under way: in shared memory where twice `space` bytes are free, else on disk.

    Folders of processes that were killed are swept first; a lock held by a living owner tells them apart.
    """
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free >= 2 * space
    parents = dict.fromkeys([shared, Path(tempfile.gettempdir())])
    for parent in parents:
        for old in parent.glob(f"{SPOOL_PREFIX}*") if parent.is_dir() else ():
            _sweep(old)
    folder = Path(tempfile.mkdtemp(prefix=SPOOL_PREFIX, dir=shared if roomy else None))
    lock = FileLock(folder / "owner.lock")
    lock.acquire(timeout=0)
    return folder, lock


def _sweep(folder: Path) -> None:
    """Removes a spool folder that nobody owns; a fresh one without a lock file may be about to be locked."""
    try:
        if folder.is_symlink():  # anybody may put one there; it leads to what is not ours
            return
        if not (folder / "owner.lock").exists() and time.time() - folder.stat().st_mtime < 60:
            return
        with FileLock(folder / "owner.lock", timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
    except (OSError, Timeout):
        return  # of another user, or in use


def wake(modules: Iterable[str]) -> None:
    """Starts the process that workers are forked from, where there is none yet; it imports what they need meanwhile.

    Args:
        modules: besides WORKER_MODULES.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.get_context("forkserver").set_forkserver_preload([*WORKER_MODULES, *modules])
        start_fork_server()


def start_fork_server() -> None:
    """Lets the process that forks workers come up deaf to Ctrl-C, which a terminal sends to all of a group.

    It would end with a traceback while it imports; its children ignore the signal anyway. It takes no module from the
    folder that it runs in, where an `av.py` may lie.
    """
    from multiprocessing import forkserver, resource_tracker

    resource_tracker.ensure_running()  # sets the mask itself, so it comes first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    path_was_safe = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if path_was_safe is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = path_was_safe


def end_pool(pool: Any) -> None:
    """Stop a pool and its workers, which have nothing to put in order: within a moment, even where native code hangs.

    It waits in a thread of its own, for END_SECONDS, because pebble waits for its threads without end.
    """

    def stop() -> None:
        if pool._pool_manager_loop is not None:
            pool._pool_manager_loop.join()
        _kill_workers(
            pool
        )  # also those that it had just replaced; one that still starts would miss the locks of the pool
        pool.join()

    pool.stop()
    _kill_workers(pool)
    ending = threading.Thread(target=stop, name="decode pool's end", daemon=True)
    ending.start()
    ending.join(END_SECONDS)
    _kill_workers(pool)


def _kill_workers(pool: Any) -> None:
    workers = list(pool._pool_manager.worker_manager.workers.values())
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(END_SECONDS)
