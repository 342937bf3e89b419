"""Captions of a plan, encoded and committed shard by shard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from glscl.cache.encoded_items import EncodedText, text_arrays
from glscl.cache.schema import TextItem
from glscl.cache.store import Store
from glscl.common.progress import Progress, Task
from glscl.extract.backbone.encoder import Backbone, TokenizedTexts
from glscl.extract.part import WHOLE, Part


def extract_texts(
    store: Store, backbone: Backbone, *, tokens: bool, batch_texts: int, part: Part = WHOLE, progress: Progress
) -> None:
    """Encode and commit the captions of every shard of `part` that is not there yet."""
    index_of_video = {video.id: i for i, video in enumerate(store.plan.videos)}
    pending = part.of(store.pending("text"))
    with progress.task("captions", sum(len(store.shard_range("text", s)) for s in pending), "captions") as task:
        for shard in pending:
            items = [store.plan.texts[i] for i in store.shard_range("text", shard)]
            arrays = text_arrays(
                items,
                _encode_captions(items, backbone, tokens, batch_texts, task),
                video_index=[index_of_video.get(item.video, -1) for item in items],
                embed_dim=store.embed_dim,
                dtype=store.dtype,
            )
            store.commit("text", shard, arrays)


def _encode_captions(
    items: Sequence[TextItem], backbone: Backbone, tokens: bool, batch: int, task: Task
) -> list[EncodedText]:
    """Captions in batches of similar length, returned in their own order."""
    tokenized = backbone.tokenize([item.text for item in items])
    order = np.argsort(tokenized.lengths, kind="stable")
    records: list[EncodedText | None] = [None] * len(items)
    for start in range(0, len(items), batch):
        rows = order[start : start + batch]
        encoded = backbone.encode_texts(TokenizedTexts(tokenized.ids[rows], tokenized.lengths[rows]))
        for i, row in enumerate(rows):
            length = int(tokenized.lengths[row]) if tokens else 0
            records[row] = EncodedText(
                encoded.text_features[i],
                encoded.token_features[i, :length],
                tokenized.ids[row, :length].astype(np.int32),
            )
        task.advance(len(rows))
    return records
