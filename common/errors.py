"""Every error a user can cause or meet, in one tree.

    GlsclError
    ├── UsageError            (ValueError)         options that do not fit together
    ├── InputError            (ValueError)         annotations, features or other files that cannot be read as what they claim
    │   └── NotFoundError     (FileNotFoundError)  a file, folder, cache or run that is not there
    ├── BackboneError         (RuntimeError)       weights or architecture of the backbone cannot be had
    ├── DecodeError           (RuntimeError)       one video gives no frames
    ├── StorageError          (OSError)            the disk is full, read-only or failing
    ├── BusyError             (RuntimeError)       another process writes there at the moment
    ├── OutOfMemoryError      (MemoryError)        what the machine, a limit or a GPU leaves does not suffice
    ├── CacheError            (RuntimeError)
    │   ├── CacheFormatError  (ValueError)         not a cache, or a cache of a schema this version cannot read
    │   ├── CacheCorruptError (ValueError)         checksums, shapes or offsets that contradict the commit
    │   ├── CacheIncompleteError                   extraction has not finished
    │   ├── CacheBusyError    (BusyError)          another process writes it at the moment
    │   └── FingerprintError  (ValueError)         two things that were made with different configurations
    ├── CheckpointError       (ValueError)         a checkpoint that does not fit the head, or foreign weights with unknown names
    └── NonFiniteError        (ArithmeticError)    NaN or infinity in features, scores or the loss

A message says what, where, what was found and what was expected; its hint says what to do. Both name settings in
backticks, by their Python names: `epochs`, or with a value `precision=fp32`. The command line words them as options and
commands, prints one line and exits with status 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

LONGEST = 1500  # characters of a message; what it quotes of a foreign file may be megabytes


class Hint(NamedTuple):
    """What to do about an error, as data.

        Hint("Choose another folder with `out`")
        Hint("Make one", "extract", {"dataset": "NAME"})
        Hint("Extract again", "extract", {"pretrained": "W"}, Hint("from pixels", "eval", {"run": "R"}))

    Attributes:
        text: plain English; settings stand in backticks. May be empty where the command says it all.
        command: name of the command that does it, such as "extract"; None where it takes no command.
        settings: of that command, by name; "" is its positional argument, True a switch.
        otherwise: another thing that helps as well.
    """

    text: str
    command: str | None = None
    settings: Mapping[str, Any] = {}
    otherwise: Hint | None = None

    def __str__(self) -> str:
        rest = f", or {self.otherwise}" if self.otherwise else ""
        if self.command is None:
            return self.text + rest
        values = ", ".join(f"{name}={value}" if name else f"{value}" for name, value in self.settings.items())
        call = f"{self.command} ({values})" if values else self.command
        return (f"{self.text}: {call}" if self.text else call) + rest


class GlsclError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what happened, where, what was found and what was expected; of a longer one than `LONGEST` characters
            the middle is left out.
        hint: what to do about it.

    Attributes:
        message, hint: the two apart; the text of the error is both.
        notes: what had been noticed until then, a line each; shown before the error.
    """

    notes: Sequence[str] = ()

    def __init__(self, message: str, *, hint: Hint | str | None = None) -> None:
        self.hint = Hint(hint) if isinstance(hint, str) else hint
        if len(message) > LONGEST:
            message = f"{message[: LONGEST - 400]} [...] {message[-400:]}"
        self.message = message
        super().__init__(
            f"{message if message.endswith('...') else message.removesuffix('.') + '.'} {self.hint}"
            if self.hint
            else message
        )


class UsageError(GlsclError, ValueError): ...


class InputError(GlsclError, ValueError): ...


class NotFoundError(InputError, FileNotFoundError):
    def __str__(self) -> str:  # OSError's own __str__ would print the arguments as a tuple
        return Exception.__str__(self)


class BackboneError(GlsclError, RuntimeError): ...


class DecodeError(GlsclError, RuntimeError): ...


class StorageError(GlsclError, OSError):
    """`first` is what must be done before the same command can be run again, such as "Free some space".

    A command that is continued in another way says so in its place; see `StorageError.continued`.
    """

    def __init__(self, message: str, *, hint: Hint | str | None = None, first: str | None = None) -> None:
        self.first = first
        again = f"{first}, then run the same command again" if first else None
        super().__init__(message, hint=again or hint)

    def continued(self, command: str) -> StorageError:
        """The same error where `command` goes on; of what another folder would help, that stays the advice."""
        if self.hint and not self.first:
            return self
        return StorageError(
            self.message, hint=f"{self.first}, then go on: {command}" if self.first else f"Go on: {command}"
        )

    def __str__(self) -> str:
        return Exception.__str__(self)


class BusyError(GlsclError, RuntimeError): ...


class OutOfMemoryError(GlsclError, MemoryError): ...


class CacheError(GlsclError, RuntimeError): ...


class CacheFormatError(CacheError, ValueError): ...


class CacheCorruptError(CacheError, ValueError): ...


class CacheIncompleteError(CacheError): ...


class CacheBusyError(BusyError, CacheError): ...


class FingerprintError(CacheError, ValueError): ...


class CheckpointError(GlsclError, ValueError): ...


class NonFiniteError(GlsclError, ArithmeticError): ...


@contextmanager
def telling(notes: Sequence[str]) -> Iterator[None]:
    """Let an error that ends this block tell what was noted until then."""
    try:
        yield
    except GlsclError as error:
        error.notes = [*notes, *error.notes]
        raise


def first_line(error: BaseException) -> str:
    """What a foreign error says, short enough to be quoted in a message of ours."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
