"""The first videos of a new cache are decoded while torch is imported and the backbone is loaded. Imports no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar

from glscl.cache.keys import Stat
from glscl.cache.schema import Annotations
from glscl.common.devices import cores
from glscl.common.staged import remote_file
from glscl.extract.backbone.catalog import config_names, description_of
from glscl.extract.backbone.picture_transform import CenterCrop, PictureTransform, Resize
from glscl.extract.decode.pool import DecodePool
from glscl.extract.decode.sampling import Sampling
from glscl.extract.decode.video import Decoding, VideoTask
from glscl.extract.listing import seconds_of
from glscl.extract.settings import ExtractSettings, parse_rate

_RESAMPLING = {"bilinear": 2, "bicubic": 3}  # of Pillow
_begun: ContextVar[tuple[DecodePool, Future[None], contextlib.ExitStack] | None] = ContextVar("begun", default=None)


@contextlib.contextmanager
def first_videos_begun(annotations: Annotations, settings: ExtractSettings) -> Iterator[None]:
    """Within the block the first videos are being decoded as backbones usually want them, for who calls `begun_pool`."""
    transform = usual_transform(settings)
    with contextlib.ExitStack() as stack:
        if transform is not None:
            pool = DecodePool(decoding_of(settings, transform), workers=settings.workers or cores())
            stack.enter_context(pool)
            aside = stack.enter_context(ThreadPoolExecutor(1, "glscl-begin"))  # for the fork server is not up yet
            _begun.set((pool, aside.submit(pool.begin, first_videos(annotations)), stack))
            stack.callback(_begun.set, None)
        yield


def begun_pool(decoding: Decoding, workers: int, decoders: contextlib.ExitStack) -> DecodePool | None:
    """The pool of `first_videos_begun` where it decodes so, which `decoders` ends from now on; else it is ended, None."""
    found = _begun.get()
    if found is None:
        return None
    pool, started, stack = found
    _begun.set(None)
    with contextlib.ExitStack() as own:
        own.enter_context(stack.pop_all())
        started.result()
        if (pool.decoding, pool.workers) != (decoding, workers):
            return None
        decoders.enter_context(own.pop_all())
        return pool


def usual_transform(settings: ExtractSettings) -> PictureTransform | None:
    """What most backbones of this size do to pictures; None where nothing that is read without torch tells the size."""
    name = settings.backbone
    known = name == "demo" or name.startswith("local-dir:") or name in config_names()
    if settings.preprocess == "fast" or not known:
        return None
    how = {"interpolation": "bicubic", "resize_mode": "squash" if "SigLIP" in name else "shortest"}
    with contextlib.suppress(Exception):  # whatever is wrong with it is told, in its words, by who loads the backbone
        described = description_of(name)
        side = int(described.get("model_cfg", described)["vision_cfg"].get("image_size", 224))
        how |= {key: value for key, value in described.get("preprocess_cfg", {}).items() if key in how}
        how |= {key: value for key in how if (value := getattr(settings, key)) is not None}
        size, resample = (side, side), _RESAMPLING[how["interpolation"]]
        steps = {"squash": [Resize(size, resample)], "shortest": [Resize(side, resample), CenterCrop(size)]}
        return PictureTransform(steps[how["resize_mode"]], size)
    return None


def first_videos(annotations: Annotations) -> Iterator[VideoTask]:
    """Videos on this machine in the order of the list, each as its file is now."""
    for split in dict.fromkeys(video.split for video in annotations.videos):
        for video in annotations.videos:
            if video.split == split and video.path is not None and remote_file(video.path) is None:
                start, end = seconds_of(video)
                with contextlib.suppress(OSError):
                    yield VideoTask(0, video.path, start, end, Stat.of(video.path))


def decoding_of(settings: ExtractSettings, transform: PictureTransform) -> Decoding:
    """How the videos of an extraction become frames."""
    return Decoding(
        sampling=Sampling(fps=parse_rate(settings.fps), rule=settings.sampling, max_frames=settings.max_frames),
        prepare=transform,
        decoder=settings.decoder,
        time_limit=settings.time_limit,
        memory_limit=int(settings.memory_limit * 1e9),
        jpeg_quality=settings.frame_quality if settings.store_frames == "jpeg" else None,
    )
