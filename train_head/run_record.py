"""What run.json and resume.safetensors must hold, checked field by field: these files may be damaged, or anybody's."""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from glscl.cache.records import check_backbones
from glscl.cache.schema import FramePosition

MAX_DIM = 10**6  # of features; more is no model
_RUN = {
    "head": str,
    "options": dict,
    "embed_dim": int,
    "cache_fingerprint": str,
    "history": list,
    "settings": dict,
    "cache": str,
}
_RUN_OPTIONAL = {
    "selection": str,
    "versions": dict,
    "training": dict | None,
    "imported": dict,
    "cache_configuration": dict | None,
    "command": str,
    "best": dict | None,
}


def run_problem(run: Mapping[str, Any]) -> str | None:
    """What in a run.json is not as it should be, in words; None where nothing is."""
    for key, kind in _RUN.items():
        if not fits(run.get(key), kind):
            return f"{key} is {short(run.get(key))}, expected {_named(kind)}"
    for key, kind in _RUN_OPTIONAL.items():
        if key in run and not fits(run[key], kind):
            return f"{key} is {short(run[key])}, expected {_named(kind)}"
    if run["embed_dim"] > MAX_DIM:
        return f"embed_dim is {short(run['embed_dim'])}, expected at most {MAX_DIM}"
    settings, notes = run["settings"], run.get("imported", {}).get("notes", [])
    if run.get("selection", "last") not in ("validation", "last", "test"):
        return f"selection is {short(run['selection'])}, expected validation, last or test"
    for key, value in (run.get("training") or {}).items():
        if key in ("texts", "videos") and not fits(value, int):
            return f"{key} of its training are {short(value)}, expected a number of them"
    frames = settings.get("max_frames")
    if frames is not None and not (fits(frames, int) and 1 <= frames <= MAX_DIM):
        return f"max_frames of its settings is {short(frames)}, expected a number of frames"
    if settings.get("frame_position", "uniform") not in get_args(FramePosition):
        return f"frame_position of its settings is {short(settings['frame_position'])}"
    if not fits(notes, list) or not all(isinstance(note, str) for note in notes):
        return f"notes of what was imported are {short(notes)}"
    return _configuration_problem(run) or _weights_problem(run.get("weights", {})) or history_problem(run["history"])


def _configuration_problem(run: Mapping[str, Any]) -> str | None:
    """What is wrong with what a run says of the backbone of its cache; after a second pass it must be known whole."""
    trained = run.get("cache_configuration") or {}
    try:
        if "backbone" in trained:
            check_backbones(trained)
    except ValueError as error:
        return f"cache_configuration cannot be used: {error}"
    lacking = {"name", "words", "preprocessing"} - trained.get("backbone", {}).keys()
    return (
        f"cache_configuration lacks {', '.join(sorted(lacking))} of its backbone"
        if run.get("weights") and lacking
        else None
    )


def _weights_problem(weights: Any) -> str | None:
    """What is wrong with what a second pass says of its backbones, by "best" and "last"."""
    if not fits(weights, dict):
        return f"weights are {short(weights)}, expected an object"
    for which, file in weights.items():
        named = isinstance(file, dict) and all(isinstance(file.get(key), str) for key in ("backbone", "weights"))
        if not named or "/" in file["backbone"]:
            return f"weights of {short(which)} are {short(file)}, expected the name of a file and a hash"
    return None


def history_problem(rows: Iterable[Any]) -> str | None:
    """What in the rows of a history is not as it should be; None where nothing is."""
    for row in rows:
        if not isinstance(row, dict):
            return f"a row of the history is {short(row)}, expected an object"
        if not fits(row.get("loss"), float | None) or not fits(row.get("epoch"), int | None):
            return f"a row of the history has loss {short(row.get('loss'))} and epoch {short(row.get('epoch'))}"
        validation = row.get("validation") or {}
        if not isinstance(validation, dict) or not all(isinstance(metrics, dict) for metrics in validation.values()):
            return f"a row of the history has validation {short(validation)}"
        for metrics in validation.values():
            if not all(fits(value, float) for value in metrics.values()):
                return f"a row of the history has validation {short(metrics)}, expected numbers"
    return None


def state_problem(state: Any, *, epochs: int, steps: int) -> str | None:
    """What in the state of a resume file is not as it should be; None where nothing is."""
    if not isinstance(state, dict):
        return f"found {short(state)}, expected an object"
    for key, last in (("epoch", epochs), ("step", steps)):
        if not fits(state.get(key), int) or not 0 <= state[key] <= last:
            return f"{key} is {short(state.get(key))}, expected 0 to {last}"
    losses = state.get("losses")
    if not isinstance(losses, list) or not all(fits(loss, float) for loss in losses):
        return f"losses are {short(losses)}"
    kinds = {"seconds": float, "history": list, "best": dict | None}
    for key, kind in kinds.items():
        if not fits(state.get(key), kind):
            return f"{key} is {short(state.get(key))}, expected {_named(kind)}"
    if not fits(state.get("saved", {}), dict) or not fits(state.get("scaler"), dict | None):
        return "saved or scaler is not an object"
    return history_problem(state["history"]) or (history_problem([state["best"]]) if state["best"] else None)


def fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a type; a bool is no number, and a number for `float` is finite."""
    kinds = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for each in kinds:
        if each is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            if abs(value) < 1e300 and math.isfinite(value):
                return True
        elif isinstance(value, each) and (each is bool or not isinstance(value, bool)):
            return True
    return False


def short(value: Any) -> str:
    """A value as it may stand in a message."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = ascii(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _named(kind: Any) -> str:
    names = {
        str: "a string",
        dict: "an object",
        list: "a list",
        int: "a whole number",
        float: "a number",
        type(None): "null",
    }
    return " or ".join(names[each] for each in (get_args(kind) or (kind,)))
