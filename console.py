"""What the commands say to people: tables and lines, made from the same values that `--json` prints."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from glscl.options import Run
from glscl.progress import duration


def print_failures(run: Run, out: Path, done: Any) -> None:
    if done.failed:
        lost = f"; {done.texts_without_video} captions lost their video" if done.texts_without_video else ""
        run.say(f"{len(done.failed)} videos with failures{lost}. Reasons: glscl inspect {out}")


def print_splits(run: Run, counted: dict[str, Any]) -> None:
    rows = [["split", "captions", "videos", "found", "missing", "expected captions", "expected videos"]]
    for name, row in counted["splits"].items():
        cells = [row[k] for k in ("captions", "videos", "found", "missing", "expected_captions", "expected_videos")]
        rows.append([name, *("-" if cell is None else f"{cell:,}" for cell in cells)])
    run.say(aligned(rows))
    for name, ids in counted.get("missing_examples", {}).items():
        if ids:
            run.say(f"missing in {name}, for example: {', '.join(ids)}")


def aligned(rows: list[list[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    )


def print_cache(run: Run, report: dict[str, Any]) -> None:
    state = "complete" if report["complete"] else "NOT complete: " + ", ".join(
        f"{s['committed']} of {s['planned']} {name} shards" for name, s in report["shards"].items()
    )
    backbone = report["configuration"]["backbone"]
    run.say(f"{report['path']}  ({report['format']}, {report['bytes'] / 1e6:.1f} MB, {state})")
    run.say(
        f"{report['configuration']['dataset']} through {backbone['name']}/{backbone['pretrained']}, "
        f"{report['embed_dim']}-d {report['dtype']}, fingerprint {report['fingerprint']}"
    )
    run.say(f"{report['videos']:,} videos with {report['frames']:,} frames, {report['texts']:,} captions")
    if report["stored_frames"]:
        frames = report["stored_frames"]
        how = frames["encoding"] + (f" of quality {frames['quality']}" if frames["quality"] else "")
        size = "×".join(map(str, frames["size"]))
        run.say(f"frames are stored too: {how}, {size} pixels, {frames['bytes'] / 1e6:.1f} MB")
    rows = [["split", "videos", "listed", "published", "captions", "published", "failed", "captions without video"]]
    for name, split in report["splits"].items():
        keys = ("videos", "videos_listed", "expected_videos", "texts", "expected_captions", "videos_failed")
        cells = [split[k] for k in keys] + [split["texts_without_video"]]
        rows.append([name, *("-" if cell is None else f"{cell:,}" for cell in cells)])
    run.say(aligned(rows))
    for line in report["notes"]:
        run.say(f"note: {line}")
    shown = report["failed"] if run.common.verbose else report["failed"][:20]
    for failure in shown:
        run.say(f"{failure['status']}: {failure['id']}: {failure['reason']}")
    if len(shown) < len(report["failed"]):
        run.say(f"… and {len(report['failed']) - len(shown)} more (all with -v)")


def settings_line(settings: Any) -> str:
    shown = ("epochs", "batch_size", "lr", "weight_decay", "max_frames", "precision", "same_video", "seed")
    parts = [f"{name} {getattr(settings, name)}" for name in shown]
    return "  " + ", ".join(parts + [f"{key} {value}" for key, value in settings.options.items()])


class TrainingLines:
    """Prints how training goes: a line with the remaining time every ten seconds (all with -v), one an epoch."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.started = self.printed = time.monotonic()
        self.first = self.last = 0  # steps done when the clock began, for resumed runs; and at the last report

    def note(self, text: str) -> None:
        self.run.say(f"note: {text}")

    def step(self, report: Any) -> None:
        done, total = (report.epoch - 1) * report.steps + report.step, report.epochs * report.steps
        now = time.monotonic()
        if done <= self.last or not self.first:  # the first report of a training
            self.first, self.started = done, now
        self.last = done
        if self.run.common.verbose or now - self.printed >= 10:
            self.printed = now
            left = (total - done) * (now - self.started) / max(1, done - self.first)
            print(
                f"  epoch {report.epoch}/{report.epochs}  step {report.step}/{report.steps}  loss {report.loss:.4f}  "
                f"lr {report.learning_rate:.2e}  {report.captions_per_second:,.0f} captions/s"
                + (f"  {duration(left)} left" if done > self.first else ""),
                file=sys.stderr,
                flush=True,
            )

    def epoch(self, row: Any, *, best: bool) -> None:
        validated = ""
        if "validation" in row:
            t2v, v2t = (row["validation"][d]["R@1"] for d in ("text_to_video", "video_to_text"))
            validated = f"  validation R@1 {t2v:.1f} text→video, {v2t:.1f} video→text" + ("  (best)" if best else "")
        self.run.say(
            f"  epoch {row['epoch']}  loss {row['loss']:.4f}  {row['captions_per_second']:,.0f} captions/s{validated}"
        )


def print_result(run: Run, result: dict[str, Any]) -> None:
    counts = result["counts"]
    name = f"{result['head']} ({result['run']})"
    if "runs" in result:
        name = f"{result['head']} together, {result['combine']} of similarities ({', '.join(result['runs'])})"
    elif result["run"] is None:
        name = f"{result['head']}, zero-shot"
    run.say(
        f"{name} on {result['dataset']}/{result['split']}: {counts['texts']:,} captions, {counts['videos']:,} videos, "
        f"frozen {result['backbone']}/{result['pretrained']}, selected on {result['selection']}"
    )
    for kind, key in (("videos", "expected_videos"), ("captions", "expected_texts")):
        have = counts["videos" if kind == "videos" else "texts"]
        if counts[key] is not None and have != counts[key]:
            run.say(f"note: {have:,} {kind} of {counts[key]:,} published: not comparable with published numbers")
    if counts["texts_without_video"]:
        run.say(f"note: {counts['texts_without_video']:,} captions lost their video and are not queries")
    metrics = ("R@1", "R@5", "R@10", "MdR", "MnR")
    rows = [["", *metrics]]
    directions = {"text_to_video": "text → video", "video_to_text": "video → text"}
    for key, title in directions.items():
        rows.append([title, *(f"{result[key][m]:.1f}" for m in metrics)])
        interval = result.get("confidence_95", {}).get(key)
        if interval:
            rows.append(["  95 %", *(f"{interval[m][0]:.1f}–{interval[m][1]:.1f}" for m in metrics)])
    if result["video_to_text"] != result["video_to_text_caption"]:
        rows.append(["  by caption", *(f"{result['video_to_text_caption'][m]:.1f}" for m in metrics)])
    for normalisation, found in result.get("normalised", {}).items():
        for key, title in directions.items():
            mark = " (sees all test queries)" if found.get("transductive") else ""
            rows.append([f"{title}, {normalisation}{mark}", *(f"{found[key][m]:.1f}" for m in metrics)])
    for tag, found in result.get("tags", {}).items():
        rows.append([f"captions :{tag}", *(f"{found[m]:.1f}" for m in metrics)])
    run.say(aligned(rows))


def where(hit: Any) -> list[str]:
    if hasattr(hit, "time"):
        return [hit.video, f"{int(hit.time // 60)}:{hit.time % 60:04.1f}"]
    return [hit.video, hit.caption]
