"""Ways to see what was found: links, and a playlist."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from glscl.cache.files import write_atomically
from glscl.common.tar_members import TarMember
from glscl.evaluate.search.answers import MomentHit, VideoHit


def link_to(path: str, start: float, end: float) -> str | None:
    """A file link at a moment, as the Media Fragments of the W3C write it; None for a video in a tar, which no link names."""
    if TarMember.at(path) is not None:
        return None
    return f"file://{quote(path)}#t={start:.3f},{end:.3f}"


def write_playlist(file: Path, hits: Sequence[VideoHit | MomentHit]) -> int:
    """Write the moments of those hits that players find, files that are there, as an extended M3U; how many.

    Raises StorageError.
    """
    lines, count = ["#EXTM3U"], 0
    for hit in hits:
        if hit.path is None or TarMember.at(hit.path) is not None:
            continue
        path = f"file://{quote(hit.path)}" if {"\n", "\r"} & {*hit.path} else hit.path  # each stands in a line
        for moment in hit.moments:
            title = " ".join(hit.video.split())
            lines += [
                f"#EXTINF:{max(1, round(moment.end - moment.start))},{title}",
                f"#EXTVLCOPT:start-time={moment.start:.3f}",
                f"#EXTVLCOPT:stop-time={moment.end:.3f}",
                path,
            ]
            count += 1
    write_atomically(file, ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
    return count
