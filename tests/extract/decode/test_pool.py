"""The pool: each hang, crash and excess costs one video, memory and files stay bounded, nothing is left behind."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)
import decode_faults
from painted_clips import make_clip, read_number

from glscl.cache.jpeg import encode_jpeg
from glscl.cache.schema import Status
from glscl.common.errors import DecodeError, UsageError
from glscl.extract.decode import pool as decode_pool
from glscl.extract.decode.pool import DecodePool, make_spool_folder
from glscl.extract.decode.sampling import Sampling
from glscl.extract.decode.video import Decoding, FrameChunk, VideoDone, VideoTask
from glscl.extract.decode.worker import SPOOL_WINDOW, Spool

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX systems")


def pool(*, workers=2, ahead=64, decode=decode_faults.act, **options) -> DecodePool:
    return DecodePool(Decoding(**{"time_limit": 1.0, **options}), workers=workers, ahead=ahead, decode=decode)


def collect(events):
    """{index: ([seconds of its frames], VideoDone)}; chunks must come in order and before the account."""
    times, done = defaultdict(list), {}
    for event in events:
        if isinstance(event, VideoDone):
            assert event.item not in done
            done[event.item] = event
        else:
            assert isinstance(event, FrameChunk) and event.item not in done
            times[event.item] += event.times.tolist()
            assert times[event.item] == sorted(set(times[event.item]))
    assert set(times) <= set(done)
    assert all(done[i].frames == len(times[i]) for i in done)
    return {i: (times[i], done[i]) for i in done}


def run(*names, **options):
    with pool(**options) as running:
        return collect(running.decode(VideoTask(i, name) for i, name in enumerate(names)))


def test_every_video_is_answered_once_with_its_frames_in_order():
    result = run("good 1", "good 3", "good 0", "good 9", *["good 1"] * 20)
    assert sorted(result) == list(range(24))
    assert [len(result[i][0]) for i in range(4)] == [1, 3, 0, 9]
    assert all(done.status is Status.OK for _, done in result.values())


@pytest.mark.parametrize(
    "fault, reason, status",
    [
        ("crash", "decoder process died (signal 11)", Status.DECODE_ERROR),
        ("abort", "decoder process died (signal 6)", Status.DECODE_ERROR),
        ("exit", "decoder process died (exit status 7)", Status.DECODE_ERROR),
        ("hang", "no progress for 1 s", Status.TIMED_OUT),
    ],
)
def test_a_fault_costs_one_video(fault, reason, status):
    result = run("good 2", fault, "good 2", "good 2", "good 2", decoder="pyav")
    times, done = result.pop(1)
    assert (times, done.status, done.reason, done.decoder) == ([], status, reason, "none")
    assert all(done.status is Status.OK and len(times) == 2 for times, done in result.values())


def test_to_be_stopped_and_continued_is_no_fault_of_a_video():
    found = {}
    with pool(workers=1, decoder="pyav") as running:
        events = running.decode([VideoTask(0, "good 1"), VideoTask(1, "slow 10")])
        for event in events:
            found[event.item] = event
            if isinstance(event, VideoDone) and event.item == 0:
                (worker,) = running._pool._pool_manager.worker_manager.workers
                time.sleep(0.5)
                os.kill(worker, signal.SIGSTOP)  # as Ctrl-Z stops all of a group
                time.sleep(1.5)
                signal.raise_signal(signal.SIGCONT)
                os.kill(worker, signal.SIGCONT)
    assert (found[1].status, found[1].reason, found[1].decoder_note) == (Status.OK, None, None)


@pytest.mark.parametrize("fault", ["crash", "hang"])
def test_what_decord_breaks_is_asked_again_from_pyav(fault):
    times, done = run(f"{fault}-if-decord 3")[0]
    assert times == [1, 2, 3]
    assert (done.status, done.decoder) == (Status.OK, "pyav")
    assert done.decoder_note.startswith("first attempt: ")


def test_frames_that_came_before_a_crash_are_kept_once():
    times, done = run("crash 4")[0]  # three chunks, of which the last may still be in the worker
    assert times == list(range(1, len(times) + 1)) and len(times) >= 2
    assert done.status is Status.PARTIAL
    assert "signal 11" in done.reason


def test_slow_progress_is_no_reason_to_give_up():
    times, done = run("slow 25", time_limit=0.8)[0]
    assert (done.status, len(times)) == (Status.OK, 25)


def test_a_video_that_never_ends_is_given_up():
    _, done = run("slow 400", "good 1", video_limit=1.5, decoder="pyav")[0]
    assert done.status is Status.TIMED_OUT
    assert "not finished after 1.5 s" in done.reason


def test_what_was_begun_is_gone_on_with_and_what_is_not_wanted_holds_up_nobody():
    wanted = [
        VideoTask(5, "good 9"),
        VideoTask(6, "good 2", stamp=(1, 2)),
        VideoTask(7, "crash 3"),
        VideoTask(8, "good 1"),
    ]
    begun = [
        VideoTask(0, "slow 400"),
        VideoTask(1, "slow 400"),
        VideoTask(2, "good 2", stamp=(1, 1)),
        VideoTask(3, "good 9"),
    ]
    with pool(workers=2, decoder="pyav") as running:
        running.begin(begun)
        result = collect(running.decode(wanted))
        assert next(running._names) == "v6", "three begun, of which one was wanted; three more"
    assert [len(result[item][0]) for item in (5, 6, 8)] == [9, 2, 1]
    assert result[7][1].status is Status.PARTIAL


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts everything on Linux alone")
def test_a_worker_cannot_outgrow_its_memory():
    result = run("greedy 100", "greedy 600", memory_limit=300 << 20, time_limit=30)
    assert result[0][1].reason == "took 100 MB"
    assert result[1][1].reason == "out of memory"


def test_a_mistake_of_the_program_is_no_fault_of_the_video():
    with pytest.raises(DecodeError, match="a mistake in the program"):
        run("breaks")


def test_settings_that_cannot_work_are_refused():
    unsendable = ({"prepare": lambda image: image}, {"prepare": decode_faults.Unloadable()})
    for wrong in ({"workers": 0}, {"decoder": "cv2"}, {"time_limit": 0}, *unsendable):
        with pytest.raises(UsageError):
            pool(**wrong)
    with pytest.raises(UsageError, match="with-block"):
        next(pool().decode([]))


@pytest.mark.parametrize(("ahead", "most"), [(0, 6), (8, 10)])
def test_tasks_are_pulled_as_they_are_needed(ahead, most):
    pulled = []

    def tasks():
        for i in range(100):
            pulled.append(i)
            yield VideoTask(i, "good 1")

    with pool(ahead=ahead) as running:
        events = running.decode(tasks())
        done = 0
        for event in events:
            done += isinstance(event, VideoDone)
            assert len(pulled) <= done + most + 1
    assert done == 100


def test_fewer_videos_lie_ready_where_they_are_large(monkeypatch):
    monkeypatch.setattr(decode_pool, "AHEAD_BYTES", 1000)
    with pool() as running:
        assert running._room() == running.in_flight == 6
        running._sizes.extend([10, 100])
        assert running._room() == 2 + 1000 // 100
        running._sizes.append(600)
        assert running._room() == 6


def test_a_slow_reader_holds_the_worker_back():
    with pool(time_limit=0.5) as running:
        events = running.decode([VideoTask(0, "good 60")])
        most = 0
        for i, _ in enumerate(events):
            if i in (0, 10):
                time.sleep(1.0)  # longer than the time limit: waiting for the reader is no stall
            most = max(most, len(list(running._spool.folder.glob("v*.[0-9]*"))))
        assert i == 60
        assert 1 <= most <= SPOOL_WINDOW


def test_workers_that_die_between_videos_are_replaced():
    def tasks():
        for i in range(30):
            if i in (8, 16):
                time.sleep(0.5)  # until they wait for work
                for worker in list(running._pool._pool_manager.worker_manager.workers):
                    with contextlib.suppress(ProcessLookupError):  # of those killed before
                        os.kill(worker, signal.SIGKILL)
            yield VideoTask(i, "good 2")

    with pool() as running:
        result = collect(running.decode(tasks()))
    assert len(result) == 30
    assert all(done.status is Status.OK and times == [1, 2] for times, done in result.values())


def worker_ids(running: DecodePool) -> list[int]:
    return list(running._pool._pool_manager.worker_manager.workers)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "X"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
def test_nothing_is_left_after_the_end_or_after_leaving_early():
    for names, leave in ((["good 3"] * 5, False), (["good 50", "slow 100", "hang"], True)):
        with pool() as running:
            folder = running._spool.folder
            events = running.decode([VideoTask(i, name) for i, name in enumerate(names)])
            next(events)
            workers = worker_ids(running)
            assert workers and all(alive(pid) for pid in workers)
            if not leave:
                list(events)
        assert not folder.exists()
        assert not any(alive(pid) for pid in workers)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_ends_everything_quietly_and_even_a_killed_reader_leaves_nothing_running(tmp_path, ending):
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {HERE!r})
        import decode_faults
        from glscl.extract.decode.pool import DecodePool
        from glscl.extract.decode.video import Decoding, VideoTask

        if __name__ == "__main__":
            try:
                with DecodePool(Decoding(), workers=2, decode=decode_faults.act) as pool:
                    tasks = [VideoTask(i, "slow 600") for i in range(4)]
                    print(pool._spool.folder, flush=True)
                    events = pool.decode([VideoTask(9, "good 1"), *tasks])
                    next(events)
                    print(*pool._pool._pool_manager.worker_manager.workers, flush=True)
                    list(events)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
        """)
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    folder = Path(process.stdout.readline().strip())
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert folder.is_dir() and len(workers) == 2
    if ending == signal.SIGINT:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    out, err = process.communicate(timeout=30)
    assert out.strip() == ("interrupted" if ending == signal.SIGINT else "")
    if ending == signal.SIGINT:  # after SIGKILL Python's own tracker of semaphores may have the last word
        assert err == ""
    if ending == signal.SIGKILL:  # nobody waits for them, so they take the moment they need
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and (folder.exists() or any(alive(pid) for pid in workers)):
            time.sleep(0.02)
    assert not folder.exists()
    assert not any(alive(pid) for pid in workers)


@pytest.mark.parametrize("after", [1, 3, 10])
def test_an_interrupt_while_locks_are_taken_leaves_the_pool_able_to_end(monkeypatch, after):
    taking, times = concurrent.futures._base._AcquireFutures.__enter__, itertools.count(1)

    def interrupted(futures) -> None:
        taking(futures)  # the locks that the threads of the pool need to end
        if next(times) == after:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(concurrent.futures._base._AcquireFutures, "__enter__", interrupted)
    with pytest.raises(KeyboardInterrupt), pool() as running:
        inner = running._pool
        list(running.decode(VideoTask(i, "good 1") for i in range(1000)))
    loops = [value for value in vars(inner).values() if isinstance(value, threading.Thread)]
    assert len(loops) == 3 and not any(loop.is_alive() for loop in loops)


@pytest.mark.parametrize("years", [-1, 10])
def test_a_clock_that_is_set_gives_no_video_up(monkeypatch, years):
    clock = time.time
    with pool(video_limit=3600) as running:
        events = running.decode([VideoTask(0, "slow 5"), VideoTask(1, "good 9"), VideoTask(2, "slow 5")])
        first = next(events)
        monkeypatch.setattr(time, "time", lambda: clock() + years * 365 * 86400)
        result = collect([first, *events])
    assert [done.status for _, done in result.values()] == [Status.OK] * 3
    assert [len(times) for times, _ in (result[0], result[1], result[2])] == [5, 9, 5]


def test_folders_of_killed_processes_are_swept_and_living_ones_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(decode_pool.tempfile, "gettempdir", lambda: str(tmp_path))
    count = iter(range(10))
    monkeypatch.setattr(
        decode_pool.tempfile, "mkdtemp", lambda prefix, dir: _folder(tmp_path / f"{prefix}new{next(count)}")
    )
    orphan = _folder(tmp_path / f"{decode_pool.SPOOL_PREFIX}orphan")
    Path(orphan, "owner.lock").touch()
    Path(orphan, "v1.0").write_bytes(b"x" * 100)
    living, lock = make_spool_folder(1 << 60)
    assert not Path(orphan).exists()
    second, other = make_spool_folder(1 << 60)
    assert living.is_dir() and second.is_dir()
    lock.release(), other.release()


def _folder(path: Path) -> str:
    path.mkdir()
    return str(path)


def test_a_chunk_survives_the_spool_unchanged(tmp_path):
    spool = Spool(tmp_path)
    sent = decode_faults.chunk(3, 5)
    spool.put("v", 0, sent)
    received = spool.take("v", 0, 3)
    assert received.item == 3
    assert (received.frames == sent.frames).all() and received.frames.dtype == np.uint8
    assert (received.times == sent.times).all() and received.times.dtype == np.float32
    assert spool.take("v", 0, 3) is None
    assert not list(tmp_path.iterdir())


def test_real_videos_go_through_with_their_frames(tmp_path):
    clips = [make_clip(tmp_path / f"{i}.mp4", frames=range(i, i + 100)) for i in range(4)]
    (tmp_path / "text.mp4").write_text("no video")
    tasks = [VideoTask(i, str(clip)) for i, clip in enumerate(clips)]
    tasks += [VideoTask(4, str(tmp_path / "text.mp4")), VideoTask(5, str(tmp_path / "missing.mp4"))]
    tasks += [VideoTask(6, str(clips[0]), start=1.0, end=3.0)]
    numbers, done = defaultdict(list), {}
    with DecodePool(Decoding(sampling=Sampling(fps=None), chunk_frames=16), workers=2) as running:
        for event in running.decode(tasks):
            if isinstance(event, VideoDone):
                done[event.item] = event
            else:
                assert len(event.frames) <= 16
                numbers[event.item] += [read_number(frame) for frame in event.frames]
    for i in range(4):
        assert numbers[i] == list(range(i, i + 100))
    assert numbers[6] == list(range(25, 75))
    assert [done[i].status for i in (3, 4, 5, 6)] == [Status.OK, Status.DECODE_ERROR, Status.MISSING, Status.OK]


def test_pictures_are_prepared_in_the_workers(tmp_path):
    clip = make_clip(tmp_path / "a.mp4", frames=range(50))
    with DecodePool(Decoding(prepare=decode_faults.Shrink()), workers=1) as running:
        chunk, done = running.decode([VideoTask(0, str(clip))])
    assert chunk.frames.shape == (2, 16, 16, 3)
    assert done.decoder == "pyav" and 2 <= done.packets <= 26, (
        "of 50 frames the first half, without what nothing refers to"
    )


@pytest.mark.parametrize("quality", [None, 60])
def test_jpegs_come_with_every_frame_of_every_chunk_where_they_are_asked_for(tmp_path, quality):
    clip = make_clip(tmp_path / "clip.mp4", frames=range(70))
    decoding = Decoding(sampling=Sampling(fps=None), chunk_frames=16, jpeg_quality=quality)
    with DecodePool(decoding, workers=1) as running:
        chunks = [e for e in running.decode([VideoTask(0, str(clip))]) if isinstance(e, FrameChunk)]
    assert len(chunks) == 5
    for chunk in chunks:
        expected = [encode_jpeg(frame, quality) for frame in chunk.frames] if quality else []
        assert list(chunk.jpegs) == expected
