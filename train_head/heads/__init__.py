"""The heads, by name. Adding one is a file in this folder, a line in `_CLASSES` and a row in docs/heads.md.

A head from outside this package is named `package.module:Class`, or by the name of an entry point in the group
`glscl.heads`; see docs/new-head.md.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from glscl.common.arguments import require, types_checked
from glscl.common.errors import UsageError
from glscl.common.outside import installed, load, outside_name

if TYPE_CHECKING:
    from glscl.train_head.heads.base import Head, HeadOutput

    HEADS: dict[str, type[Head]]

# name -> "module:class"; strings, so that the command line can list the heads without loading torch
_CLASSES = {
    "mean_pool": "mean_pool:MeanPool",
    "projection": "projection:Projection",
    "seq_lstm": "seq_lstm:SeqLstm",
    "seq_transf": "seq_transf:SeqTransf",
    "tight_transf": "tight_transf:TightTransf",
    "glscl": "glscl:Glscl",
    "dicosa": "dicosa:Dicosa",
    "xpool": "xpool:Xpool",
    "xclip": "xclip:Xclip",
    "wti": "wti:Wti",
    "ti": "wti:Ti",
    "attention_pool": "attention_pool:AttentionPool",
    "query_scoring": "query_scoring:QueryScoring",
    "video_colbert": "video_colbert:VideoColbert",
    "tmass": "tmass:Tmass",
    "gare": "gare:Gare",
    "ms_sl": "ms_sl:MsSl",
    "gmmformer": "gmmformer:GmmFormer",
    "best_frames": "best_frames:BestFrames",
}
HEAD_NAMES = tuple(_CLASSES)
GROUP = "glscl.heads"  # of entry points

__all__ = [
    "GROUP",
    "HEADS",
    "HEAD_NAMES",
    "HeadOutput",
    "build_head",
    "full_name",
    "head_class",
    "head_options",
    "recorded_head_class",
]


def full_name(name: str) -> str:
    """What run.json calls a head: a key of `HEADS` or `package.module:Class`. Imports nothing.

    Raises:
        UsageError: it is neither of these nor an entry point.
    """
    found = name if name in _CLASSES else outside_name(name, GROUP)
    if found is None:
        raise UsageError(
            f"there is no head {name!r}; choose from {', '.join([*HEAD_NAMES, *installed(GROUP)])}, or name one of your own "
            "as package.module:Class"
        )
    return found


def head_class(name: str) -> type[Head]:
    """The class of the head `name`, a key of `HEADS`, an entry point or `package.module:Class`, which is imported.

    Raises:
        UsageError: there is no such head, or it cannot be imported.
    """
    name = full_name(name)
    if name in _CLASSES:
        module, _, attribute = _CLASSES[name].partition(":")
        return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    from glscl.train_head.heads.base import Head

    found = load(name, setting="head")
    if not (isinstance(found, type) and issubclass(found, Head)):
        raise UsageError(f"{name} is no head: expected a subclass of glscl.train_head.heads.base.Head")
    return found


def recorded_head_class(name: str, source: object) -> type[Head]:
    """The class of a head that a file names. Importing a module runs it, and anybody can write a run.json.

    So a head from outside this package is taken only where it is installed as an entry point, or where the program has
    imported its module already, as `head_class` does for a name that a user gives.

    Args:
        source: the run, for the message.

    Raises:
        UsageError: there is no such head, it cannot be imported, or nobody asked for it.
    """
    name = full_name(name)
    module = name.partition(":")[0]
    if name not in _CLASSES and module not in sys.modules and name not in installed(GROUP).values():
        raise UsageError(
            f"{source} has the head {name}, which is not part of glscl, and loading it would run its code",
            hint=f"If you trust it, name it: `head={name}`",
        )
    return head_class(name)


def head_options(name: str) -> dict[str, Any]:
    """The options of the head `name` with their defaults."""
    return {option: declared.default for option, declared in head_class(name).declared_options().items()}


@types_checked
def build_head(name: str, *, embed_dim: int, **options: Any) -> Head:
    """Build the head `name`.

    Args:
        name: see `head_class`.
        embed_dim: D of the features.
        **options: see `head_options`; left out ones take their defaults.

    Raises:
        UsageError: an unknown head or option (the message names the choices), or values that do not fit together.
    """
    kind = head_class(name)
    known = kind.declared_options()
    unknown = [key for key in options if key not in known]
    if unknown:
        raise UsageError(
            f"head {name} has no option {', '.join(map(repr, unknown))}; its options are {', '.join(known)}"
        )
    for option, value in options.items():
        require(option, value, known[option].kind)
    return kind(embed_dim=embed_dim, **options)


def __getattr__(attribute: str) -> Any:
    if attribute == "HEADS":
        heads = {name: head_class(name) for name in HEAD_NAMES}
        globals()["HEADS"] = heads
        return heads
    if attribute == "HeadOutput":
        from glscl.train_head.heads.base import HeadOutput

        return HeadOutput
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
