"""The API of a server, over real connections: what it answers, what it refuses, and that nobody holds others up."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import threading
import time
from urllib.parse import quote, urlsplit

import jsonschema
import numpy as np
import pytest
from PIL import Image
from serving import HOSTILE, mpeg4, running

import glscl
from glscl.evaluate.search.answers import Where
from glscl.evaluate.search.model import zero_shot
from glscl.evaluate.serve import app as app_module
from glscl.evaluate.serve.openapi import describe


@pytest.fixture(scope="module")
def model(made):
    return zero_shot(glscl.open_cache(made.cache))


def fits(body, name):
    """Whether a body is what the API's own description promises."""
    document = describe()
    jsonschema.validate(body, {"$ref": f"#/components/schemas/{name}", "components": document["components"]})
    return body


def test_a_sentence_is_answered_as_the_model_answers_it(served, model):
    body = fits(served.ask("/api/search?q=a%20red%20circle&top=5").json, "Answer")
    hits = model.search("a red circle", top=5)
    assert [hit["video"] for hit in body["hits"]] == [hit.video for hit in hits]
    for told, hit in zip(body["hits"], hits):
        assert told["score"] == pytest.approx(hit.score, abs=1e-6) and told["time"] == hit.time
        assert told["moments"] == [moment._asdict() for moment in hit.moments]
        strip = told["strip"]
        assert max(strip["scores"]) == pytest.approx(hit.score, abs=1e-4)
        assert strip["times"][int(np.argmax(strip["scores"]))] == hit.time
    assert body["doubts"] == []
    assert body["searched"]["videos"] == 32 and body["head"] == "best_frames" and body["list"] == "made"


def test_a_sentence_that_may_not_be_understood_is_answered_with_a_doubt(served):
    body = fits(served.ask(f"/api/search?q=a%20cat&and={'circle%20' * 90}").json, "Answer")
    assert body["hits"] and ["longer than" in line for line in body["doubts"]] == [True]


def test_filters_narrow_what_is_searched_without_reading_it_again(served, model):
    some = served.ask("/api/search?q=a%20circle&split=test&folder=outside&top=50").json
    wanted = [hit.video for hit in model.find(model.sentence("a circle"), where=Where("test", "outside"), top=50)]
    assert [hit["video"] for hit in some["hits"]] == wanted and len(wanted) == some["searched"]["videos"] > 2
    scores = [hit["score"] for hit in served.ask("/api/search?q=a%20circle&top=50").json["hits"]]
    cut = served.ask(f"/api/search?q=a%20circle&top=50&min={scores[3]}").json["hits"]
    assert [hit["score"] for hit in cut] == scores[:4]
    moments = served.ask("/api/search?q=a%20circle&by=moment&top=7").json["hits"]
    assert [hit["rank"] for hit in moments] == list(range(1, 8))
    assert served.ask("/api/search?q=a%20circle&longest=7").json["searched"]["videos"] < 32
    assert served.ask("/api/search?q=a&split=nope").status == 400
    assert served.ask("/api/search?q=a&folder=/etc").json["error"] == "The list made has no video below '/etc'"


def test_other_heads_order_otherwise_and_others_are_not_there(served, model):
    mean = served.ask("/api/search?q=a%20circle&head=mean_pool").json
    other = zero_shot(model.cache, "mean_pool")
    assert [hit["video"] for hit in mean["hits"]] == [hit.video for hit in other.search("a circle")]
    assert served.ask("/api/search?q=a&head=nope").status == 404
    assert "there is no" in served.ask("/api/search?q=a&cache=nope").json["error"]
    both = served.ask("/api/search?q=a%20circle&and=blue&not=a%20tree").json["hits"]
    query = model.sentence("a circle", also=["blue"], without=["a tree"])
    assert [hit["video"] for hit in both] == [hit.video for hit in model.find(query)]


@pytest.mark.parametrize(
    "query",
    ["", "q=", "q=a&top=0", "q=a&top=1001", "q=a&top=x", "q=a&min=nan", "q=a&nope=1", "q=a&q=b", "q=a&by=x",
     f"q={'a' * 2001}", "q=a&shortest=-1", "q=a&longest=inf"],
)  # fmt: skip
def test_a_wrong_question_is_one_line(served, query):
    reply = served.ask(f"/api/search?{query}")
    assert reply.status == 400 and "\n" not in fits(reply.json, "Error")["error"]


def test_what_looks_like_a_video_or_a_moment_of_it(served, model):
    first = served.ask("/api/search?q=a%20circle").json["hits"][0]
    like = fits(served.ask(first["links"]["similar"]).json, "Answer")
    assert first["video"] not in [hit["video"] for hit in like["hits"]] and like["like"] == first["video"]
    frame = served.ask(f"{first['links']['similar']}&t={first['time']}").json
    assert frame["hits"][0]["video"] == first["video"] and frame["hits"][0]["score"] == pytest.approx(1, abs=1e-3)
    assert served.ask("/api/similar/nobody").status == 404


def test_a_picture_that_is_sent_finds_the_frame_it_is_of(served, made):
    frames, times = glscl.decode(made.videos["train0002"], fps=2.0)
    out = io.BytesIO()
    Image.fromarray(frames[3]).save(out, "PNG")
    body = fits(served.ask("/api/search?top=3", "POST", out.getvalue(), Content_Type="image/png").json, "Answer")
    assert body["kind"] == "picture" and body["hits"][0]["video"] == "train0002"
    assert body["hits"][0]["time"] == pytest.approx(times[3], abs=1e-3)


def test_a_clip_that_is_sent_finds_its_video(served, made):
    clip = made.videos["test0004"].read_bytes()
    body = served.ask("/api/search?top=3&start=1", "POST", clip, Content_Type="video/mp4").json
    assert body["kind"] == "clip" and body["hits"][0]["video"] == "test0004" and body["hits"][0]["score"] > 0.99


def test_what_is_sent_is_bounded_and_may_be_anything(made):
    with running([made.cache], max_upload=1) as served:
        assert served.ask("/api/search", "POST", b"").status == 400
        assert "no picture" in served.ask("/api/search", "POST", b"\x00nonsense" * 50).json["error"]
        assert served.ask("/api/search", "POST", bytes((1 << 20) + 1)).status == 413
        bomb = io.BytesIO()
        Image.new("1", (20000, 20000)).save(bomb, "PNG")
        assert len(bomb.getvalue()) < 1 << 20
        refused = served.ask("/api/search", "POST", bomb.getvalue())
        assert refused.status == 422 and "too large" in refused.json["error"]
        assert served.ask("/api/search?q=a").status == 200
        # without its length told, in parts
        with socket.create_connection((served.place.host, served.place.port)) as raw:
            raw.sendall(
                b"POST /api/search HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nTransfer-Encoding: chunked\r\n\r\n"
                % served.place.port
            )
            part = b"10000\r\n" + bytes(0x10000) + b"\r\n"
            with contextlib.suppress(OSError):  # who is refused half-way may be cut off
                for _ in range(40):
                    raw.sendall(part)
            assert b" 413 " in raw.recv(4096)


def test_thumbnails_show_the_moment(served, made):
    for id in ("train0002", "old.avi"):
        path = made.videos[id]
        frames, times = glscl.decode(path, fps=2.0)
        for row in (0, len(frames) - 1):
            reply = served.ask(f"/thumb/{quote(id, safe='')}?t={times[row]:.3f}")
            assert reply.status == 200 and reply.headers["content-type"] == "image/jpeg"
            found = np.asarray(Image.open(io.BytesIO(reply.body)).convert("RGB"), float)
            assert found.shape == frames[row].shape
            assert abs(found - frames[row]).mean() < 8, (id, row)
    assert served.ask(f"/thumb/{made.gone.replace('/', '%2F')}").status == 404
    assert served.ask("/thumb/broken").status == 422


def test_thumbnails_come_from_stored_frames_where_there_are_some(made, tmp_path):
    store = glscl.open_cache(made.cache)
    settings = glscl.ExtractSettings(backbone="demo", fps=2.0, workers=1, store_frames="jpeg")
    copy = tmp_path / "a.mp4"
    copy.write_bytes(made.videos["train0002"].read_bytes())
    glscl.extract(glscl.read_dataset("folder", None, tmp_path), tmp_path / "cache", settings)
    copy.unlink()
    with running([tmp_path / "cache"]) as served:
        reply = served.ask("/thumb/a.mp4?t=1.5")
        frames, times = glscl.decode(made.videos["train0002"], fps=2.0)
        found = np.asarray(Image.open(io.BytesIO(reply.body)), float)
        small = np.asarray(Image.fromarray(frames[3]).resize(found.shape[1::-1]), float)
        assert reply.status == 200 and times[3] == 1.5 and abs(found - small).mean() < 8
    assert store.library.frames is None


def test_a_video_is_given_whole_and_in_ranges(served, made):
    data = made.videos["train0002"].read_bytes()
    whole = served.ask("/video/train0002")
    assert whole.body == data and whole.headers["content-type"] == "video/mp4"
    part = served.ask("/video/train0002", Range="bytes=100-199")
    assert part.status == 206 and part.body == data[100:200]
    assert part.headers["content-range"] == f"bytes 100-199/{len(data)}"
    assert served.ask("/video/train0002", Range="bytes=-10").body == data[-10:]
    assert served.ask("/video/train0002", Range=f"bytes={len(data)}-").status == 416
    assert served.ask("/video/train0002", "HEAD").headers["content-length"] == str(len(data))


def test_a_video_in_a_tar_is_shown_from_there(served, made):
    data, about = (made.root / "packed.mp4").read_bytes(), "/video/packed.mp4"
    whole = served.ask(about)
    assert whole.body == data and whole.headers["content-type"] == "video/mp4"
    for asked, first, last in (("0-", 0, len(data)), ("100-199", 100, 200), ("-10", len(data) - 10, len(data))):
        part = served.ask(about, Range=f"bytes={asked}")
        assert part.status == 206 and part.body == data[first:last]
        assert part.headers["content-range"] == f"bytes {first}-{last - 1}/{len(data)}"
    assert served.ask(about, Range=f"bytes={len(data)}-").status == 416
    assert served.ask(about, "HEAD").headers["content-length"] == str(len(data))
    assert served.ask("/thumb/packed.mp4?t=0.5").headers["content-type"] == "image/jpeg"
    assert served.ask("/api/preview/packed.mp4").json["url"]


def test_only_what_the_cache_lists_is_served_and_only_as_it_was(served, made, tmp_path):
    for name in ("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "%2Fetc%2Fpasswd", "%00", "%ff", "", "x" * 5000,
                 quote(str(made.videos["train0002"]), safe="")):  # fmt: skip
        for place in ("video", "thumb", "api/video", "api/preview", "api/similar"):
            assert served.ask(f"/{place}/{name}").status == 404, (place, name)
    for path in (
        "/preview/..%2f..%2fetc%2fpasswd",
        "/page.js/../settings.py",
        "/static/page.js",
        "/page/",
        "/index.html",
    ):
        assert served.ask(path).status == 404
    assert served.ask(f"/video/{quote(made.gone, safe='')}").json["error"].startswith("the file is not where")
    path = made.videos["train0014"]
    before = path.read_bytes()
    path.write_bytes(b"a secret that took its place")
    try:
        assert served.ask("/video/train0014").status == 404
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("id", HOSTILE)
def test_hostile_ids_reach_their_own_video_and_nothing_else(served, made, id):
    hits = served.ask("/api/search?q=a&top=50").json["hits"]
    hit = next(hit for hit in hits if hit["video"] == id)
    for link in hit["links"].values():
        assert re.fullmatch(r"[!-~]+", link) and not re.search(r"[<>\"'\\]|/\.\.?(/|\?|$)", link), link
        assert urlsplit(link).path.count("/") <= 3
    assert served.ask(hit["links"]["video"]).body == made.videos[id].read_bytes()
    about = fits(served.ask(hit["links"]["about"]).json, "Video")
    assert about["video"] == id and about["captions"] and "<script>" in about["captions"][0]
    assert served.ask(hit["links"]["thumb"]).status == 200
    assert served.ask(hit["links"]["similar"]).json["like"] == id


def test_what_no_browser_plays_is_made_playable_around_the_moment(served, made):
    import av

    about = fits(served.ask("/api/preview/old.avi?t=3").json, "Preview")
    part = served.ask(about["url"], Range="bytes=0-99999999")
    assert part.status == 206 and about["start"] == 0 and about["end"] == pytest.approx(6, abs=0.1)
    with av.open(io.BytesIO(part.body)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name in ("h264", "vp8") and "mpeg4" in about["how"]
        for frame in container.decode(stream):
            at = float(frame.pts * stream.time_base)
            assert frame.to_ndarray(format="gray8").mean() == pytest.approx(10 + 235 * at / 6, abs=12)
    copied = served.ask("/api/preview/train0002").json
    assert "another container" in copied["how"]
    encoded = served.ask("/api/preview/train0002?encode=true").json
    assert "encoded anew" in encoded["how"] and encoded["url"] != copied["url"]
    reply = served.ask("/api/preview/broken")
    assert reply.status == 422 and "broken" not in reply.json["error"]


def test_parts_of_long_videos_are_made_where_they_are_asked_for(tmp_path):
    from glscl.extract.decode.previews import make_preview

    long = mpeg4(tmp_path / "long.avi", seconds=100, rate=5)
    made = make_preview(str(long), str(tmp_path), "x", 60.0, 30.0)
    assert made.start == pytest.approx(60, abs=0.2) and made.end == pytest.approx(90, abs=0.3)


def test_caches_and_failures_are_told(served, made):
    told = fits(served.ask("/api/caches").json, "Caches")
    (cache,) = told["caches"]
    assert cache["path"] == str(made.cache) and cache["lists"][0]["videos"] == 33
    assert cache["lists"][0]["failed"] == 1 and "outside" in cache["lists"][0]["folders"]
    failures = fits(served.ask("/api/failures").json, "Failures")
    assert failures["total"] == 1 and failures["failures"][0]["id"] == "broken"
    assert "Invalid data" in served.ask("/api/video/broken").json["failure"]


def test_the_description_knows_every_place_and_parameter(served):
    document = served.ask("/openapi.json").json
    assert document["openapi"].startswith("3.1")
    routes = {re.sub(r":\w+", "", route.path) for route in served.site.app().routes} - set(app_module.PAGE)
    assert set(document["paths"]) == routes
    for path, methods in document["paths"].items():
        named = {p["name"] for p in methods["get"].get("parameters", ()) if p["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path))
    for parameter in document["paths"]["/api/search"]["get"]["parameters"]:
        reply = served.ask(f"/api/search?{parameter['name']}=nope")
        assert "there is no parameter" not in reply.json.get("error", "")


def test_many_at_once_are_answered_in_order_and_all_alike(served):
    answers, order = {}, []

    def ask(number):
        answers[number] = served.ask(f"/api/search?q=thing%20{number % 3}").json["hits"]
        order.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 24
    for number in range(3, 24):
        assert answers[number] == answers[number % 3]


def test_a_slow_client_holds_nobody_up(served):
    where = served.place.host, served.place.port
    head = b"HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % served.place.port
    slow = [socket.create_connection(where) for _ in range(6)]
    slow[0].sendall(b"GET /api/se")  # stops within the line
    slow[1].sendall(b"GET /api/search?q=a " + head)  # within the headers
    slow[2].sendall(b"POST /api/search " + head + b"Content-Length: 1000000\r\n\r\n" + bytes(1000))  # within the body
    slow[3].sendall(b"GET /video/train0002 " + head + b"\r\n")  # never reads
    slow[4].sendall(b"GET /api/search?q=a&top=1000 " + head + b"\r\n")
    started = time.monotonic()
    for _ in range(5):
        assert served.ask("/api/search?q=a%20circle").status == 200
    assert time.monotonic() - started < 10
    for each in slow:
        each.close()


def test_who_has_gone_is_not_searched_for(served, monkeypatch):
    searched = []
    real = served.site.answers.of_sentence

    def search(asked):
        searched.append(asked.q)
        time.sleep(0.5)
        return real(asked)

    monkeypatch.setattr(served.site.answers, "of_sentence", search)
    head = b" HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % served.place.port
    with socket.create_connection((served.place.host, served.place.port)) as first:
        first.sendall(b"GET /api/search?q=first" + head)
        time.sleep(0.15)
        with socket.create_connection((served.place.host, served.place.port)) as second:
            second.sendall(b"GET /api/search?q=gone" + head)
            time.sleep(0.05)
        assert served.ask("/api/search?q=last").status == 200
    assert searched == ["first", "last"]


def test_json_is_json_whatever_the_ids(served):
    body = served.ask("/api/search?q=a&top=50").body
    assert all(byte < 128 for byte in body) and {hit["video"] for hit in json.loads(body)["hits"]} >= set(HOSTILE)
