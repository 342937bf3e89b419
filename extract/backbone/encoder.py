"""An open_clip model as glscl uses it: frames and captions in, raw projected features out.

T texts, L tokens, D embed_dim, n frames, S side of the model's input in pixels.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from glscl.cache.backbone_tensors import read_tensors
from glscl.cache.schema import TextFeatures
from glscl.common.arguments import types_checked
from glscl.common.compiling import compiled, require_compiler
from glscl.common.devices import arithmetic
from glscl.common.errors import (
    BackboneError,
    CacheCorruptError,
    DecodeError,
    FingerprintError,
    InputError,
    NotFoundError,
    UsageError,
    first_line,
)
from glscl.common.state_dicts import weights_hash
from glscl.common.tar_members import file_of
from glscl.extract.backbone.catalog import description_of
from glscl.extract.backbone.feeding import ROWS, Feed, fetched_later
from glscl.extract.backbone.fitting import NotRead
from glscl.extract.backbone.loading import Loaded, load_model, load_text_tower
from glscl.extract.backbone.patch_embedding import temporal_embedding
from glscl.extract.backbone.picture_transform import PictureTransform
from glscl.extract.backbone.text_tower import TextTower, TokenizedTexts
from glscl.extract.backbone.thread_map import thread_map
from glscl.extract.backbone.weight_settings import agreed, published, recorded, said
from glscl.extract.decode.pool import DecodePool
from glscl.extract.decode.video import Decoding, FrameChunk, VideoTask
from glscl.extract.settings import ActivationSettings, ExtractSettings

if TYPE_CHECKING:
    from glscl.cache.library import Library
    from glscl.extract.backbone.clip_model import ClipModel

TEXT_BLOCKS_KEPT = 4  # blocks of the text transformer that aggregators start from
THREAD_FRAMES = 32  # on a processor: what a layer makes of them then stays in its cache
WIDTHS = 8  # on a GPU captions are padded to a multiple of it: a new shape costs kernels to be chosen
WORDS = 32  # kept a caption where nobody says how many
PROBE = "Two people are cooking; 3 dogs watch."  # its feature and that of a black frame tell a backbone by what it does
PROBES = {"black_frame": "pictures", "sentence": "captions"}  # names of the two → what they are features of
SAME_FEATURES = 0.99  # cosine of two features of one thing by one backbone, in whatever precision, at least
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
PREPROCESSING = ("open_clip", "fast")


@dataclass(frozen=True)
class Description:
    """What decides the values that a backbone gives; hashed into the fingerprint of a cache."""

    library: str
    name: str
    pretrained: str
    weights: str
    quick_gelu: bool
    preprocessing: dict[str, Any]
    tokenizer: str
    words: int
    precision: str


class Backbone:
    """A frozen open_clip model with its preprocessing and tokenizer. Obtain it from `load_backbone`.

    Attributes:
        transform: picture part of the preprocessing, for the decode workers.
        description: see `Description`.
        weights: hash of the weights.
        logit_scale: log of the temperature factor that the model was trained with.
        notes: what nobody said of its weights, and what was taken.
    """

    MADE_BY = "`glscl.load_backbone`"

    def __init__(
        self, loaded: Loaded, *, words: int | None, device: torch.device, precision: str, preprocess: str = "open_clip"
    ) -> None:
        self.tokenizer, self.name, self.pretrained, self.notes = loaded[1:5]
        self.device, self.precision = device, precision
        self.model = model = loaded.model.eval().requires_grad_(False)
        self.logit_scale = float(model.logit_scale.detach())
        self.text_tower = TextTower(model, self.tokenizer)
        if not self.text_tower.gives_tokens:
            self.notes = (
                *self.notes,
                f"{self.name} tells no states of tokens: captions are kept as with `tokens=False`",
            )
        self.words = min(WORDS, self.context_length) if words is None else words
        if self.words > self.context_length:
            raise UsageError(f"`max_words` is {words}; {self.name} reads at most {self.context_length} tokens")
        self._feed: Feed | None = None
        self._filled = ROWS
        self._compiled: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._amp = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
        self._of_texts = isinstance(model.visual, NotRead)  # alone
        if self._of_texts:
            self.weights = str(loaded.known)
            self._place()
            return
        found = _preprocessing_of(model.visual.preprocess_cfg, preprocess)
        self.transform, self._mean, self._std, self._preprocessing = found
        with ThreadPoolExecutor(1) as aside:  # a second core hashes while the first encodes
            hashed = None if loaded.known else aside.submit(weights_hash, model.state_dict())
            self._place()
            self.black_frame = self.encode_frames(np.zeros((1, *self.transform.size, 3), np.uint8))[0]
        self.weights = hashed.result() if hashed else str(loaded.known)
        if hashed and loaded.file:
            loaded.file.remember(self.weights)

    def _place(self) -> None:
        """The model on its device, in the precision and layout that it computes in."""
        self.model.to(self.device)
        if self.device.type == "cuda":
            for parameter in self.model.parameters():
                if parameter.ndim == 4:  # convolutions over pictures, whose kernels want channels last
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._for_heads: dict[str, torch.Tensor] = {}  # as it was read, where the model no longer is
        if self.device.type == "cpu" and self.precision == "bf16":
            # Autocast casts every weight again for every batch, and turns off torch's own path through attention.
            self._for_heads = {key: value.clone() for key, value in self._text_start().items()}
            self.model.to(torch.bfloat16)
            self._amp = None

    @cached_property
    def description(self) -> Description:
        return Description(
            library="open_clip",
            name=self.name,
            pretrained=self.pretrained,
            weights=self.weights,
            quick_gelu=any(type(m).__name__ == "QuickGELU" for m in self.model.modules()),
            preprocessing=self._preprocessing,
            tokenizer=_tokenizer_description(self.text_tower, self.words),
            words=self.words,
            precision="bf16 weights" if self.device.type == "cpu" and self.precision == "bf16" else self.precision,
        )

    @cached_property
    def embed_dim(self) -> int:
        """D."""
        return len(self.probes()["sentence"])

    @property
    def context_length(self) -> int:
        """Most tokens a caption that the model reads, start and end included."""
        return self.text_tower.context_length

    def __repr__(self) -> str:
        return f"<Backbone {self.name} ({self.pretrained}), {self.embed_dim}-d, {self.precision} on {self.device}>"

    # --- frames ------------------------------------------------------------------------------------------------

    def encode_frames(self, frames: np.ndarray | torch.Tensor) -> np.ndarray:
        """(n, H, W, 3) uint8 → (n, D) float32, projected, not normalised. What `transform` did not give goes through it first.

        A processor takes them in an even number of equal batches of at most THREAD_FRAMES, each on a thread of its own (see
        `thread_map`), so that two cores finish together.

        Raises:
            UsageError: `frames` are of another shape or type.
        """
        frames = self._transformed(frames)
        if not len(frames):  # of which open_clip's ViT cannot tell the width
            return np.zeros((0, self.embed_dim), np.float32)
        if self.device.type != "cpu" or len(frames) <= THREAD_FRAMES or temporal_embedding(self.model) is not None:
            return self._encode_batch(frames)
        batches = 2 * -(-len(frames) // (2 * THREAD_FRAMES))
        return np.concatenate(thread_map(self._encode_batch, frames.split(-(-len(frames) // batches))))

    def _transformed(self, frames: np.ndarray | torch.Tensor) -> torch.Tensor:
        if not isinstance(frames, torch.Tensor):
            try:
                frames = np.require(frames, requirements=["C", "W"])  # torch takes no BGR read backwards
            except ValueError as error:
                raise UsageError(f"`frames` are no array: {error}") from error
        shape, kind = tuple(frames.shape), str(frames.dtype).removeprefix("torch.")
        if len(shape) != 4 or shape[-1] != 3 or kind != "uint8" or 0 in shape[1:3]:
            raise UsageError(f"`frames` are {shape} {kind}; expected (n, H, W, 3) uint8")
        frames = torch.as_tensor(frames)
        if shape[1:3] == tuple(self.transform.size) or not len(frames):
            return frames
        from PIL import Image

        return torch.from_numpy(np.stack([self.transform(Image.fromarray(each)) for each in frames.cpu().numpy()]))

    def encode_later(self, parts: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        """`encode_frames` of arrays one after another; the call gives it. A GPU works on it meanwhile.

        Not for a model that looks at neighbouring frames, whose batches are not filled up.
        """
        if self.device.type != "cuda" or temporal_embedding(self.model) is not None:
            features = self.encode_frames(parts[0] if len(parts) == 1 else np.concatenate(parts))
            return lambda: features
        count = sum(map(len, parts))
        return fetched_later(self._features(self.feed.put(parts))[:count])

    @property
    def feed(self) -> Feed:
        """The way of frames to the GPU that this backbone is on."""
        if self._feed is None:
            self._feed = Feed(self.device, rows=self._filled)
        return self._feed

    def _encode_batch(self, frames: torch.Tensor) -> np.ndarray:
        return self._features(frames.to(self.device)).cpu().numpy()

    @torch.inference_mode()
    def _features(self, frames: torch.Tensor) -> torch.Tensor:
        """(n, S, S, 3) uint8 → (n, D) float32, both on the device."""
        with self._arithmetic():
            pixels = self._pixels(frames).to(_weight_type(self.model))
            encode = self._compiled or partial(self.model.encode_image, normalize=False)
            return encode(pixels).float()

    def compile(self, batch: int) -> None:
        """Frames are encoded by compiled code from now on, made when the first come. Raises as `require_gpu_compiler`.

        Args:
            batch: what `encode_later` is given is filled up to so many frames, as a new shape would be compiled anew.
        """
        require_gpu_compiler(self.device)
        self._filled = batch
        self._compiled = compiled(partial(self.model.encode_image, normalize=False), self.device)

    def image_features(self, frames: torch.Tensor) -> torch.Tensor:
        """(n, S, S, 3) uint8 on the device → (n, D), with gradients where they are wanted; autocast is the caller's."""
        return self.model.encode_image(self._pixels(frames), normalize=False)

    def _pixels(self, frames: torch.Tensor) -> torch.Tensor:
        """(n, S, S, 3) uint8 → (n, 3, S, S) float32 as the model wants them: what ToTensor and Normalize do."""
        pixels = frames.permute(0, 3, 1, 2)
        if pixels.device.type != "cuda":  # there channels last
            pixels = pixels.contiguous()
        pixels = pixels.float().div_(255)
        if self._mean.device != pixels.device:  # once: the host waits for such a copy until the device is through
            with torch.inference_mode(False):
                self._mean, self._std = self._mean.to(pixels.device), self._std.to(pixels.device)
        return pixels.sub_(self._mean).div_(self._std)

    def encode_video(
        self,
        path: str | Path,
        decoding: Decoding | None = None,
        *,
        start: float | None = None,
        end: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One file → frame_features (F, D) float32 and their times (F,) in seconds, as extraction makes them.

        It is decoded in a process of its own, which may hang or die.

        Args:
            decoding: how; one frame a second by default. Its `prepare` is this backbone's.
            start, end: seconds; only frames with start <= time < end.

        Raises:
            NotFoundError, DecodeError: the file is not there or gives no frames.
        """
        if not os.path.isfile(file_of(path)):
            raise NotFoundError(f"No video file at {path}")
        features, times, reason = [], [], None
        with DecodePool(replace(decoding or Decoding(), prepare=self.transform), workers=1) as pool:
            for event in pool.decode([VideoTask(0, str(path), start, end)]):
                if isinstance(event, FrameChunk):
                    features.append(self.encode_frames(event.frames))
                    times.append(event.times)
                else:
                    reason = event.reason
        if not features:
            raise DecodeError(f"{path} gives no frames: {reason}")
        return np.concatenate(features), np.concatenate(times)

    def encode_picture(self, path: Path) -> np.ndarray:
        """A picture file, upright → (D,) float32, as a frame is encoded. Raises NotFoundError, InputError."""
        from PIL import Image, ImageOps

        try:
            with Image.open(path) as picture:
                upright = ImageOps.exif_transpose(picture.convert("RGB"))
        except FileNotFoundError:
            raise NotFoundError(f"There is no picture {path}") from None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{path} cannot be read as a picture: {first_line(error)}") from error
        return self.encode_frames(self.transform(upright)[None])[0]

    # --- captions ----------------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Token ids cut to `words`: as the public programs do, the end token takes the last place of a cut caption."""
        return self.text_tower.tokenize(texts, self.words)

    def doubts(self, sentence: str) -> list[str]:
        """Why a sentence may not be understood as it was meant: a line each."""
        found = []
        if self.text_tower.cut([sentence], self.tokenize([sentence])):
            found.append(f"the sentence is longer than {self.words} tokens, of which the first are read")
        if self.text_tower.hardly_knows(sentence):
            found.append(f"the tokenizer of {self.name} hardly knows this script: what is found means little")
        return found

    @types_checked
    def encode_texts(self, texts: Sequence[str], *, padded: bool = False) -> TextFeatures:
        """Sentences → text_features (T, D), token_features (T, L, D) and token_mask (T, L), float32 on the host.

        As extraction stores them: projected, not normalised, each sentence cut to `words` tokens.

        Args:
            padded: give all `words` states of each, as a cache with `pad_tokens` holds them (`TextTower.padded_states`).
        """
        return self.encode_tokens(self.tokenize(texts), padded=padded)

    @torch.inference_mode()
    def encode_tokens(self, tokens: TokenizedTexts, *, padded: bool = False) -> TextFeatures:
        """As `encode_texts`, of captions that are token ids. Sort them by length: a batch costs its longest."""
        longest = width = tokens.ids.shape[1] if padded else int(tokens.lengths.max(initial=1))
        if self.device.type == "cuda":
            width = min(-(-longest // WIDTHS) * WIDTHS, tokens.ids.shape[1])
        ids, tower = torch.from_numpy(tokens.ids).to(self.device), self.text_tower
        with self._arithmetic():
            if padded:
                pooled, states = tower.padded_states(ids, torch.from_numpy(tokens.lengths).to(self.device))
            else:
                pooled, states = tower.states(ids, width)
        mask = torch.arange(longest) < torch.from_numpy(tokens.lengths)[:, None]  # (T, L)
        if states is None:
            return TextFeatures(pooled.float().cpu(), None, None)
        return TextFeatures(pooled.float().cpu(), states.float().cpu()[:, :longest], mask)

    def text_states(self, ids: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`TextTower.states` of ids on the device, with gradients where they are wanted; autocast is the caller's."""
        return self.text_tower.states(ids, longest)

    # --- what heads start from ---------------------------------------------------------------------------------

    def tensors_for_heads(self) -> dict[str, np.ndarray]:
        """First text blocks, frame positions, logit_scale, features of a black and of a padded frame, for `backbone/`."""
        found = self._for_heads or self._text_start()
        return {
            **{key: value.float().cpu().numpy().copy() for key, value in found.items()},
            **self.probes(),
            "logit_scale": np.array([self.logit_scale], np.float32),
            "padded_frame": self._frozen_padded_frame(),
        }

    def _text_start(self) -> dict[str, torch.Tensor]:
        wanted = ("positional_embedding", *(f"transformer.resblocks.{i}." for i in range(TEXT_BLOCKS_KEPT)))
        states = self.text_tower.tower.state_dict()
        return {key: value for key, value in states.items() if key.startswith(wanted)}

    def probes(self) -> dict[str, np.ndarray]:
        """Features (D,) of one sentence and of a black frame, which tell a backbone by what it does.

        Of a sentence alone, where captions alone can be encoded.
        """
        ids = self.text_tower.tokenize([PROBE], self.words)
        with torch.inference_mode(), self._arithmetic():
            sentence, _ = self.text_tower.states(torch.from_numpy(ids.ids).to(self.device), int(ids.lengths[0]))
        found = {"sentence": sentence[0].float().cpu().numpy()}
        if not self._of_texts:
            found["black_frame"] = np.ascontiguousarray(self.black_frame, np.float32)
        return found

    @torch.inference_mode()
    def _frozen_padded_frame(self) -> np.ndarray:
        with self._arithmetic():
            return self.padded_frame().float().cpu().numpy()

    def padded_frame(self) -> torch.Tensor:
        """(D,): what the public programs fill short clips up with, zeros where pixels are normalised already.

        With gradients where they are wanted; autocast is the caller's.
        """
        pixels = torch.zeros(1, 3, *self.transform.size, device=self.device, dtype=_weight_type(self.model))
        return self.model.encode_image(pixels, normalize=False)[0]

    @contextlib.contextmanager
    def _arithmetic(self) -> Iterator[None]:
        with arithmetic(self.device), torch.autocast(self.device.type, dtype=self._amp, enabled=self._amp is not None):
            yield


def require_gpu_compiler(device: torch.device) -> None:
    """Raises UsageError where frames cannot be encoded by compiled code, or gain nothing by it."""
    if device.type != "cuda":
        raise UsageError(
            f"`compile` of an extraction is for a GPU, found {device.type}: on a processor it gains nothing",
            hint="Leave `compile` out",
        )
    require_compiler(device)


def _weight_type(model: ClipModel) -> torch.dtype:
    return next(model.parameters()).dtype


@types_checked
def load_backbone(
    name: str = "ViT-B-32",
    pretrained: str | None = "openai",
    *,
    words: int | None = None,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    preprocess: str = "open_clip",
    across_frames: bool = False,
    asked: ActivationSettings | None = None,
) -> Backbone:
    """Build a model and load its weights.

    Args:
        name: `demo` (the built-in tiny CLIP), an open_clip architecture, `hf-hub:org/repo` or `local-dir:FOLDER`.
        pretrained: tag of open_clip, or a file or folder with weights, of which only the latter counts for `demo` and names
            with a scheme. docs/backbones.md tells what is read.
        words: tokens kept a caption, start and end included; None keeps 32, or as many as the model reads.
        precision: `fp32`, `fp16`, `bf16`; `auto` is fp16 on a GPU and fp32 elsewhere.
        preprocess: `open_clip` resizes pictures as open_clip itself does, `fast` through `FastTransform`.
        across_frames: take weights whose patch embedding looks at neighbouring frames; only for callers that give
            the frames of a video together.
        asked: activation and preprocessing where the weights do not say it, or say it wrong.

    Raises:
        BackboneError: unknown name or tag, weights that cannot be had or do not fit.
        UsageError: precision, preprocess or words out of range.
    """
    if preprocess not in PREPROCESSING:
        raise UsageError(f"`preprocess` is {preprocess!r}; expected one of {', '.join(PREPROCESSING)}")
    if precision not in PRECISIONS:
        raise UsageError(f"`precision` is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    device = torch.device(device)
    precision = _precision_on(device, precision)
    copied = device.type == "cuda" or (device.type, precision) == ("cpu", "bf16")  # by `Backbone._place`
    loaded = load_model(name, pretrained, asked=asked, across_frames=across_frames, mapped=copied)
    return Backbone(loaded, words=words, device=device, precision=precision, preprocess=preprocess)


def _precision_on(device: torch.device, precision: str) -> str:
    """What `auto` is there."""
    if precision == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    return precision


def backbone_of_cache(
    configuration: Mapping[str, Any],
    where: Path,
    pretrained: str | None = None,
    *,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    across_frames: bool = False,
    texts_only: bool = False,
) -> Backbone:
    """The backbone that a cache was made with, its weights compared by hash.

    Args:
        configuration: of the cache.
        where: the cache, for messages.
        pretrained: file with the weights, where the cache was made from a file.
        device, precision, across_frames: as in `load_backbone`.
        texts_only: only captions will be encoded: of weights that were loaded before, no more than that takes is read.

    Raises:
        UsageError: the features were imported, so no backbone is known.
        FingerprintError: the weights are others, or give other features.
        BackboneError: the cache says too little, or see `load_backbone`.
    """
    made = configuration.get("text_backbone", configuration["backbone"])
    if made["pretrained"] == "imported":
        raise UsageError(
            f"{where} holds imported features of captions and frames: no backbone is known to encode more",
            hint="Import with `backbone=NAME`, which encodes the captions now",
        )
    if "words" not in made or "weights" not in made:
        raise BackboneError(
            f"{where} does not say how its backbone was used: it lacks the number of words, or the weights' hash"
        )
    name, weights, asked, words = made["name"], pretrained or made["pretrained"], recorded(made), made["words"]
    texts = load_text_tower(name, weights, asked=asked) if texts_only else None
    if texts is not None:
        device = torch.device(device)
        backbone = Backbone(texts, words=words, device=device, precision=_precision_on(device, precision))
    else:
        backbone = load_backbone(
            name,
            weights,
            words=words,
            device=device,
            precision=precision,
            preprocess=made.get("preprocessing", {}).get("method", "open_clip"),
            across_frames=across_frames,
            asked=asked,
        )
    if backbone.weights != made["weights"]:
        raise FingerprintError(
            f"{where} was made with other weights of {made['name']} ({made['pretrained']}, {made['weights']}); "
            f"these are {backbone.weights}",
            hint="Give the same weights with `pretrained=FILE`",
        )
    with contextlib.suppress(CacheCorruptError):
        _compare_features(backbone.name, backbone.probes(), read_tensors(where, PROBES), where)
    return backbone


def introduce(name: str, ours: Mapping[str, np.ndarray], library: Library) -> None:
    """Leave in a cache what heads start from (`Backbone.tensors_for_heads`), or compare it with what stands there.

    Raises:
        FingerprintError: the backbone that made the cache had these weights and gave other features, so its configuration,
            its tokenizer or a library that computes them was another.
        StorageError: it cannot be written.
    """
    library.write_backbone_tensors(ours)
    with contextlib.suppress(CacheCorruptError):  # whoever needs them says so
        _compare_features(name, ours, library.backbone_tensors(PROBES), library.path)


def _compare_features(
    backbone: str, ours: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray], where: Path
) -> None:
    for name, what in PROBES.items():
        if name in kept and name in ours and _cosine(kept[name], ours[name]) < SAME_FEATURES:
            raise FingerprintError(
                f"{where} was made with the same weights of {backbone}, but {what} had other features: the "
                "backbone's configuration, its tokenizer or a version of open_clip or transformers was another",
                hint="Go back to what made it, or extract again into another cache",
            )


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a, b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))


def _tokenizer_description(tower: TextTower, words: int) -> str:
    """The tokenizer's class, and the padding of a tower that sees it and once got zeros instead."""
    name = type(tower.tokenizer).__name__
    seen = tower.padding and words < tower.context_length and not tower.is_causal
    return f"{name}, padded with {tower.padding} to {tower.context_length}" if seen else name


class Preprocessing(NamedTuple):
    """What is done to a picture: `transform`, then mean and deviation (3, 1, 1); `settings` as a `Description` has them."""

    transform: PictureTransform
    mean: torch.Tensor
    std: torch.Tensor
    settings: dict[str, Any]

    def same_pictures(self, settings: Mapping[str, Any]) -> bool:
        """Whether `transform` is that of other settings too: mean and deviation are none of its business."""
        wanted, told = ({**each, "size": _sides(each.get("size", 0))} for each in (settings, self.settings))
        return all(told.get(key) == wanted.get(key) for key in {*told, *wanted} - {"mean", "std"})


def _sides(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width)"""
    return (size, size) if isinstance(size, int) else (size[-2], size[-1])


def expected_preprocessing(settings: ExtractSettings) -> Preprocessing | None:
    """What a backbone most likely does to pictures, told before its weights are read; None where nothing tells.

    Some file beside the weights, or in it, may yet say otherwise: compare with `Description.preprocessing`.
    """
    try:
        told = expected(settings.backbone, settings.pretrained, settings)
        return None if told is None else _preprocessing_of(told, settings.preprocess)
    except Exception:  # whatever is wrong with it is told, in its words, by who loads the backbone
        return None


def expected(name: str, pretrained: str | None, asked: ActivationSettings | None) -> dict[str, Any] | None:
    """Preprocessing that weights most likely have, as open_clip's `PreprocessCfg` takes it; None where only they tell it."""
    described = description_of(name)
    config = described.get("model_cfg", described)
    if not config:
        return None
    from open_clip.transform import PreprocessCfg

    values = asdict(PreprocessCfg())
    tags = {} if name == "demo" or ":" in name else published(name)
    told = described.get("preprocess_cfg") or tags.get(str(pretrained)) or agreed(tags)
    told = {**told, **said(asked), "size": config.get("vision_cfg", {}).get("image_size", 224)}
    return {key: told.get(key, value) for key, value in values.items()}


def _preprocessing_of(settings: Mapping[str, Any], method: str) -> Preprocessing:
    """open_clip's evaluation transform."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose, Normalize

    transform = image_transform_v2(PreprocessCfg(**settings), is_train=False)
    assert isinstance(transform, Compose), "of one that does not train"
    normalise = transform.transforms[-1]
    names = [getattr(step, "__name__", type(step).__name__) for step in transform.transforms]
    known = [["MaybeConvertMode", "MaybeToTensor"], ["_convert_to_rgb", "ToTensor"]]  # from open_clip 3.3, and before
    if names[-3:-1] not in known or not isinstance(normalise, Normalize):
        raise BackboneError(f"This open_clip preprocesses in an unknown way: {names}")
    size = _sides(settings["size"])
    mean, std = (torch.tensor(list(v), dtype=torch.float32).view(3, 1, 1) for v in (normalise.mean, normalise.std))
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in sorted(settings.items())}
    steps = transform.transforms[:-3]
    if method != "fast":
        return Preprocessing(PictureTransform(steps, size), mean, std, plain)
    from glscl.extract.backbone.fast_transform import FastTransform

    return Preprocessing(FastTransform(steps, size), mean, std, {**plain, "method": "fast"})
