"""open_clip without what few models need: transformers, timm and torch's compiler, three quarters of its import.

open_clip imports transformers for text towers of Hugging Face and timm for picture towers of timm; torchvision imports the
compiler to ask it one question while it compiles. Here each comes when a model needs it. Whoever builds such a tower, our code
or others' in the same process, gets it; only CoCa's `generate`, which writes captions, goes without transformers.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_OPTIONAL = ("transformers", "timm")  # open_clip does without where they are not installed
_TOWERS = {"HFTextEncoder": "open_clip.hf_model", "TimmModel": "open_clip.timm_model"}  # what does not
_COMPILER = "torch._dynamo.utils"


def make_imports_light() -> None:
    """Lets open_clip be imported light from now on; nothing is imported here."""
    if not any(isinstance(finder, _LightFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LightFinder())


class _LightFinder(importlib.abc.MetaPathFinder):
    """Loads open_clip while it hides what is optional, and a module of torchvision without the compiler."""

    def __init__(self) -> None:
        self._loading: int | None = None  # the thread that imports open_clip; the others see everything

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name in _OPTIONAL and self._loading == threading.get_ident():
            raise ModuleNotFoundError(f"{name} is imported when a model needs it", name=name)
        if name == "open_clip":
            return _found(name, path, self._load_open_clip)
        return _found(name, path, _load_without_compiler) if name == "torchvision.ops.roi_align" else None

    def _load_open_clip(self, load: Callable[[], None]) -> None:
        self._loading = threading.get_ident()
        try:
            load()
        finally:
            self._loading = None
        builders: Any = sys.modules["open_clip.model"]
        for tower, home in _TOWERS.items():
            setattr(builders, tower, _built_when_needed(tower, home))


def _found(
    name: str, path: Sequence[str] | None, load_with: Callable[[Callable[[], None]], None]
) -> importlib.machinery.ModuleSpec | None:
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec is not None and spec.loader is not None:
        loader: Any = spec.loader
        execute = loader.exec_module
        loader.exec_module = lambda module: load_with(lambda: execute(module))
    return spec


def _built_when_needed(tower: str, home: str) -> Callable[..., Any]:
    """A class of `home` as a function that reads its module again, with what was hidden, when it is called first."""

    def build(*arguments: Any, **options: Any) -> Any:
        builders: Any = sys.modules["open_clip.model"]
        if getattr(builders, tower) is build:
            setattr(builders, tower, getattr(importlib.reload(sys.modules[home]), tower))
        return getattr(builders, tower)(*arguments, **options)

    return build


def _load_without_compiler(load: Callable[[], None]) -> None:
    """Loads what asks the compiler one question; the compiler is imported when it is asked."""

    def is_compile_supported(device: str) -> bool:
        return importlib.import_module(_COMPILER).is_compile_supported(device)

    if _COMPILER in sys.modules:
        return load()
    stand_in: Any = ModuleType(_COMPILER)
    stand_in.is_compile_supported = is_compile_supported
    sys.modules[_COMPILER] = stand_in
    try:
        load()
    finally:
        del sys.modules[_COMPILER]
