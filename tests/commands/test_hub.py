"""Caches and runs on the Hugging Face Hub, which is a stand-in here that speaks as much of its protocol as is needed."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

from glscl.cache.store import open_store

huggingface_hub = pytest.importorskip("huggingface_hub")
TOKEN = "hf_made_up"


class Hub(ThreadingHTTPServer):
    """Repositories: "datasets/USER/NAME" → name of a file → bytes; one commit each time anything changes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def answer(self, status=200, value=None, data=None, **headers):
        body = json.dumps({} if value is None else value).encode() if data is None else data
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_one(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                sent += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."}, X_Error_Code="RepoNotFound")
        if path == "/api/repos/create":
            asked = json.loads(sent)
            name = f"{asked['type']}s/{asked.get('organization') or 'user'}/{asked['name']}"
            if name in hub.repositories:
                return self.answer(409, {"url": f"{hub.address}/{name}"})
            hub.repositories[name], hub.private[name] = {}, asked.get("private") or asked.get("visibility") == "private"
            return self.answer(value={"url": f"{hub.address}/{name}"})
        if path == "/api/validate-yaml":
            return self.answer(value={"errors": [], "warnings": []})
        parts = path.removeprefix("/api").strip("/").split("/")
        if parts[0] not in ("datasets", "models"):
            parts = ["models", *parts]
        name, rest = "/".join(parts[:3]), parts[3:]
        files = hub.repositories.get(name)
        if files is None:
            return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        if rest[:1] == ["preupload"]:
            about = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(sent)["files"]
            ]
            return self.answer(value={"files": about})
        if rest[:1] == ["commit"]:
            for row in map(json.loads, sent.splitlines()):
                if row["key"] == "file":
                    files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            return self.answer(value={"commitUrl": f"{hub.address}/{name}/commit/{sha}", "commitOid": sha})
        if rest[:1] == ["tree"]:
            rows = [
                {
                    "type": "file",
                    "path": each,
                    "size": len(data),
                    "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
                }
                for each, data in files.items()
            ]
            return self.answer(value=rows)
        if rest[:1] == ["resolve"]:
            data = files.get("/".join(rest[2:]))
            if data is None:
                return self.answer(404, X_Error_Code="EntryNotFound")
            tag = f'"{hashlib.sha1(data).hexdigest()}"'
            return self.answer(data=data, ETag=tag, X_Repo_Commit=sha)
        siblings = [{"rfilename": each} for each in files]
        return self.answer(
            value={"id": "/".join(parts[1:3]), "sha": sha, "siblings": siblings, "tags": [], "private": True}
        )

    do_GET = do_HEAD = do_POST = handle_one


@pytest.fixture(scope="module")
def server():
    with Hub() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture
def hub(server, monkeypatch):
    server.repositories.clear()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return server


@pytest.mark.parametrize("format", [pytest.param("zarr", marks=pytest.mark.exhaustive), "hdf5"])
def test_a_pushed_cache_is_pulled_whole_and_trains(small_cache, glscl, hub, tmp_path, format):
    made = small_cache(format=format)
    made.fill()
    status, out, err = glscl("push", made.path, "hf://datasets/user/features", "--license", "cc-by-4.0")
    assert status == 0, err
    files = hub.repositories["datasets/user/features"]
    card = files["README.md"].decode()
    assert "license: cc-by-4.0" in card and "glscl pull hf://datasets/user/features caches/features" in card
    assert open_store(made.path).list_hash in card and hub.private["datasets/user/features"]
    assert {name for name in files if name != "README.md"} == {
        path.relative_to(made.path).as_posix()
        for path in made.path.rglob("*")
        if path.is_file() and path.name != "files.jsonl" and not path.name.startswith(".")
    }
    own = tmp_path / "project" / "README.md"
    own.parent.mkdir()
    own.write_text("years of work")
    status, out, err = glscl("pull", "hf://datasets/user/features", own.parent)
    assert (status, own.read_text()) == (2, "years of work") and "project holds other files" in err
    assert [*own.parent.iterdir()] == [own]
    status, out, err = glscl("pull", "hf://datasets/user/features", tmp_path / "pulled")
    assert status == 0, err
    shutil.rmtree(made.path)
    for stream in ("video", "text"):
        assert open_store(tmp_path / "pulled").arrays(stream)
    run = (
        "train-head",
        "--cache",
        tmp_path / "pulled",
        "--head",
        "projection",
        "--epochs",
        1,
        "--out",
        tmp_path / "run",
    )
    assert glscl(*run)[0] == 0
    assert glscl("push", tmp_path / "run", "hf://user/head")[0] == 0
    assert "projection" in hub.repositories["models/user/head"]["README.md"].decode()
    assert glscl("pull", "hf://user/head", tmp_path / "head")[0] == 0
    assert glscl("eval", "--run", tmp_path / "head", "--out", tmp_path / "result.json")[0] == 0


def test_pushing_again_keeps_a_card_that_was_written_by_hand(small_cache, glscl, hub):
    made = small_cache(format="hdf5")
    made.fill()
    glscl("push", made.path, "hf://datasets/user/features")
    hub.repositories["datasets/user/features"]["README.md"] = b"mine"
    assert glscl("push", made.path, "hf://datasets/user/features")[0] == 0
    assert hub.repositories["datasets/user/features"]["README.md"] == b"mine"


def test_of_a_cache_in_a_repository_nothing_is_replaced(small_cache, glscl, hub):
    made = small_cache(format="hdf5")
    made.fill()
    glscl("push", made.path, "hf://datasets/user/features")
    files = hub.repositories["datasets/user/features"]
    commit = next(name for name in files if name.startswith("commits/video/"))
    for name, data, told in (
        (commit, files[commit].replace(b'"time"', b'"when"'), f"holds {commit} as another extraction made it"),
        ("store.json", files["store.json"].replace(b'"fingerprint": "', b'"fingerprint": "0'), "of another encoder"),
    ):
        mine, files[name] = files[name], data
        before = dict(files)
        status, _, err = glscl("push", made.path, "hf://datasets/user/features")
        assert status and told in err and err.count("glscl:") == 1, err
        assert files == before
        files[name] = mine
    files["store.json"] = files["store.json"].replace(b'"created": "2', b'"created": "1')
    before = dict(files)
    assert glscl("push", made.path, "hf://datasets/user/features")[0] == 0 and files == before


def test_a_shard_that_came_otherwise_is_said(small_cache, glscl, hub, tmp_path):
    made = small_cache(format="hdf5")
    made.fill()
    glscl("push", made.path, "hf://datasets/user/features")
    files = hub.repositories["datasets/user/features"]
    name = next(name for name in files if name.startswith("shards/video/"))
    files[name] = files[name][:-4] + b"\0\1\2\3" if files[name][-4:] != b"\0\1\2\3" else files[name][:100]
    files[name] = files[name][: len(files[name]) // 2]
    status, _, err = glscl("pull", "hf://datasets/user/features", tmp_path / "pulled")
    assert status == 1 and "is not what was pushed" in err and err.count("glscl:") == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"HF_TOKEN": "hf_wrong"}, "credentials allow it"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "network is well"),
    ],
)
def test_without_token_or_network_one_line_says_so(small_cache, glscl, hub, monkeypatch, tmp_path, change, told):
    made = small_cache(format="hdf5")
    made.fill()
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    for words in (["push", made.path, "hf://datasets/user/x"], ["pull", "hf://datasets/user/x", tmp_path / "out"]):
        status, _, err = glscl(*words)
        (line,) = [line for line in err.splitlines() if line.startswith("glscl:")]
        assert status == 1 and "hf://datasets/user/x" in line and told in line


def test_nothing_there_and_no_repository_are_one_line(glscl, hub, tmp_path):
    for address, told in (
        ("hf://datasets/user/none", "There is nothing at"),
        ("hf://nonsense", "expected hf://datasets"),
    ):
        _, _, err = glscl("pull", address, tmp_path / "out")
        assert told in err
