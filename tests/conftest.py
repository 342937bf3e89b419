"""Fixtures that several rooms' tests share: small caches, tiny backbones, small videos, the folder of real data."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from glscl.cache.additions import Addition, write_addition
from glscl.cache.creation import StoreSpec, create_library
from glscl.cache.encoded_items import EncodedText, EncodedVideo, text_arrays, video_arrays
from glscl.cache.keys import as_array, clip, text_key, video_key
from glscl.cache.library import Library
from glscl.cache.lists import CacheList, arrange, make_current, make_list, write_list
from glscl.cache.schema import STREAMS, Annotations, Expected, Status, TextItem, VideoItem
from glscl.cache.store import Store, open_store

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))  # `forked`, for all rooms
hypothesis.settings.register_profile("untimed", deadline=None)  # machines are shared
hypothesis.settings.load_profile("untimed")
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as in the background of a shell; commands under test would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config) -> None:
    if getattr(config.option, "numprocesses", None):
        import forked

        if forked.SERVER not in os.environ:  # one for all of them
            forked.serve()


_FILLED = tempfile.TemporaryDirectory()  # caches that tests filled, for others to copy


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real annotations and videos; skips where it is not there."""
    folder = os.environ.get("GLSCL_REAL_DATA")
    if not folder:
        pytest.skip("GLSCL_REAL_DATA is not set: it names a folder of real annotations and videos")
    if not Path(folder).is_dir():
        pytest.skip(f"GLSCL_REAL_DATA names {folder}, which is not there")
    return Path(folder)


@pytest.fixture(scope="session")
def exhaustive(request) -> bool:
    """Whether the exhaustive tests run too, as in `make test-all`; where not, others may spare what they only repeat."""
    return "not exhaustive" not in request.config.option.markexpr


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk(exhaustive):
    """`fsync` keeps files when the machine loses its power, which no test does: only `make test-all` waits for it."""
    with pytest.MonkeyPatch.context() as patch:
        if not exhaustive:
            patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def undrawn(exhaustive, monkeypatch) -> None:
    """Reports with figures that are made and not drawn, which takes most of the time; `make test-all` draws them."""
    if not exhaustive:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, target, **__: target.write("<svg></svg>"))


class SmallCache:
    """A cache of made-up features with one failed and one partial video, what went into it, and the one list it was made for.

    Attributes:
        list: version of the list "made"; its entries are the items of the one addition of each stream, in this order.
    """

    def __init__(self, path: Path, format: str, dtype: str, *, videos: int, captions: int, dim: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ids = [f"-v_{i}.mov" if i % 4 == 1 else f"vidéo{i}" for i in range(videos)]
        split = ["train" if i < 0.6 * videos else "test" for i in range(videos)]
        self.annotations = Annotations(
            dataset="made",
            videos=[VideoItem(v, s, f"/videos/{v}") for v, s in zip(ids, split)],
            texts=[
                TextItem(f"{v}#{k}", v, s, f"caption {k} of {v}, déjà vu")
                for v, s in zip(ids, split)
                for k in range(captions)
            ],
            expected={"test": Expected(captions=100, videos=50)},
            notes=["2 rows without a caption were dropped"],
        )
        self.path, self.format, self.dtype = path, format, dtype
        # six to eight shards of each where there are more than a few items: each takes 40 ms to write
        self.shard_items = {"video": max(4, -(-videos // 6)), "text": max(7, -(-videos * captions // 8))}
        self.spec = StoreSpec(
            configuration={"backbone": {"name": "made", "pretrained": "seed"}}, embed_dim=dim, dtype=dtype
        )
        self.command = "glscl extract --dataset made"
        self.videos = [self._video(rng, i, dim) for i in range(videos)]
        self.texts = [
            EncodedText(
                rng.standard_normal(dim).astype(np.float32),
                rng.standard_normal((n, dim)).astype(np.float32),
                rng.integers(1, 900, n).astype(np.int32),
            )
            for n in rng.integers(2, 9, videos * captions)
        ]

    @staticmethod
    def _video(rng: np.random.Generator, index: int, dim: int) -> EncodedVideo:
        if index == 2:
            none = np.zeros(0, np.float32)
            return EncodedVideo(none.reshape(0, dim), none, Status.DECODE_ERROR, "moov atom not found")
        frames = int(rng.integers(1, 9))
        status, reason = (Status.PARTIAL, "error after 3 frames") if index == 5 else (Status.OK, None)
        return EncodedVideo(
            rng.standard_normal((frames, dim)).astype(np.float32),
            np.arange(frames, dtype=np.float32),
            status,
            reason,
            duration=float(frames),
            fps=25.0,
            frames_total=25 * frames,
        )

    @property
    def list(self) -> CacheList:
        contents = [hashlib.blake2b(video.id.encode(), digest_size=16).digest() for video in self.annotations.videos]
        return make_list(
            self.annotations,
            name="made",
            family="made",
            recipe="",
            video_key=as_array(
                video_key(content, *clip(video.start, video.end))
                for content, video in zip(contents, self.annotations.videos)
            ),
            video_content=as_array(contents),
            text_key=as_array(text_key(text.text) for text in self.annotations.texts),
            command=self.command,
            created="2026-11-28T12:00:00Z",
        )

    def add_list(self, name: str, split_of: Mapping[str, str], *, prefix: str = "", **about: Any) -> CacheList:
        """Another list of the same videos and captions, which counts from now on.

        Args:
            split_of: id → split, of those it has.
            prefix: of all ids in this list.
            about: other fields of the list than would follow.
        """
        found = Annotations(
            dataset="made",
            videos=[VideoItem(prefix + id, split, None) for id, split in split_of.items()],
            texts=[
                TextItem(prefix + text.id, prefix + text.video, split_of[text.video], text.text)
                for text in self.annotations.texts
                if text.video in split_of
            ],
            expected={},
            notes=[],
        )
        found, own = arrange(found), self.list
        rows = [own.video_ids.index(video.id.removeprefix(prefix)) for video in found.videos]
        fields = {"video_key": own.video_key[rows], "video_content": own.video_content[rows]}
        fields["text_key"] = as_array(text_key(text.text) for text in found.texts)
        made = make_list(found, **{"name": name, "family": "made", "recipe": "", **fields, **about})
        write_list(self.path, made, self.format)
        make_current(self.path, made)
        return made

    def create(self) -> Library:
        """The cache with its list and additions, and without any shard where it is new."""
        library = create_library(self.path, self.spec, self.format)
        write_list(self.path, self.list, self.format)
        for stream in STREAMS:
            self.addition(stream)
        library.refresh()
        return library

    def addition(self, stream: str) -> Addition:
        """The one addition of a stream, written where it is not there."""
        keys = self.list.video_key if stream == "video" else self.list.text_key
        return write_addition(self.path, stream, keys, shard_items=self.shard_items[stream])

    def arrays(self, stream: str, shard: int, addition: Addition | None = None) -> dict[str, np.ndarray]:
        addition = addition or self.addition(stream)
        items = addition.shard_range(shard)
        keys, dim = addition.keys[items.start : items.stop], self.spec.embed_dim
        if stream == "video":
            return video_arrays(keys, [self.videos[i] for i in items], embed_dim=dim, dtype=self.dtype)
        texts = [self.annotations.texts[i].text for i in items]
        return text_arrays(keys, texts, [self.texts[i] for i in items], embed_dim=dim, dtype=self.dtype)

    def commit(
        self, library: Library, stream: str, shard: int, addition: Addition | None = None, **options: Any
    ) -> bool:
        failures, addition = [], addition or self.addition(stream)
        if stream == "video":
            items = addition.shard_range(shard)
            failures = [
                {
                    "key": addition.keys[i].tobytes().hex(),
                    "reason": self.videos[i].reason,
                    "status": self.videos[i].status.name.lower(),
                }
                for i in items
                if self.videos[i].status != Status.OK
            ]
            decoders = [{"decoder": "decord" if i % 2 else "pyav", "seconds": 0.5} for i in items]
            options.setdefault("ledger", decoders)
        return library.commit(addition, shard, self.arrays(stream, shard, addition), failures=failures, **options)

    @staticmethod
    def pending(library: Library, stream: str) -> list[int]:
        """Numbers of the shards that are not committed."""
        return [place.shard for place in library.stream(stream).pending()]

    def finish(self, library: Library) -> Store:
        """Gather the commits and let the list count, as the last act of an extraction."""
        for stream in STREAMS:
            for addition in library.stream(stream).additions:
                library.settle(addition)
        make_current(self.path, self.list)
        return open_store(self.path)

    def fill(self) -> Store:
        """The cache with all its shards. One that was filled before in this session, and is to be the same, is copied."""
        if self.path.exists():
            return self._fill()
        asked = self.format, self.spec, self.annotations, self.command, self.shard_items
        said = pickle.dumps((asked, self.videos, self.texts))
        made = Path(_FILLED.name, hashlib.sha256(said).hexdigest())
        if made.exists():
            shutil.copytree(made, self.path)
            return open_store(self.path)
        store = self._fill()
        shutil.copytree(self.path, made)
        return store

    def _fill(self) -> Store:
        library = self.create()
        for stream in ("text", "video"):
            addition = self.addition(stream)  # once: to make it is to go through the whole list
            for shard in self.pending(library, stream):
                self.commit(library, stream, shard, addition)
        return self.finish(library)


@pytest.fixture(scope="session")
def small_cache_class() -> type[SmallCache]:
    """`SmallCache` itself, for fixtures that live longer than a test."""
    return SmallCache


@pytest.fixture
def small_cache(tmp_path: Path) -> Callable[..., SmallCache]:
    """Factory of `SmallCache`s below a temporary folder."""

    def make(
        format: str = "zarr",
        dtype: str = "float16",
        *,
        name: str = "cache",
        videos: int = 11,
        captions: int = 3,
        dim: int = 8,
        seed: int = 0,
    ) -> SmallCache:
        return SmallCache(tmp_path / name, format, dtype, videos=videos, captions=captions, dim=dim, seed=seed)

    return make


KINDS = ("clip_vit", "clip_resnet", "custom_text", "coca")


def _config(kind: str) -> dict:
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
    if kind == "clip_resnet":
        vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "patch_size": None}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 5}
    config = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}
    if kind == "custom_text":
        config["custom_text"] = True
    if kind == "coca":
        config["custom_text"] = True
        text |= {"context_length": 76, "embed_cls": True, "output_tokens": True}
        vision |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
        config["multimodal_cfg"] = {
            "context_length": 76,
            "vocab_size": 49408,
            "width": 64,
            "heads": 2,
            "layers": 1,
            "attn_pooler_heads": 2,
        }
    return config


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """`tiny_clip(kind)` → folder that `--backbone local-dir:FOLDER` loads."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    made: dict[str, Path] = {}

    def make(kind: str = "clip_vit") -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            (folder / "open_clip_config.json").write_text(
                json.dumps({"model_cfg": _config(kind), "preprocess_cfg": {}})
            )
            torch.manual_seed(KINDS.index(kind))
            model = open_clip.create_model(f"local-dir:{folder}")
            state = {k: v.contiguous() for k, v in model.state_dict().items()}
            save_file(state, folder / "open_clip_model.safetensors")
            made[kind] = folder
        return made[kind]

    return make


@pytest.fixture
def make_video(make_video_file):
    """`make_video_file` by its shorter name."""
    return make_video_file


@pytest.fixture(scope="session")
def make_video_file(tmp_path_factory):
    """`make_video_file(path, frames=12, fps=4)` writes a small H.264 clip whose brightness and hue tell its frames apart.

    Each clip is encoded once a session, and copied where another asks for the same.
    """
    import av

    encoded = tmp_path_factory.mktemp("encoded")

    def make(path: Path, frames: int = 12, fps: int = 4, seed: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = encoded / f"{frames}-{fps}-{seed}-{size}{path.suffix}"
        if not made.exists():
            encode(made, frames, fps, seed, size)
        shutil.copyfile(made, path)
        return path

    def encode(path: Path, frames: int, fps: int, seed: int, size: tuple[int, int]) -> None:
        rng = np.random.default_rng(seed)
        base = rng.integers(0, 200, (6, 8, 3))
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=fps)
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            for i in range(frames):
                coarse = np.roll((base + 5 * i) % 256, i, axis=1).astype(np.uint8)
                picture = coarse.repeat(size[1] // 6, 0).repeat(size[0] // 8, 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))

    return make


@pytest.fixture
def decoded_here(monkeypatch):
    """Extraction and second pass decode in this process; what tells which files were asked for, and can make them fail."""
    from decoding_here import DecodesHere

    for module in ("glscl.extract.beginning", "glscl.extract.pipeline", "glscl.train_head.finetuning.pixels"):
        monkeypatch.setattr(f"{module}.DecodePool", DecodesHere)
    monkeypatch.setattr(DecodesHere, "begun", [])
    monkeypatch.setattr(DecodesHere, "decoded", [])
    monkeypatch.setattr(DecodesHere, "failing", {})
    return DecodesHere


@pytest.fixture
def glscl(capsys, monkeypatch):
    """Run a command in this process: `glscl("inspect", path)` → (status, standard output, standard error)."""
    from glscl import cli
    from glscl.commands.options import main

    def run(*arguments):
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["glscl", *words])
        status = main(cli.app, words)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
