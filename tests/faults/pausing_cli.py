"""The command line, but for one thing: it stands still after some commits, so that a test can end it there.

    python pausing_cli.py COMMITS MARK ARGUMENT…       MARK is a file made when it stands still
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from glscl.cache.store import Store


def pause_after(commits: int, mark: Path) -> None:
    original, made = Store.commit, []

    def commit(self: Store, *args: Any, **options: Any) -> bool:
        won = original(self, *args, **options)
        made.append(args[:2])
        if len(made) == commits:
            mark.touch()
            time.sleep(120)
        return won

    Store.commit = commit  # type: ignore[method-assign]


if __name__ == "__main__":
    from glscl import cli
    from glscl.options import main

    pause_after(int(sys.argv[1]), Path(sys.argv[2]))
    sys.exit(main(cli.app, sys.argv[3:]))
