"""Settings of a stage: a frozen dataclass whose fields carry default, help, choices and bounds together.

    @dataclass(frozen=True, kw_only=True)
    class TrainSettings:
        epochs: int = setting(5, "Passes over all captions.", group="Training", min=1, default_from="the recipe's")

Declared once, such a class is the options of a command, the keys of a settings file, and what travels whole to the
function that does the work. `build` makes one from layers: what a recipe says, below what a user asked for.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

from glscl.common.addresses import local_path
from glscl.common.errors import InputError, NotFoundError, UsageError

Kind = TypeVar("Kind")


class About(TypedDict, total=False):
    """What a field of settings says of itself, beside its default and its help.

    group: heading in the help of the command.
    choices: the admitted strings.
    min, max: inclusive bounds of a number.
    name: what a user calls it, where that is not the field's name.
    metavar: name of the value in the help.
    parse: reads a text that has a form of its own; raises UsageError where the text has not, before anything begins.
    default_from: who decides the value where a user does not, such as "the recipe's"; without it `default` itself.
    affects_result: False where another value gives the same result, so that a run may be resumed with it.
    option: False where the field is no option of a command: the command makes its value from others.
    """

    group: str
    choices: Sequence[str]
    min: float
    max: float
    name: str
    metavar: str
    parse: Callable[[str], Any]
    default_from: str
    affects_result: bool
    option: bool


def setting(default: Any, help: str, **about: Unpack[About]) -> Any:
    """A field of settings.

    Args:
        default: value where nobody says another; of a mutable type, a function without arguments that makes it.
        help: one sentence.
        **about: see `About`.
    """
    metadata = {"help": help, **about}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Settings:
    """Base of the settings of a stage: shown by those alone that are not as they are by default."""

    def __repr__(self) -> str:
        told = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if (value := getattr(self, field.name)) != default:
                told.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(told)})"


def cluster_address() -> Any:
    """The field of every stage that can run on a Ray cluster: which one."""
    return setting(
        "auto",
        "Of the Ray cluster; `auto`: the one this machine belongs to, `local`: a new one on this machine alone.",
        group="Speed",
        metavar="ADDRESS",
        affects_result=False,
    )


def build(kind: type[Kind], *layers: Mapping[str, Any]) -> Kind:
    """Settings from layers, each name → value; a later layer wins, and None in it leaves what is below.

    Raises:
        UsageError: an unknown name, a value of another type, outside its choices or bounds, or not in its form.
    """
    import msgspec

    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            if name not in names:
                raise UsageError(f"There is no setting {name!r}; there are {', '.join(names)}")
            if value is not None or name not in values:
                values[name] = os.fspath(value) if isinstance(value, os.PathLike) else value
    try:
        made = msgspec.convert(values, kind, dec_hook=_path)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        name = where.rstrip("`").split("[")[0].split(".")[0]
        raise UsageError(f"`{name}` is {values.get(name)!r}; {what[:1].lower()}{what[1:].replace('`', '')}") from error
    check(made)
    return made


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        try:
            return local_path(value, "")
        except UsageError:
            raise ValueError("Not on this machine; expected a path") from None
    raise ValueError(f"Expected {kind.__name__}")


def check(settings: Any) -> None:
    """Raise UsageError for the first setting outside its choices or bounds, or not in its form."""
    for field in dataclasses.fields(settings):
        value, meta = getattr(settings, field.name), field.metadata
        name = meta.get("name") or field.name
        if value is None:
            continue
        if meta.get("choices") and value not in meta["choices"]:
            raise UsageError(f"`{name}` is {value!r}; expected one of {', '.join(meta['choices'])}")
        low, high = meta.get("min"), meta.get("max")
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            bounds = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
            raise UsageError(f"`{name}` is {value!r}; expected {bounds}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"`{name}` is {value}; expected a finite number")
        if meta.get("parse"):
            meta["parse"](value)


def as_dict(settings: Any) -> dict[str, Any]:
    """Name → value of all settings, for a JSON file."""
    return {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def differences(found: Any, asked: Any) -> list[tuple[str, Any, Any]]:
    """(name, found, asked) of every setting that gives another result in one than in the other."""
    names = [field.name for field in dataclasses.fields(found) if field.metadata.get("affects_result", True)]
    return [(n, getattr(found, n), getattr(asked, n)) for n in names if getattr(found, n) != getattr(asked, n)]


def read_settings_file(
    path: Path, of_record: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Name → value from a TOML or JSON file.

    Args:
        of_record: what is taken of a record that holds settings, such as a run's run.json; None is these settings.

    Raises:
        NotFoundError: it is not there.
        InputError: it is neither TOML nor JSON, or no table of settings.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no settings file {path}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not {'JSON' if path.suffix.lower() == '.json' else 'TOML'}: {error}") from error
    if isinstance(found, dict) and isinstance(found.get("settings"), dict):
        found = found["settings"] if of_record is None else of_record(found)
    if not isinstance(found, Mapping):
        raise InputError(f"{path} holds no settings: found a {type(found).__name__}, expected names and values")
    return {name.replace("-", "_"): value for name, value in found.items()}


def home() -> Path:
    """Folder of datasets, caches and runs: `$GLSCL_HOME`, else `./glscl-data`."""
    return local_path(os.environ.get("GLSCL_HOME") or "glscl-data", "GLSCL_HOME")
