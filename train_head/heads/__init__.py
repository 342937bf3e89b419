"""The heads, by name. Adding one is a file in this folder, a line in `_CLASSES` and a row in docs/heads.md."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from glscl.common.errors import UsageError

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
}
HEAD_NAMES = tuple(_CLASSES)

__all__ = ["HEADS", "HEAD_NAMES", "HeadOutput", "build_head", "head_class", "head_options"]


def head_class(name: str) -> type[Head]:
    """The class of the head `name`.

    Raises:
        UsageError: there is no such head.
    """
    if name not in _CLASSES:
        raise UsageError(f"there is no head {name!r}; choose from {', '.join(HEAD_NAMES)}")
    module, _, attribute = _CLASSES[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def head_options(name: str) -> dict[str, Any]:
    """The options of the head `name` with their defaults."""
    from glscl.train_head.heads.base import Head

    options: dict[str, Any] = {}
    for init in (head_class(name).__init__, Head.__init__):
        for key, parameter in inspect.signature(init).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and key not in ("embed_dim", "options"):
                options.setdefault(key, parameter.default)
    return options


def build_head(name: str, *, embed_dim: int, **options: Any) -> Head:
    """Build the head `name`.

    Args:
        name: a key of `HEADS`.
        embed_dim: D of the features.
        **options: see `head_options`; left out ones take their defaults.

    Raises:
        UsageError: an unknown head or option (the message names the choices), or values that do not fit together.
    """
    known = head_options(name)
    unknown = [key for key in options if key not in known]
    if unknown:
        raise UsageError(
            f"head {name} has no option {', '.join(map(repr, unknown))}; its options are {', '.join(known)}"
        )
    return head_class(name)(embed_dim=embed_dim, **options)


def __getattr__(attribute: str) -> Any:
    if attribute == "HEADS":
        heads = {name: head_class(name) for name in HEAD_NAMES}
        globals()["HEADS"] = heads
        return heads
    if attribute == "HeadOutput":
        from glscl.train_head.heads.base import HeadOutput

        return HeadOutput
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
