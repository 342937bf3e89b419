"""What an issue report needs to know of the machine, a line a subject; what is wrong with it stands below."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, NamedTuple

from glscl.commands.default_paths import caches_there, own_backbones, runs_there
from glscl.commands.options import Run, command
from glscl.common.devices import cores
from glscl.common.errors import first_line
from glscl.common.settings import home
from glscl.common.tables import amount

# FFmpeg's names of its decoders
_CODECS = ("h264", "hevc", "vp9", "av1", "mpeg4", "mpeg2video", "vp8", "wmv2", "prores")
_FOR_DEVELOPERS = {"test", "lint", "docs"}
_VARIABLES = ("GLSCL_HOME", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONPATH", "WORLD_SIZE", "RANK", "LOCAL_RANK")
_PREFIXES = ("HF_", "TORCH_", "PYTORCH_", "NCCL_", "SLURM_JOB_", "ACCELERATE_")
_LITTLE = 1_000_000_000  # bytes of free disk


class Finding(NamedTuple):
    """One subject.

    Attributes:
        line: for people.
        facts: for `--json`.
        problems: what is wrong, a sentence each, with what mends it.
    """

    line: str
    facts: dict[str, Any]
    problems: list[str] = []  # noqa: RUF012 (nobody adds to it)


@command()
def doctor(run: Run) -> None:
    """Tell what an issue report needs: versions, device, codecs, free disk, backbones at hand, places to write to."""
    told: dict[str, Any] = {}
    problems: list[str] = []
    for subject, look in _SUBJECTS.items():
        try:
            found = look(run)
        except Exception as error:  # a package that cannot be imported is what this command is for
            reason = f"{type(error).__name__}: {first_line(error)}"
            found = Finding("cannot be told", {"error": reason}, [f"{subject}: {reason}"])
        run.say(f"{subject:<11} {found.line}")
        told[subject] = found.facts
        problems += found.problems
    for problem in problems:
        run.say(f"problem: {problem}")
    run.result({**told, "problems": problems})


def _system(run: Run) -> Finding:
    from glscl import __version__

    facts = {"glscl": __version__, "python": platform.python_version(), "executable": sys.executable}
    facts |= {"system": platform.platform(), "where": str(Path(__file__).parents[1])}
    return Finding(f"glscl {__version__}, Python {facts['python']}, {facts['system']}", facts)


def _packages(run: Run) -> Finding:
    there, problems = {}, []
    for wanted, _ in _requirements(lambda extra: not extra):
        there[wanted.name] = found = _version(wanted.name)
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            what = "is not installed" if found is None else f"is {found}"
            problems.append(
                f"{wanted.name} {what}; expected {wanted.specifier}: pip install '{wanted}'".replace(";", ",", 1)
            )
    return Finding(", ".join(f"{name} {found}" for name, found in there.items()), there, problems)


def _extras(run: Run) -> Finding:
    there: dict[str, dict[str, str | None]] = {}
    for wanted, extra in _requirements(lambda extra: bool(extra) and extra not in _FOR_DEVELOPERS):
        there.setdefault(extra, {})[wanted.name] = _version(wanted.name)
    whole = [extra for extra, packages in there.items() if all(packages.values())]
    line = f"{', '.join(whole) or 'none'}; not installed: {', '.join(x for x in there if x not in whole) or 'none'}"
    return Finding(line, there)


def _requirements(admitted: Callable[[str], bool]) -> Iterable[tuple[Any, str]]:
    """What the installed package asks for on this machine, each with the extra that it belongs to, or ""."""
    from packaging.requirements import Requirement

    for wanted in map(Requirement, requires("glscl") or ()):
        extra = str(wanted.marker).partition('extra == "')[2].partition('"')[0]
        if admitted(extra) and (wanted.marker is None or wanted.marker.evaluate({"extra": extra})):
            wanted.marker = None
            yield wanted, extra


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor(run: Run) -> Finding:
    import torch

    from glscl.common.memory import available

    count = cores()
    facts = {"model": _model(), "cores": count, "threads": torch.get_num_threads(), "memory_available": available()}
    memory = (
        "" if facts["memory_available"] is None else f", {facts['memory_available'] / 1e9:.1f} GB of memory to take"
    )
    return Finding(f"{facts['model']}, {count} cores, torch uses {facts['threads']}{memory}", facts)


def _model() -> str:
    with open("/proc/cpuinfo") if os.path.exists("/proc/cpuinfo") else open(os.devnull) as file:
        names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        return next(names, platform.processor() or platform.machine())


def _device(run: Run) -> Finding:
    import torch

    from glscl.common.devices import lost_gpu

    chosen, lost = run.device(), lost_gpu()
    facts: dict[str, Any] = {"device": str(chosen), "cuda": torch.version.cuda, "lost": lost, "gpus": []}
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(number)
        capability = f"{about.major}.{about.minor}"
        facts["gpus"].append({"name": about.name, "memory": about.total_memory, "capability": capability})
    gpus = [f"{gpu['name']} {gpu['memory'] / 1e9:.0f} GB, compute {gpu['capability']}" for gpu in facts["gpus"]]
    line = f"{chosen}; {', '.join(gpus) or 'no GPU'}; torch is built for {(facts['cuda'] and 'CUDA ' + facts['cuda']) or 'CPUs'}"
    return Finding(line, facts, [f"the GPU of this machine cannot be used: {lost}"] if lost else [])


def _codecs(run: Run) -> Finding:
    import av

    facts: dict[str, Any] = {"libavcodec": ".".join(map(str, av.library_versions["libavcodec"])), "decoders": {}}
    for name in _CODECS:
        facts["decoders"][name] = name in av.codecs_available
    for library in ("decord", "torchcodec"):
        try:
            facts[library] = getattr(import_module(library), "__version__", "there")
        except Exception as error:
            facts[library] = None if isinstance(error, ModuleNotFoundError) else first_line(error)
    missing = [name for name, there in facts["decoders"].items() if not there]
    line = f"libavcodec {facts['libavcodec']} reads {', '.join(n for n in _CODECS if n not in missing)}"
    others = ", ".join(f"{name} {facts[name] or 'not installed'}" for name in ("decord", "torchcodec"))
    problems = [f"PyAV has no decoder for {', '.join(missing)}: pip install --force-reinstall av"] if missing else []
    return Finding(f"{line}; {others}", facts, problems)


def _backbones(run: Run) -> Finding:
    from glscl.extract.backbone.catalog import entries

    at_hand = [f"{entry.backbone}/{entry.pretrained}" for entry in entries(offline=True)]
    shown = ["demo", *own_backbones(), *at_hand]
    rest = f" and {len(shown) - 6} more (glscl backbones --offline)" if len(shown) > 6 else ""
    return Finding(f"{', '.join(shown[:6])}{rest}", {"at_hand": shown})


def _places(run: Run) -> Finding:
    from huggingface_hub.constants import HF_HUB_CACHE

    facts, problems, lines = {}, [], []
    for use, path in {
        "home": home().absolute(),
        "temporary": Path(tempfile.gettempdir()),
        "weights": Path(HF_HUB_CACHE),
    }.items():
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        writable, free = os.access(there, os.W_OK | os.X_OK) and there.is_dir(), shutil.disk_usage(there).free
        facts[use] = {"path": str(path), "writable": writable, "free": free}
        lines.append(f"{path} ({use}{'' if writable else ', NOT writable'}, {free / 1e9:.1f} GB free)")
        if not writable:
            problems.append(f"{there} cannot be written to")
        elif free < _LITTLE:
            problems.append(f"{path} has {free / 1e9:.1f} GB left")
    return Finding(", ".join(lines), facts, problems)


def _contents(run: Run) -> Finding:
    caches, runs = [str(path) for path in caches_there()], [str(path) for path in runs_there()]
    return Finding(
        f"{amount(len(caches), 'cache')}, {amount(len(runs), 'run')} below {home()}", {"caches": caches, "runs": runs}
    )


def _environment(run: Run) -> Finding:
    secret = ("TOKEN", "KEY", "SECRET", "PASSWORD")
    found = {n: v for n, v in sorted(os.environ.items()) if n in _VARIABLES or n.startswith(_PREFIXES)}
    found = {n: "set, not shown" if any(word in n for word in secret) else v for n, v in found.items()}
    return Finding(
        ", ".join(f"{name}={value}" for name, value in found.items()) or "nothing that matters is set", found
    )


_SUBJECTS: dict[str, Callable[[Run], Finding]] = {
    "system": _system,
    "packages": _packages,
    "extras": _extras,
    "processor": _processor,
    "device": _device,
    "codecs": _codecs,
    "backbones": _backbones,
    "places": _places,
    "contents": _contents,
    "environment": _environment,
}
