"""The whole pipeline on what is built in."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from glscl.commands.options import COMMANDS, Run, command, command_line
from glscl.commands.printing import TrainingLines, print_rows
from glscl.commands.wording import command_text
from glscl.common.progress import duration
from glscl.common.settings import home
from glscl.common.tables import amount


@command()
def demo(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(help="Folder for videos, cache, runs and results. Default: demo, below $GLSCL_HOME.")
    ] = None,
    videos: Annotated[
        int | None, typer.Option(help="Training videos; validation and test shrink with them.", min=20)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs a head. Default: the recipe's.", min=1)] = None,
    finetune: Annotated[
        bool,
        typer.Option(
            "--finetune", help="Also fine-tune text tower and glscl head together, extract again and judge that."
        ),
    ] = False,
) -> None:
    """Run the whole pipeline on the built-in corpus and backbone: offline, on a CPU, in a few minutes."""
    from glscl.demo.corpus import SIZES
    from glscl.demo.stages import DemoSettings, run_demo
    from glscl.demo.stages import table as demo_table

    out = out or home() / "demo"
    sizes = {}
    if videos:
        sizes = {split: max(10, round(size * videos / SIZES["train"])) for split, size in SIZES.items()}
    results, seconds = run_demo(
        out,
        DemoSettings(seed=run.seed, sizes=sizes, epochs=epochs, finetune=finetune),
        device=run.device(),
        progress=run.progress,
        reporter=TrainingLines(run),
        say=run.say,
        command=command_line(),
    )
    counts = results["zero_shot"]["counts"]
    spent = ", ".join(f"{stage} {duration(time)}" for stage, time in seconds.items())
    rest = " (fine-tuned in the last row)" if finetune else ""
    run.say(
        f"\ntest split: {amount(counts['videos'], 'video')}, {amount(counts['texts'], 'caption')}, frozen backbone{rest}\n"
    )
    print_rows(run, demo_table(results))
    for name, result in results.items():
        if "tags" in result:
            tags = ", ".join(f":{tag} {found['R@1']:.1f}" for tag, found in result["tags"].items())
            run.say(f"text→video R@1 by kind of caption, {name}: {tags}")
    run.say(f"\n{spent}\nwritten to {out}/results.json and report.html")
    serve = command_text("serve", {"": out / "cache", "run": out / "runs" / "glscl"}, COMMANDS)
    if (
        shutil.which("glscl") is None and Path(sys.argv[0]).name == "glscl"
    ):  # as `make demo` calls it, out of its own environment
        serve = f"{shlex.quote(str(Path(sys.argv[0]).parent))}/{serve}"
    run.say(f"search it on a page: {serve}")
    run.result(results)
