"""How a command line is made: dataclass fields become options, errors become one line, results become one JSON object.

@command(ExtractSettings)
def extract(run: Run, asked: dict[str, Any], dataset: Annotated[str, typer.Option(...)]) -> None: ...

register(app, extract, group="Caches")
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import functools
import gc
import importlib
import inspect
import json
import math
import os
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from glscl.commands.streams import standard_streams
from glscl.commands.wording import error_text, worded
from glscl.common.addresses import address_of, local_path, shown
from glscl.common.errors import GlsclError, UsageError
from glscl.common.launch import launch
from glscl.common.memory import is_full, process_limit
from glscl.common.progress import Progress
from glscl.common.settings import as_dict, build, check, read_settings_file, setting
from glscl.common.staged import brought
from glscl.common.tables import steers


def parse_device(text: str) -> str:
    """`--device`, as far as its form goes: whether the machine has it is asked where it is used (`Run.device`)."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", text):
        raise UsageError(f"`device` is {text!r}; expected auto, cpu, cuda, cuda:N or mps")
    return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """Options of every command."""

    seed: int = setting(0, "Seed of everything random.", group="Common", min=0)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps.", group="Common", parse=parse_device)
    json: bool = setting(False, "Print one JSON object on standard output.", group="Common")
    verbose: bool = setting(False, "Say more about what happens.", group="Common")
    debug: bool = setting(False, "Show the traceback of an error.", group="Common")


LONGEST = 2000  # characters of an error; foreign files can put anything into one
COMMANDS: dict[str, inspect.Signature] = {}  # name of a registered command → the options it has, for docs/cli.md
_CALLS: dict[Callable[..., None], Callable[..., None]] = {}  # function of a command → what typer calls


class Run:
    """What every command gets: common options, a progress printer, and the way results leave."""

    def __init__(self, common: CommonConfig) -> None:
        self.common = common
        self.launch = launch()
        self.speaks = self.launch.speaks  # of the processes of one launch the first prints
        self.progress = Progress(quiet=not self.speaks, note=self.note)
        self._told = False  # that a GPU cannot be used

    @property
    def seed(self) -> int:
        return self.common.seed

    def device(self) -> Any:
        """The torch device that --device names; each process of a launch gets a GPU of its own.

        Raises:
            UsageError: it is not there, or several processes share one.
        """
        from glscl.common.devices import choose_device, lost_gpu

        _import_torch()
        device = choose_device(self.common.device, self.launch)
        if self.common.device == "auto" and device.type == "cpu" and not self._told and (lost := lost_gpu()):
            self.note(f"this machine has a GPU that cannot be used ({lost}); all runs on the CPU")
            self._told = True
        return device

    def say(self, text: str = "", *, link: tuple[int, int, str] | None = None) -> None:
        """A line for people: standard output, or standard error when standard output carries JSON.

        Args:
            link: from which character to which it leads somewhere in a terminal that knows links (OSC 8), and where to.
        """
        if self.speaks:
            out = sys.stderr if self.common.json else sys.stdout
            if link is not None and out.isatty() and os.environ.get("TERM", "dumb") != "dumb":
                start, end, target = link
                before, words, after, target = map(_visible, (text[:start], text[start:end], text[end:], target))
                text = f"{before}\x1b]8;;{target}\x1b\\{words}\x1b]8;;\x1b\\{after}"
            else:
                text = _visible(text)
            print(text, file=out, flush=True)

    def note(self, text: str) -> None:
        """A remark of the library, in the words of the command line."""
        self.say(("" if text.startswith("warning: ") else "note: ") + worded(text, COMMANDS))

    def detail(self, text: str) -> None:
        if self.common.verbose and self.speaks:
            print(_visible(text), file=sys.stderr, flush=True)

    def in_force(self, settings: Any) -> None:
        """With -v, every setting of the stage that begins, whoever decided it."""
        for name, value in as_dict(settings).items():
            self.detail(f"  {name} = {value}")

    @property
    def heard(self) -> bool:
        """Whether anybody still gets what is printed: False once the reader of a pipe has gone."""
        return getattr(sys.stdout, "lost", None) is None

    def result(self, value: dict[str, Any]) -> None:
        """The machine-readable result; printed with --json only."""
        if self.common.json and self.speaks:
            _print_json(plain(value))


def _import_torch() -> None:
    """The first time without looking for garbage among what it makes, which stays: a tenth of a start."""
    if "torch" not in sys.modules:
        gc.disable()
        try:
            importlib.import_module("torch")
        finally:
            gc.freeze()
            gc.enable()


def plain(value: Any) -> Any:
    """Make a result JSON-able: paths and numbers of other libraries become plain, NaN and infinity null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, (bool, int)) or value is None:
        return value
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    return shown(os.fspath(value) if isinstance(value, os.PathLike) else str(value))


class Stopped(KeyboardInterrupt):
    """An interrupt that can say what stands and how to go on, in one line."""


class _Interrupted(Exception): ...


@typing.runtime_checkable
class _TyperError(typing.Protocol):
    """What typer raises for wrong usage, whichever click it is made of."""

    exit_code: int

    def show(self) -> None: ...

    def format_message(self) -> str: ...


class OneOf(tuple[str, ...]):
    """The choices of an option that is a command's own: `Annotated[str, typer.Option(...), OneOf(("best", "last"))]`."""


NEW_CACHE = "a cache that is made where there is none"  # marks the option that names it: Annotated[Path, …, NEW_CACHE]
ANYWHERE = "a folder here or at an address"  # marks an option whose address the command reads itself
_CACHES = ("cache", "caches", "parts")  # options that name caches to read, here or at an address


BY_COMMAS = "a list in a settings file"  # marks an option that takes several values separated by commas


def command(
    *kinds: type, of_run: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command with the fields of settings as options; `register` gives it to an application.

    The function's first parameter takes the `Run`, its second, `asked`, what a user asked for: name → value of the settings
    that were given as options or, below them, in the file of --config. The others are options of its own, which that file
    may name too. A command without settings has no `asked`.

    Args:
        of_run: which settings a run's run.json is for this command; None: it is no settings file of it.
    """

    def make(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        if not (own and own[0].name == "asked"):
            return _with_configs(function, kinds)
        own = own[1:]
        required = [p.name for p in own if p.default is inspect.Parameter.empty]
        options = [_with_choices(p.replace(kind=inspect.Parameter.KEYWORD_ONLY)) for p in own]
        options = [p.replace(default=None) if p.name in required else p for p in options]
        fields = {field.name: (field, kind) for kind in kinds for field in dataclasses.fields(kind)}
        options += [_parameter(field, kind) for field, kind in fields.values() if field.metadata.get("option", True)]
        options += [_parameter(field, CommonConfig) for field in dataclasses.fields(CommonConfig)]
        called = {flags_of(p)[0].lstrip("-").replace("-", "_"): p.name for p in options}  # as a user knows them
        name_of = {name: user for user, name in called.items()}
        config = _CONFIG if of_run is None else _CONFIG_OR_RUN
        options.append(inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=config))
        kind_of = {p.name: typing.get_args(p.annotation) for p in own}

        def plain_value(name: str, value: Any) -> Any:
            about = kind_of.get(name, ())
            return _value(name, value, new=NEW_CACHE in about, anywhere=ANYWHERE in about)

        def call(ctx: Any, *, config: Path | None, **values: Any) -> None:
            values = {name: plain_value(name, given) for name, given in values.items()}
            given = {name for name in values if ctx.get_parameter_source(name).name == "COMMANDLINE"}
            file = {} if config is None else read_settings_file(config, of_run)
            file = {called.get(name, name): value for name, value in file.items()}
            _refuse_code(file, given)
            common = {f.name: values[f.name] for f in dataclasses.fields(CommonConfig)}
            common |= {name: file[name] for name in common.keys() & file.keys() - given}
            mine = {p.name: values[p.name] for p in own}
            mine |= {
                n: plain_value(n, _converted(name_of[n], file[n], kind_of[n]))
                for n in mine.keys() & file.keys() - given
            }
            missing = [name for name in required if mine[name] is None]
            if missing:
                raise UsageError(
                    f"`{name_of[missing[0]]}` is needed", hint="Give it on the command line or in the file of `config`"
                )
            asked = {name: value for name, value in file.items() if name not in mine and name not in common}
            if isinstance(asked.get("annotations"), str):
                asked["annotations"] = brought(asked["annotations"], "annotations")
            asked |= {name: values[name] for name in given if name in fields}
            if "seed" in fields and ("seed" in file or "seed" in given):
                asked["seed"] = common["seed"]
            _finish(function, Run(build(CommonConfig, common)), asked, **mine)

        return _as_command(function, call, [_CONTEXT, *options])

    return make


def _with_configs(function: Callable[..., None], kinds: tuple[type, ...]) -> Callable[..., None]:
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1 + len(kinds) :]
    options = [_with_choices(p.replace(kind=inspect.Parameter.KEYWORD_ONLY)) for p in own]
    for kind in (*kinds, CommonConfig):
        options += [_parameter(field, kind) for field in dataclasses.fields(kind)]

    def call(**values: Any) -> None:
        values = {name: _value(name, given) for name, given in values.items()}
        made = [
            kind(**{f.name: values.pop(f.name) for f in dataclasses.fields(kind)}) for kind in (*kinds, CommonConfig)
        ]
        for each in made:
            check(each)
        _finish(function, Run(made[-1]), *made[:-1], **values)

    return _as_command(function, call, options)


def _value(name: str, given: Any, *, new: bool = False, anywhere: bool = False) -> Any:
    """What was given as an option, as commands take it: plain, and places on this machine; of a cache elsewhere its mirror.

    Args:
        new: a cache that need not be there. anywhere: an address stays one.
    """
    if isinstance(given, enum.Enum):
        return given.value
    if isinstance(given, Path):
        if name == "annotations":
            return brought(given, name)
        if anywhere and address_of(given, name) is not None:
            return given
        if new or name in _CACHES:
            from glscl.cache.mirror import cache_path

            return cache_path(given, name, new=new)
        return local_path(given, name)
    if isinstance(given, (list, tuple)):
        return type(given)(_value(name, each, new=new, anywhere=anywhere) for each in given)
    return given


def _finish(function: Callable[..., None], run: Run, *positional: Any, **options: Any) -> None:
    try:
        function(run, *positional, **options)
    except KeyboardInterrupt as error:
        raise _Interrupted(*error.args) from error  # typer would end the program in its own way


def _as_command(
    function: Callable[..., None], call: Callable[..., None], parameters: list[inspect.Parameter]
) -> Callable[..., None]:
    call.__name__, call.__doc__, call.__module__ = function.__name__, function.__doc__, function.__module__
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    _CALLS[function] = call
    return function


def _refuse_code(file: dict[str, Any], given: set[str]) -> None:
    """Raise UsageError where a settings file, which may be a stranger's, names code outside this package to be run."""
    for name in ("head", "dataset"):
        if name not in given and ":" in str(file.get(name, "")):
            raise UsageError(
                f"The file of `config` names {file[name]!r} as `{name}`: code outside this package, which would be run",
                hint=f"If you trust it, give it yourself: `{name}={file[name]}`",
            )


def _converted(name: str, value: Any, about: Sequence[Any]) -> Any:
    """A value of a settings file as an option of its own would be. Raises UsageError where it is of another type.

    Args:
        about: the option's type, and its marks.
    """
    kind, *marks = about
    wanted = required_type(kind)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if BY_COMMAS in marks and isinstance(value, list):
        return ",".join(_converted(name, item, [str]) for item in value)
    if typing.get_origin(wanted) is list:
        items = value if isinstance(value, list) else [value]
        return [_converted(name, item, typing.get_args(wanted)[:1]) for item in items]
    if isinstance(wanted, type) and (type(value) is wanted or (wanted is float and type(value) is int)):
        return value
    raise UsageError(f"`{name}` is {value!r}; expected {getattr(wanted, '__name__', wanted)}")


def _config_option(also: str = "") -> Any:
    help = f"TOML or JSON file of settings, which options override{also}."
    return typing.Annotated[Path | None, typer.Option("--config", help=help, metavar="FILE", rich_help_panel="Common")]


_CONFIG, _CONFIG_OR_RUN = _config_option(), _config_option("; a run's own run.json works")
_CONTEXT = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)


def register(app: typer.Typer, function: Callable[..., None], *, group: str) -> None:
    """Add what `command` made to an application: `train_head` becomes `train-head`, below the heading `group`."""
    title, call = function.__name__.replace("_", "-"), _CALLS[function]
    signature = inspect.signature(call)
    COMMANDS[title] = signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "ctx"])
    app.command(title, rich_help_panel=group)(call)


_type_hints = functools.cache(typing.get_type_hints)


def _parameter(field: dataclasses.Field[Any], config: type) -> inspect.Parameter:
    meta = field.metadata
    kind, help = _type_hints(config)[field.name], meta["help"]
    default = field.default if field.default is not dataclasses.MISSING else None
    if meta.get("parse") and required_type(kind) is not str:
        kind = str  # as it is typed, which `parse` understands
    if meta.get("default_from"):
        kind, default = typing.Optional[kind], None  # noqa: UP045 (made at run time)
        help = f"{help} Default: {meta['default_from']}."
    if meta.get("choices"):
        kind, default = _choice(field.name, kind, meta["choices"], default)
    flag = "--" + (meta.get("name") or field.name).replace("_", "-")
    both = default is True or (default is None and required_type(kind) is bool)
    switch = f"{flag}/{flag.replace('--', '--no-', 1)}" if both else flag
    flags = [switch, *(["-v"] if field.name == "verbose" else [])]
    limits = {}
    if required_type(kind) in (int, float):
        limits = {k: meta[k] for k in ("min", "max") if meta.get(k) is not None}
    option = typer.Option(*flags, help=help, rich_help_panel=meta.get("group"), metavar=meta.get("metavar"), **limits)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=typing.Annotated[kind, option]
    )


def flags_of(parameter: inspect.Parameter) -> list[str]:
    """What an option is called on the command line: `["--tokens", "--no-tokens"]`, `["--verbose", "-v"]`."""
    info = typing.get_args(parameter.annotation)[1]
    # typer keeps the first flag of an Annotated option where its default would stand
    declared = [d for d in (info.default, *(info.param_decls or ())) if isinstance(d, str)]
    declared = declared or ["--" + parameter.name.replace("_", "-")]
    return [flag for names in declared for flag in names.replace(",", "/").split("/")]


def _with_choices(parameter: inspect.Parameter) -> inspect.Parameter:
    """A command's own parameter as typer must see it: with `OneOf`, an option of these values and no others."""
    kind, option, *meta = typing.get_args(parameter.annotation)
    choices = next((m for m in meta if isinstance(m, OneOf)), None)
    if choices is None:
        return parameter.replace(annotation=typing.Annotated[kind, option]) if meta else parameter
    kind, default = _choice(parameter.name, kind, choices, parameter.default)
    return parameter.replace(annotation=typing.Annotated[kind, option], default=default)


def _choice(name: str, kind: Any, choices: typing.Iterable[str], default: Any) -> tuple[Any, Any]:
    """The type that admits `choices` alone (or None, where `kind` does), and the default as a value of it."""
    values: Any = enum.Enum(name, {c: c for c in choices}, type=str)
    admitted = values if required_type(kind) is kind else typing.Optional[values]  # noqa: UP045 (made at run time)
    return admitted, values(default) if isinstance(default, str) else default


def required_type(kind: Any) -> Any:
    """`int | None` → int; other types as they are."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        inner = [k for k in typing.get_args(kind) if k is not type(None)]
        return inner[0] if len(inner) == 1 else kind
    return kind


@functools.cache
def parser_of(app: typer.Typer) -> Any:
    """The commands with all their options, which typer would make anew for each command line: 90 ms."""
    return get_command(app)


def main(app: typer.Typer, arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 (our one-line error), 2 (usage), 130 (interrupted)."""
    with standard_streams() as out:
        status = _run(app, sys.argv[1:] if arguments is None else arguments)
        out.flush()
        if out.lost is None or out.lost.errno == errno.EPIPE or status:  # who closes a pipe has read enough
            return status
        return _fail(f"Done, but not all of it could be printed: {out.lost.strerror}", 1, as_json=False)


def _run(app: typer.Typer, arguments: list[str]) -> int:
    debug, as_json = "--debug" in arguments, "--json" in arguments
    try:
        _terminate_like_interrupt()
        return parser_of(app)(arguments, standalone_mode=False, prog_name="glscl") or 0
    except (_Interrupted, KeyboardInterrupt) as error:
        return _fail(
            str(error) or "Stopped. What was committed stays; the same command again goes on from there", 130, as_json
        )
    except GlsclError as error:
        if debug:
            raise
        notes = [worded(note, COMMANDS) for note in error.notes]
        return _fail(error_text(error, COMMANDS), 2 if isinstance(error, UsageError) else 1, as_json, notes)
    except (OSError, MemoryError) as error:
        if debug:
            raise
        return _fail(_told_by_the_system(error), 1, as_json)
    except Exception as error:
        if isinstance(error, _TyperError):  # its own usage errors
            error.show()
            if as_json and not _rank():
                _print_json({"error": _visible(error.format_message()), "exit_status": error.exit_code})
            return error.exit_code
        if isinstance(error, typer.Exit):
            return error.exit_code
        if isinstance(error, typer.Abort):
            return _fail("Stopped", 130, as_json)
        if debug:
            raise
        if is_full(error):
            return _fail(_full(), 1, as_json)
        text = " ".join(str(error).split())[:500]
        return _fail(
            f"Unexpected {type(error).__name__}: {text}. The same command with --debug shows where", 1, as_json
        )


def _full() -> str:
    limit = process_limit()
    allowed = "" if limit is None else f" (ulimit -v allows {limit / 1e9:,.1f} GB)"
    return f"There is not enough memory for this{allowed}. Free some, give the job more, or ask for less at once"


def _told_by_the_system(error: OSError | MemoryError) -> str:
    """What the system says of a path or of the memory, as a line of ours."""
    if isinstance(error, MemoryError) or is_full(error):
        return _full()
    names = [os.fsdecode(name)[:200] for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    return f"Cannot use {' or '.join(names) or 'a file'}: {error.strerror or ' '.join(str(error).split())[:200]}"


def _fail(message: str, status: int, as_json: bool, notes: typing.Sequence[str] = ()) -> int:
    message = _visible(" ".join(message.split()))
    if len(message) > LONGEST:
        message = f"{message[: LONGEST - 3]}..."
    rank = _rank()
    if rank and status == 130:
        return status  # the first process says it
    for note in () if rank else notes:
        print(_visible(f"note: {note}"), file=sys.stderr)
    print(f"glscl{f' (process {rank})' if rank else ''}: {message}", file=sys.stderr, flush=True)
    if as_json and not rank:
        _print_json({"error": message, "exit_status": status} | ({"notes": list(notes)} if notes else {}))
    return status


def _rank() -> int:
    """Of this process; 0 where the environment tells nonsense, which is said as an error of its own."""
    try:
        return launch().rank
    except UsageError:
        return 0


def _print_json(value: Any) -> None:
    """One JSON object on standard output, in ASCII where that cannot print all of it (half surrogates, other encodings)."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not text.isprintable():
        text = "".join(f"\\u{ord(c):04x}" if steers(c) else c for c in text)  # within strings: equal to any reader
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, allow_nan=False)
    print(text, flush=True)


def _visible(text: str) -> str:
    """Text that cannot steer a terminal nor fail to print: what could is shown as `\\x1b`, `\\u202e`, `\\ud800`."""
    text = shown(text)
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or not steers(c) else ascii(c)[1:-1] for c in text)


def _terminate_like_interrupt() -> None:
    """SIGTERM, and SIGHUP when a terminal is closed, stop as cleanly as Ctrl-C; `nohup` keeps its meaning."""
    import signal

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            with contextlib.suppress(ValueError):  # not in the main thread (tests)
                signal.signal(number, interrupt)


def command_line() -> str:
    """The command as typed, for provenance: file names are not made absolute."""
    program = Path(sys.argv[0]).name
    return shlex.join(["glscl" if program in ("glscl", "cli.py", "__main__.py") else program, *sys.argv[1:]])
