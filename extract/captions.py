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
from glscl.extract.settings import ExtractSettings, ImportSettings


def extract_captions(
    store: Store,
    backbone: Backbone,
    settings: ExtractSettings | ImportSettings,
    *,
    part: Part = WHOLE,
    progress: Progress,
) -> None:
    """Encode and commit the captions of every shard of `part` that is not there yet."""
    index_of_video = {video.id: i for i, video in enumerate(store.plan.videos)}
    pending = part.share(store.pending("text"))
    with progress.task("captions", sum(len(store.shard_range("text", s)) for s in pending), "captions") as task:
        for shard in pending:
            items = [store.plan.texts[i] for i in store.shard_range("text", shard)]
            arrays = text_arrays(
                items,
                _encode_captions(items, backbone, settings, task),
                video_index=[index_of_video.get(item.video, -1) for item in items],
                embed_dim=store.embed_dim,
                dtype=store.dtype,
            )
            store.commit("text", shard, arrays)


def _encode_captions(
    items: Sequence[TextItem], backbone: Backbone, settings: ExtractSettings | ImportSettings, task: Task
) -> list[EncodedText]:
    """Captions in batches of similar length, returned in their own order."""
    tokenized = backbone.tokenize([item.text for item in items])
    order = np.argsort(tokenized.lengths, kind="stable")
    records: dict[int, EncodedText] = {}
    for start in range(0, len(items), settings.batch_texts):
        rows = order[start : start + settings.batch_texts]
        encoded = backbone.encode_tokens(TokenizedTexts(tokenized.ids[rows], tokenized.lengths[rows]))
        assert encoded.token_features is not None, "a backbone gives them"
        pooled, states = encoded.text_features.numpy(), encoded.token_features.numpy()
        for i, row in enumerate(rows.tolist()):
            length = int(tokenized.lengths[row]) if settings.tokens else 0
            records[row] = EncodedText(pooled[i], states[i, :length], tokenized.ids[row, :length].astype(np.int32))
        task.advance(len(rows))
    return [records[row] for row in range(len(items))]
