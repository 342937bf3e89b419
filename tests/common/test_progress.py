"""Progress is told in one line for each thing that is counted."""

from __future__ import annotations

import io

from glscl.common.progress import Progress, counted


def test_progress_of_what_is_counted_later_begins_again_with_another_total():
    stream = io.StringIO()
    with counted(Progress(stream=stream, interval=1e9), "score", "pairs") as tell:
        tell(3, 10)
        tell(10, 10)
        tell(4, 4)
    first, second = stream.getvalue().splitlines()
    assert first.startswith("score: 10/10 pairs") and second.startswith("score: 4/4 pairs")
