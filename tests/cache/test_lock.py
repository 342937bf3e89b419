"""The lock of a cache: one writer a part, refusals that name it, and nothing of the dead stands in the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from glscl.cache.files import write_atomically
from glscl.cache.lock import hold, hold_file, hold_folder, locks, require_free
from glscl.common.errors import BusyError, CacheBusyError, StorageError

HOLDER = """
import sys, time
from glscl.cache.lock import hold
with hold(sys.argv[1], what="extract"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path):
    """A process that holds the lock of the cache."""
    started = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_lock_is_there_while_it_is_held_and_gone_afterwards(tmp_path):
    with hold(tmp_path, what="extract") as file:
        told = json.loads(file.read_text())
        assert (told["pid"], told["host"], told["what"]) == (os.getpid(), socket.gethostname(), "glscl extract")
        assert [lock.file for lock in locks(tmp_path)] == [file]
    assert locks(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_the_lock_is_given_back_whatever_ends_the_work(tmp_path, error):
    with pytest.raises(error), hold(tmp_path):
        raise error
    assert locks(tmp_path) == []


def test_a_second_writer_is_refused_with_host_process_and_since_when(tmp_path, other_process):
    process = other_process()
    with pytest.raises(CacheBusyError) as refused, hold(tmp_path):
        raise AssertionError("the lock was given twice")
    line = str(refused.value)
    assert f"process {process.pid} on {socket.gethostname()}" in line and "glscl extract" in line
    assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line)
    assert len(locks(tmp_path)) == 1, "the refused one leaves nothing behind"


def test_the_same_process_is_no_exception(tmp_path):
    with hold(tmp_path), pytest.raises(CacheBusyError), hold(tmp_path):
        raise AssertionError("the lock was given twice")


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, other_process):
    process = other_process()
    process.send_signal(signal.SIGKILL)
    if sys.platform.startswith("linux"):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not even fetched by its parent
    else:
        process.wait()
    assert [lock.stale for lock in locks(tmp_path)] == [True]
    with hold(tmp_path) as file:
        assert [lock.file for lock in locks(tmp_path)] == [file]


def test_a_process_that_got_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path):
    with hold(tmp_path) as file:
        if json.loads(file.read_text())["started"] is None:
            pytest.skip("the system does not tell when a process began")
        rewrite(file, started=1)
        assert [lock.stale for lock in locks(tmp_path)] == [True]
        with hold(tmp_path):
            assert len(locks(tmp_path)) == 1


def test_a_restart_of_the_machine_frees_its_locks(tmp_path):
    with hold(tmp_path) as file:
        if json.loads(file.read_text())["boot"] is None:
            pytest.skip("the system does not tell its restarts apart")
        rewrite(file, boot="another")
        assert [lock.stale for lock in locks(tmp_path)] == [True]


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"namespace": "pid:[1]"}])
def test_what_cannot_be_judged_from_here_is_refused_with_the_file_to_delete(tmp_path, change):
    with hold(tmp_path) as file:
        rewrite(file, pid=1, **change)
        with pytest.raises(CacheBusyError, match=re.escape(f"if it no longer runs, delete {file}")), hold(tmp_path):
            raise AssertionError("the lock of another machine was overrun")
        file.unlink()
        with hold(tmp_path):
            pass


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pid": "many", "host": 3}', "\x00"])
def test_an_unreadable_lock_is_refused_with_its_name(tmp_path, content):
    with hold(tmp_path) as file:
        file.write_text(content)
        with pytest.raises(CacheBusyError, match=re.escape(file.name)), hold(tmp_path):
            raise AssertionError("an unreadable lock was overrun")


@pytest.mark.parametrize(
    "held, asked, together",
    [
        ((1, 4), (2, 4), True),
        ((1, 4), (1, 4), False),
        ((1, 4), (2, 3), False),
        ((2, 4), (1, 1), False),
        ((1, 1), (2, 4), False),
    ],
)
def test_parts_of_one_division_go_together_and_nothing_else_does(tmp_path, held, asked, together):
    with hold(tmp_path, part=held):
        if together:
            with hold(tmp_path, part=asked):
                assert len(locks(tmp_path)) == 2
        else:
            with pytest.raises(CacheBusyError), hold(tmp_path, part=asked):
                raise AssertionError("two writers of one part")


def test_a_part_must_be_one(tmp_path):
    for part in ((0, 1), (3, 2), (1, 0)):
        with pytest.raises(ValueError, match="part"), hold(tmp_path, part=part):
            raise AssertionError


def _compete(root, part, gate, inside, results) -> None:
    gate.wait()
    try:
        with hold(root, part=part):
            with inside.get_lock():
                inside.value += 1
                alone = inside.value == 1
            time.sleep(0.3)
            with inside.get_lock():
                inside.value -= 1
        results.put("alone" if alone else "together")
    except CacheBusyError:
        results.put("refused")


def test_of_many_that_begin_at_once_never_two_write(tmp_path):
    # a lock each for the whole and for parts of different divisions: no two of them may go together
    context = multiprocessing.get_context("fork")
    gate, inside, results = context.Barrier(6), context.Value("i", 0), context.Queue()
    parts = [(1, 1), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5)]
    crowd = [context.Process(target=_compete, args=(tmp_path, part, gate, inside, results)) for part in parts]
    for process in crowd:
        process.start()
    outcome = sorted(results.get(timeout=60) for _ in crowd)
    for process in crowd:
        process.join()
    assert "together" not in outcome
    assert locks(tmp_path) == []


def test_a_forked_child_does_not_give_back_the_lock_of_its_parent(tmp_path):
    manager = hold(tmp_path)
    file = manager.__enter__()
    child = os.fork()
    if child == 0:
        manager.__exit__(None, None, None)
        os._exit(0)
    os.waitpid(child, 0)
    assert file.exists()
    manager.__exit__(None, None, None)
    assert not file.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said_so(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="no permission"), hold(tmp_path):
            pass
    finally:
        tmp_path.chmod(0o700)


# --- other folders, and files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("holding", [hold_folder, hold_file])
def test_nothing_of_a_lock_stays_beside_what_was_written(tmp_path, holding):
    out = tmp_path / "out"
    with holding(out, what="report"):
        refusal = rf"out is being written by glscl report \(process {os.getpid()} on"
        with pytest.raises(BusyError, match=refusal), holding(out, what="report"):
            raise AssertionError("the lock was given twice")
        assert any(tmp_path.rglob("1-of-1-*.json"))
    assert list(tmp_path.rglob("*")) == []


def test_without_a_file_to_open_that_is_said_and_no_lock_stays(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with hold_file(tmp_path / "page.html", what="report"):
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            with pytest.raises(StorageError, match="Too many open files. Allow more open files"):
                write_atomically(tmp_path / "page.html", b"page")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("holding", [hold_folder, hold_file])
def test_what_killed_writers_left_of_locks_goes_with_the_next(tmp_path, holding, other_process):
    out = tmp_path / "out"
    folder = out / "locks" if holding is hold_folder else tmp_path / ".out.locks"
    folder.mkdir(parents=True)
    (folder / ".1-of-1-01234567.json.89abcdef.tmp").write_text('{"half')
    process = other_process()
    (lock,) = (tmp_path / "locks").iterdir()
    process.kill()
    process.wait()
    lock.rename(folder / lock.name)
    (tmp_path / "locks").rmdir()
    with holding(out, what="train-head"):
        pass
    assert not folder.exists()


def test_a_writer_that_is_just_beginning_survives_that_the_folder_of_locks_goes(tmp_path):
    """Two that come and go in turn: each sees the folder vanish between making it and writing into it."""
    failed = []

    def write():
        for _ in range(60):
            try:
                with hold_folder(tmp_path / "run", what="train-head"):
                    pass
            except BusyError:
                pass
            except Exception as error:
                failed.append(error)

    (tmp_path / "run").mkdir()
    racing = [threading.Thread(target=write) for _ in range(3)]
    for each in racing:
        each.start()
    for each in racing:
        each.join()
    assert failed == [] and list((tmp_path / "run").iterdir()) == []


def test_a_link_in_place_of_the_folder_of_locks_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "locks").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".page.html.locks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="is a link"), hold_folder(tmp_path / "run", what="train-head"):
        raise AssertionError
    with pytest.raises(StorageError, match="is a link"), hold_file(tmp_path / "page.html", what="report"):
        raise AssertionError
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_whether_a_folder_is_free_is_asked_without_touching_it(tmp_path):
    require_free(tmp_path / "nothing")
    with hold_folder(tmp_path / "run", what="finetune"), pytest.raises(BusyError, match="glscl finetune"):
        require_free(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_of_several_processes_of_a_launch_the_first_holds_for_all(tmp_path, monkeypatch):
    with hold_folder(tmp_path / "run", what="train-head"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        with hold_folder(tmp_path / "run", what="train-head"):
            require_free(tmp_path / "run")
        monkeypatch.undo()


def test_a_job_of_slurm_that_was_requeued_elsewhere_takes_over_its_own_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with hold(tmp_path) as file:
        rewrite(file, host="elsewhere", pid=1)
        for job, restarts in (("4711", "0"), ("4712", "1")):
            monkeypatch.setenv("SLURM_JOB_ID", job)
            monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
            with pytest.raises(CacheBusyError), hold(tmp_path):
                raise AssertionError("the lock of another job was overrun")
        monkeypatch.setenv("SLURM_JOB_ID", "4711")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with hold(tmp_path):
            assert not file.exists()
