"""What an extraction will make and take, before it begins: frames, bytes, time.

From the lengths of some of the files, or of a video of the data set on average where none is there, and from rates that were
measured on processors. Other machines are faster or slower; nothing was measured on GPUs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any

from glscl.cache.schema import Annotations, VideoItem
from glscl.common.devices import has_matrix_tiles
from glscl.common.staged import remote_file
from glscl.extract.backbone.catalog import config_of
from glscl.extract.decode.jobs import JobPool
from glscl.extract.decode.packets import header_seconds
from glscl.extract.settings import ExtractSettings, parse_rate

SAMPLED = 64  # files of which the length is read
FILE_SECONDS, ALL_SECONDS = 5.0, 20.0  # that reading one may take, and all of them
DECODE_SECONDS = 0.014  # of a core for a second of video up to 720p: benchmarks/results/2026-11-29-decode.md
FLOPS_A_CORE = 1.0e11  # of a backbone in float32: benchmarks/results/2026-11-29-encode.md
TILES = 3.4  # times as much in bfloat16 where the processor has tiles for it, 2.9 to 4 times: benchmarks/results/2026-11-29-extract.md
NATIVE_FPS = 25.0
TOKENS_A_WORD = 1.2  # and two at the ends; 13 tokens of 9.3 words in MSR-VTT
JPEG_BYTES = 0.34  # a pixel, at quality 95; the same note
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Forecast:
    """What is still to be done.

    Attributes:
        videos, texts: to be encoded.
        lengths: where the seconds of a video come from: "annotations", "files", "data set", or None where nobody knows them.
        frames: None with `lengths`.
        bytes: of the features, and of the frames where they are stored; None where the backbone's sizes are not at hand.
        decode_seconds, encode_seconds: of one core; None where they are not known, as for backbones that are no ViT.
    """

    videos: int
    texts: int
    lengths: str | None
    frames: int | None
    bytes: int | None
    decode_seconds: float | None
    encode_seconds: float | None


def forecast(
    annotations: Annotations,
    settings: ExtractSettings,
    *,
    there: Mapping[str, int],
    usual_seconds: float | None = None,
) -> Forecast:
    """Foresee an extraction of a list: of what is here, or of all where no file is. Reads some headers and decodes nothing.

    Args:
        settings: `precision` is that in force, see `glscl.extract.pipeline.in_force`.
        there: how many "videos" and "texts" of the list are encoded already, as `count_encoded` counts them.
        usual_seconds: of a video of this data set on average, for lists of which no file is here.
    """
    here = [video for video in annotations.videos if video.path is not None] or annotations.videos
    ids = {video.id for video in here}
    captions = (text.text for text in annotations.texts if settings.all_captions or text.video in ids)
    words = {caption: len(caption.split()) for caption in captions}
    videos, texts = max(0, len(here) - there["videos"]), max(0, len(words) - there["texts"])
    seconds, source = _seconds_a_video(here, usual_seconds)
    frames = decode = None
    if seconds is not None:
        rate = parse_rate(str(settings.fps)) or NATIVE_FPS
        frames = round(videos * min(max(1.0, math.ceil(seconds * rate - 0.5)), settings.max_frames or math.inf))
        decode = videos * seconds * DECODE_SECONDS
    mean_words = statistics.fmean(words.values()) if words else 0.0
    tokens = texts * min(settings.max_words, math.inf if settings.pad_tokens else TOKENS_A_WORD * mean_words + 2)
    config = config_of(settings.backbone)
    speed = FLOPS_A_CORE * (TILES if settings.precision == "bf16" and has_matrix_tiles() else 1.0)
    return Forecast(
        videos=videos,
        texts=texts,
        lengths=source,
        frames=frames,
        bytes=None if frames is None else _bytes(settings, config, frames, texts, tokens),
        decode_seconds=decode,
        encode_seconds=None if frames is None else _encode_seconds(config, frames, tokens, speed),
    )


def _seconds_a_video(videos: list[VideoItem], usual: float | None) -> tuple[float | None, str | None]:
    """Seconds of an entry on average, and where they come from."""
    if videos and all(video.start is not None and video.end is not None for video in videos):
        return statistics.fmean((v.end or 0.0) - (v.start or 0.0) for v in videos), "annotations"
    found = [video.path for video in videos if video.path is not None and remote_file(video.path) is None]
    told = lengths_of(found[:: max(1, math.ceil(len(found) / SAMPLED))]) if found else []
    if told:
        return statistics.fmean(told), "files"
    return usual, None if usual is None else "data set"


def lengths_of(paths: Sequence[str]) -> list[float]:
    """Seconds of those files whose headers say it, in their order. One that hangs or crashes costs itself alone."""
    with JobPool(1) as pool:
        jobs = [pool.submit(header_seconds, path, limit=FILE_SECONDS) for path in paths]
        told, _ = wait(jobs, timeout=ALL_SECONDS)
        seconds = [job.result() for job in jobs if job in told and job.exception() is None]
    return [known for known in seconds if known is not None]


def _bytes(settings: ExtractSettings, config: Mapping[str, Any], frames: int, texts: int, tokens: float) -> int | None:
    if not isinstance(config.get("embed_dim"), int):
        return None
    vectors = frames + texts + (tokens if settings.tokens else 0)
    side = config.get("vision_cfg", {}).get("image_size", 224)
    pixels = side * side if isinstance(side, int) else math.prod(side)
    stored = {"none": 0.0, "uint8": 3.0, "jpeg": JPEG_BYTES}[settings.store_frames] * pixels * frames
    return round(vectors * config["embed_dim"] * _BYTES[settings.dtype] + stored)


def _encode_seconds(config: Mapping[str, Any], frames: int, tokens: float, speed: float) -> float | None:
    """Of one core, which does `speed` operations a second: 24·width² operations a layer and token, attention's own left out. None where the tower is no ViT."""
    picture, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    layers, width, patch, side = (picture.get(k) for k in ("layers", "width", "patch_size", "image_size"))
    if not all(isinstance(x, int) for x in (layers, width, patch, side)):
        return None
    flops = 24.0 * layers * width**2 * ((side // patch) ** 2 + 1) * frames
    flops += 24.0 * text.get("layers", 12) * text.get("width", 512) ** 2 * tokens
    return flops / speed
