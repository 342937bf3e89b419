"""What docs/heads.md says from the study over seeds, two tables and a line a head, rewritten between its markers.

    python benchmarks/demo_seeds.py --print study.jsonl --docs docs/heads.md

Import it from a script beside it.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from common import digits, markdown
from glscl.train_head.heads import HEAD_NAMES

Runs = dict[int, dict[str, Any]]  # one head with one set of options: line of the results file by seed
ADAPTERS = ("linear", "mlp")
KINDS = {"scene": "one scene", "pair": "two scenes", "whole": "whole video"}  # tags of captions as the page calls them


def rewrite(page: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Put the tables of these results into the page.

    Raises:
        ValueError: the page lacks the markers of a table or sentence.
    """
    text = page.read_text(encoding="utf-8")
    told = {"heads": heads_table(lines), "against": against(lines), "adapters": adapters_table(lines)}
    told |= {head: sentence(head, lines) for head in HEAD_NAMES}
    for name, table in told.items():
        begin, end = f"<!-- demo-seeds: {name} -->", f"<!-- /demo-seeds: {name} -->"
        found = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", flags=re.DOTALL)
        text, count = found.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
        if count != 1:
            raise ValueError(f"{page} has {count} places between {begin} and {end}, expected 1")
    page.write_text(text, encoding="utf-8")


def heads_table(lines: Sequence[dict[str, Any]]) -> str:
    """A row for every head with its default options, and for every other setting but adapters."""
    header = ["head", "seeds", "learned parameters", "CPU seconds", "t→v R@1", "t→v R@10", "v→t R@1", *KINDS.values()]
    rows, studied = [], by_setting(lines)
    for head in HEAD_NAMES:
        settings = [options for name, options in studied if name == head and "adapter=" not in options]
        rows += [heads_row(head, options, studied[head, options]) for options in sorted(settings)]
        if not settings:
            rows.append([f"`{head}`", "not measured", *[""] * (len(header) - 2)])
    return markdown(header, rows)


def heads_row(head: str, options: str, runs: Runs) -> list[str]:
    found = list(runs.values())
    name = f"`{head}` with `{options}`" if options else f"`{head}`"
    seconds = digits(statistics.median(line["cpu_seconds"] for line in found), 2)
    recalls = [("text_to_video", "R@1"), ("text_to_video", "R@10"), ("video_to_text", "R@1")]
    numbers = [spread([line[direction][metric] for line in found]) for direction, metric in recalls]
    kinds = [spread([line["tags"][kind] for line in found if kind in line["tags"]]) for kind in KINDS]
    return [name, str(len(found)), f"{found[0]['parameters']:,}", seconds, *numbers, *kinds]


def sentence(head: str, lines: Sequence[dict[str, Any]]) -> str:
    """The line of a head's own section."""
    told = []
    for (name, options), runs in sorted(by_setting(lines).items()):
        if name == head and "adapter=" not in options:
            there, back = ([r[d]["R@1"] for r in runs.values()] for d in ("text_to_video", "video_to_text"))
            seeds = f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
            setting = f" with `{options}`" if options else ""
            told.append(f"R@1 {spread(there)} | {spread(back)}{setting} ({seeds})")
    return f"* On the built-in corpus, backbone frozen: {'; '.join(told) or 'not measured'}."


def adapters_table(lines: Sequence[dict[str, Any]]) -> str:
    """A row for every head that was trained with adapters and without, over the seeds that all of these have."""
    rows, studied = [], by_setting(lines)
    for head in HEAD_NAMES:
        plain = studied.get((head, ""), {})
        adapted = {kind: studied.get((head, f"adapter={kind}"), {}) for kind in ADAPTERS}
        adapted = {kind: runs for kind, runs in adapted.items() if runs.keys() & plain.keys()}
        seeds = sorted(set(plain).intersection(*adapted.values()))
        if not adapted or not seeds:
            continue
        base = [plain[seed]["text_to_video"]["R@1"] for seed in seeds]
        cells = []
        for kind in ADAPTERS:
            found = [adapted[kind][seed]["text_to_video"]["R@1"] for seed in seeds] if kind in adapted else []
            gains = [after - before for after, before in zip(found, base, strict=False)]
            cells += [spread(found), spread(gains, signed=True)] if found else ["not measured", ""]
        rows.append([f"`{head}`", str(len(seeds)), spread(base), *cells])
    return markdown(["head", "seeds", "none", "`linear`", "gain", "`mlp`", "gain"], rows)


def by_setting(lines: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Runs]:
    """Results by head and options, as `key=value key=value`; of equal seeds the last."""
    studied: dict[tuple[str, str], Runs] = {}
    for line in lines:
        options = " ".join(f"{key}={value}" for key, value in line["options"].items())
        studied.setdefault((line["head"], options), {})[line["seed"]] = line
    return studied


def spread(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean ± standard deviation; the mean alone where there is one value, a dash where there is none."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):{'+' if signed else ''}.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def against(lines: Sequence[dict[str, Any]], first: str = "glscl") -> str:
    """Each head against `first` in R@1 text to video: difference of means, and an exact permutation test over their seeds."""
    studied, rows = by_setting(lines), []
    base = recalls(studied.get((first, ""), {}))
    settings = [key for name in HEAD_NAMES for key in studied if key[0] == name and "adapter=" not in key[1]]
    for head, options in settings:
        found = recalls(studied[head, options])
        if head != first and len(found) > 1 and len(base) > 1:
            together, seeds = [*base, *found], range(len(base) + len(found))
            gap = statistics.fmean(found) - statistics.fmean(base)
            gaps = [
                statistics.fmean(together[i] for i in picked)
                - statistics.fmean(together[i] for i in seeds if i not in picked)
                for picked in map(set, combinations(seeds, len(found)))
            ]
            p = sum(abs(other) >= abs(gap) - 1e-9 for other in gaps) / len(gaps)
            name = f"`{head}` with `{options}`" if options else f"`{head}`"
            rows.append([name, f"{len(found)} and {len(base)}", f"{gap:+.1f}", f"{p:.3f}"])
    return markdown(["head", "seeds", f"R@1 − that of `{first}`", "p"], rows)


def recalls(runs: Runs) -> list[float]:
    return [line["text_to_video"]["R@1"] for line in runs.values()]
