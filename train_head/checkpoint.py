"""A run folder: what was trained, on what, how it went, and the weights. safetensors and JSON, nothing pickled.

    run.json             head, options, settings, cache and fingerprint, selection, history, versions, command
    history.jsonl        one line an epoch
    best.safetensors     weights of the head, of the selected epoch
    last.safetensors     weights of the head, of the last epoch
    backbone.safetensors, backbone-last.safetensors    the same of the backbone, where `finetune` trained it
    resume.safetensors   while training: weights, optimizer moments, and (as its metadata) how far the run is

Every file is replaced in one step, so a killed run leaves the files of its last finished epoch.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from glscl.cache.files import dump_json, utf8_name, write_atomically
from glscl.cache.fingerprint import differences
from glscl.cache.library import Library, open_library
from glscl.cache.lists import current_version, list_names
from glscl.cache.store import Store, choose_list
from glscl.common.errors import CheckpointError, FingerprintError, Hint, NotFoundError
from glscl.train_head.heads import build_head, recorded_head_class
from glscl.train_head.heads.base import Head
from glscl.train_head.run_record import run_problem, short

RUN_SCHEMA = "glscl.run/1"
WHICH = ("best", "last")

# Parts of a cache's configuration that decide whether a head understands its features. The others (sampling, numbers of
# words, dtype) may differ, and so may the list: a head may be judged on another corpus.
_BINDING = ("library", "name", "pretrained", "weights", "quick_gelu", "preprocessing", "tokenizer")


class Resume(NamedTuple):
    """What resume.safetensors holds: tensors by name and the rest as JSON."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


# --- run.json ----------------------------------------------------------------------------------------------------------


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Write run.json and history.jsonl. Raises StorageError."""
    write_atomically(folder / "history.jsonl", b"".join(dump_json(row, indent=None) for row in run["history"]))
    write_atomically(folder / "run.json", dump_json({"schema": RUN_SCHEMA, **run}))
    _date_last(folder / "run.json")


def _date_last(path: Path) -> None:
    """Make this the youngest run of its folder, as it is, where the clock was set back since another was written."""
    with contextlib.suppress(OSError):
        others = [other.stat().st_mtime_ns for other in path.parent.parent.glob(f"*/{path.name}") if other != path]
        if others and max(others) >= path.stat().st_mtime_ns:
            youngest = max(others) + 10**6
            os.utime(path, ns=(youngest, youngest))


def read_run(folder: Path) -> dict[str, Any]:
    """The content of run.json.

    Raises:
        NotFoundError: there is no run.
        CheckpointError: run.json is not what `write_run` writes.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise NotFoundError(
            f"No run at {folder}: it has no run.json", hint=Hint("Train one", "train-head", {"out": folder})
        )
    try:
        run = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    found = run.get("schema") if isinstance(run, dict) else type(run).__name__
    if found != RUN_SCHEMA:
        raise CheckpointError(f"{path} has schema {short(found)}; this version reads {RUN_SCHEMA!r}")
    problem = run_problem(run)
    if problem:
        raise CheckpointError(f"{path}: {problem}")
    return run


# --- weights -----------------------------------------------------------------------------------------------------------


def save_weights(path: Path, head: Head) -> None:
    """Write the state dict of a head. Raises StorageError."""
    _save(path, head.state_dict(), {"format": "pt"})


def load_weights(path: Path, head: Head) -> None:
    """Set all weights of a head from a file.

    Raises:
        NotFoundError: there is no such file.
        CheckpointError: it cannot be read, or its names and shapes are not the head's.
    """
    tensors, _ = _load(path)
    check_tensors(path, tensors, {name: value.shape for name, value in head.state_dict().items()})
    head.load_state_dict(tensors)


def load_run(
    folder: Path | str, which: str = "best", *, device: torch.device | str = "cpu"
) -> tuple[Head, dict[str, Any]]:
    """A trained head in evaluation mode, and its run.json.

    Args:
        which: "best" or "last".

    Raises:
        NotFoundError: no run, or none with such weights yet.
        CheckpointError: files that cannot be read or do not belong together.
        UsageError: a head from outside this package that nobody asked for; see `recorded_head_class`.
    """
    if which not in WHICH:
        raise ValueError(f"which is {which!r}, expected one of {', '.join(WHICH)}")
    folder = Path(folder)
    run = read_run(folder)
    if ":" in run["head"]:
        recorded_head_class(run["head"], folder)
    path = folder / f"{which}.safetensors"
    tensors, _ = _load(path)
    for name, value in run["options"].items():
        if name.endswith("layers") and isinstance(value, int) and value > len(tensors):
            raise CheckpointError(
                f"{path} does not fit the head: {name} is {value}, but it holds {len(tensors)} tensors"
            )
    try:
        with torch.device("meta"), _Unfilled():  # sizes alone: what run.json claims may not fit into any memory
            shapes = build_head(run["head"], embed_dim=run["embed_dim"], **run["options"]).state_dict()
        check_tensors(path, tensors, {name: value.shape for name, value in shapes.items()})
        head = build_head(run["head"], embed_dim=run["embed_dim"], **run["options"])
    except CheckpointError:
        raise
    except Exception as error:  # torch raises nearly anything for sizes that cannot be
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(f"{folder / 'run.json'} describes no head of this version: {reason}") from error
    head.load_state_dict(tensors)
    return head.to(device).eval(), run


def check_tensors(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    """Raise a CheckpointError unless `found` has exactly the names and shapes `expected`."""
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        parts = [
            f"{what} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            for what, names in (("lacks", missing), ("has unknown", unknown))
            if names
        ]
        raise CheckpointError(f"{path} does not fit the head: it {' and '.join(parts)}")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise CheckpointError(f"{path}: {name} has shape {tuple(found[name].shape)}, expected {tuple(shape)}")


# --- how far a run is --------------------------------------------------------------------------------------------------


def save_resume(folder: Path, resume: Resume) -> None:
    """Write resume.safetensors, tensors and state in one file, so that they cannot be of different moments."""
    _save(folder / "resume.safetensors", resume.tensors, {"state": json.dumps(resume.state, allow_nan=False)})


def load_resume(folder: Path) -> Resume | None:
    """What `save_resume` wrote, None where there is nothing. Raises CheckpointError for a file that cannot be read."""
    path = folder / "resume.safetensors"
    if not path.exists():
        return None
    tensors, metadata = _load(path)
    try:
        state = json.loads(metadata["state"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} does not say where the run stands: {error!r}") from error
    return Resume(tensors, state)


class _Unfilled(TorchFunctionMode):
    """Leaves out the starting values of modules built within.

    Nothing can be filled on the meta device, where trying makes torch import its compiler, for longer than an evaluation
    of a small head takes.
    """

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        if getattr(function, "__module__", None) == "torch.nn.init" or function in (
            torch.Tensor.normal_,
            torch.Tensor.uniform_,
        ):
            return named["tensor"] if "tensor" in named else arguments[0]
        if function is torch.eye:
            return named["out"] if "out" in named else torch.empty(arguments[0], arguments[-1])
        return function(*arguments, **named)


# --- the cache a run belongs to ----------------------------------------------------------------------------------------


def cache_record(store: Store) -> dict[str, Any]:
    """What run.json says of the cache and the list that a run was made from; see `open_recorded`."""
    name, pretrained = backbone_of(store.configuration)
    return {
        "dataset": store.dataset,
        "backbone": name,
        "pretrained": pretrained,
        "cache": str(store.path),
        "cache_fingerprint": store.fingerprint,
        "list": store.list_name,
        "list_hash": store.list_hash,
        "annotations": store.list.annotations,
        "cache_configuration": store.configuration,
    }


def open_recorded(record: Mapping[str, Any], cache: Path | None = None, list: str | None = None) -> Store:
    """The cache that a run or a result was made from, or another one, seen at the list it was made from.

    By its hash, not its name: what was added to the list since does not change what is read. Another cache that does not
    have that version is seen at its only list.

    Args:
        record: content of run.json or of a result file.
        cache: another place to look at; by default the recorded one.
        list: another list, as `glscl.cache.store.open_store` takes it.

    Raises:
        NotFoundError: the recorded cache does not have that version of the list any more.
        UsageError: another cache does not have it, and several lists.
        Others: see `open_store`.
    """
    library = open_library(Path(record["cache"]) if cache is None else cache)
    name, version = record.get("list"), record.get("list_hash")
    if list is not None or not version:
        return Store(library, choose_list(library, list))
    for known_as in (f"{name}@{version}", version):
        with contextlib.suppress(NotFoundError):
            return Store(library, choose_list(library, known_as))
    if os.path.realpath(library.path) == os.path.realpath(record["cache"]):
        raise NotFoundError(
            f"{library.path} does not have the list {name}@{version} any more; it has {_lists(library)}",
            hint="Choose one with `list`",
        )
    return Store(library, choose_list(library, None))


def _lists(library: Library) -> str:
    """The current versions of the lists of a cache, as they are named."""
    if library.is_flat:
        only = choose_list(library, None)
        return f"{only.name}@{only.hash}"
    named = [(name, current_version(library.path, name)) for name in list_names(library.path)]
    return ", ".join(name if version is None else f"{name}@{version}" for name, version in named) or "none"


def list_differences(run: Mapping[str, Any], store: Store) -> list[str]:
    """Whether a cache is seen at another list than a run was made from, or at another version of it: a line, or none."""
    if run.get("list_hash") in (None, "", store.list_hash):
        return []
    line = f"list: found {store.list_name}@{store.list_hash}, expected {run.get('list')}@{run['list_hash']}"
    return [
        f"{line}, the same annotations with other files" if run.get("annotations") == store.list.annotations else line
    ]


def check_cache(folder: Path | str, run: Mapping[str, Any], store: Store, *, which: str = "best") -> list[str]:
    """Refuse features that the head of a run cannot understand.

    Args:
        folder: the run, for the message.
        run: content of its run.json.
        store: an open cache.
        which: "best" or "last" weights; a second pass leaves a backbone with each.

    Returns:
        What else differs from what the run was trained on (list, sampling, …), one line each.

    Raises:
        FingerprintError: another backbone, preprocessing or size of features.
    """
    tuned, lists = run.get("weights", {}).get(which), list_differences(run, store)
    if tuned is None and run["cache_fingerprint"] == store.fingerprint:
        return lists
    trained = run.get("cache_configuration") or {}
    if tuned is not None:
        backbone = {**trained["backbone"], "pretrained": tuned["backbone"], "weights": tuned["weights"]}
        trained = {**trained, "backbone": backbone}
    here, there = _binding(store.configuration), _binding(trained)
    if tuned is not None:
        here["pretrained"] = there["pretrained"]  # the file may have another name; the hash of its weights decides
    if here != there:
        ours, theirs = _describe(store.configuration), _describe(trained)
        detail = "" if ours != theirs else f" ({'; '.join(differences(here, there)[:2])})"
        name, pretrained = backbone_of(trained)
        again: dict[str, Any] = {"dataset": store.dataset, "backbone": name}
        if trained.get("backbone", {}).get("preprocessing", {}).get("method") == "fast":
            again["preprocess"] = "fast"
        if tuned is not None:
            weights = Path(folder) / tuned["backbone"]
            hint = Hint("Extract again", "extract", {**again, "pretrained": weights, "out": "CACHE"})
            if run["cache_fingerprint"] == store.fingerprint:
                hint = extraction_hint(store, weights)
            raise _other_than_tuned(folder, tuned, store, ours, hint)
        if pretrained not in (None, "openai", "demo"):
            again["pretrained"] = pretrained
        raise FingerprintError(
            f"{store.path} was extracted with {ours}; {folder} expects {theirs}{detail}",
            hint=Hint("Extract again", "extract", again),
        )
    features = differences(store.configuration, trained)
    return [*lists, *(line for line in features if not line.startswith("backbone.pretrained:"))]


def _other_than_tuned(
    folder: Path | str, tuned: Mapping[str, Any], store: Store, ours: str, extract: Hint
) -> FingerprintError:
    """What to say of features that another backbone gave than the one a second pass left."""
    pixels = Hint("Judge it from pixels", "eval", {"run": folder, "videos": videos_folder(store) or "DIR"})
    again = extract._replace(otherwise=pixels._replace(text="from pixels"))
    return FingerprintError(
        f"{store.path} was extracted with {ours}; {folder} trained the backbone itself, so its head reads other features",
        hint=pixels if tuned.get("patch_embedding") == "3d" else again,
    )


def extraction_hint(store: Store, weights: Path | str) -> Hint:
    """How what a cache holds is extracted again with other weights, into a folder CACHE that is to be named.

    By the command that made the cache, as it was typed, where an extraction did.
    """
    new = {"pretrained": weights, "out": "CACHE"}
    typed = store.list.command
    if typed.split(" ")[:2] == ["glscl", "extract"]:
        return Hint("Extract again", typed, new)
    about = store.configuration
    known = {"dataset": store.dataset, "annotations": "FILE", "videos": videos_folder(store) or "DIR"}
    fast = about.get("backbone", {}).get("preprocessing", {}).get("method") == "fast"
    known |= {"backbone": backbone_of(about)[0]} | ({"preprocess": "fast"} if fast else {})
    return Hint("Extract again", "extract", {**known, **new})


def videos_folder(store: Store) -> str | None:
    """The folder that all videos of a cache lay in when it was made; None where nothing says so."""
    folders = {os.path.dirname(video.path) for video in store.plan.videos if video.path}
    if not folders or len({os.path.isabs(folder) for folder in folders}) > 1:
        return None
    return os.path.commonpath(folders) or "."


def backbone_of(configuration: Mapping[str, Any]) -> tuple[str, str | None]:
    """Architecture and weights' tag of the backbone that a cache was made with."""
    backbone = configuration.get("backbone")
    if isinstance(backbone, Mapping):
        return str(backbone.get("name", "unknown")), backbone.get("pretrained")
    return str(backbone or "unknown"), None


def _binding(configuration: Mapping[str, Any]) -> dict[str, Any]:
    backbone = configuration.get("backbone")
    parts = {key: backbone.get(key) for key in _BINDING} if isinstance(backbone, Mapping) else {"name": backbone}
    return {"embed_dim": configuration.get("embed_dim"), **parts}


def _describe(configuration: Mapping[str, Any]) -> str:
    name, pretrained = backbone_of(configuration)
    return f"{name}{f'/{pretrained}' if pretrained else ''} ({configuration.get('embed_dim')}-d)"


# --- files -------------------------------------------------------------------------------------------------------------


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, save(ready, metadata))


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    if not path.is_file():
        raise NotFoundError(f"There is no {path}", hint="Train until the first epoch is done, or name another run")
    try:
        with utf8_name(path) as name, safe_open(name, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except Exception as error:  # safetensors raises its own, undocumented type
        raise CheckpointError(f"{path} cannot be read: {str(error)[:200]}") from error
