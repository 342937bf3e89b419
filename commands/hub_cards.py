"""Cards of caches and runs on the Hugging Face Hub: what is known of them, and how they are loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glscl.cache.library import Library
from glscl.cache.upkeep.summary import summarise
from glscl.common.tables import amount
from glscl.evaluate.ranks import TEXT_TO_VIDEO
from glscl.train_head.checkpoint import read_run
from glscl.train_head.run_cache import backbone_of

_TAGS = ["glscl", "clip", "text-video-retrieval"]


def cache_card(library: Library, address: str, licence: str | None = None) -> str:
    """The card of a cache."""
    name, pretrained = backbone_of(library.configuration)
    rows = summarise(library)["lists"]
    lists = [
        f"| {row['name']}@{row['hash']} | {row['videos']:,} | {row['captions']:,} | {'yes' if row['complete'] else 'no'} |"
        for row in rows
    ]
    items = f"{amount(len(library.stream('video').index), 'video')} and {amount(len(library.stream('text').index), 'caption')}"
    short = address.rpartition("/")[2]
    return _card(
        f"Features of {name}/{pretrained}",
        licence,
        f"Frame, caption{' and token' if library.has_tokens else ''} features of {items}, {library.embed_dim}-d "
        f"{library.dtype}, made by glscl (fingerprint `{library.fingerprint}`). No video is needed to train on them.",
        "| list | videos | captions | complete |\n| --- | ---: | ---: | --- |\n" + "\n".join(lists) if lists else "",
        f"glscl pull {address} caches/{short}\nglscl train-head --cache caches/{short}\nglscl inspect caches/{short}",
    )


def run_card(folder: Path, address: str, licence: str | None = None) -> str:
    """The card of a run, with its result where it was judged. Raises CheckpointError, NotFoundError: it is no run."""
    run, result = read_run(folder), None
    if (folder / "result.json").is_file():
        result = json.loads((folder / "result.json").read_text())
    short = address.rpartition("/")[2]
    return _card(
        f"{run['head']} on {run['dataset']}",
        licence,
        f"A text-video retrieval head `{run['head']}` trained by glscl on features of {run['backbone']}/{run['pretrained']} "
        f"(cache fingerprint `{run['cache_fingerprint']}`, list `{run['list']}@{run['list_hash']}`).",
        "" if result is None else _result(result),
        f"glscl pull {address} runs/{short}\nglscl eval --run runs/{short} --cache CACHE\nglscl search --run runs/{short} --cache CACHE 'a sentence'",
    )


def _result(result: Mapping[str, Any]) -> str:
    found, interval = result[TEXT_TO_VIDEO], result.get("confidence_95", {}).get(TEXT_TO_VIDEO, {})
    names = [name for name in ("R@1", "R@5", "R@10", "MdR") if name in found]
    cells = [
        f"{found[name]:.1f}" + (" ({:.1f} to {:.1f})".format(*interval[name]) if name in interval else "")
        for name in names
    ]
    counts = result["counts"]
    return (
        f"Text to video on `{result['dataset']}/{result['split']}`, {counts['texts']:,} captions and {counts['videos']:,} videos, "
        "95 % intervals:\n\n"
        f"| {' | '.join(names)} |\n|{' --- |' * len(names)}\n| {' | '.join(cells)} |"
    )


def _card(title: str, licence: str | None, about: str, table: str, commands: str) -> str:
    head = "\n".join(["---", *([f"license: {licence}"] if licence else []), f"tags: [{', '.join(_TAGS)}]", "---"])
    said = (
        "" if licence else "\n\nNo licence is stated; that of the videos and captions applies to what was made of them."
    )
    return "\n\n".join(
        part for part in (head, f"# {title}", about + said, table, f"```bash\n{commands}\n```") if part
    ) + "\n"  # fmt: skip
