"""What one GPU does with all of this, in a given time: one dated note.

    python benchmarks/gpu.py --seconds 500 --note benchmarks/results/2026-11-28-gpu.md
    python benchmarks/gpu.py --only step,recipe          some sections
    python benchmarks/gpu.py --small --device cpu        a look at whether it runs, no result
    python benchmarks/gpu.py --print                     the note of the results that are there

The sections (`gpu_sections.SECTIONS`) stand in the order of their value. They run in a process of their own, each for a limited
time; where that process dies or hangs, the next section begins in a new one. Every number is a line of the results file (JSON)
as soon as it is there, and the note is written again after every section: who stops this keeps what it had. Sections that the
results file has already are not run again. What could not be run is said to be not measured, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import digits, markdown

HERE = Path(__file__).parent
GRACE = 20.0  # seconds that a section may take to heed its limit
START = 25.0  # seconds that a process may take before its first section


# --- the results ---------------------------------------------------------------------------------------------------------


def read(results: Path) -> list[dict[str, Any]]:
    """All whole lines of a results file; none where there is none."""
    if not results.exists():
        return []
    lines = []
    for text in results.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue  # what a killed process had begun
    return lines


def append(results: Path, line: dict[str, Any]) -> None:
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def over(lines: Sequence[dict[str, Any]]) -> set[str]:
    """Sections that need not be run again: through, or stopped."""
    return {line["section"] for line in lines if "seconds" in line or "stopped" in line}


# --- the note ------------------------------------------------------------------------------------------------------------


def note(lines: Sequence[dict[str, Any]], titles: dict[str, str], told: str) -> str:
    """The dated note.

    Args:
        lines: of the results file.
        titles: section → heading, in order.
        told: the command.
    """
    days = [line["date"] for line in lines if "date" in line] or [time.strftime("%Y-%m-%d")]
    parts = [f"# One GPU ({days[0]})", f"Command: `{told}`"]
    if any(line.get("small") for line in lines):
        parts.append("**Small sizes: a look at whether it runs, not a result.**")
    for device in sorted({line["device"] for line in lines if not line.get("device", "cuda").startswith("cuda")}):
        parts.append(f"**It ran on the device {device}: nothing here was measured on a GPU.**")
    parts.append(
        "Features, frames and weights are made up (the demo's are its own), so these are times, sizes and differences, no quality. "
        "Each number was measured once, after a burn-in where none is said to be a first call."
    )
    for section, title in titles.items():
        found = [line for line in lines if line.get("section") == section]
        parts += [f"## {title}", *_section(found)]
    return "\n\n".join(parts) + "\n"


def _section(lines: Sequence[dict[str, Any]]) -> list[str]:
    if not lines:
        return ["Not measured: it was not begun."]
    parts = [line["text"] for line in lines if "text" in line]
    tables: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if "table" in line:
            tables.setdefault(line["table"], []).append(line["row"])
    for name, rows in tables.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        parts.append(f"{name}:\n\n" + markdown(columns, [[_cell(row.get(c, "–")) for c in columns] for row in rows]))
    missing = [f"* {line['what']}: {line['not_measured']}" for line in lines if "not_measured" in line]
    if missing:
        parts.append("Not measured:\n\n" + "\n".join(missing))
    for line in lines:
        if "stopped" in line:
            parts.append(f"Not measured beyond this: {line['stopped']}.")
        elif "seconds" in line:
            parts.append(f"({line['seconds']:.0f} s)")
    if not any("stopped" in line or "seconds" in line for line in lines):
        parts.append("Not measured beyond this: the run ended meanwhile.")
    return parts


def _cell(value: Any) -> str:
    return digits(value) if isinstance(value, float) else str(value)


# --- running it ------------------------------------------------------------------------------------------------------------


def limits(names: Sequence[str], until: float, now: float, *, small: bool = False) -> dict[str, float]:
    """Seconds that each section would have if it began now: what the later ones need (in small a tenth) is kept for them."""
    from gpu_sections import SECTIONS

    given = {}
    for number, name in enumerate(names):
        kept = sum(SECTIONS[later].needs for later in names[number + 1 :]) * (0.1 if small else 1.0)
        given[name] = min(SECTIONS[name].limit, until - now - kept)
    return given


def work(given: argparse.Namespace) -> None:
    """Run sections one after another in this process, and say what each of them found."""
    import torch
    from gpu_bench import SMALL, Bench, DeviceLost, Sizes, TimeLimit, short
    from gpu_sections import SECTIONS

    def heed(number: int, frame: Any) -> None:
        raise TimeLimit

    signal.signal(signal.SIGALRM, heed)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            device=torch.device(given.device),
            sizes=SMALL if given.small else Sizes(),
            write=lambda line: append(given.results, line),
            earlier=lambda: read(given.results),
            folder=Path(folder),
        )
        names = given.only.split(",")
        for name in names:
            left = limits(names[names.index(name) :], given.until, time.time(), small=given.small)[name]
            began = time.monotonic()
            append(given.results, {"begun": name, "limit": max(left, 0.0), "at": time.time()})
            if left < 2:
                append(given.results, {"section": name, "stopped": "no time was left for it"})
                continue
            bench.section, bench.deadline = name, began + left
            signal.setitimer(signal.ITIMER_REAL, left)
            try:
                SECTIONS[name].run(bench)
                signal.setitimer(signal.ITIMER_REAL, 0)
                append(given.results, {"section": name, "seconds": time.monotonic() - began})
            except TimeLimit:
                append(given.results, {"section": name, "stopped": f"its {left:.0f} s were over"})
                if bench.cuda:
                    os._exit(4)  # whatever was under way on the device is best ended with its process
            except DeviceLost as error:
                append(given.results, {"section": name, "stopped": f"the device answers no more: {error}"})
                os._exit(3)
            except Exception as error:
                signal.setitimer(signal.ITIMER_REAL, 0)
                append(given.results, {"section": name, "stopped": short(f"{type(error).__name__}: {error}")})
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if bench.cuda:
                torch.cuda.empty_cache()


def supervise(given: argparse.Namespace, names: list[str], write_note: Any) -> None:
    """Keep a working process at the sections until all are over or the time is."""
    while time.time() < given.until:
        left = [name for name in names if name not in over(read(given.results))]
        if not left:
            return
        seen = len(read(given.results))
        command = [sys.executable, __file__, "--work", "--only", ",".join(left), "--results", given.results]
        command += ["--device", given.device, "--until", given.until, *(["--small"] if given.small else [])]
        process = subprocess.Popen(list(map(str, command)), start_new_session=True)
        hung = _watch(process, given, seen, write_note)
        lines = read(given.results)
        begun = [line["begun"] for line in lines[seen:] if "begun" in line]
        section = begun[-1] if begun else left[0]
        if section not in over(lines):
            reason = "it hung and was killed" if hung else f"its process ended with status {process.returncode}"
            append(given.results, {"section": section, "stopped": reason})
        write_note()


def _watch(process: subprocess.Popen[bytes], given: argparse.Namespace, seen: int, write_note: Any) -> bool:
    """Wait for a working process; True where it had to be killed because a section did not heed its limit."""
    patience, count = time.time() + START + GRACE, seen
    try:
        while process.poll() is None:
            time.sleep(0.2)
            lines = read(given.results)
            begun = [line for line in lines[seen:] if "begun" in line]
            if begun:
                patience = begun[-1]["at"] + begun[-1]["limit"] + GRACE
            if len(lines) != count:
                count = len(lines)
                write_note()
            if time.time() > patience:
                return True
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=500, help="for everything")
    parser.add_argument("--only", default="", help="sections, separated by commas")
    parser.add_argument(
        "--results", type=Path, default=Path("gpu.jsonl"), help="JSON lines to add to, and to go on from"
    )
    parser.add_argument("--note", type=Path, help="where to write the note; default: standard output at the end")
    parser.add_argument("--small", action="store_true", help="small sizes: a look at whether it runs")
    parser.add_argument("--print", action="store_true", help="write the note of the results and run nothing")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.work:
        work(given)
        return
    from gpu_sections import SECTIONS

    names = [name for name in given.only.split(",") if name] or list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    given.until = time.time() + given.seconds
    titles = {name: section.title for name, section in SECTIONS.items()}
    told = shlex.join(["python", "benchmarks/gpu.py", *(arguments or sys.argv[1:])])

    def write_note() -> None:
        if given.note:
            given.note.parent.mkdir(parents=True, exist_ok=True)
            given.note.write_text(note(read(given.results), titles, told), encoding="utf-8")

    if not given.print:
        given.results.parent.mkdir(parents=True, exist_ok=True)
        append(given.results, {"date": time.strftime("%Y-%m-%d"), "device": given.device, "small": given.small})
        supervise(given, names, write_note)
    write_note()
    if not given.note:
        print(note(read(given.results), titles, told))


if __name__ == "__main__":
    main()
