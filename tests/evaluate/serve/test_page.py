"""The page in a real browser: type, look, play at the moment, drop a picture, with the keyboard alone, small and dark."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image
from serving import HOSTILE, MARKUP, h264, running

import glscl
from glscl.cache.schema import Annotations, VideoItem

WAIT = 30_000  # ms: machines that test may be busy
SHOWN = """() => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 8 }).getContext("2d");
    canvas.drawImage(document.getElementById("video"), 0, 0, 8, 8);
    return canvas.getImageData(4, 4, 1, 1).data[1];
}"""  # how light the middle of the video is


@pytest.fixture
def page(browser, served):
    """A fresh page; an error of the script, or anything that the page's policy forbids, fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    context.set_default_timeout(WAIT)
    found, said = context.new_page(), []
    found.on("pageerror", lambda error: said.append(str(error)))
    found.on("console", lambda line: said.append(line.text) if "Content Security" in line.text else None)
    found.goto(served.url)
    found.wait_for_selector("#try button")
    yield found
    context.close()
    assert said == []


def until(page, expression):
    """Wait until an expression is true; Playwright's own way to wait evaluates text, which the page's policy forbids."""
    end = time.monotonic() + WAIT / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def search(page, text="a red circle"):
    page.fill("#q", text)
    page.keyboard.press("Enter")
    until(page, f"new URLSearchParams(location.search).get('q') === {json.dumps(text)}")
    page.wait_for_selector(".hit")
    page.wait_for_selector("#columns:not([aria-busy])")


def as_shown(id):
    """An id as the page shows it: what cannot be seen is made visible."""
    return id.replace("\n", "␣").replace("\udc80", "�")


def ids(page):
    return page.eval_on_selector_all(".hit", "all => all.map(each => each.hit.video)")


def playing_at(page, hit_time):
    """Wait until the video shows a picture at that time, or has just gone on from there."""
    until(page, "document.getElementById('video').readyState >= 2 && !document.getElementById('video').seeking")
    now = page.evaluate("document.getElementById('video').currentTime")
    assert hit_time - 0.06 <= now < hit_time + 4, (now, hit_time)


def test_typing_shows_thumbnails_and_a_click_plays_at_the_moment(page, served):
    search(page)
    wanted = served.ask("/api/search?q=a%20red%20circle&top=24&moments=3").json["hits"]
    assert ids(page) == [hit["video"] for hit in wanted]
    until(page, "document.querySelectorAll('.shot img')[0].naturalWidth > 0")
    assert "24 of 32 videos" in page.inner_text("#status")
    page.click(".hit >> nth=2")
    playing_at(page, wanted[2]["moments"][0]["start"])
    assert page.inner_text("#player-id") == wanted[2]["video"]
    assert not page.evaluate("document.getElementById('video').paused")
    assert page.locator("#captions li").count() >= 1
    page.click(".moments button")
    page.wait_for_timeout(50)
    playing_at(page, wanted[2]["moments"][0]["start"])


def test_pictures_that_take_long_hold_nothing_up(page):
    """A browser opens six connections to a server; pictures that nobody waits for any more are given up."""
    held, given_up = [], []
    page.route("**/thumb/**", lambda route: held.append(route))
    page.on("requestfailed", lambda request: given_up.append(request.url))
    search(page, "a red circle")
    page.wait_for_timeout(200)
    assert len(held) == 4
    search(page, "a blue star")
    page.wait_for_timeout(200)
    assert len(held) == 8 and sorted(given_up) == sorted(route.request.url for route in held[:4])
    for route in held[4:]:
        route.continue_()
    until(page, "document.querySelectorAll('.shot img')[0].naturalWidth > 0")
    page.unroute("**/thumb/**")


def test_what_is_typed_is_looked_for_without_enter(page):
    page.type("#q", "a blue star", delay=10)
    page.wait_for_selector(".hit")
    assert "q=a+blue+star" in page.url


def test_the_strip_plays_where_it_is_clicked(page):
    search(page)
    hit = page.evaluate("(({strip, duration}) => ({strip, duration}))(document.querySelector('.hit').hit)")
    box = page.locator(".strip >> nth=0").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + 10)
    playing_at(page, 0.5 * max(hit["duration"], hit["strip"]["times"][-1]) - 0.2)
    line = page.locator("#timeline").bounding_box()
    page.mouse.click(line["x"] + line["width"] * 0.1, line["y"] + 20)
    until(page, "document.getElementById('video').currentTime < 3")
    page.focus("#timeline")
    page.evaluate("document.getElementById('video').pause()")
    page.keyboard.press("Home")
    until(page, "document.getElementById('video').currentTime < 0.3")
    assert page.get_attribute("#timeline", "aria-valuenow") == "0.0"


def test_the_address_reproduces_search_and_moment(page, browser, served):
    page.click("#narrow")
    page.select_option("#split", "test")
    search(page)
    page.click(".hit >> nth=1")
    video, found, address = page.inner_text("#player-id"), ids(page), page.url
    start = page.evaluate("document.querySelectorAll('.hit')[1].hit.moments[0].start")
    other = browser.new_context().new_page()
    other.goto(address)
    other.wait_for_selector("#player:not([hidden])", timeout=WAIT)
    playing_at(other, start)
    assert other.evaluate("document.getElementById('video').currentTime") == pytest.approx(start, abs=0.05)
    assert ids(other) == found and other.inner_text("#player-id") == video
    assert other.input_value("#q") == "a red circle" and other.input_value("#split") == "test"
    other.context.close()


def test_back_goes_to_the_search_before(page):
    search(page, "a red circle")
    first = ids(page)
    search(page, "a tree in the snow")
    assert ids(page) != first
    page.go_back()
    until(
        page,
        f"JSON.stringify([...document.querySelectorAll('.hit')].map(e => e.hit.video)) === {json.dumps(json.dumps(first, separators=(',', ':')))}",
    )
    assert page.input_value("#q") == "a red circle"


def test_everything_goes_with_the_keyboard_alone(page):
    page.keyboard.press("Escape")
    page.keyboard.type("a red circle")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit")
    page.wait_for_selector("#columns:not([aria-busy])")
    page.keyboard.press("ArrowDown")
    focused = "document.activeElement.hit?.rank ?? document.activeElement.id"
    assert page.evaluate(focused) == 1
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == 2
    page.keyboard.press("ArrowDown")
    below = page.evaluate(focused)
    assert below > 3
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == 2
    page.keyboard.press("Enter")
    page.wait_for_selector("#player:not([hidden])")
    playing_at(page, page.evaluate("document.activeElement.hit.moments[0].start"))
    page.keyboard.press(" ")
    until(page, "document.getElementById('video').paused")
    assert page.evaluate(focused) == 2
    page.keyboard.press("Escape")
    assert page.is_hidden("#player") and page.evaluate(focused) == 2
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == "q"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("/")
    assert page.evaluate(focused) == "q"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("s")
    until(page, "location.search.includes('like=')")
    page.keyboard.press("?")
    assert page.is_visible("#keys-dialog")
    page.keyboard.press("Escape")
    assert not page.is_visible("#keys-dialog")


def test_tab_goes_through_the_page_and_out_again(page):
    search(page)
    page.click(".hit >> nth=0")
    page.focus(".skip")
    seen = ["skip"]
    for _ in range(80):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )
        if seen[-1] == "BODY" or (len(seen) > 5 and seen[-1] == seen[0]):
            break
    else:
        raise AssertionError(f"the focus never comes out: {seen}")
    assert seen[0] == "skip" and {"q", "narrow", "copy", "hit", "video", "timeline", "similar", "keys"} <= set(seen)
    assert seen.count("hit") == 1  # one stop for all results; arrows go on


def test_searches_before_are_offered(page):
    search(page, "a red circle")
    search(page, "a blue star")
    page.fill("#q", "")
    page.wait_for_selector("#history li")
    assert page.locator("#history li").all_inner_texts()[:2] == ["a blue star", "a red circle"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.get_attribute("#q", "aria-activedescendant") == "history-1"
    page.keyboard.press("Enter")
    until(page, "location.search.includes('red')")
    assert page.input_value("#q") == "a red circle" and page.is_hidden("#history")
    page.fill("#q", "")
    page.wait_for_selector("#history li")
    page.click("#history .forget")
    assert page.evaluate("localStorage.getItem('glscl-history')") is None


def picture_of(made, id, row):
    frames, times = glscl.decode(made.videos[id], fps=2.0)
    out = io.BytesIO()
    Image.fromarray(frames[row]).save(out, "PNG")
    return out.getvalue(), float(times[row])


def drop(page, name, kind, data):
    """As if a person let go of a file above the page."""
    transfer = page.evaluate_handle(
        "([name, kind, bytes]) => { const given = new DataTransfer();"
        " given.items.add(new File([new Uint8Array(bytes)], name, {type: kind})); return given; }",
        [name, kind, [*data]],
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    assert page.is_visible("#drop")
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    assert page.is_hidden("#drop")


def test_a_picture_that_is_dropped_finds_its_frame(page, made):
    data, time = picture_of(made, "train0002", 3)
    drop(page, "<b>mine</b>.png", "image/png", data)
    page.wait_for_selector(".hit")
    assert ids(page)[0] == "train0002"
    assert page.evaluate("document.querySelector('.hit').hit.time") == pytest.approx(time, abs=1e-3)
    assert page.inner_text("#example-text") == "<b>mine</b>.png" and page.locator("#example-picture").is_visible()
    page.click("#copy")
    assert "cannot hold the file" in page.inner_text("#problem")
    page.click("#example-clear")
    assert page.is_hidden("#example") and page.evaluate("document.activeElement.id") == "q"


def test_a_clip_is_chosen_and_nonsense_is_said_to_be(page, made):
    page.set_input_files("#file", str(made.videos["test0004"]))
    page.wait_for_selector(".hit")
    assert ids(page)[0] == "test0004"
    drop(page, "x.png", "image/png", b"nonsense" * 10)
    page.wait_for_selector("#problem:not([hidden])")
    assert "no picture" in page.inner_text("#problem") and page.locator(".hit").count() == 0


def test_this_frame_and_similar_videos_are_searched(page):
    search(page)
    video = ids(page)[0]
    page.click(".hit >> nth=0")
    playing_at(page, page.evaluate("document.querySelector('.hit').hit.moments[0].start"))
    page.evaluate("document.getElementById('video').pause()")
    page.click("#frame")
    until(page, "location.search.includes('like=')")
    until(page, f"document.querySelector('.hit').hit.video === {json.dumps(video)}")
    until(page, "document.getElementById('example-text').textContent.includes(' at 0:0')")
    page.click("#similar")
    until(
        page,
        f"location.search.includes('like=') && ![...document.querySelectorAll('.hit')].some(e => e.hit.video === {json.dumps(video)})",
    )
    assert page.inner_text("#example-text") == f"like {as_shown(video)}"


def test_two_heads_stand_side_by_side(page, served):
    page.click("#narrow")
    page.select_option("#beside", label="mean_pool")
    search(page)
    until(page, "document.querySelectorAll('.column').length === 2")
    for column, head in enumerate(("best_frames", "mean_pool")):
        wanted = served.ask(f"/api/search?q=a%20red%20circle&top=24&head={head}").json["hits"]
        found = page.eval_on_selector_all(f".column:nth-child({column + 1}) .hit", "all => all.map(e => e.hit.video)")
        assert found == [hit["video"] for hit in wanted]
    assert page.locator(".column h2").all_inner_texts() == ["best_frames", "mean_pool"]


@pytest.fixture(scope="module")
def second_cache(tmp_path_factory):
    """A cache of a video whose clock begins at 1.4 s: white for a second from 3 s on, as it is shown."""
    root = tmp_path_factory.mktemp("second")
    late = VideoItem("late.mp4", "test", str(h264(root / "late.mp4", begins=1.4, white=range(30, 40))))
    made = Annotations(dataset="second", videos=[late], texts=[], expected={}, notes=[])
    glscl.extract(made, root / "second", glscl.ExtractSettings(backbone="demo", fps=2.0, workers=1))
    return root / "second"


def test_two_caches_stand_side_by_side_and_a_moment_is_shown_where_a_clock_begins_late(browser, made, second_cache):
    with running([made.cache, second_cache]) as served:
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.set_default_timeout(WAIT)
        page.goto(f"{served.url}/?q=a+white+picture")
        page.wait_for_selector(".hit")
        page.click("#narrow")
        assert page.eval_on_selector_all("#where option", "all => all.map(e => e.text)") == [
            "cache / made",
            "second / second",
        ]
        page.select_option("#beside", value="second/second/best_frames")
        until(page, "document.querySelectorAll('.column').length === 2")
        for column, cache in enumerate(("cache", "second")):
            wanted = served.ask(f"/api/search?q=a%20white%20picture&top=24&cache={cache}").json["hits"]
            found = page.eval_on_selector_all(
                f".column:nth-child({column + 1}) .hit", "all => all.map(e => e.hit.video)"
            )
            assert found == [hit["video"] for hit in wanted]
        moment = wanted[0]["moments"][0]
        assert 2.6 <= moment["start"] <= 3.1 and 3.9 <= moment["end"] <= 4.4, moment
        page.click(".column:nth-child(2) .hit")
        playing_at(page, moment["start"] + 1.4)
        assert page.evaluate(SHOWN) > 200
        until(page, f"Number(document.getElementById('timeline').ariaValueNow) < {moment['end'] + 3}")
        page.select_option("#where", label="second / second")
        until(
            page, "document.querySelectorAll('.column').length === 1 && document.querySelectorAll('.hit').length === 1"
        )
        page.context.close()


def test_filters_narrow_and_say_so(page):
    search(page)
    page.click("#narrow")
    page.fill("#folder", "outside")
    page.keyboard.press("Tab")
    until(page, "[...document.querySelectorAll('.hit')].every(e => e.hit.video.startsWith('outside/'))")
    assert page.inner_text("#active") == "1" and "folder=outside" in page.url
    page.fill("#min", "2")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('status').textContent.startsWith('Nothing fits')")
    page.fill("#folder", "nowhere")
    page.keyboard.press("Tab")
    page.wait_for_selector("#problem:not([hidden])")
    page.click("#reset")
    page.wait_for_selector(".hit")
    assert page.is_hidden("#active") and "folder" not in page.url


def test_hostile_ids_and_captions_are_text(page, served):
    page.goto(f"{served.url}/?q=a&top=48")
    page.wait_for_selector(".hit")
    assert set(HOSTILE) <= set(ids(page)) and page.title() == "a · glscl"
    for number, id in enumerate(ids(page)):
        if id in HOSTILE:
            page.click(f".hit >> nth={number}")
            until(page, "document.getElementById('captions').textContent.includes('<script>')")
            playing_at(page, page.evaluate(f"document.querySelectorAll('.hit')[{number}].hit.moments[0].start"))
            shown = page.evaluate("document.getElementById('player-id').textContent")
            assert shown == as_shown(id)
            if id == HOSTILE[0]:
                page.click("#frame")
                until(page, f"document.querySelector('.hit')?.hit.video === {json.dumps(id)}")
                page.go_back()
                until(page, "!location.search.includes('like=') && !document.getElementById('columns').ariaBusy")
            page.keyboard.press("Escape")
    assert page.locator("main script, main [onerror], footer [onerror]").count() == 0
    assert page.title() == "a · glscl"


def test_what_was_found_is_taken_away_as_csv_and_json(page):
    page.click("#narrow")
    page.select_option("#answers", "48")
    search(page, "a")
    with page.expect_download() as got:
        page.click("#json")
    answer = json.loads(Path(got.value.path()).read_text())
    assert [hit["video"] for hit in answer["hits"]] == ids(page) and "links" in answer["hits"][0]
    with page.expect_download() as got:
        page.click("#csv")
    rows = [*csv.DictReader(io.StringIO(Path(got.value.path()).read_text("utf-8-sig"), newline=""))]
    assert [float(row["score"]) for row in rows] == [hit["score"] for hit in answer["hits"]]
    named = {row["video"] for row in rows}
    assert MARKUP in named and "'=SUM(A1)" in named and "=SUM(A1)" not in named and "two\nlines" in named


def test_what_no_browser_plays_is_shown_as_a_preview(page, served):
    page.goto(f"{served.url}/?play=old.avi&at=3")
    until(page, "document.getElementById('screen-note').textContent.startsWith('Preview of 0:00')")
    playing_at(page, 3.0)
    assert page.evaluate("document.getElementById('video').videoWidth") == 160
    assert "mpeg4" in page.inner_text("#screen-note")


def test_a_copy_that_does_not_play_is_encoded_anew(page, served):
    page.route(f"{served.url}/video/**", lambda route: route.fulfill(body=b"nonsense", content_type="video/mp4"))
    page.route("**/preview/*-0", lambda route: route.fulfill(body=b"nonsense", content_type="video/mp4"))
    page.goto(f"{served.url}/?play=train0002&at=1")
    until(page, "document.getElementById('screen-note').textContent.includes('encoded anew')")
    playing_at(page, 1.0)


def test_a_broken_video_and_one_that_is_gone_are_said_to_be(page, made, served):
    page.goto(f"{served.url}/?play=broken")
    until(page, "document.getElementById('screen-note').textContent.startsWith('This video cannot be shown')")
    assert "Invalid data" in page.inner_text("#captions")
    page.goto(f"{served.url}/?q=a&top=48")
    page.wait_for_selector(".hit")
    number = ids(page).index(made.gone)
    page.locator(f".card >> nth={number}").scroll_into_view_if_needed()
    until(page, "[...document.querySelectorAll('.none')].some(e => e.textContent === 'the file is gone')")
    page.click(f".hit >> nth={number}")
    until(page, "document.getElementById('screen-note').textContent.includes('not where it was last seen')")
    page.goto(f"{served.url}/?play=nobody")
    page.wait_for_selector("#problem:not([hidden])")
    page.click("#failures")
    page.wait_for_selector("#failures-rows tr")
    assert page.locator("#failures-rows tr").count() == 1 and "broken" in page.inner_text("#failures-rows")


OVERFLOW = """() => [...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && !e.closest('.skip, .scroll, svg') && (box.right > innerWidth + 1 || box.left < -1);
}).map(e => e.id || e.className || e.tagName)"""


@pytest.mark.parametrize("dark", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_it_fits_a_phone(browser, served, dark):
    scheme = "dark" if dark else "light"
    context = browser.new_context(
        viewport={"width": 360, "height": 740},
        color_scheme=scheme,
        has_touch=True,
        is_mobile=True,
        device_scale_factor=2,
    )
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.goto(f"{served.url}/?q=a&top=48")
    page.wait_for_selector(".hit")
    assert page.evaluate(OVERFLOW) == []
    page.tap("#narrow")
    assert page.evaluate(OVERFLOW) == []
    page.tap("#narrow")
    page.tap(".hit >> nth=0")
    page.wait_for_selector("#player:not([hidden])")
    playing_at(page, page.evaluate("document.querySelector('.hit').hit.moments[0].start"))
    assert page.evaluate(OVERFLOW) == [] and page.evaluate("document.documentElement.scrollWidth") == 360
    sizes = page.evaluate(
        "['#pick', '#narrow', '#player-close', '#similar'].map(s => document.querySelector(s).getBoundingClientRect().height)"
    )
    assert min(sizes) >= 28
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 23, 27)") == dark
    context.close()


CONTRAST = """() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > .9) return c; } return [255, 255, 255]; };
  const low = [];
  for (const e of document.querySelectorAll('body *')) {
    if (e.closest('svg, .shot, .screen, select, #drop, [hidden], .skip') || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    if (!e.getBoundingClientRect().width) continue;
    const [a, b] = [light(parts(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) low.push([e.id || e.className || e.tagName, ((a + .05) / (b + .05)).toFixed(2)]);
  }
  return low;
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_and_every_control_has_a_name(browser, served, dark):
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="dark" if dark else "light")
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.goto(f"{served.url}/?q=a&split=train")
    page.wait_for_selector(".hit")
    page.click(".hit >> nth=0")
    page.wait_for_selector("#captions li")
    assert page.evaluate(CONTRAST) == []
    unnamed = """() => [...document.querySelectorAll('button, input, select, a, dialog, section, [role]')].filter(e =>
      !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim() || e.labels?.length ||
        e.getAttribute('role') === 'status' || e.getAttribute('role') === 'alert' || e.closest('[hidden]'))).map(e => e.id || e.outerHTML)"""
    assert page.evaluate(unnamed) == []
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("document.querySelectorAll('.shot img:not([alt])').length") == 0
    tree = page.accessibility.snapshot() if hasattr(page, "accessibility") else None
    if tree is not None:
        names = json.dumps(tree)
        assert "Search with a picture or a clip" in names and "Score over time" in names
    context.close()


def test_nothing_comes_from_elsewhere(browser, served):
    context = browser.new_context()
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{served.url}/?q=a")
    page.wait_for_selector(".hit")
    page.click(".hit >> nth=0")
    page.wait_for_timeout(500)
    assert asked and all(url.startswith((served.url, "data:", "blob:")) for url in asked)
    blocked = page.evaluate("fetch('https://example.com/').then(() => 'went out').catch(() => 'refused')")
    assert blocked == "refused"
    context.close()


def test_a_thousand_results_are_there_at_once(browser, tmp_path, small_cache, monkeypatch):
    """Of a cache of made-up features, whose videos are not there: what is asked is found by likeness."""
    from glscl.evaluate.serve import served_caches

    made = small_cache(videos=1300, captions=1)
    made.shard_items = {"video": 700, "text": 1300}
    made.fill()
    assert served_caches.open_catalog([made.path]).first.encoder.backbone is None
    with running([made.path]) as served:
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        page, said = context.new_page(), []
        page.on("pageerror", lambda error: said.append(str(error)))
        page.set_default_timeout(WAIT)
        page.goto(served.url)
        page.wait_for_selector("#problem:not([hidden])")
        assert "cannot be asked in words" in page.inner_text("#problem")
        like = quote(quote("vidéo0", safe=""), safe="")
        page.goto(f"{served.url}/?like={like}&t=0&top=1000")
        until(page, "document.querySelectorAll('.hit').length === 1000")
        page.focus(".hit")
        page.keyboard.press("End")
        assert page.evaluate("document.activeElement.hit.rank") == 1000
        page.keyboard.press("Home")
        assert page.evaluate("document.activeElement.hit.rank") == 1
        page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
        frames = page.evaluate(
            "new Promise(done => { let n = 0; const t = performance.now();"
            " const step = () => ++n < 10 ? requestAnimationFrame(step) : done(performance.now() - t); step(); })"
        )
        assert frames < 5000 and said == []
        context.close()


@pytest.mark.skipif("GLSCL_PICTURES" not in os.environ, reason="GLSCL_PICTURES names a folder for pictures of the page")
def test_pictures_of_the_page(browser, served):
    folder = Path(os.environ["GLSCL_PICTURES"])
    for name, width, height, scheme in (
        ("wide", 1366, 820, "light"),
        ("dark", 1366, 820, "dark"),
        ("phone", 360, 740, "light"),
    ):
        page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
        page.goto(f"{served.url}/?q=a+red+circle")
        page.wait_for_selector(".hit")
        page.click(".hit >> nth=0")
        page.wait_for_timeout(2500)
        page.screenshot(path=folder / f"{name}.png")
        page.context.close()
