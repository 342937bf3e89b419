"""The hash of a file of weights, remembered: who has read 600 MB once need not read them again to know what they are.

It is kept in `$XDG_CACHE_HOME/glscl/weights` (`~/.cache/glscl/weights`), a small file for each; one that cannot be written, or
is not as it was written, is as if there were none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from glscl.cache.files import write_atomically
from glscl.common.errors import GlsclError
from glscl.common.state_dicts import weights_file

SETTLED = 2.0  # seconds without a change, after which a further one gives the file another time
WORTH = 64 << 20  # bytes; what is smaller is read as soon as remembered


class WeightsFile(NamedTuple):
    """A file of weights as it stood before it was read.

    Attributes:
        path: absolute.
        name: of the architecture, whose names for the weights are hashed with them.
        state: size, times of change in ns, inode and device; what differs once anything was written.
    """

    path: Path
    name: str
    state: tuple[int, ...]

    @classmethod
    def of(cls, name: str, source: Path | None) -> WeightsFile | None:
        """The one file behind a file or folder of weights; None where there are several, it is small, or just written."""
        file = weights_file(source) if source is not None and source.is_dir() else source
        if file is None or file.suffix == ".json":  # of shards
            return None
        try:
            about = file.stat()
        except OSError:
            return None
        if about.st_size < WORTH or time.time() - max(about.st_mtime, about.st_ctime) < SETTLED:
            return None
        state = about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_dev
        return cls(file.resolve(), name, state)

    def remember(self, hash: str) -> None:
        """Keep the hash of the weights that were read from it (`weights_hash` of the model's state dict)."""
        if WeightsFile.of(self.name, self.path) != self:  # it changed meanwhile
            return
        with contextlib.suppress(OSError, GlsclError):
            write_atomically(self._note, self._told(hash), durable=False)

    def known_hash(self) -> str | None:
        """The hash of its weights, where they were read before and nothing was written since."""
        if WeightsFile.of(self.name, self.path) != self:
            return None
        try:
            note = self._note.read_bytes()
            hash = str(json.loads(note)["hash"])
            return hash if note == self._told(hash) else None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    @property
    def _note(self) -> Path:
        home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        key = hashlib.sha256(f"{self.name}\0{self.path}".encode(errors="surrogateescape")).hexdigest()[:32]
        return home / "glscl" / "weights" / f"{key}.json"

    def _told(self, hash: str) -> bytes:
        """The note of its hash, with a checksum: a damaged one would give a cache the fingerprint of other weights."""
        about = {**self._about(), "hash": hash}
        return json.dumps({**about, "sha256": hashlib.sha256(json.dumps(about).encode()).hexdigest()}).encode()

    def _about(self) -> dict[str, object]:
        import open_clip

        from glscl import __version__

        made_by = {"glscl": __version__, "open_clip": open_clip.__version__}  # who named and converted the weights
        return {"file": str(self.path), "backbone": self.name, "state": list(self.state), **made_by}
