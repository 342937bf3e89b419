"""The command line, but for one thing: it stands still after some commits or steps, so that a test can end it there.

python pausing_cli.py commit|step COUNT MARK ARGUMENT…       MARK is a file made when it stands still
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from glscl.cache.library import Library


def pause_after_commits(commits: int, mark: Path) -> None:
    original, made = Library.commit, []

    def commit(self: Library, *args: Any, **options: Any) -> bool:
        won = original(self, *args, **options)
        made.append(args[:2])
        if len(made) == commits:
            mark.touch()
            time.sleep(120)
        return won

    Library.commit = commit  # type: ignore[method-assign]


def pause_after_steps(steps: int, mark: Path) -> None:
    """Stands still within a training step until a signal has come, whatever its handler does with it."""
    from glscl.train_head import loop

    original, made = loop.clamp_logit_scale, []
    read, write = os.pipe()
    os.set_blocking(write, False)

    def step(*args: Any) -> None:
        original(*args)
        made.append(args)
        if len(made) == steps:
            signal.set_wakeup_fd(write)
            mark.touch()
            os.read(read, 1)
            signal.set_wakeup_fd(-1)

    loop.clamp_logit_scale = step


PAUSES = {"commit": pause_after_commits, "step": pause_after_steps}

if __name__ == "__main__":
    from glscl import cli
    from glscl.commands.options import main

    what, count, mark, *arguments = sys.argv[1:]
    PAUSES[what](int(count), Path(mark))
    sys.exit(main(cli.app, arguments))
