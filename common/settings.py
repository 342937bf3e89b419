"""Settings that carry default, type, help and group together, so that a dataclass is also a command's options.

    @dataclass(frozen=True, kw_only=True)
    class TrainConfig:
        epochs: int = setting(5, "Passes over all captions.", group="Training", min=1)

Library code receives plain arguments; a config is unpacked at the door and never travels further.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from glscl.common.errors import UsageError


def setting(
    default: Any,
    help: str,
    *,
    group: str | None = None,
    choices: Sequence[str] | None = None,
    min: float | None = None,
    max: float | None = None,
    flag: str | None = None,
    metavar: str | None = None,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A dataclass field that knows how to be a command-line option.

    Args:
        default: value when the option is not given; immutable.
        help: one sentence for `--help`.
        group: heading in `--help`.
        choices: the admitted strings.
        min, max: inclusive bounds of a number.
        flag: option name where it is not the field's, such as "--no-tokens" pairs ("--tokens/--no-tokens").
        metavar: name of the value in `--help`.
        parse: reads a text that has a form of its own; raises UsageError where the text has not, before anything begins.
    """
    metadata = dict(help=help, group=group, choices=choices, min=min, max=max, flag=flag, metavar=metavar, parse=parse)
    return dataclasses.field(default=default, metadata=metadata)


def check(config: Any) -> None:
    """Raise UsageError for the first setting outside its choices or bounds, or not in its form."""
    for field in dataclasses.fields(config):
        value, meta = getattr(config, field.name), field.metadata
        if value is None:
            continue
        name = "--" + field.name.replace("_", "-")
        if meta.get("choices") and value not in meta["choices"]:
            raise UsageError(f"{name} is {value!r}; expected one of {', '.join(meta['choices'])}")
        low, high = meta.get("min"), meta.get("max")
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            bounds = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
            raise UsageError(f"{name} is {value!r}; expected {bounds}")
        if meta.get("parse"):
            meta["parse"](value)


def with_option(command: str, option: str, value: str | None) -> str:
    """A command line with another value of an option, or (None) without it; as it stands where it has none."""
    words, kept = shlex.split(command), []
    while words:
        word = words.pop(0)
        if word == option and words:
            words.pop(0)
        elif not word.startswith(option + "="):
            kept.append(word)
            continue
        kept += [] if value is None else [option, value]
    return shlex.join(kept)


def home() -> Path:
    """Folder of datasets, caches and runs: `$GLSCL_HOME`, else `./glscl-data`."""
    return Path(os.environ.get("GLSCL_HOME") or "glscl-data")
