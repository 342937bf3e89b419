"""A room that is a function of the front door too: `glscl.extract(…)` beside `glscl.extract.pipeline`."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def let_call(room: str, place: str) -> None:
    """Let the module `room` be called as the function at `place`, "module:name", which is loaded at the first call."""

    class CallableRoom(ModuleType):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            module, _, name = place.partition(":")
            return getattr(import_module(module), name)(*arguments, **options)

    sys.modules[room].__class__ = CallableRoom
