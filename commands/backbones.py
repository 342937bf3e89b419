"""Commands about backbones: which there are, one for a machine without a network, a whole model of a public program."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from glscl.commands.extraction import extract
from glscl.commands.judging import eval
from glscl.commands.options import Run, command
from glscl.commands.printing import print_rows
from glscl.commands.shared import CacheFolderOption, DatasetOption, RunFolderOption, SourceOption, UntoldOption
from glscl.commands.training import import_checkpoint
from glscl.common.errors import UsageError
from glscl.common.settings import home
from glscl.extract.settings import ExtractSettings, ListSettings, WeightSettings


@command()
def backbones(
    run: Run,
    name: Annotated[str, typer.Argument(help="Only architectures whose name holds this, such as SigLIP.")] = "",
    offline: Annotated[
        bool, typer.Option("--offline", help="Only those of which everything is on this machine.")
    ] = False,
) -> None:
    """List the backbones that open_clip has weights for: size, preprocessing, and whether they are on this machine."""
    from glscl.extract.backbone.catalog import entries

    found = list(entries(name, offline=offline))
    header = ["backbone", "pretrained", "parameters", "dims", "pixels", "words", "activation", "pictures", "at hand"]
    rows = [header]
    for entry in found:
        rows.append(
            [
                entry.backbone,
                entry.pretrained,
                "-" if entry.millions is None else f"{entry.millions:.0f} M",
                str(entry.embed_dim),
                str(entry.pixels),
                str(entry.words),
                "QuickGELU" if entry.quick_gelu else "GELU",
                f"{entry.mean[0]:.3g} {entry.interpolation} {entry.resize_mode}",
                "yes" if entry.at_hand else f"no {', '.join(entry.missing)}",
            ]
        )
    if found:
        print_rows(run, rows)
    there = sum(entry.at_hand for entry in found)
    where = f" of architectures whose name holds {name!r}" if name else ""
    every = len(list(entries(name))) if offline else len(found)
    run.say(f"{every} published weights{where}, {there} of them on this machine; demo is built in")
    if there < every:
        run.say("one for a machine without a network: glscl fetch BACKBONE --pretrained TAG")
    run.result({"backbones": [{**vars(entry), "at_hand": entry.at_hand} for entry in found]})


@command(WeightSettings)
def fetch(
    run: Run,
    asked: dict[str, Any],
    backbone: Annotated[str, typer.Argument(help="Architecture of open_clip, hf-hub:org/repo or local-dir:FOLDER.")],
    pretrained: Annotated[
        str | None, typer.Option(help="Tag of open_clip, or a file or folder with weights.", metavar="TAG|FILE")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to make. Default: backbones/<backbone>-<tag>, below $GLSCL_HOME.")
    ] = None,
) -> None:
    """Put all that a backbone needs into one folder, which a machine without a network takes as local-dir:FOLDER."""
    from glscl.common.settings import build
    from glscl.extract.backbone.fetching import fetch as make_folder

    if pretrained is None and ":" not in backbone:
        pretrained = _only_tag(backbone)
    called = "-".join(filter(None, (backbone, Path(pretrained or "").name))).replace("/", "-").replace(":", "-")
    out = out or home() / "backbones" / called
    done = make_folder(backbone, pretrained, out, asked=build(WeightSettings, asked))
    folder = shlex.quote(str(done.folder))
    run.say(f"{done.folder}: {done.name}/{done.pretrained}, {done.bytes / 1e6:.1f} MB: {', '.join(done.files)}")
    run.say(
        f"copy it where there is no network, and extract: glscl extract --dataset NAME --backbone local-dir:{folder}"
    )
    run.result(done._asdict())


def _only_tag(backbone: str) -> str | None:
    """The weights of an architecture, where there are no two; None where there are none. Raises UsageError."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(backbone)
    if len(tags) > 1:
        raise UsageError(f"{backbone} has the weights {', '.join(tags)}", hint="Choose one with `pretrained`")
    return tags[0] if tags else None


class _Step(Run):
    """One command of several: it speaks, and its result is kept instead of printed."""

    def __init__(self, run: Run) -> None:
        vars(self).update(vars(run))
        self.value: dict[str, Any] = {}

    def result(self, value: dict[str, Any]) -> None:
        self.value = value


@command(ListSettings, ExtractSettings)
def adopt(
    run: Run,
    asked: dict[str, Any],
    file: Annotated[Path, typer.Argument(help="Whole model: pytorch_model.bin.N, best.pth, model_best.pth ….")],
    dataset: DatasetOption,
    videos: Annotated[
        Path | None,
        typer.Option(help="Folder with the videos. Default: datasets/<name>/videos.", rich_help_panel="Data"),
    ] = None,
    cache: CacheFolderOption = None,
    out: RunFolderOption = None,
    source: SourceOption = "auto",
    option: UntoldOption = None,
) -> None:
    """Judge a whole model of GLSCL, CLIP4Clip, X-CLIP, X-Pool, DRL or DiCoSA: extract with its backbone, import its head, eval."""
    from glscl.commands.training import option_values
    from glscl.common.state_dicts import read_state_dict
    from glscl.extract.backbone.fitting import architecture_of, read_backbone
    from glscl.train_head.importing.import_checkpoint import check_options, head_in

    options = option_values(option or ())
    check_options(source, options)
    if "pretrained" in asked:
        raise UsageError("`pretrained` is what this command takes from the file")
    projection = read_backbone(file).weights.get("text_projection")
    if projection is not None:  # a head that does not fit is told before hours of extraction
        *_, head = head_in(read_state_dict(file), file, source=source, options=options, embed_dim=projection.shape[-1])
        asked |= {} if head.mask_padding else {"pad_tokens": True}
    asked["backbone"] = asked.get("backbone") or architecture_of(file)
    asked["pretrained"] = str(file)
    cache = cache or home() / "caches" / f"{dataset.replace(':', '-')}-{file.resolve().parent.name}-{file.name}"
    steps = {name: _Step(run) for name in ("extracted", "imported", "judged")}
    extract(steps["extracted"], dict(asked), dataset, videos, cache)
    import_checkpoint(steps["imported"], file, source=source, option=option, cache=cache, out=out)
    eval(steps["judged"], {}, [Path(steps["imported"].value["run"])], cache=cache)
    run.result({name: step.value for name, step in steps.items()})
