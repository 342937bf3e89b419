"""What every head shares: the two one-sided encodings, the tiled score, the options, the feature adapters.

T texts, V videos, L tokens, F frames, D embed_dim.

A head is written as three small methods; the rest is here.

    text_side(TextFeatures)    -> NamedTuple   what a text contributes, computed once per text
    video_side(VideoFeatures)  -> NamedTuple   what a video contributes, computed once per video
    pair_scores(text, video)   -> (T, V)       the only part whose cost grows with T x V

Items are encoded in batches of like length. To be put together again, a field that runs over tokens or frames is lengthened
with zeros, a mask with False; `pair_scores` gives the same for it.
"""

from __future__ import annotations

import inspect
import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.common.errors import UsageError
from glscl.train_head.heads.layers import build_adapter

Encoded = TypeVar("Encoded", bound=tuple)

MAX_LOGIT_SCALE = math.log(100.0)


class HeadOutput(NamedTuple):
    """Result of `head(text, video)`.

    Attributes:
        similarity: (T, V), before the logit scale.
        auxiliary: name -> scalar loss, already weighted; empty where texts and videos are not pairs.
    """

    similarity: Tensor
    auxiliary: dict[str, Tensor]


class Initialisation(NamedTuple):
    """What `Head.initialise_from_backbone` did: parameter names that were set, and the reason for each that was not."""

    initialised: list[str]
    skipped: list[str]


class DeclaredOption(NamedTuple):
    """An option as the constructor of a head declares it: its default, and its type."""

    default: Any
    kind: Any


class VectorSide(NamedTuple):
    """One side of a head whose score is a dot product of vectors: (N, D), L2-normalised."""

    vectors: Tensor


class Head(nn.Module, ABC):
    """A text-video similarity that is learned on cached features.

    What the constructor of a subclass takes beside `embed_dim` are its options; nothing else declares them. It hands on
    what it does not know, `**common`, to the class above.

    Args:
        embed_dim: D of the features.
        logit_scale: initial log τ; a head without temperature keeps 0.
        logit_bias: what is added to τ · S, learned from here, for a loss that judges each pair by itself; None is none.
        adapter: "none", "linear" or "mlp", the residual feature adapters under the head; they change nothing at start.

    Attributes:
        options: every option of the head; `build_head(name, embed_dim=..., **options)` rebuilds it. JSON-able.
        needs_tokens: whether the text side reads token features.
        query_independent: whether a video is one vector, so that it can be indexed.
        has_logit_scale: whether τ is learned; else it stays 1.
        loss: what it is trained with where nothing else is asked for, a key of `glscl.train_head.losses.LOSSES`.
        mask_padding: whether padded entries are zeroed and kept out of everything.
        tile_bytes: working memory of one tile of pairs; None chooses by device.
        autocast_pairs: whether `pair_scores` follows autocast; only for a head that runs a network on every pair.
        tall_tiles: whether a tile holds many texts and few videos; for a head whose tiles prepare each video anew.
        dropped_keys: what `head_from_state_dict` left out of the weights of a public program.
    """

    needs_tokens: bool = False
    query_independent: bool = False
    has_logit_scale: bool = True
    loss: str = "infonce"
    mask_padding: bool = True
    tile_bytes: int | None = None
    autocast_pairs: bool = False
    tall_tiles: bool = False
    dropped_keys: tuple[str, ...] = ()
    options: dict[str, Any]

    def __new__(cls, *arguments: Any, **named: Any) -> Self:
        head = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(head, *arguments, **named)
        given = {**bound.arguments, **bound.kwargs}
        head.options = {name: given.get(name, option.default) for name, option in cls.declared_options().items()}
        return head

    @classmethod
    def declared_options(cls) -> dict[str, DeclaredOption]:
        """The options by name: those of the constructor, then those of the classes that it hands `**common` on to."""
        declared: dict[str, DeclaredOption] = {}
        for each in cls.__mro__:
            constructor = vars(each).get("__init__")
            if constructor is None:
                continue
            kinds, parameters = typing.get_type_hints(constructor), inspect.signature(constructor).parameters.values()
            for parameter in list(parameters)[1:]:
                if parameter.kind is not parameter.VAR_KEYWORD and parameter.name != "embed_dim":
                    option = DeclaredOption(parameter.default, kinds.get(parameter.name, Any))
                    declared.setdefault(parameter.name, option)
            if each is Head or not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                break
        return declared

    def __repr__(self) -> str:
        usual = {name: option.default for name, option in self.declared_options().items()}
        told = [f", {name}={value!r}" for name, value in self.options.items() if value != usual.get(name)]
        return f"{type(self).__name__}(embed_dim={self.embed_dim}{''.join(told)})"

    def __init__(
        self,
        *,
        embed_dim: int,
        logit_scale: float | None = None,
        logit_bias: float | None = None,
        adapter: str = "none",
    ) -> None:
        super().__init__()
        if embed_dim < 1:
            raise UsageError(f"embed_dim must be at least 1, found {embed_dim}")
        if logit_scale is None:
            logit_scale = MAX_LOGIT_SCALE if self.has_logit_scale else 0.0
        self.embed_dim = embed_dim
        self.options["logit_scale"] = float(logit_scale)
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale)), requires_grad=self.has_logit_scale)
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor(float(logit_bias)))
        self.text_adapter = build_adapter(adapter, embed_dim)
        self.video_adapter = build_adapter(adapter, embed_dim)

    # ---- what a head defines -------------------------------------------------------------------------------------

    @abstractmethod
    def text_side(self, text: TextFeatures) -> Any:
        """What the texts contribute, a NamedTuple of tensors with the text on the first dimension."""

    @abstractmethod
    def video_side(self, video: VideoFeatures) -> Any:
        """What the videos contribute, a NamedTuple of tensors with the video on the first dimension."""

    def both_sides(self, text: TextFeatures, video: VideoFeatures) -> tuple[Any, Any]:
        """`text_side` and `video_side` of a training batch; for a head that can run both through the same weights at once."""
        return self.text_side(text), self.video_side(video)

    @abstractmethod
    def pair_scores(self, text: Any, video: Any) -> Tensor:
        """(T, V) similarity of a tile of encoded texts and videos, before the logit scale."""

    def pair_bytes(self, text: Any, video: Any) -> int:
        """Bytes of working memory `pair_scores` takes for one text-video pair, backward included."""
        return 2 * text[0].element_size()

    def contrasts(self, text: Any, video: Any) -> list[Tensor]:
        """(B, B) similarities of a training batch of pairs, before the logit scale, each with a loss of its own: the score."""
        return [self.score(text, video)]

    def auxiliary_losses(self, text: Any, video: Any) -> dict[str, Tensor]:
        """Further losses of a training batch in which text i belongs to video i; scalars, already weighted."""
        return {}

    # ---- what callers use ----------------------------------------------------------------------------------------

    def forward(self, text: TextFeatures, video: VideoFeatures) -> HeadOutput:
        """Similarity of every text with every video, and for as many texts as videos the losses of text i with video i.

        The mode decides on dropout alone, so a head without it (`eval()`) reports the loss that training minimises.
        """
        encoded_text, encoded_video = self.encode_text(text), self.encode_video(video)
        paired = len(encoded_text[0]) == len(encoded_video[0])
        auxiliary = self.auxiliary_losses(encoded_text, encoded_video) if paired else {}
        return HeadOutput(self.score(encoded_text, encoded_video), auxiliary)

    def encode_text(self, text: TextFeatures) -> Any:
        """The one-sided work for texts.

        Args:
            text: features of any floating dtype; they are cast to the dtype of the parameters.

        Raises:
            UsageError: features of another size than the head's, or no token features for a head that needs them.
        """
        return self._settle(self.text_side(self._prepared_text(text)))

    def encode_video(self, video: VideoFeatures) -> Any:
        """The one-sided work for videos; see `encode_text`."""
        return self._settle(self.video_side(self._prepared_video(video)))

    def encode_both(self, text: TextFeatures, video: VideoFeatures) -> tuple[Any, Any]:
        """`encode_text` and `encode_video` of a training batch, at once where that saves operations; raises as they do."""
        sides = self.both_sides(self._prepared_text(text), self._prepared_video(video))
        return self._settle(sides[0]), self._settle(sides[1])

    def score(self, encoded_text: Any, encoded_video: Any) -> Tensor:
        """(T, V) similarity, before the logit scale.

        Pairs are computed in tiles of bounded memory, in the dtype of the parameters (autocast would round a cosine to
        three digits; see `autocast_pairs`). With gradients, a score of several tiles recomputes each tile in the
        backward pass instead of keeping its intermediates.
        """
        num_texts, num_videos = len(encoded_text[0]), len(encoded_video[0])
        text_step, video_step = self._tile_shape(encoded_text, encoded_video)
        recompute = torch.is_grad_enabled() and (text_step < num_texts or video_step < num_videos)
        columns = split_items(encoded_video, video_step)
        rows = []
        for texts in split_items(encoded_text, text_step):
            if recompute:
                row = [checkpoint(self._tile, texts, videos, use_reentrant=False) for videos in columns]
            else:
                row = [self._tile(texts, videos) for videos in columns]
            rows.append(row[0] if len(row) == 1 else torch.cat(row, dim=1))
        return rows[0] if len(rows) == 1 else torch.cat(rows)  # (T, V)

    def initialise_from_backbone(self, tensors: Mapping[str, Tensor]) -> Initialisation:
        """Start from parts of the backbone where the head has matching ones.

        Args:
            tensors: tensors under open_clip's names: `logit_scale`, `positional_embedding`, and the first blocks of the
                text transformer as `transformer.resblocks.{i}.…`.

        Returns:
            The names that were set, and one line for each that was not.
        """
        result = Initialisation([], [])
        if self.has_logit_scale:
            if "logit_scale" in tensors:
                with torch.no_grad():
                    self.logit_scale.copy_(tensors["logit_scale"].reshape(()).clamp(max=MAX_LOGIT_SCALE))
                result.initialised.append("logit_scale")
            else:
                result.skipped.append("logit_scale: the backbone has none")
        for name, module in self.named_modules():
            if module is not self and hasattr(module, "initialise_from_backbone"):
                part = module.initialise_from_backbone(tensors)
                result.initialised.extend(f"{name}.{key}" for key in part.initialised)
                result.skipped.extend(f"{name}.{key}" for key in part.skipped)
        return result

    # ---- inside --------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        return self.logit_scale.dtype

    def _prepared_text(self, text: TextFeatures) -> TextFeatures:
        """Adapted, and zero where padded."""
        self._check_dim("text", text.text_features)
        pooled = self._adapt(self.text_adapter, text.text_features)
        tokens = mask = None
        if self.needs_tokens:
            if text.token_features is None or text.token_mask is None:
                raise UsageError(
                    f"{type(self).__name__} reads token features and these captions have none",
                    hint="Extract again with `tokens`, or choose a head that needs pooled text only",
                )
            self._check_dim("token", text.token_features)
            mask = attendable(text.token_mask)
            tokens = self._mask(self._adapt(self.text_adapter, self._mask(text.token_features, mask)), mask)
        return TextFeatures(pooled, tokens, mask)

    def _prepared_video(self, video: VideoFeatures) -> VideoFeatures:
        self._check_dim("frame", video.frame_features)
        mask = attendable(video.frame_mask)
        frames = self._mask(self._adapt(self.video_adapter, self._mask(video.frame_features, mask)), mask)
        return VideoFeatures(frames, mask)

    def _check_dim(self, what: str, features: Tensor) -> None:
        if features.shape[-1] != self.embed_dim:
            raise UsageError(
                f"{what} features are {features.shape[-1]}-d, the head was built for embed_dim {self.embed_dim}"
            )

    def _adapt(self, adapter: nn.Module | None, features: Tensor) -> Tensor:
        features = features.to(self.dtype)
        return features if adapter is None else adapter(features)

    def _mask(self, features: Tensor, mask: Tensor) -> Tensor:
        return features.masked_fill(~mask.unsqueeze(-1), 0.0) if self.mask_padding else features

    def _settle(self, encoded: Encoded) -> Encoded:
        """Bring what autocast left in half precision back to the dtype of the parameters."""
        return type(encoded)(*(field.to(self.dtype) if field.is_floating_point() else field for field in encoded))

    def _tile(self, text: Any, video: Any) -> Tensor:
        if self.autocast_pairs:
            return self.pair_scores(text, video)
        with torch.autocast(device_type=text[0].device.type, enabled=False):
            return self.pair_scores(text, video)

    def _tile_shape(self, text: Any, video: Any) -> tuple[int, int]:
        """Texts and videos a tile: as square as the budget allows, because matrix products like that, or tall."""
        num_texts, num_videos = max(len(text[0]), 1), max(len(video[0]), 1)
        budget = self.tile_bytes or default_tile_bytes(text[0].device)
        pairs = max(budget // max(self.pair_bytes(text, video), 1), 1)
        if pairs >= num_texts * num_videos:
            return num_texts, num_videos
        text_step = min(num_texts, pairs if self.tall_tiles else max(math.isqrt(pairs), pairs // num_videos))
        return text_step, max(min(num_videos, pairs // text_step), 1)


class VectorHead(Head):
    """A head that makes one vector of every video and of every text; their dot product is the similarity."""

    query_independent = True

    def pair_scores(self, text: VectorSide, video: VectorSide) -> Tensor:
        return text.vectors @ video.vectors.T  # (T, V)

    def text_side(self, text: TextFeatures) -> VectorSide:
        return VectorSide(F.normalize(text.text_features, dim=-1))

    def text_vectors(self, encoded_text: VectorSide) -> Tensor:
        """(T, D) L2-normalised vectors, whose dot products with `video_vectors` are the similarities."""
        return encoded_text.vectors

    def video_vectors(self, encoded_video: VectorSide) -> Tensor:
        """(V, D) L2-normalised vectors, ready for an index."""
        return encoded_video.vectors


def default_tile_bytes(device: torch.device) -> int:
    """Working memory of a tile: on a GPU what keeps it busy, on a CPU what stays near its caches."""
    if torch.is_grad_enabled():
        return 1 << 30 if device.type == "cuda" else 1 << 28
    return 1 << 28 if device.type == "cuda" else 1 << 24


def slice_items(encoded: Encoded, start: int, stop: int) -> Encoded:
    """Items [start, stop) of an encoded side."""
    return type(encoded)(*(field[start:stop] for field in encoded))


def split_items(encoded: Encoded, step: int) -> list[Encoded]:
    """An encoded side in parts of `step` items.

    Together they have one node in the backward pass: gradients of a part are summed in its own size, where a slice would
    widen them with zeros to that of the whole.
    """
    if step >= len(encoded[0]):
        return [encoded]
    return [type(encoded)(*part) for part in zip(*(field.split(step) for field in encoded))]


def tokens_of(text: TextFeatures) -> tuple[Tensor, Tensor]:
    """Token features and mask of texts that `Head.encode_text` has checked to have them."""
    assert text.token_features is not None and text.token_mask is not None
    return text.token_features, text.token_mask


def attendable(mask: Tensor) -> Tensor:
    """The mask as bool; an item without any real entry is opened whole, so that softmax stays finite over its zeros."""
    mask = mask.bool()
    return mask | ~mask.any(dim=-1, keepdim=True)


def require_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise a UsageError that names the choices unless `value` is one of them."""
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(map(repr, choices))}, found {value!r}")


def require_at_least(name: str, value: float, smallest: float) -> None:
    """Raise a UsageError unless `value` >= `smallest`."""
    if not value >= smallest:
        raise UsageError(f"{name} must be at least {smallest}, found {value}")


def require_positive(name: str, value: float) -> None:
    """Raise a UsageError unless `value` > 0."""
    if not value > 0:
        raise UsageError(f"{name} must be above 0, found {value}")


def require_dropout(value: float) -> None:
    """Raise a UsageError unless 0 <= `value` < 1."""
    if not 0 <= value < 1:
        raise UsageError(f"dropout must be at least 0 and below 1, found {value}")
