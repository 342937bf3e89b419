"""A cache as a `datasets.IterableDataset` of the Hugging Face libraries: nothing is copied, rows are read as they are asked for.

F frames, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from glscl.cache.store import Store
from glscl.common.errors import InputError, UsageError, first_line
from glscl.evaluate.exporting.features import listed_frames


def hub_dataset(store: Store, split: str | None = None) -> Any:
    """A row a video with frames: `video` (its id), `split`, `captions`, `times` (F,) seconds, `frame_features` (F, D).

        rows = hub_dataset(glscl.open_cache("caches/msrvtt-ViT-B-32"), "train").with_format("torch")
        for row in rows.shuffle(seed=0, buffer_size=1000): ...

    Args:
        store: at the list that is meant.
        split: only its videos.

    Raises:
        UsageError: the package `datasets` is missing. InputError: no such split, or no frames.
    """
    try:
        import_module("datasets.config")  # a folder of this name is no package
        datasets: Any = import_module("datasets")
    except ImportError as error:
        raise UsageError(
            f"This needs the package datasets: {first_line(error)}", hint="pip install 'glscl[datasets]'"
        ) from error
    store.require_complete()
    if split is not None and split not in store.splits:
        raise InputError(f"{store.place} has no split {split!r}; it has {', '.join(store.splits) or 'none'}")
    kind = datasets.Value("float16" if store.dtype == "float16" else "float32")
    features = datasets.Features(
        {
            "video": datasets.Value("string"),
            "split": datasets.Value("string"),
            "captions": datasets.Sequence(datasets.Value("string")),
            "times": datasets.Sequence(datasets.Value("float32")),
            "frame_features": datasets.Sequence(datasets.Sequence(kind, length=store.embed_dim)),
        }
    )

    def rows() -> Iterator[dict[str, Any]]:
        for name, frames, about in listed_frames(store, split):
            told = {key: about[key] for key in ("split", "captions", "times")}
            yield {"video": name, **told, "frame_features": frames}

    return datasets.IterableDataset.from_generator(rows, features=features)
