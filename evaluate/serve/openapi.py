"""What the API of a server is, as OpenAPI 3.1 describes it."""

from __future__ import annotations

from typing import Any

from glscl.evaluate.serve.asking import MOST, PART, SEARCH, SENTENCES, WHERE

_NUMBER, _TEXT, _WHOLE = {"type": "number"}, {"type": "string"}, {"type": "integer"}
_MAYBE_TEXT, _MAYBE_NUMBER = {"type": ["string", "null"]}, {"type": ["number", "null"]}
PARAMETERS: dict[str, tuple[dict[str, Any], str]] = {
    "q": (_TEXT, "the sentence to look for"),
    "and": (_TEXT, "a sentence that should fit too; may stand several times"),
    "not": (_TEXT, "a sentence that should not fit; may stand several times"),
    "cache": (_TEXT, "name of a cache, see /api/caches; default: the first"),
    "list": (_TEXT, "name of a list of it; default: the first"),
    "head": (_TEXT, "what orders the videos found: a run, or a head that needs no training; default: the first"),
    "top": ({"type": "integer", "minimum": 1, "maximum": MOST}, "how many answers; default 10"),
    "by": ({"enum": ["video", "moment"]}, "answers are videos, or the moments of all of them"),
    "moments": ({"type": "integer", "minimum": 1}, "moments told of a video; default 1"),
    "min": (_NUMBER, "only answers whose score is at least this"),
    "split": (_TEXT, "only videos of a split"),
    "folder": (_TEXT, "only videos whose id or file lies below this folder"),
    "shortest": (_NUMBER, "only videos of at least so many seconds"),
    "longest": (_NUMBER, "only videos of at most so many seconds"),
    "exact": ({"type": "boolean"}, "look at every frame, also where the cache has an approximate index"),
    "start": (_NUMBER, "of a clip that is sent: from this second on"),
    "end": (_NUMBER, "of a clip that is sent: up to this second"),
    "t": (_NUMBER, "seconds from the start of the video"),
    "encode": ({"type": "boolean"}, "encode the part anew, also what browsers should be able to play as it is"),
    "id": (_TEXT, "the id where no path can hold it: `.` or `..`"),
    "v": (_TEXT, "ignored; makes another address of another file"),
}


def describe() -> dict[str, Any]:
    """The document that /openapi.json gives."""
    from glscl import __version__

    video = (*WHERE, "t", "v", "id")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "glscl",
            "version": __version__,
            "description": "Search videos by sentences, pictures and clips. Links in answers are to be followed as they are.",
        },
        "paths": {
            "/api/search": {
                "get": _operation("Videos for a sentence", (*SENTENCES, *WHERE, *SEARCH), "Answer"),
                "post": {
                    **_operation(
                        "Videos like a picture or clip, which is the body", (*WHERE, *SEARCH, *PART), "Answer"
                    ),
                    "requestBody": {"required": True, "content": {"image/*": {}, "video/*": {}}},
                },
            },
            "/api/similar/{id}": {
                "get": _operation("Videos like one of the list", ("t", "id", *WHERE, *SEARCH), "Answer", of_id=True)
            },
            "/api/caches": {"get": _operation("What can be searched", (), "Caches")},
            "/api/failures": {"get": _operation("Videos without features", tuple(WHERE), "Failures")},
            "/api/video/{id}": {"get": _operation("What is known of a video", video, "Video", of_id=True)},
            "/api/preview/{id}": {
                "get": _operation("A part that browsers play", (*video, "encode"), "Preview", of_id=True)
            },
            "/preview/{name}": {
                "get": {
                    "summary": "Such a part itself",
                    "parameters": [{"name": "name", "in": "path", "required": True, "schema": _TEXT}],
                    "responses": {"200": {"description": "the video, also in ranges", "content": {"video/*": {}}}},
                }
            },
            "/thumb/{id}": {"get": _operation("A frame of a video", video, "image/jpeg", of_id=True)},
            "/video/{id}": {"get": _operation("The file of a video, also in ranges", video, "video/*", of_id=True)},
            "/openapi.json": {"get": {"summary": "This", "responses": {"200": {"description": "OpenAPI 3.1"}}}},
        },
        "components": {"schemas": _SCHEMAS, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(summary: str, names: tuple[str, ...], gives: str, *, of_id: bool = False) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "query", "schema": PARAMETERS[name][0], "description": PARAMETERS[name][1]}
        for name in dict.fromkeys(names)
    ]
    if of_id:
        parameters.insert(0, {"name": "id", "in": "path", "required": True, "schema": _TEXT})
    content = {gives: {}} if "/" in gives else {"application/json": {"schema": _reference(gives)}}
    failed = {"description": "what is wrong", "content": {"application/json": {"schema": _reference("Error")}}}
    return {
        "summary": summary,
        "parameters": parameters,
        "responses": {"200": {"description": summary, "content": content}, "4XX": failed, "5XX": failed},
    }


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**properties: Any) -> dict[str, Any]:
    """An object of these properties; those that end in `_` need not be there."""
    return {
        "type": "object",
        "properties": {name.rstrip("_"): kind for name, kind in properties.items()},
        "required": [name for name in properties if not name.endswith("_")],
        "additionalProperties": False,
    }


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


_BOOL = {"type": "boolean"}
_MOMENT = _object(start=_NUMBER, end=_NUMBER, score=_NUMBER, time=_NUMBER)
_HIT = _object(
    rank=_WHOLE,
    video=_TEXT,
    path=_MAYBE_TEXT,
    score=_NUMBER,
    normalised_=_MAYBE_NUMBER,
    time=_NUMBER,
    moments=_list(_MOMENT),
    split=_TEXT,
    duration=_NUMBER,
    there=_BOOL,
    strip=_object(times=_list(_NUMBER), scores=_list(_NUMBER)),
    links=_object(video=_TEXT, thumb=_TEXT, about=_TEXT, preview=_TEXT, similar=_TEXT),
)
_LIST = _object(
    name=_TEXT,
    hash=_TEXT,
    dataset=_TEXT,
    videos=_WHOLE,
    captions=_WHOLE,
    failed=_WHOLE,
    without_file=_WHOLE,
    splits={"type": "object", "additionalProperties": _WHOLE},
    folders=_list(_TEXT),
    examples=_list(_TEXT),
)
_CACHE = _object(
    name=_TEXT,
    path_=_TEXT,
    backbone=_TEXT,
    pretrained=_TEXT,
    fingerprint=_TEXT,
    embed_dim=_WHOLE,
    stored_frames=_BOOL,
    sentences=_BOOL,
    pictures=_BOOL,
    problem=_MAYBE_TEXT,
    heads=_list(_object(name=_TEXT, trained=_BOOL, path_=_TEXT)),
    lists=_list(_LIST),
)
_SCHEMAS = {
    "Answer": _object(
        query_=_MAYBE_TEXT,
        like_=_TEXT,
        t_=_MAYBE_NUMBER,
        kind_={"enum": ["picture", "clip"]},
        doubts_=_list(_TEXT),
        cache=_TEXT,
        list=_TEXT,
        head=_TEXT,
        split=_MAYBE_TEXT,
        searched=_object(videos=_WHOLE, frames=_WHOLE, exact={"type": "boolean"}),
        hits=_list(_HIT),
        seconds=_NUMBER,
    ),
    "Caches": _object(
        caches=_list(_CACHE),
        default=_object(cache=_TEXT, list=_TEXT, head=_TEXT),
        limits=_object(top=_WHOLE, upload_bytes=_WHOLE),
        version=_TEXT,
    ),
    "Failures": _object(
        cache=_TEXT, list=_TEXT, total=_WHOLE, failures=_list(_object(id=_TEXT, reason=_TEXT, status=_TEXT))
    ),
    "Video": _object(
        video=_TEXT,
        split=_TEXT,
        captions=_list(_TEXT),
        there=_BOOL,
        begins=_NUMBER,
        path=_MAYBE_TEXT,
        failure=_MAYBE_TEXT,
    ),
    "Preview": _object(url=_TEXT, start=_NUMBER, end=_NUMBER, how=_TEXT),
    "Error": _object(error=_TEXT, hint_=_TEXT),
}
