"""Settings of an extraction and of an import of features, each declared once: options, keys of a file, Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glscl.cache.schema import FORMATS
from glscl.common.errors import UsageError
from glscl.common.settings import Settings, cluster_address, setting
from glscl.extract.part import Part

SPLITS = ("train", "val", "test")


def parse_rate(rate: float | str) -> float | None:
    """Frames a second from a number or its text; None for "native", which takes every frame. Raises UsageError."""
    if rate == "native":
        return None
    try:
        number = float(rate)
    except ValueError:
        number = 0.0
    if not 0 < number < 1000:
        raise UsageError(f"`fps` is {rate!r}; expected a number of frames a second above 0, or native")
    return number


def parse_channels(text: str) -> tuple[float, float, float]:
    """Three numbers from 0 to 1, separated by commas, or one for all three channels. Raises UsageError."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not all(0 <= number <= 1 for number in numbers):
        raise UsageError(f"{text!r} is no mean or deviation of pixels; expected 0.5, or three such as 0.48,0.46,0.41")
    return numbers[0], numbers[1], numbers[2]


def parse_deviations(text: str) -> tuple[float, float, float]:
    """As `parse_channels`, and none of them 0."""
    numbers = parse_channels(text)
    if not all(numbers):
        raise UsageError(f"`std` is {text!r}; pixels are divided by it")
    return numbers


@dataclass(frozen=True, kw_only=True, repr=False)
class ActivationSettings(Settings):
    """What weights were trained with that concerns the captions too."""

    quick_gelu: bool | None = setting(
        None,
        "Whether the weights were trained with QuickGELU.",
        group="Weights",
        default_from="what they say themselves, see docs/backbones.md",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class WeightSettings(ActivationSettings):
    """What weights were trained with, for a file that does not say it."""

    mean: str | None = setting(
        None,
        "Mean of the pixels (0 to 1) that the weights were trained with, one number or three.",
        group="Weights",
        metavar="R,G,B",
        parse=parse_channels,
        default_from="what they say themselves",
    )
    std: str | None = setting(
        None,
        "Standard deviation of the pixels, likewise.",
        group="Weights",
        metavar="R,G,B",
        parse=parse_deviations,
        default_from="what they say themselves",
    )
    interpolation: str | None = setting(
        None,
        "How pictures are resized for them.",
        group="Weights",
        choices=("bicubic", "bilinear"),
        default_from="what they say themselves",
    )
    resize_mode: str | None = setting(
        None,
        "shortest: to the shorter side, middle cut out; longest: to the longer, edges filled; squash: to both.",
        group="Weights",
        choices=("shortest", "longest", "squash"),
        default_from="what they say themselves",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class ListSettings(Settings):
    """Which list of videos and captions is read."""

    annotations: Path | None = setting(
        None, "File or folder with the annotations. Default: datasets/<name>/annotations.", group="Data"
    )
    splits: str | None = setting(None, "Only these of train, val, test, separated by commas.", group="Data")
    protocol: str | None = setting(
        None,
        "Variant of the splits: msrvtt has 9k, 7k, full; youcook2 official, mil-nce. Default: the first.",
        group="Data",
    )

    allow_shared: bool = setting(
        False, "Of your own data: let copies of one video lie in several splits.", group="Data", affects_result=False
    )

    @property
    def split_names(self) -> list[str] | None:
        """The chosen splits, None for all. Raises UsageError for an unknown one."""
        if self.splits is None:
            return None
        names = [name.strip() for name in self.splits.split(",")]
        for name in names:
            if name not in SPLITS:
                raise UsageError(f"`splits` has {name!r}; expected some of {', '.join(SPLITS)}, separated by commas")
        return names


@dataclass(frozen=True, kw_only=True, repr=False)
class ExtractSettings(WeightSettings):
    """What to read, how to sample and encode it, and how to go about it."""

    backbone: str = setting(
        "ViT-B-32", "`demo`, an open_clip architecture, hf-hub:org/repo or local-dir:FOLDER.", group="Backbone"
    )
    pretrained: str = setting(
        "openai", "Tag of open_clip, or a file or folder with weights.", group="Backbone", metavar="TAG|FILE"
    )
    precision: str = setting(
        "auto",
        "Arithmetic of the backbone; auto is what the cache was made with, in a new one fp16 on a GPU, bf16 for large backbones on "
        "a processor with AMX, fp32 elsewhere.",
        group="Backbone",
        choices=("auto", "fp32", "fp16", "bf16"),
    )
    preprocess: str = setting(
        "open_clip",
        "How frames are resized: as open_clip does, or `fast`, by torch: a few times as fast, mostly the same pixels.",
        group="Backbone",
        choices=("open_clip", "fast"),
    )
    fps: float | str = setting(
        1.0,
        "Frames a second of video, or `native` for every frame.",
        group="Sampling",
        metavar="N|native",
        parse=parse_rate,
        default_from="the dataset's, mostly 1",
    )
    max_frames: int | None = setting(
        None, "Most frames stored a video, spread evenly. Default: all that are sampled.", group="Sampling", min=1
    )
    sampling: str = setting(
        "time",
        "`time`: frames nearest to 0, 1/N, 2/N … s; `public`: as GLSCL's loaders, every round(average rate)-th frame, or, of "
        "DiDeMo and ActivityNet, `opencv`: every int(average rate)-th.",
        group="Sampling",
        choices=("time", "public", "opencv"),
    )
    max_words: int = setting(
        32,
        "Tokens kept a caption, start and end included.",
        group="Sampling",
        min=2,
        default_from="the dataset's, 32 or 64",
    )
    list: str | None = setting(
        None,
        "What the list of these videos and captions is called in the cache. Default: after the data set.",
        group="Cache",
        metavar="NAME",
        affects_result=False,
    )
    all_captions: bool = setting(
        False,
        "Encode the captions of videos that are not there too.",
        group="Cache",
        affects_result=False,
    )
    format: str = setting("zarr", "Format of the cache.", group="Cache", choices=FORMATS)
    dtype: str = setting(
        "float16", "Type of the stored features.", group="Cache", choices=("float16", "float32", "bfloat16")
    )
    tokens: bool = setting(True, "Store token features, which GLSCL needs.", group="Cache")
    pad_tokens: bool = setting(
        False,
        "Store what the text tower makes of the padding behind a caption too, which GLSCL's program reads "
        "(`mask_padding=false`): `max_words` vectors a caption.",
        group="Cache",
    )
    store_frames: str = setting(
        "none",
        "Keep the frames too, as the encoder sees them: `jpeg` (lossy, small) or `uint8` (exact). For fine-tuning.",
        group="Cache",
        choices=("none", "jpeg", "uint8"),
    )
    frame_quality: int = setting(95, "Quality of stored JPEG frames.", group="Cache", min=1, max=100)
    shard_videos: int = setting(
        128, "Videos a shard: what a killed run can lose.", group="Cache", min=1, affects_result=False
    )
    shard_texts: int = setting(2048, "Captions a shard.", group="Cache", min=1, affects_result=False)
    workers: int | None = setting(
        None, "Decoding processes. Default: one a core.", group="Speed", min=1, affects_result=False
    )
    engine: str = setting(
        "local",
        "`ray`: on the machines of a Ray cluster; see docs/many-machines.md.",
        group="Speed",
        choices=("local", "ray"),
        affects_result=False,
    )
    address: str = cluster_address()
    encoders: int | None = setting(
        None,
        "Backbones on the Ray cluster. Default: one a GPU, without GPUs one a machine.",
        group="Speed",
        min=1,
        affects_result=False,
    )
    part: str | None = setting(
        None,
        "Do only share I of N, for several machines or a job array; see docs/many-machines.md.",
        group="Speed",
        metavar="I/N",
        parse=Part.parse,
        affects_result=False,
    )
    single_writer: bool = setting(
        False,
        "With `out` at an address: nobody else writes there meanwhile, so that a store without conditional puts will do.",
        group="Cache",
        affects_result=False,
    )
    batch_frames: int = setting(128, "Frames encoded at once.", group="Speed", min=1, affects_result=False)
    batch_texts: int = setting(256, "Captions encoded at once.", group="Speed", min=1, affects_result=False)
    compile: bool = setting(
        False,
        "Encode frames with compiled code, on a GPU: a slower start, faster batches. Needs a compiler.",
        group="Speed",
        affects_result=False,
    )
    decoder: str = setting(
        "auto",
        "auto: PyAV, which decodes only what the frames depend on. The others give the same frames, or refuse a file.",
        group="Decoding",
        choices=("auto", "pyav", "decord", "torchcodec"),
    )
    time_limit: float = setting(
        60.0,
        "Seconds without progress after which a video is given up.",
        group="Decoding",
        min=0.1,
        affects_result=False,
    )
    memory_limit: float = setting(
        4.0, "GB of memory that decoding one video may take.", group="Decoding", min=0.25, affects_result=False
    )
    strict: bool = setting(
        False,
        "Stop at the first missing or undecodable video, and at one content in two splits.",
        group="Decoding",
        affects_result=False,
    )
    retry_failed: bool = setting(
        False, "Ask again for the videos that failed before.", group="Decoding", affects_result=False
    )

    @property
    def transform_module(self) -> str:
        """What does to a picture what the backbone wants: the module that decoders need besides their own."""
        return f"glscl.extract.backbone.{'fast' if self.preprocess == 'fast' else 'picture'}_transform"


@dataclass(frozen=True, kw_only=True, repr=False)
class ImportSettings(ActivationSettings):
    """What features that others extracted are, and how they are stored."""

    name: str | None = setting(
        None,
        "What made the features, such as ViT-B-16: imports of one name join in one cache. Default: a cache of these alone.",
        group="Features",
        metavar="TEXT",
    )
    fps: float = setting(1.0, "Frames a second that they were sampled at, for the times.", group="Features", min=1e-3)
    backbone: str | None = setting(
        None,
        "Encode the captions now: the backbone that the frames went through, as in extract.",
        group="Captions",
    )
    pretrained: str = setting(
        "openai", "Tag of open_clip, or a file or folder with weights.", group="Captions", metavar="TAG|FILE"
    )
    precision: str = setting(
        "auto",
        "Arithmetic of the backbone; auto is fp16 on a GPU, fp32 elsewhere.",
        group="Captions",
        choices=("auto", "fp32", "fp16", "bf16"),
    )
    max_words: int = setting(
        32,
        "Tokens kept a caption, start and end included.",
        group="Captions",
        min=2,
        default_from="the dataset's, 32 or 64",
    )
    tokens: bool = setting(
        True, "Store token features, which GLSCL needs, of captions encoded now.", group="Captions",
    )  # fmt: skip
    batch_texts: int = setting(256, "Captions encoded at once.", group="Captions", min=1)
    list: str | None = setting(
        None,
        "What the list of these videos and captions is called in the cache. Default: after the data set.",
        group="Cache",
        metavar="NAME",
        affects_result=False,
    )
    format: str = setting("zarr", "Format of the cache.", group="Cache", choices=FORMATS)
    dtype: str = setting(
        "float16", "Type of the stored features.", group="Cache", choices=("float16", "float32", "bfloat16")
    )
    shard_videos: int = setting(512, "Videos a shard.", group="Cache", min=1)
    shard_texts: int = setting(2048, "Captions a shard.", group="Cache", min=1)
