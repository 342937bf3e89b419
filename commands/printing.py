"""What the commands say to people: tables and lines, made from the same values that `--json` prints."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from glscl.commands.options import Run
from glscl.common.addresses import address_of
from glscl.common.progress import duration
from glscl.common.tables import Table, TableRow, amount, cell_text, plain_table, render
from glscl.train_head.reports import Reporter


def print_extraction(run: Run, out: Path, done: Any) -> None:
    """What an extraction did. Of several processes the one that completes the list speaks at the end."""
    if done.finished_here:
        run.speaks = True
    elif run.launch.world > 1 and done.complete and not done.already_complete:
        return  # another process completed the list in the same moment, and says so
    counts = f"{amount(done.videos, 'video')}, {amount(done.frames, 'frame')}, {amount(done.texts, 'caption')}"
    took = f" in {duration(done.seconds['total'])}" + (f"; bound by {done.bound_by}" if done.bound_by else "")
    if not done.complete:
        run.say(f"{out}: part {done.part} {'was done' if done.already_complete else f'is done{took}'}")
        run.say(f"the list {done.list} is not complete until the other parts are done: {counts} are there")
    elif done.already_complete:
        run.say(f"{out} is complete already: {counts} in the list {done.list}")
    else:
        run.say(f"{out}: {counts} in the list {done.list}{took}")
    for line in _news(done):
        run.say(f"  {line}")
    print_failures(run, out, done)


def _news(done: Any) -> list[str]:
    """What was encoded and what was there, and how the list changed, a line each."""
    changes, told = done.changes, []

    def items(counts: dict[str, int]) -> str:
        return f"{amount(counts['videos'], 'video')} and {amount(counts['texts'], 'caption')}"

    if not done.already_complete:
        there = f"; {items(done.reused)} were there already" if any(done.reused.values()) else ""
        told.append(f"encoded {items(done.encoded)}{there}")
    known = f" ({changes['moved']:,} known under another name)" if changes["moved"] else ""
    words = {"new": f"new{known}", "gone": "gone", "replaced": "replaced"}
    news = ", ".join(f"{changes[key]:,} {word}" for key, word in words.items() if changes[key])
    if done.previous is not None and news:
        told.append(f"since the version before: {news}")
    if changes["known_by_id"]:
        keep = "keeps" if changes["known_by_id"] == 1 else "keep"
        told.append(f"{amount(changes['known_by_id'], 'video')} without a file {keep} what was encoded before")
    if done.left:
        told.append(
            f"{amount(done.left, 'shard')} waiting for videos that are not here; without --part they are not waited for"
        )
    return told


def print_failures(run: Run, out: Path, done: Any) -> None:
    """How many videos failed in which way, and which command names them; nothing where none did."""
    if not done.failed:
        return
    words = {"missing": "missing", "decode_error": "not decoded", "partial": "cut short", "timed_out": "timed out"}
    kinds = Counter(row["status"] for row in done.failed)
    told = ", ".join(f"{kinds[status]:,} {word}" for status, word in words.items() if kinds[status])
    lost = done.texts_without_video or 0
    captions = f"; {amount(lost, 'caption')} lost {'its' if lost == 1 else 'their'} video" if lost else ""
    run.say(f"{amount(len(done.failed), 'video')} with failures ({told}){captions}. Reasons: glscl inspect {out}")


def print_table(run: Run, table: Table) -> None:
    """A table for people."""
    run.say(render(table).removesuffix("\n"))


def print_rows(run: Run, rows: list[list[str]]) -> None:
    """Rows of text, a header first, in columns that line up."""
    header, *lines = rows
    print_table(run, plain_table(header, lines))


def _count(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def print_splits(run: Run, counted: dict[str, Any]) -> None:
    """What `extract --dry-run` counted, a row a split."""
    keys = ("captions", "videos", "found", "missing", "expected_captions", "expected_videos")
    rows = [[name, *map(_count, (row[key] for key in keys))] for name, row in counted["splits"].items()]
    print_table(run, plain_table(["split", *(key.replace("_", " ") for key in keys)], rows))
    for name, ids in counted.get("missing_examples", {}).items():
        if ids:
            run.say(f"missing in {name}, for example: {', '.join(ids)}")


_LENGTHS = {
    "annotations": "lengths as the annotations say",
    "files": "lengths as some of the files say",
    "data set": "as long as videos of this data set are on average",
}


def print_forecast(run: Run, foreseen: Any, cores: int) -> None:
    """What `extract --dry-run` foresees."""
    if not foreseen.videos and not foreseen.texts:
        run.say("foreseen: nothing is left to encode")
        return
    items = f"{amount(foreseen.videos, 'video')}, {amount(foreseen.texts, 'different caption')}"
    if foreseen.frames is None:
        run.say(f"foreseen: {items}; how long the videos are is not known, as none is here")
        return
    frames = amount(round(float(f"{foreseen.frames:.2g}")), "frame")
    size = "" if foreseen.bytes is None else f", {rough_size(foreseen.bytes)}"
    run.say(f"foreseen: {items}, about {frames}{size} ({_LENGTHS[foreseen.lengths]})")
    spent = [f"decoding {duration(foreseen.decode_seconds / cores)}"]
    if foreseen.encode_seconds is not None:
        spent.append(f"encoding {duration(foreseen.encode_seconds / cores)} without a GPU")
    run.say(
        f"foreseen on {amount(cores, 'core')}: {', '.join(spent)}, by rates measured on another machine; no GPU was measured"
    )


def rough_size(count: int) -> str:
    """Bytes as people say them: two digits, "150 MB"."""
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{float(f'{count / unit:.2g}'):,g} {name}"


def print_cache(run: Run, report: dict[str, Any], again: dict[str, str]) -> None:
    """What `glscl inspect` found. `again`: hash of an unfinished list → the command that finishes it."""
    shards = ", ".join(f"{s['committed']} of {s['planned']} {name} shards" for name, s in report["shards"].items())
    state = "complete" if report["complete"] else f"NOT complete: {shards}"
    backbone = report["configuration"]["backbone"]
    run.say(f"{report['path']}  ({report['format']}, {report['bytes'] / 1e6:.1f} MB, {state})")
    run.say(
        f"{', '.join(dict.fromkeys(row['dataset'] for row in report['lists'])) or 'no list yet'} through "
        f"{backbone['name']}/{backbone['pretrained']}, "
        f"{report['embed_dim']}-d {report['dtype']}, fingerprint {report['fingerprint']}"
    )
    run.say(
        f"{amount(report['videos'], 'video')} with {amount(report['frames'], 'frame')}, {amount(report['texts'], 'caption')}"
    )
    _print_items(run, report)
    if report["stored_frames"]:
        frames = report["stored_frames"]
        how = frames["encoding"] + (f" of quality {frames['quality']}" if frames["quality"] else "")
        size = "×".join(map(str, frames["size"]))
        run.say(f"frames are stored too: {how}, {size} pixels, {frames['bytes'] / 1e6:.1f} MB")
    _print_lists(run, report, again)
    if report["splits"]:
        shown = {"videos": "videos", "videos_listed": "listed", "expected_videos": "published", "texts": "captions"}
        shown |= {"expected_captions": "published", "videos_failed": "failed"}
        shown |= {"texts_without_video": "captions without video"}
        rows = [[name, *map(_count, (split[key] for key in shown))] for name, split in report["splits"].items()]
        print_table(run, plain_table(["split", *shown.values()], rows))
    for line in report["notes"]:
        run.note(line)
    shown = report["failed"] if run.common.verbose else report["failed"][:20]
    for failure in shown:
        run.say(f"{failure['status']}: {failure['id']}: {failure['reason']}")
    if len(shown) < len(report["failed"]):
        run.say(f"… and {len(report['failed']) - len(shown)} more (all with -v)")


_STREAMS = {"video": "video", "text": "caption"}  # what people call an item of each


def _print_items(run: Run, report: dict[str, Any]) -> None:
    """How many different items there are, and how many of them nobody names any more."""
    counts = " and ".join(amount(report["items"][stream]["there"], name) for stream, name in _STREAMS.items())
    run.say(f"{counts} encoded in {amount(sum(report['additions'].values()), 'addition')}")
    unlisted = {stream: count for stream, count in report["unlisted"].items() if count}
    if unlisted:
        told = " and ".join(amount(count, _STREAMS[stream]) for stream, count in unlisted.items())
        verb, them = ("is", "it") if sum(unlisted.values()) == 1 else ("are", "them")
        run.say(f"{told} {verb} in no current list (glscl convert leaves {them} out)")


def _print_lists(run: Run, report: dict[str, Any], again: dict[str, str]) -> None:
    """A row a list; and what finishes those that are not."""
    header = ["list", "version", "videos", "captions", "without file", "failed", "state"]
    rows = []
    for row in report["lists"]:
        state = "current" if row["current"] else "unfinished"
        pending = ", ".join(amount(count, _STREAMS[stream]) for stream, count in row["pending"].items() if count)
        cells = [f"{row[key]:,}" for key in ("videos", "captions", "without_file", "failed")]
        rows.append([row["name"], row["hash"], *cells, f"{state}, {pending} pending" if pending else state])
    if rows:
        print_table(run, plain_table(header, rows, left=(0, 1, 6)))
    for row in report["lists"]:
        if row["hash"] in again:
            run.say(f"finish {row['name']}: {again[row['hash']]}")


def print_repair(run: Run, report: Any, again: list[str]) -> None:
    """What `glscl repair` did, or with --dry-run would do; a line for each kind of thing, and the commands that go on."""
    if report.clean:
        there = address_of(report.cache, "cache") is not None
        read = "nothing is left behind" if there else "every committed shard is whole and nothing is left behind"
        run.say(f"{report.cache}: {read}")
        return
    would = "would " if report.dry_run else ""
    kinds = {
        "half-written shard(s)": report.partial,
        "shard(s) that no commit names": report.unreferenced,
        "half-written file(s)": report.temporary,
        "lock(s) of processes that are gone": report.locks,
    }
    for kind, names in kinds.items():
        if names:
            run.say(f"{would}remove {len(names)} {kind}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}")
    if report.freed_bytes:
        run.say(f"{would}free {report.freed_bytes / 1e6:.1f} MB")
    for entry in report.damaged:
        items = f" (items {entry['items'][0]} to {entry['items'][1] - 1})" if entry["items"] else ""
        run.say(
            f"{would}set aside {entry['stream']} shard {entry['shard']} of addition {entry['addition']}{items}: "
            f"{entry['problems'][0]}"
        )
    for name, problem in report.aside.items():
        run.say(f"{would}set aside {name}: {problem}")
    for name in report.restored:
        run.say(f"{would}write {name} again, from what other files know")
    for name in report.withdrawn:
        run.say(f"{would}withdraw {name}: its addition is not whole any more")
    requeued = sum(map(len, report.requeued.values()))
    if requeued:
        run.say(f"{requeued} shard(s) {would}wait to be made again")
    if report.aside:
        run.say(f"{', '.join(report.aside)} {would}wait to be written again, which needs no shard")
    for line in again:
        run.say(f"to do so: {line}")


def settings_line(settings: Any) -> str:
    """The settings of a training that people look for, and the options of its head."""
    shown = ("epochs", "batch_size", "lr", "weight_decay", "max_frames", "precision", "same_video", "seed")
    parts = [f"{name} {getattr(settings, name)}" for name in shown]
    return "  " + ", ".join(parts + [f"{key} {value}" for key, value in settings.options.items()])


def backbone_line(settings: Any) -> str:
    """What a second pass does to the backbone, from its `FinetuneSettings`: the rate, and what is not as usual."""
    rate = settings.lr if settings.lora_rank else settings.lr * settings.backbone_lr_scale
    usual = {"freeze": "none", "freeze_layers": 0, "patch_embedding": "2d", "lora_rank": 0, "augment": "none"}
    usual |= {"gradient_checkpointing": False, "micro_batch": None}
    unusual = [f"{name} {getattr(settings, name)}" for name, value in usual.items() if getattr(settings, name) != value]
    return "  " + ", ".join([f"backbone: lr {rate:g}", *unusual])


class TrainingLines(Reporter):
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


_ARROWS = {"text_to_video": "text → video", "video_to_text": "video → text"}


def print_result(run: Run, result: dict[str, Any]) -> None:
    """The table of `eval`: each direction with its interval, and what normalisations make of it below."""
    from glscl.evaluate.run_names import seen_in_training

    counts = result["counts"]
    of_list = "" if result["list"] == result["dataset"] else f" of {result['list']}"
    run.say(
        f"{_judged(result)} on {result['dataset']}/{result['split']}{of_list}: {amount(counts['texts'], 'caption')}, "
        f"{amount(counts['videos'], 'video')}, {'frozen' if result['frozen_backbone'] else 'fine-tuned'} "
        f"{result['backbone']}/{result['pretrained']}, {_selected(result)}"
    )
    for kind, key in (("videos", "expected_videos"), ("captions", "expected_texts")):
        have = counts["videos" if kind == "videos" else "texts"]
        if counts[key] is not None and have != counts[key]:
            run.say(f"note: {have:,} {kind} of {counts[key]:,} published: not comparable with published numbers")
    if counts["texts_without_video"]:
        run.say(f"note: {amount(counts['texts_without_video'], 'caption')} lost their video and are not queries")
    print_table(run, result_table(result))
    if part := result.get("partially_relevant"):
        run.say(
            f"captions of a part of a video: R@100 {part['R@100']:.1f}, SumR (R@1 + R@5 + R@10 + R@100) {part['SumR']:.1f}"
        )
    if mteb := result.get("mteb"):
        both = (f"{arrow} {mteb[f'{key} nDCG@10']:.1f}" for key, arrow in _ARROWS.items())
        run.say(f"MTEB's own measure, nDCG@10: {', '.join(both)}")
    if graded := result.get("graded"):
        run.say(f"with the judgements of {graded['qrels']}, in percent:")
        names = [name for name in graded["text_to_video"] if name != "queries"]
        both = ((arrow, graded[key]) for key, arrow in _ARROWS.items() if key in graded)
        print_rows(run, [["", *names], *([arrow, *(f"{of[n]:.1f}" for n in names)] for arrow, of in both)])
    if moments := result.get("moments"):
        named = {name: value for name, value in moments.items() if isinstance(value, float)}
        run.say(
            f"when {moments['queries']:,} of {amount(moments['captions'], 'caption')} happen, by {moments['file']}:"
        )
        print_rows(run, [[*named], [f"{value:.1f}" for value in named.values()]])
    normalised = result.get("normalised", {})
    if any(found["transductive"] for found in normalised.values()):
        run.say("* sees all test queries at once: not what a query gets that comes alone")
    for bank in dict.fromkeys(found["bank"] for found in normalised.values() if found["bank"] != "none"):
        run.say(f"extra data of {', '.join(n for n, found in normalised.items() if found['bank'] == bank)}: {bank}")
    if seen := seen_in_training(result):
        run.say(f"warning: {seen}")
    for doubt in result.get("doubts", ()):
        run.say(f"warning: {doubt}")
    if result["selection"] == "test" and result["split"] == "test":
        run.say("warning: the epoch was selected on these test queries, so the numbers are optimistic")


def result_table(result: dict[str, Any]) -> Table:
    """All metrics of a result, with what belongs to a direction below it."""
    from glscl.evaluate.metrics import METRICS, metric_cells

    confidence = result.get("confidence_95", {})

    def row(name: str, metrics: dict[str, float], spreads: Any = None, *, kind: str = "") -> TableRow:
        return TableRow("", (name, *metric_cells(metrics, spreads, names=tuple(METRICS))), kind)

    rows = []
    for key, title in _ARROWS.items():
        rows.append(row(title, result[key], confidence.get(key)))
        if key == "video_to_text" and result[key] != result["video_to_text_caption"]:
            rows.append(row("by caption", result["video_to_text_caption"], kind="under"))
        for name, found in result.get("normalised", {}).items():
            rows.append(row(f"{name}{' *' if found['transductive'] else ''}", found[key], kind="under"))
    rows += [row(f"captions :{tag}", found) for tag, found in result.get("tags", {}).items()]
    return Table("", ("", *METRICS), tuple(rows), left=(0,))


def _judged(result: dict[str, Any]) -> str:
    if "runs" in result:
        how = {"mean": "mean of similarities", "scaled": "mean of similarities scaled by temperature"}[
            result["combine"]
        ]
        return f"{result['head']} together, {how} ({', '.join(result['runs'])})"
    return f"{result['head']}, zero-shot" if result["run"] is None else f"{result['head']} ({result['run']})"


def _selected(result: dict[str, Any]) -> str:
    if result["run"] is None and "runs" not in result:
        return "untrained"
    return "last epoch" if result["selection"] == "last" else f"selected on {result['selection']}"


def print_hits(run: Run, hits: Sequence[Any], normalise: str | None) -> None:
    """Videos of an answer, or moments: each with its parts that fit, a link where the terminal knows links, and its file."""
    rows = []
    for hit in hits:
        ordered_by = [] if normalise is None else [f"{hit.normalised:.3f}"]
        parts = ", ".join(f"{clock(moment.start)}–{clock(moment.end)}" for moment in hit.moments)
        rows.append([f"{hit.rank}", f"{hit.score:.3f}", *ordered_by, hit.video, parts, "file"])
    columns = ["rank", "score", *([normalise] if normalise else []), "video", "moment", "file"]
    left = tuple(range(len(columns) - 3, len(columns)))
    header, *lines = render(plain_table(columns, rows, left=left)).removesuffix("\n").split("\n")
    run.say(header)
    at = header.index("video")
    for line, hit in zip(lines, hits):
        path = "not there any more" if hit.path is None else hit.path.replace("\n", "\\n")
        address = None if hit.path is None else _link(hit)
        link = None if address is None else (at, at + len(cell_text(hit.video)), address)
        run.say(line.removesuffix("file") + path, link=link)  # a path stands as it is, to be opened


def _link(hit: Any) -> str | None:
    from glscl.evaluate.search.playing import link_to

    return link_to(hit.path, hit.moments[0].start, hit.moments[0].end)


def print_captions(run: Run, hits: Sequence[Any], normalise: str | None) -> None:
    """Captions of an answer."""
    columns = ["rank", "score", *([normalise] if normalise else []), "video", "caption"]
    rows = [
        [f"{h.rank}", f"{h.score:.3f}", *([] if normalise is None else [f"{h.normalised:.3f}"]), h.video, h.caption]
        for h in hits
    ]
    print_table(run, plain_table(columns, rows, left=(len(columns) - 2, len(columns) - 1)))


def clock(seconds: float) -> str:
    """A moment of a video: 0:02.5, 1:02:03.0."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{start}:{rest // 10:02d}.{rest % 10}"


def lines_of(stream: IO[str], prompt: str | None) -> Iterator[str]:
    """Lines that say something, until the stream ends; with a prompt where a person types."""
    while True:
        if prompt:
            print(prompt, end="", file=sys.stderr, flush=True)
        line = stream.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
