"""Videos, annotations and weights at addresses: the same cache as from files here, a bounded number of bytes here at once."""

from __future__ import annotations

import shutil

import fsspec
import numpy as np
import pytest

from glscl.cache.schema import Status
from glscl.cache.store import open_store
from glscl.common import staged
from glscl.common.errors import NotFoundError, StorageError, UsageError
from glscl.extract.datasets import read_dataset
from glscl.extract.decode.staging import decode_from_anywhere
from glscl.extract.decode.video import VideoDone, VideoTask
from glscl.extract.pipeline import extract
from glscl.extract.settings import ExtractSettings

SETTINGS = ExtractSettings(backbone="demo", max_words=12, shard_videos=2, fps=5.0, workers=1)
LENGTHS = [9, 14, 3, 8]


@pytest.fixture
def clips(tmp_path_factory, make_video_file):
    """Four clips with captions beside them."""
    folder = tmp_path_factory.mktemp("videos")
    for i, frames in enumerate(LENGTHS):
        make_video_file(folder / "of day" / f"clip{i}.mp4", frames=frames, seed=i)
        (folder / "of day" / f"clip{i}.txt").write_text(f"caption of {i}\n")
    return folder


@pytest.fixture
def there(clips, tmp_path, monkeypatch):
    """Their address, in the memory of this process."""
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(staged, "_LISTED", {})
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for path in clips.rglob("*.*"):
        memory.pipe_file(f"/bucket/videos/{path.relative_to(clips)}", path.read_bytes())
    yield "memory://bucket/videos"
    memory.store.clear()


def assert_equal(one, other):
    assert one.fingerprint == other.fingerprint and one.list.video_ids == other.list.video_ids
    for stream in ("video", "text"):
        for name, array in one.arrays(stream).items():
            np.testing.assert_array_equal(array, other.arrays(stream)[name], err_msg=name)


@pytest.mark.exhaustive  # three extractions
def test_a_folder_at_an_address_gives_the_cache_of_a_folder_here(clips, there, tmp_path, monkeypatch):
    done = extract(read_dataset("folder", None, there), tmp_path / "there", SETTINGS)
    assert done.complete and done.encoded["videos"] == 4
    extract(read_dataset("folder", None, clips), tmp_path / "here", SETTINGS)
    assert_equal(open_store(tmp_path / "there"), open_store(tmp_path / "here"))
    monkeypatch.setattr("glscl.extract.decode.staging.bring", lambda *_: pytest.fail("brought again"))
    again = extract(read_dataset("folder", None, there), tmp_path / "here", SETTINGS)  # known by content
    assert again.complete and again.encoded["videos"] == 0


def test_a_network_that_fails_ends_the_run_in_one_line_and_costs_no_video(there, tmp_path, monkeypatch):
    found = read_dataset("folder", None, there)
    with monkeypatch.context() as patch:
        patch.setattr(
            "glscl.extract.decode.staging.bring", lambda *_: (_ for _ in ()).throw(StorageError("it was cut off"))
        )
        with pytest.raises(StorageError, match="it was cut off"):
            extract(found, tmp_path / "cache", SETTINGS)
    done = extract(found, tmp_path / "cache", SETTINGS)
    assert done.complete and done.encoded["videos"] == 4 and not done.failed
    assert not [*(tmp_path / "home" / "staged").iterdir()]


class Decoder:
    """Stands for a pool: notes what it is given, and which files are here at the time."""

    def __init__(self, here):
        self.here, self.given, self.most = here, [], 0

    def __call__(self, tasks):
        for task in tasks:
            self.most = max(self.most, sum(path.stat().st_size for path in self.here.rglob("*.mp4")))
            with open(task.path, "rb") as file:
                self.given.append((task.item, task.stamp, len(file.read())))
            yield VideoDone(task.item, Status.OK)


def tasks_of(there):
    names = sorted(name for name in staged.list_folder(there) if name.endswith(".mp4"))
    return [VideoTask(i, f"{there}/{name}", stamp=(1, 2)) for i, name in enumerate(names)]


def test_videos_are_here_while_they_are_decoded_and_never_more_than_the_bound(clips, there, tmp_path, monkeypatch):
    sizes = [path.stat().st_size for path in sorted(clips.rglob("*.mp4"))]
    bound = 2 * max(sizes)  # a round is half of it
    monkeypatch.setenv("GLSCL_STAGE_GB", str(bound / 1e9 + 1e-9))
    decoder = Decoder(tmp_path / "home" / "staged")
    done = [*decode_from_anywhere(decoder, tasks_of(there))]
    assert sorted(event.item for event in done) == [0, 1, 2, 3]
    assert sorted(decoder.given) == [(i, None, size) for i, size in enumerate(sizes)]
    assert max(sizes) <= decoder.most <= bound and not [*decoder.here.iterdir()]
    monkeypatch.setenv("GLSCL_STAGE_GB", str(max(sizes) / 1e9))
    with pytest.raises(StorageError, match="Let GLSCL_STAGE_GB allow more"):
        [*decode_from_anywhere(decoder, tasks_of(there))]


def test_a_video_that_is_gone_when_its_turn_comes_is_missing(there, tmp_path):
    tasks = tasks_of(there)
    fsspec.filesystem("memory").rm_file("/bucket/videos/of day/clip2.mp4")
    done = {event.item: event.status for event in decode_from_anywhere(Decoder(tmp_path), tasks)}
    assert done == {0: Status.OK, 1: Status.OK, 2: Status.MISSING, 3: Status.OK}


def test_what_cannot_be_read_is_one_line(there, tmp_path, monkeypatch):
    with pytest.raises(NotFoundError, match="nothing at memory://bucket/none"):
        read_dataset("folder", None, "memory://bucket/none")
    with pytest.raises(UsageError, match="expected a path, or an address"):
        read_dataset("folder", None, "ftp://host/videos")
    monkeypatch.setenv("GLSCL_STAGE_GB", "much")
    with pytest.raises(UsageError, match="GLSCL_STAGE_GB is 'much'"):
        staged.brought(there, "annotations")


def test_annotations_and_weights_are_brought_and_again_only_where_they_changed(there, tmp_path, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/lists/captions.csv", b"video,caption\nof day/clip0.mp4,a dog\n")
    first = staged.brought("memory://bucket/lists/captions.csv", "annotations")
    assert first.name == "captions.csv" and first.parents[1] == tmp_path / "home" / "staged"
    [text] = read_dataset("csv", first, there).texts
    assert text.text == "a dog"
    with monkeypatch.context() as patch:
        patch.setattr(staged, "get_all", lambda *_: pytest.fail("brought again"))
        assert staged.brought("memory://bucket/lists/captions.csv", "annotations") == first
    memory.pipe_file("/bucket/lists/captions.csv", b"video,caption\nof day/clip0.mp4,a cat\n")
    assert b"a cat" in staged.brought("memory://bucket/lists/captions.csv", "annotations").read_bytes()


def test_weights_at_an_address_load_as_a_file_here(there, tmp_path):
    from glscl.demo import corpus  # noqa: F401  (the built-in backbone stands beside it)
    from glscl.extract.backbone.loading import DEMO_BACKBONE, load_model

    weights = next(DEMO_BACKBONE.glob("*.safetensors"))
    fsspec.filesystem("memory").put_file(str(weights), "/bucket/w.safetensors")
    shutil.copy(weights, tmp_path / "w.safetensors")
    one, other = (
        load_model("demo", place) for place in ("memory://bucket/w.safetensors", str(tmp_path / "w.safetensors"))
    )
    assert one.pretrained == other.pretrained == "w.safetensors"
    for (name, left), right in zip(one.model.state_dict().items(), other.model.state_dict().values()):
        assert (left == right).all(), name


@pytest.mark.exhaustive  # a server, and two extractions
def test_videos_in_a_bucket_of_a_real_server(clips, tmp_path, monkeypatch):
    """Names with a space; the second run brings nothing, as each video is known by what the store says of it."""
    import urllib.request

    obstore = pytest.importorskip("obstore", reason="obstore is not installed: pip install 'glscl[s3]'")
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[s3]' flask flask-cors")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "GLSCL_HOME": tmp_path / "home",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, str(value))
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT"))
        store = obstore.store.from_url("s3://bucket", client_options={"allow_http": True})
        for path in clips.rglob("*.*"):
            obstore.put(store, f"videos/{path.relative_to(clips)}", path.read_bytes())
        extract(read_dataset("folder", None, "s3://bucket/videos"), tmp_path / "there", SETTINGS)
        extract(read_dataset("folder", None, clips), tmp_path / "here", SETTINGS)
        assert_equal(open_store(tmp_path / "there"), open_store(tmp_path / "here"))
        found = read_dataset("folder", None, "s3://bucket/videos")
        monkeypatch.setattr("glscl.extract.decode.staging.bring", lambda *_: pytest.fail("brought again"))
        monkeypatch.setattr("glscl.common.staged.Reading.read", lambda *_: pytest.fail("read again"))
        again = extract(found, tmp_path / "there", SETTINGS)
        assert again.already_complete and again.encoded["videos"] == 0
    finally:
        server.stop()
