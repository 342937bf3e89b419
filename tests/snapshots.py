"""What stands below a folder, for tests of what must not be touched."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def snapshot(folder: Path) -> dict[str, tuple]:
    """Every name below a folder with its kind, time of change and content; links are not followed."""
    found = {}
    for base, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(base, name)
            about, content = os.lstat(path), None
            if stat.S_ISLNK(about.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(about.st_mode):
                with open(path, "rb", buffering=0) as file:
                    content = file.read()
            found[os.path.relpath(path, folder)] = (about.st_mode, about.st_mtime_ns, content)
    return found
