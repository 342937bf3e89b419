"""A server asked from Python answers as the model does, with errors of the same kinds."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from serving import HOSTILE, running

import glscl
from glscl.common.errors import DecodeError, GlsclError, NotFoundError, UsageError


@pytest.fixture
def client(served):
    return glscl.Client(served.place.url)


def test_it_finds_what_the_model_finds(client, made):
    hits = client.search("a red circle", top=4, split="train", moments=2)
    model = glscl.evaluate.search.model.zero_shot(glscl.open_cache(made.cache))
    wanted = model.search("a red circle", top=4, split="train")
    assert [(hit.rank, hit.video) for hit in hits] == [(hit.rank, hit.video) for hit in wanted]
    assert hits[0].score == pytest.approx(wanted[0].score, abs=1e-6) and hits[0].split == "train"
    assert hits[0].moments[0][:2] == wanted[0].moments[0][:2]
    assert max(hits[0].scores) == pytest.approx(hits[0].score, abs=1e-4)
    assert hits[0].times[int(np.argmax(hits[0].scores))] == hits[0].time


def test_pictures_clips_and_thumbnails(client, made, tmp_path):
    first = client.search("a red circle", top=1)[0]
    picture = client.thumbnail(first)
    assert Image.open(io.BytesIO(picture)).format == "JPEG"
    (tmp_path / "found.jpg").write_bytes(picture)
    assert client.search_file(tmp_path / "found.jpg", top=1)[0].video == first.video
    assert client.search_file(made.videos["test0004"], start=1)[0].video == "test0004"
    assert client.similar(first, first.time)[0].video == first.video
    assert first.video not in [hit.video for hit in client.similar(first.video)]


@pytest.mark.parametrize("id", HOSTILE)
def test_any_id_can_be_asked_about(client, id):
    assert client.about(id)["video"] == id
    assert client.thumbnail(id, 1.0)[:2] == b"\xff\xd8"
    assert client.similar(id, 0.0)[0].video == id


def test_what_is_wrong_is_an_error_of_its_kind(client, tmp_path):
    with pytest.raises(NotFoundError, match="nobody"):
        client.about("nobody")
    with pytest.raises(UsageError, match="nope"):
        client.search("a", nope=1)
    with pytest.raises(NotFoundError, match="cannot be read"):
        client.search_file(tmp_path / "nowhere.jpg")
    (tmp_path / "x.jpg").write_text("nonsense")
    with pytest.raises(DecodeError, match="no picture"):
        client.search_file(tmp_path / "x.jpg")
    with pytest.raises(NotFoundError, match="does not answer"):
        glscl.Client("http://127.0.0.1:9/").caches()
    with pytest.raises(UsageError, match="looks like"):
        glscl.Client("127.0.0.1:8765")
    assert issubclass(GlsclError, Exception) and client.caches()["caches"]


def test_the_token_comes_with_the_address(made):
    with running([made.cache], host="0.0.0.0", token="quite secret") as served:
        url = f"http://127.0.0.1:{served.place.port}/"
        with pytest.raises(UsageError, match="token"):
            glscl.Client(url).search("a")
        with pytest.raises(UsageError, match="token"):
            glscl.Client(f"{url}?token=another").search("a")
        hit = glscl.Client(f"{url}?token=quite+secret").search("a", top=1)[0]
        assert hit.path is None and hit.video  # where files lie is told to nobody else
