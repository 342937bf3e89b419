"""Who may ask: nobody by another name, no other site, and on the network nobody without the token."""

from __future__ import annotations

import http.cookies
import re

import pytest
from serving import running

from glscl.common.errors import UsageError
from glscl.evaluate.serve.server import ServerAddress
from glscl.evaluate.serve.settings import ServeSettings


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "127.0.0.1", "localhost:1", "127.0.0.1:1", "", "[::1", "10.0.0.1:{port}"])  # fmt: skip
def test_another_name_is_not_answered(served, host):
    reply = served.ask("/api/caches", Host=host.format(port=served.place.port))
    assert reply.status == 403 and "this server is not" in reply.json["error"]


def test_its_own_names_are(served):
    for host in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
        assert served.ask("/api/caches", Host=f"{host}:{served.place.port}").status == 200


@pytest.mark.parametrize(
    "path", ["/api/caches", "/api/search?q=a", "/video/train0002", "/thumb/train0002", "/", "/page.js"]
)
def test_pages_of_other_sites_get_nothing(served, path):
    for origin in (
        "https://evil.example",
        "null",
        "http://localhost:1",
        f"http://127.0.0.1.evil.example:{served.place.port}",
    ):
        assert served.ask(path, Origin=origin).status == 403
    for site in ("cross-site", "same-site"):
        assert served.ask(path, Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors").status == 403
    assert served.ask(path, Origin=served.url, Sec_Fetch_Site="same-origin").status in (200, 206)


def test_a_link_from_elsewhere_opens_the_page_alone(served):
    visit = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert served.ask("/?q=a", **visit).status == 200
    assert served.ask("/video/train0002", **visit).status == 403
    assert served.ask("/api/search", "POST", b"x", **visit).status == 403


def test_every_answer_forbids_what_is_foreign(served):
    for path in (
        "/",
        "/page.js",
        "/style.css",
        "/api/caches",
        "/video/train0002",
        "/thumb/train0002",
        "/nowhere",
        "/api/search",
    ):
        headers = served.ask(path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers and "access-control-allow-origin" not in headers


def test_the_page_holds_no_script_and_no_style_of_its_own(served):
    page = served.ask("/").body.decode()
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", page)
    links = re.findall(r"(?:src|href)=\"([^\"]*)\"", page)
    assert links and all(link.startswith(("/", "#", "data:")) and not link.startswith("//") for link in links)
    script = served.ask("/page.js").body.decode()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|https?://(?!www\.w3\.org/)", script
    )


def test_on_the_network_nobody_comes_in_without_the_token(made):
    with running([made.cache], host="0.0.0.0") as served:
        token, host = served.place.token, {"Host": f"192.0.2.7:{served.place.port}"}
        assert served.place.public and token and len(token) >= 32 and token in served.place.url
        for path in (
            "/",
            "/page.js",
            "/api/caches",
            "/video/train0002",
            "/thumb/train0002",
            "/?token=wrong",
            f"/api/caches?token={token}",
        ):
            assert served.ask(path, **host).status == 401, path
        entered = served.ask(f"/?token={token}&q=a+dog", **host)
        assert entered.status == 303 and entered.headers["location"] == "/?q=a+dog"
        cookie = http.cookies.SimpleCookie(entered.headers["set-cookie"])
        (name,) = cookie
        assert cookie[name]["httponly"] and cookie[name]["samesite"] == "Strict"
        assert served.ask("/", Cookie=f"{name}={token}", **host).status == 200
        assert served.ask("/api/caches", Authorization=f"Bearer {token}", **host).status == 200
        assert served.ask("/api/caches", Cookie=f"{name}=wrong", **host).status == 401
        assert (
            served.ask("/api/caches", Authorization=f"Bearer {token}", Host=f"evil.example:{served.place.port}").status
            == 403
        )
        told = served.ask("/api/caches", Authorization=f"Bearer {token}").json
        assert "path" not in told["caches"][0]
        about = served.ask("/api/video/train0002", Authorization=f"Bearer {token}").json
        assert about["path"] is None and about["there"]


def test_a_port_that_is_taken_is_one_line(served):
    with pytest.raises(UsageError, match=f"port {served.place.port}"):
        ServerAddress(ServeSettings(port=served.place.port))
    with pytest.raises(UsageError, match="Cannot serve at"):
        ServerAddress(ServeSettings(host="no such host"))
    own = ServerAddress(ServeSettings(port=0))
    assert own.token is None and not own.public and own.url == f"http://127.0.0.1:{own.port}/"
    own.socket.close()
