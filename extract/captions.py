"""Captions, encoded and committed shard by shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import numpy as np

from glscl.cache.encoded_items import EncodedText, NonFiniteItem, text_arrays
from glscl.cache.library import Library, Place
from glscl.cache.schema import PAD
from glscl.common.progress import Progress, Task
from glscl.common.tables import amount
from glscl.extract.backbone.encoder import Backbone, TokenizedTexts
from glscl.extract.settings import ExtractSettings, ImportSettings


def extract_captions(
    library: Library,
    places: Sequence[Place],
    captions: Mapping[bytes, str],
    backbone: Backbone,
    settings: ExtractSettings | ImportSettings,
    *,
    progress: Progress,
) -> int:
    """Encode and commit the captions of some shards; how many were cut at the longest length.

    Args:
        captions: key → caption, of all that stand in them.
    """
    cut = 0

    def read(place: Place) -> tuple[np.ndarray, list[str], TokenizedTexts, int]:
        keys = library.stream("text").keys_at(place)
        texts = [captions[key.tobytes()] for key in keys]
        tokenized = backbone.tokenize(texts)
        return keys, texts, tokenized, backbone.text_tower.cut(texts, tokenized)

    with (
        progress.task("captions", sum(len(place.items) for place in places), "captions") as task,
        ThreadPoolExecutor(1, "glscl-tokens") as ahead,  # while a device encodes a shard, the next one becomes tokens
    ):
        ready = ahead.submit(read, places[0]) if places else None
        for place, following in zip_longest(places, places[1:]):
            assert ready is not None
            keys, texts, tokenized, longer = ready.result()
            ready = None if following is None else ahead.submit(read, following)
            cut += longer
            records = _encode_captions(tokenized, backbone, settings, task)
            try:
                arrays = text_arrays(keys, texts, records, embed_dim=library.embed_dim, dtype=library.dtype)
            except NonFiniteItem as error:
                raise error.named(captions[error.key]) from None
            library.commit(place.addition, place.shard, arrays)
    return cut


def cut_note(count: int, words: int) -> list[str]:
    """What to say of captions that were cut."""
    if not count:
        return []
    cut = f"{amount(count, 'caption')} longer than {words} tokens"
    return [f"{cut}, of which the first are encoded (`max_words`)"]


def _encode_captions(
    tokenized: TokenizedTexts, backbone: Backbone, settings: ExtractSettings | ImportSettings, task: Task
) -> list[EncodedText]:
    """Captions in batches of similar length, returned in their own order."""
    order = np.argsort(tokenized.lengths, kind="stable")
    keeps_tokens = settings.tokens and backbone.text_tower.gives_tokens
    padded = keeps_tokens and isinstance(settings, ExtractSettings) and settings.pad_tokens
    width = tokenized.ids.shape[1]
    ids = np.where(np.arange(width) < tokenized.lengths[:, None], tokenized.ids, PAD).astype(np.int32)
    records: dict[int, EncodedText] = {}
    for start in range(0, len(order), settings.batch_texts):
        rows = order[start : start + settings.batch_texts]
        encoded = backbone.encode_tokens(TokenizedTexts(tokenized.ids[rows], tokenized.lengths[rows]), padded=padded)
        pooled = encoded.text_features.numpy()
        states = pooled[:, None] if encoded.token_features is None else encoded.token_features.numpy()  # (T, L, D)
        for i, row in enumerate(rows.tolist()):
            length = width if padded else int(tokenized.lengths[row]) if keeps_tokens else 0
            records[row] = EncodedText(pooled[i], states[i, :length], ids[row, :length])
        task.advance(len(rows))
    return [records[row] for row in range(len(order))]
