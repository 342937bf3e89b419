"""Signals that come while locks are held wait; all others act as ever."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from glscl.common.signals import Interrupts

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")


@pytest.fixture
def interrupts():
    watching = Interrupts()
    watching.watch()
    yield watching
    watching.release()


def test_an_interrupt_waits_until_the_outermost_block_is_left(interrupts):
    steps = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts.held():
            with interrupts.held():
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
                steps.append("inner")
            steps.append("outer")
        steps.append("never")
    assert steps == ["inner", "outer"]
    with interrupts.held():  # it acted once and is forgotten
        pass


def test_an_interrupt_outside_acts_at_once(interrupts):
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_error_within_gives_way_to_the_interrupt(interrupts):
    with pytest.raises(KeyboardInterrupt) as caught, interrupts.held():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("a mistake")
    assert isinstance(caught.value.__context__, ValueError)


def test_handlers_are_those_of_before_afterwards_and_the_systems_own_are_never_touched(monkeypatch):
    def ours(*_: object) -> None:
        raise AssertionError("nobody sent it")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        watching = Interrupts()
        watching.watch()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is not before[signal.SIGINT]
        watching.release()
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
        watching = Interrupts()
        watching.watch()
        signal.signal(signal.SIGINT, ours)  # somebody else's, set meanwhile
        watching.release()
        assert signal.getsignal(signal.SIGINT) is ours
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_other_threads_hold_nothing_back(interrupts):
    entered, leave = threading.Event(), threading.Event()

    def elsewhere() -> None:
        with interrupts.held():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    entered.wait()
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        leave.set()
        thread.join()
