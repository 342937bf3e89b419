"""What a function of the front door is given, compared with its annotations before anything happens."""

from __future__ import annotations

import dataclasses
import inspect
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, wraps
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from glscl.common.devices import require_device
from glscl.common.errors import UsageError
from glscl.common.settings import as_dict, build

Given = ParamSpec("Given")
Returned = TypeVar("Returned")
_IN_WORDS = {"PathLike": "a path", "Path": "a path", "str": "a string", "int": "an integer", "float": "a number"}
_NUMBERS = {int: numbers.Integral, float: numbers.Real}  # those of NumPy too


def types_checked(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """A function that raises UsageError, in one line, where it is given what its annotations do not admit.

    Settings are checked as `build` does, and a device must be there. Names that are known to type checkers alone admit all.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*positional: Given.args, **named: Given.kwargs) -> Returned:
        with suppress(TypeError):  # Python says it, when the function is called
            given = signature.bind(*positional, **named).arguments
            require_types(function, given)
        return function(*positional, **named)

    return call


def require_types(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise UsageError for the first argument, by name, that the annotations of a function do not admit."""
    for name, kind in _kinds(function).items():
        if name in given:
            require(name, given[name], kind)


def require(name: str, value: Any, kind: Any) -> None:
    """Raise UsageError where a value is not of a kind: a type, or what stands in annotations."""
    admitted = _admitted(kind)
    if not _fits(value, kind):
        shown = repr(value).splitlines()[0][:60] if isinstance(value, str | int | float | os.PathLike) else ""
        kind_found = type(value).__name__
        found = "None" if value is None else f"{shown} ({kind_found})" if shown else f"of type {kind_found}"
        makers = [each.MADE_BY for each in admitted if hasattr(each, "MADE_BY")]
        raise UsageError(
            f"`{name}` is {found}; expected {' or '.join(dict.fromkeys(map(_called, admitted)))}",
            hint=f"{makers[0]} gives one" if makers else None,
        )
    if any(getattr(each, "__name__", "") == "device" and isinstance(value, str | each) for each in admitted):
        require_device(str(value))
    elif dataclasses.is_dataclass(value) and any("help" in field.metadata for field in dataclasses.fields(value)):
        build(type(value), as_dict(value))


@cache
def _kinds(function: Callable[..., Any]) -> dict[str, Any]:
    """Name → type of the parameters that are one value each."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    known, kinds = inspect.unwrap(function).__globals__, {}
    for name, parameter in inspect.signature(function).parameters.items():
        if isinstance(kind := parameter.annotation, str) and parameter.kind not in several:
            with suppress(NameError):
                kinds[name] = eval(kind, {**known, "torch": import_module("torch")} if "torch." in kind else known)
    return kinds


def _admitted(kind: Any) -> list[Any]:
    return [*get_args(kind)] if get_origin(kind) in (Union, UnionType) else [kind]


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is Sequence:  # arrays and columns of strings are no Sequence, and serve as one
        listed = hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str | Mapping)
        return listed and all(_fits(each, inner[0]) for each in value)
    if kind is Any or (getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False)):
        return True
    wanted = _NUMBERS.get(kind, origin or kind)
    return not isinstance(wanted, type) or isinstance(value, wanted)


def _called(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is NoneType:
        return "None"
    if origin is Literal:
        return ", ".join(map(str, inner))
    if origin is Sequence:
        return f"a sequence of {inner[0].__name__}"
    name: str = (origin or kind).__name__
    return _IN_WORDS.get(name, name)
