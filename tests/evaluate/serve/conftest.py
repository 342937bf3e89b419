"""A cache of real small videos, some with hostile names, some that no browser plays, and a server of it."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for serving.py

from serving import HOSTILE, Made, Served, mpeg4, running

import glscl
from glscl.cache.schema import Annotations, TextItem, VideoItem
from glscl.common.tar_members import TarMember
from glscl.demo.corpus import render_corpus


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Made:
    """Thirty videos: of the built-in corpus, with hostile ids, broken, of another codec, one in a tar, and one whose file is gone."""
    root = tmp_path_factory.mktemp("served")
    annotations, folder = render_corpus(root / "demo", seed=0, sizes={"train": 16, "val": 0, "test": 14}, workers=1)
    found = glscl.read_dataset("demo", annotations, folder)
    videos, texts = [], []
    ids: dict[str, str] = {}
    for number, video in enumerate(found.videos):
        hostile = number - 4
        ids[video.id] = HOSTILE[hostile] if 0 <= hostile < len(HOSTILE) else (
            f"outside/{video.id}" if number % 2 else video.id
        )  # fmt: skip
        videos.append(VideoItem(ids[video.id], video.split, video.path))
    broken = root / "broken.mp4"
    broken.write_bytes(b"no video at all")
    videos.append(VideoItem("broken", "test", str(broken)))
    videos.append(VideoItem("old.avi", "test", str(mpeg4(root / "old.avi"))))
    for text in found.texts[::4]:
        texts.append(
            TextItem(text.id, ids[text.video], text.split, f"{text.text} <script>document.title='hit'</script>")
        )
    packed = TarMember(str(root / "shard.tar"), "packed.mp4", 512, 0)
    with tarfile.open(packed.archive, "w", format=tarfile.USTAR_FORMAT) as archive:
        (root / packed.name).write_bytes(Path(found.videos[0].path).read_bytes() + bytes(8))
        archive.add(root / packed.name, packed.name)
    packed = packed._replace(size=(root / packed.name).stat().st_size)
    videos.append(VideoItem(packed.name, "test", str(packed)))
    made = Annotations(dataset="made", videos=videos, texts=texts, expected={}, notes=[])
    settings = glscl.ExtractSettings(backbone="demo", fps=2.0, workers=1)
    glscl.extract(made, root / "cache", settings)
    gone = found.videos[-1]
    assert gone.path is not None
    Path(gone.path).unlink()
    files = {video.id: Path(video.path) for video in videos if video.path is not None}
    return Made(root, root / "cache", files, ids[gone.id])


@pytest.fixture(scope="session")
def served(made) -> Iterator[Served]:
    with running([made.cache]) as found:
        yield found
