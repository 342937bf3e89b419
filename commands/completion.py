"""Completion in a shell: commands, options, choices, and the heads, data sets, caches and runs that are there.

A script of the shell calls `glscl WORD …` with `_GLSCL_COMPLETE` set: the words typed so far, the last one unfinished. What
is answered is a line a candidate, with its help behind a tab; exit status 3 says that a path may stand there too. Nothing
slow is imported: an answer takes as long as `glscl --help`.
"""

from __future__ import annotations

import contextlib
import enum
import inspect
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.models import ArgumentInfo

from glscl.commands.default_paths import caches_there, own_backbones, runs_there
from glscl.commands.options import COMMANDS, OneOf, Run, command, flags_of, required_type
from glscl.common.tables import steers

ASKED = "_GLSCL_COMPLETE"  # set by the scripts below
PATHS_TOO = 3  # exit status
SCRIPTS = {
    "bash": """\
_glscl() {
    local line found status
    found=$(_GLSCL_COMPLETE=1 "$1" "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null); status=$?
    COMPREPLY=()
    while IFS=$'\\t' read -r line _; do
        [ -n "$line" ] && COMPREPLY+=("$(printf %q "$line")")
    done <<< "$found"
    [ $status -ne 3 ] || compopt -o default 2>/dev/null
    case ${COMPREPLY[0]-} in */) compopt -o nospace 2>/dev/null ;; esac
}
complete -F _glscl glscl
""",
    "zsh": """\
#compdef glscl
_glscl() {
    local line found code
    local -a values shown
    found=$(_GLSCL_COMPLETE=1 "${words[1]}" "${(@Q)words[2,CURRENT]}" 2>/dev/null); code=$?
    for line in ${(f)found}; do
        values+=("${line%%$'\\t'*}"); shown+=("${line/$'\\t'/  -- }")
    done
    (( ! $#values )) || compadd -U -l -d shown -a values
    (( code != 3 )) || _files
}
if [[ ${funcstack[1]-} == _glscl ]]; then _glscl "$@"; else compdef _glscl glscl; fi
""",
    "fish": """\
function __glscl
    set -l words (commandline --tokenize --cut-at-cursor --current-process)
    set -l current (commandline --current-token --cut-at-cursor)
    _GLSCL_COMPLETE=1 $words[1] $words[2..-1] "$current" 2>/dev/null
    test $status -ne 3; or __fish_complete_path "$current"
end
complete --command glscl --no-files --arguments '(__glscl)'
""",
}


@command()
def completion(
    run: Run, shell: Annotated[str, typer.Argument(help="Shell: bash, zsh or fish."), OneOf(tuple(SCRIPTS))]
) -> None:
    """Print a script with which a shell completes commands, options, heads, data sets, caches and runs."""
    if not run.common.json:
        run.say(SCRIPTS[shell].rstrip("\n"))
    run.result({"shell": shell, "script": SCRIPTS[shell]})


def answer(words: Sequence[str]) -> int:
    """Print the candidates for the last of the words. Returns the exit status."""
    with contextlib.suppress(Exception):  # a shell in the middle of a line is no place for errors
        found, paths_too = candidates(words)
        for value, help in found:
            if not any(map(steers, value)):
                print(f"{value}\t{help}" if help else value)
        return PATHS_TOO if paths_too else 0
    return 0


def candidates(words: Sequence[str]) -> tuple[list[tuple[str, str]], bool]:
    """What the last word may become, given those before it.

    Returns:
        Candidates and their help; whether a path may stand there too.
    """
    *before, last = [word for word in words if word != "="] if words else [""]  # bash makes three words of --name=value
    if words and words[-1] == "=":
        before, last = [*before, last], ""
    if not before:
        return [(name, "") for name in (*COMMANDS, "--help", "--version") if name.startswith(last)], False
    if before[0] not in COMMANDS:
        return [], False
    parameters = list(COMMANDS[before[0]].parameters.values())
    options = {flag: each for each in parameters for flag in _flags(each)}
    if last.startswith("--") and "=" in last:
        flag, _, begun = last.partition("=")
        found, paths_too = _values(options.get(flag), begun)
        return [(f"{flag}={value}", help) for value, help in found], paths_too
    count, waiting = 0, None
    for word in before[1:]:
        if waiting is None and word.startswith("-") and len(word) > 1:
            waiting = options.get(word) if "=" not in word else None
            waiting = None if waiting is not None and _kind(waiting) is bool else waiting
        else:
            count += waiting is None
            waiting = None
    if waiting is not None:
        return _values(waiting, last)
    arguments = [each for each in parameters if isinstance(_info(each), ArgumentInfo)]
    if last.startswith("-") or not arguments:
        shown = {flag: _sentence(each) for flag, each in options.items()} | {"--help": ""}
        return [(flag, help) for flag, help in shown.items() if flag.startswith(last)], False
    expected = arguments[min(count, len(arguments) - 1)]
    return _values(expected, last) if count < len(arguments) or _many(expected) else ([], False)


def _info(parameter: inspect.Parameter) -> Any:
    return typing.get_args(parameter.annotation)[1]


def _kind(parameter: inspect.Parameter) -> Any:
    """Type of one value."""
    kind = required_type(typing.get_args(parameter.annotation)[0])
    return typing.get_args(kind)[0] if typing.get_origin(kind) is list else kind


def _many(parameter: inspect.Parameter) -> bool:
    return typing.get_origin(required_type(typing.get_args(parameter.annotation)[0])) is list


def _flags(parameter: inspect.Parameter) -> list[str]:
    return [] if isinstance(_info(parameter), ArgumentInfo) else flags_of(parameter)


def _sentence(parameter: inspect.Parameter) -> str:
    return " ".join((_info(parameter).help or "").split()).partition(". ")[0][:80]


def _values(parameter: inspect.Parameter | None, begun: str) -> tuple[list[tuple[str, str]], bool]:
    """Values of an option or argument that begin so, or whose last part does where they are paths that are there."""
    if parameter is None:
        return [], False
    kind = _kind(parameter)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [(each.value, "") for each in kind if each.value.startswith(begun)], False
    there = _THERE.get(parameter.name, lambda: ())()
    found = [(str(v), help) for v, help in there if str(v).startswith(begun) or _last_part(v).startswith(begun)]
    return found, kind is Path


def _last_part(value: str | Path) -> str:
    return value.name if isinstance(value, Path) else value


def _heads() -> Iterator[tuple[str, str]]:
    from glscl.common.outside import installed
    from glscl.train_head.heads import GROUP, HEAD_NAMES

    yield from ((name, "") for name in (*HEAD_NAMES, *installed(GROUP)))


def _datasets() -> Iterator[tuple[str, str]]:
    from glscl.extract.datasets import DATASETS

    yield from ((name, entry.help.partition(". ")[0]) for name, entry in DATASETS.items())


def _backbones() -> Iterator[tuple[str, str]]:
    from glscl.extract.backbone.catalog import config_names

    yield from (("demo", "built in"), *((name, "") for name in (*config_names(), *own_backbones())))


def _paths(listed: Callable[[], Iterable[Path]]) -> Callable[[], Iterator[tuple[Path, str]]]:
    return lambda: ((_near(path), "") for path in listed())


def _near(path: Path) -> Path:
    """As one would type it."""
    with contextlib.suppress(ValueError):
        return path.relative_to(os.getcwd())
    return path


# name of a parameter → what is there for it
_THERE: dict[str, Callable[[], Iterable[tuple[str | Path, str]]]] = {
    "head": _heads,
    "dataset": _datasets,
    "backbone": _backbones,
    "device": lambda: ((name, "") for name in ("auto", "cpu", "cuda", "mps")),
    **dict.fromkeys(("cache", "caches"), _paths(caches_there)),
    **dict.fromkeys(("run_folder", "run_folders", "runs", "teacher", "start"), _paths(runs_there)),
}
