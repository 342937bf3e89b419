"""How long commands take to say something, and which imports that time goes to.

    python benchmarks/startup.py                      commands that need no data
    python benchmarks/startup.py --demo DIR           and inspect and eval on what `glscl demo --out DIR` left
    python benchmarks/startup.py --quick              every command once

Standard output is the result, in Markdown. Each command is a new process; the first call of each, which fills the page cache,
does not count. Import times are those of `python -X importtime`, which makes imports slower than they are by about a fifth:
read them as shares.
"""

from __future__ import annotations

import argparse
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common import digits, machine, markdown

_LINE = re.compile(r"^import time:\s+(\d+) \|\s+(\d+) \|( +)(\S+)$", re.M)


def run(arguments: Sequence[str], *python_options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *python_options, "-m", "glscl", *arguments], check=True, capture_output=True, text=True
    )


def wall(arguments: Sequence[str], repeats: int) -> list[float]:
    """Seconds of each call, in a new process."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run(arguments)
        seconds.append(time.perf_counter() - started)
    return seconds


def imports(report: str) -> tuple[Counter[str], dict[str, int]]:
    """From what `-X importtime` wrote: own microseconds of each top-level package, and cumulative ones of each module."""
    own: Counter[str] = Counter()
    cumulative: dict[str, int] = {}
    for self_time, total, _, name in _LINE.findall(report):
        own[name.split(".")[0]] += int(self_time)
        cumulative[name] = int(total)
    return own, cumulative


def commands(demo: Path | None, scratch: Path) -> dict[str, list[str]]:
    """What is measured: name → arguments."""
    found = {"--help": ["--help"], "eval --help": ["eval", "--help"], "--version": ["--version"]}
    if demo is not None:
        cache = str(demo / "cache")
        found["inspect"] = ["inspect", cache]
        found["eval --zero-shot"] = ["eval", "--cache", cache, "--zero-shot", "--out", str(scratch / "zero.json")]
        for head in ("projection", "glscl"):
            run_folder = demo / "runs" / head
            if run_folder.is_dir():
                found[f"eval ({head})"] = [
                    *("eval", "--cache", cache, "--run", str(run_folder), "--out", str(scratch / f"{head}.json"))
                ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, help="folder of a finished demo")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--top", type=int, default=8, help="packages shown for each command")
    parser.add_argument("--quick", action="store_true", help="one call of each")
    arguments = parser.parse_args()
    repeats = 1 if arguments.quick else arguments.repeats
    print("# Start-up: from the shell to the answer\n")
    print(f"{time.strftime('%Y-%m-%d')}; {machine()}\n\n`python {shlex.join(sys.argv)}`\n")
    with tempfile.TemporaryDirectory() as scratch:
        measured = commands(arguments.demo, Path(scratch))
        rows, details = [], []
        for name, words in measured.items():
            report = run(words, "-X", "importtime").stderr
            seconds = wall(words, repeats)
            own, cumulative = imports(report)
            spent = sum(own.values()) / 1e6
            rows.append(
                [
                    f"`glscl {name}`",
                    digits(statistics.median(seconds)),
                    digits(min(seconds)),
                    digits(spent),
                    str(len(cumulative)),
                ]
            )
            details.append(
                [f"`glscl {name}`", ", ".join(f"{n} {t / 1e3:.0f}" for n, t in own.most_common(arguments.top))]
            )
        print(markdown(["", "s, median", "s, least", "s importing", "modules"], rows))
        print("\nImports by package, its own milliseconds:\n")
        print("\n".join(f"* {name}: {packages}" for name, packages in details))
    print(
        "\n`import torch` alone is most of every command that computes; no command pays for it that does not compute."
    )
    if arguments.demo is None:
        print("Not measured: inspect and eval, which need a finished demo (--demo DIR).")


if __name__ == "__main__":
    main()
