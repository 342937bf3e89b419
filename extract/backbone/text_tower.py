"""Captions through the text tower of a model, padded as it was trained and pooled by open_clip's own code.

T texts, W words kept a caption, C context length, L tokens, D embed_dim.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from glscl.common.errors import BackboneError

if TYPE_CHECKING:
    from glscl.extract.backbone.clip_model import ClipModel

SAMPLE = (
    20  # characters of a sentence that tell whether its script is known; tokens that tell how captions are filled up
)


class TokenizedTexts(NamedTuple):
    """Captions as token ids, cut to the configured number of words (start and end tokens included)."""

    ids: np.ndarray  # (T, W) int64, the tokenizer's own padding behind `lengths`
    lengths: np.ndarray  # (T,) int64, real tokens


class TextTower:
    """The text half of a model.

    Many towers look at what stands behind a caption: SigLIP pools the last position, others attend both ways. So ids are
    filled up with what the tokenizer itself fills up with, to the length that the tower was trained at.

    Args:
        model: of open_clip.
        tokenizer: its own, as `open_clip.get_tokenizer` gives it.

    Attributes:
        context_length: C.
        padding: id behind the end of a caption.
        closing: id in the last position of every caption, behind its padding (CLIPS); None where there is none.
        gives_tokens: whether it tells the states of its tokens; all of open_clip's do.
    """

    def __init__(self, model: ClipModel, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, _reads_text_alone(tokenizer)
        self.tower: Any = getattr(model, "text", model)
        known = (getattr(each, "context_length", None) for each in (tokenizer, model, self.tower))
        self.context_length = int(next(filter(None, known)))
        self.padding, self.closing = int(tokenizer([""])[0, -1]), None
        if getattr(tokenizer, "tokenizer_mode", "") == "clips":
            self.padding, self.closing = int(tokenizer.tokenizer.pad_token_id), self.padding
        self._check_padding()
        self.gives_tokens = _is_hugging_face(self.tower) or hasattr(model, "forward_intermediates")

    @property
    def is_causal(self) -> bool:
        """Whether it is the tower of the plain CLIP class, in which nothing sees what stands behind it, nor is pooled there."""
        if hasattr(self.model, "text") or getattr(self.model, "attn_mask", None) is None:
            return False
        return getattr(self.model, "text_pool_type", "argmax") in ("argmax", "eos", "first")

    def _check_padding(self) -> None:
        """Raise BackboneError where a short caption, cut and filled up again, is not what the tokenizer makes of it."""
        ids = torch.from_numpy(self.tokenize(["a man"], min(SAMPLE, self.context_length)).ids)
        if not torch.equal(self._filled(ids), self.tokenizer(["a man"])):
            raise BackboneError(
                "The tokenizer fills captions up in a way that is not known here, such as on their left",
                hint='Set "padding_side" to "right" in its tokenizer_config.json, if the weights were trained so',
            )

    def tokenize(self, texts: Sequence[str], words: int) -> TokenizedTexts:
        """Ids cut to `words`: as the public programs do, the end token takes the last place of a cut caption."""
        if self.closing is None:
            ids = self.tokenizer(list(texts), context_length=words).numpy().astype(np.int64)
        else:  # without it, and at the full length with a place for it
            kept = words if words != self.context_length else words - 1
            ids = self.tokenizer(list(texts), context_length=kept + 1).numpy().astype(np.int64)[:, :-1]
            ids = np.pad(ids, ((0, 0), (0, words - kept)), constant_values=self.padding)
        end = getattr(self.tokenizer, "eot_token_id", None)
        if end is not None:
            return TokenizedTexts(ids, (ids == end).argmax(1) + 1)
        return TokenizedTexts(ids, np.maximum((ids != self.padding).sum(1), 1))

    def cut(self, texts: Sequence[str], tokenized: TokenizedTexts) -> int:
        """How many captions are longer than what was kept of them."""
        words = tokenized.ids.shape[1]
        full = np.flatnonzero(tokenized.lengths >= words - 1)  # SigLIP ends a cut caption with what it pads with
        longer = self.tokenize([texts[row] for row in full.tolist()], words + 1).lengths if len(full) else 0
        return int((longer > tokenized.lengths[full]).sum())

    def hardly_knows(self, text: str) -> bool:
        """Whether the tokenizer spells the words of a text out, more than a token a letter: a script it never learnt."""
        foreign = " ".join(word for word in text.split() if not word.isascii())[:SAMPLE]
        letters = sum(map(str.isalpha, foreign))
        ids = self.tokenize(["", foreign], self.context_length).lengths
        return letters > 1 and int(ids[1] - ids[0]) > letters

    def states(self, ids: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(T, W) ids → pooled (T, D) and token features (T, at least `longest`, D), None where there are none.

        Both are behind the last norm and the text projection, and not normalised.
        """
        if self.is_causal:
            return self._causal_states(ids[:, :longest])
        padded = self._filled(ids)
        if _is_hugging_face(self.tower):
            return self._hugging_face_states(padded)
        states = None
        if self.gives_tokens:
            output = self.model.forward_intermediates(
                text=padded, text_indices=1, normalize=False, normalize_intermediates=True, text_output_fmt="NLC"
            )
            states = project(self.tower, output["text_intermediates"][-1])
        return self.model.encode_text(padded, normalize=False), states

    def padded_states(self, ids: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(T, W) ids of a causal tower → pooled (T, D) and the states of all W places (T, W, D).

        What stands behind a caption sees the caption alone, not itself nor other padding: as GLSCL's program computes it.
        """
        width = ids.shape[1]
        hidden = torch.arange(width, device=ids.device) >= lengths[:, None]  # (T, W)
        mask = self.model.attn_mask[:width, :width].to(ids.device).expand(len(ids), -1, -1)
        mask = mask.masked_fill(hidden[:, None], -torch.inf)  # (T, W, W)
        heads = self.model.transformer.resblocks[0].attn.num_heads
        return self._causal_states(ids, mask.repeat_interleave(heads, 0))

    def _filled(self, ids: torch.Tensor) -> torch.Tensor:
        """(T, W) ids → (T, C) as the tower was trained on them."""
        padded = nn.functional.pad(ids, (0, self.context_length - ids.shape[1]), value=self.padding)
        if self.closing is not None:
            padded = torch.cat((padded[:, :-1], torch.full_like(padded[:, :1], self.closing)), 1)
        return padded

    def _causal_states(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """What stands behind the longest caption cannot be seen from it, so it is not computed."""
        from open_clip.transformer import text_global_pool

        model, longest = self.model, ids.shape[1]
        dtype = model.transformer.get_cast_dtype()
        states = model.token_embedding(ids).to(dtype) + model.positional_embedding[:longest].to(dtype)
        mask = model.attn_mask[:longest, :longest] if mask is None else mask
        states = model.ln_final(model.transformer(states, attn_mask=mask))
        end = getattr(model, "text_eos_id", None)
        pooled = text_global_pool(states, ids, model.text_pool_type, eos_token_id=end)
        return project(model, pooled), project(model, states)

    def _hugging_face_states(self, padded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A tower of the transformers package: open_clip's pooling and projection, and the projection of every state."""
        mask = (padded != self.tower.config.pad_token_id).long()  # (T, C)
        output = self.tower.transformer(input_ids=padded, attention_mask=mask)
        return self.tower.proj(self.tower.pooler(output, mask)), self.tower.proj(output.last_hidden_state)


def _reads_text_alone(tokenizer: Any) -> Any:
    """A tokenizer that takes `<end_of_text>` and its like in a caption for text, not for the end."""
    pattern = getattr(tokenizer, "pat", None)
    if pattern is not None:  # open_clip's own
        import regex

        commands = "|".join(tokenizer.decoder[id] for id in tokenizer.all_special_ids)
        tokenizer = copy.copy(tokenizer)
        tokenizer.clean_fn = _cleaned(tokenizer.clean_fn)
        tokenizer.pat = regex.compile(pattern.pattern.removeprefix(f"{commands}|"), regex.IGNORECASE)
        tokenizer.encode = _remembering(tokenizer)
    elif hasattr(tokenizer, "tokenizer"):  # of transformers
        tokenizer.tokenizer.split_special_tokens = True
    return tokenizer


def _remembering(tokenizer: Any) -> Callable[[str], list[int]]:
    """`encode` of open_clip's own tokenizer, which spells a word once: twice as fast, and it shares the time with what encodes."""
    known: dict[str, list[int]] = {}

    def encode(text: str) -> list[int]:
        found: list[int] = []
        for word in tokenizer.pat.findall(tokenizer.clean_fn(text)):
            ids = known.get(word)
            if ids is None:
                letters = "".join(tokenizer.byte_encoder[byte] for byte in word.encode("utf-8"))
                ids = known[word] = [tokenizer.encoder[part] for part in tokenizer.bpe(letters).split(" ")]
            found += ids
        return found

    return encode


def _cleaned(clean: Callable[[str], str]) -> Callable[[str], str]:
    """The cleaning of a tokenizer without looking for broken encodings, which takes half its time, where there can be none."""
    from open_clip.tokenizer import _clean_lower

    if clean is not _clean_lower:
        return clean

    def cleaned(text: str) -> str:
        if text.isascii() and text.isprintable() and "&" not in text:
            return " ".join(text.split()).lower()
        return clean(text)

    return cleaned


def project(tower: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """States through the text projection of a tower, as they are where it has none."""
    projection = getattr(tower, "text_projection", None)
    if projection is None:
        return states
    return projection(states) if isinstance(projection, nn.Module) else states @ projection.to(states.dtype)


def _is_hugging_face(tower: object) -> bool:
    return type(tower).__name__ == "HFTextEncoder"
