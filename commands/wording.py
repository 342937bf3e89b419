"""What the library says of settings and of what to do, in the words of the command line.

The library names a setting by its Python name in backticks, and gives a hint as data (`glscl.common.errors.Hint`). Here
`epochs` becomes --epochs, `precision=fp32` --precision fp32, and a hint the command that does it.
"""

from __future__ import annotations

import inspect
import re
import shlex
import typing
from collections.abc import Mapping
from typing import Any

from typer.models import ArgumentInfo

from glscl.commands.typed_commands import going_on, with_weights
from glscl.common.errors import GlsclError, Hint

_NAMED = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`")


def flags(command: inspect.Signature) -> dict[str, tuple[str, ...]]:
    """Setting → its long flags, such as "tokens" → ("--tokens", "--no-tokens"); arguments have none."""
    found = {}
    for parameter in command.parameters.values():
        info = next((each for each in typing.get_args(parameter.annotation) if hasattr(each, "param_decls")), None)
        if info is None or isinstance(info, ArgumentInfo):
            continue
        declared = [d for d in (info.default, *(info.param_decls or ())) if isinstance(d, str)]  # typer splits them so
        names = [name for each in declared for name in re.split(r"[,/]", each) if name.startswith("--")]
        names = names or ["--" + parameter.name.replace("_", "-")]
        found[names[0].removeprefix("--").replace("-", "_")] = tuple(names)
    return found


def worded(text: str, commands: Mapping[str, inspect.Signature]) -> str:
    """A text of the library with its settings as options; what no command has an option for stays as it is."""
    known = {name: declared for command in commands.values() for name, declared in flags(command).items()}

    def option(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in known:
            return match.group()
        if value in ("True", "False"):
            value = value == "True"
        return " ".join(_given(known[name], value))

    return _NAMED.sub(option, text)


def hint_text(hint: Hint, commands: Mapping[str, inspect.Signature]) -> str:
    """A hint as a sentence that ends in the command to type."""
    text = worded(hint.text, commands)
    rest = f", or {hint_text(hint.otherwise, commands)}" if hint.otherwise else ""
    if hint.command is None:
        return text + rest
    line = command_text(hint.command, hint.settings, commands)
    return (f"{text}: {line}" if text else line) + rest


def command_text(command: str, settings: Mapping[str, Any], commands: Mapping[str, inspect.Signature]) -> str:
    """The command line that runs a command with some settings; of one that was typed, the one that is true now."""
    if " " in command:
        return with_weights(command, settings) if "pretrained" in settings else going_on(command, settings)
    known = flags(commands[command]) if command in commands else {}
    words = ["glscl", command]
    for name, value in settings.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            if name == "":
                words.append(shlex.quote(str(each)))
            elif each is not None:
                declared = known.get(name, ("--" + name.replace("_", "-"),))
                words += _given(declared, each if isinstance(each, bool) else shlex.quote(str(each)))
    return " ".join(words)


def error_text(error: GlsclError, commands: Mapping[str, inspect.Signature]) -> str:
    """An error as one sentence or two: what happened, what to do."""
    message = worded(error.message, commands)
    ended = message if message.endswith("...") else f"{message.removesuffix('.')}."
    return f"{ended} {hint_text(error.hint, commands)}" if error.hint else message


def _given(declared: tuple[str, ...], value: str | bool | None) -> list[str]:
    """An option as it is typed, with a value, switched on or off."""
    if value is False:
        off = next((name for name in declared if name.startswith("--no-")), None)
        return [off or declared[0].replace("--", "--no-", 1)]
    return [declared[0]] if value is None or value is True else [declared[0], value]
