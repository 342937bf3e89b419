"""Which entry of a feature file belongs to which video or caption: by name, and by row where an array has no names.

T captions, V videos, F frames, L tokens, D embed_dim.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from glscl.cache.schema import Annotations
from glscl.common.errors import InputError, NotFoundError
from glscl.common.tables import amount
from glscl.extract.datasets.text_files import examples, show
from glscl.extract.datasets.video_files import split_extension
from glscl.extract.importing.feature_files import Arrays


class EntryFrames(NamedTuple):
    """The frames of one entry.

    Attributes:
        rows: (F, D) float32, those that are not all zero, or else all.
        place: (F,) int, which rows of the entry they are. given: how many rows it has.
        times: (F,) seconds, where the file says them.
    """

    rows: np.ndarray
    place: np.ndarray
    given: int
    times: np.ndarray | None

    @property
    def usable(self) -> bool:
        """Whether any frame is not all zero."""
        return bool(self.rows.any())

    @property
    def padding(self) -> int:
        """All-zero rows behind the last frame."""
        return self.given - int(self.place[-1]) - 1

    @property
    def holes(self) -> int:
        """All-zero rows before or between the frames."""
        return self.given - len(self.place) - self.padding


FrameReaders = Mapping[str, Callable[[], EntryFrames]]  # id → reads its frames
RowReaders = Mapping[str, Callable[[], np.ndarray]]  # id → reads its float32 rows, (n, D)
Located = TypeVar("Located")
ReadRows = TypeVar("ReadRows")


class _Readers(Mapping[str, Callable[[], ReadRows]], Generic[Located, ReadRows]):
    """id → reads its rows. Of each is kept only where its rows are: of a million, readers would take 300 MB."""

    def __init__(self, places: Mapping[str, Located], read: Callable[[Located], ReadRows]) -> None:
        self._places, self._read = places, read

    def __getitem__(self, id: str) -> Callable[[], ReadRows]:
        return partial(self._read, self._places[id])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


# --- names ------------------------------------------------------------------------------------------------------------


def match(names: Iterable[str], ids: Iterable[str], where: Path) -> dict[str, str]:
    """id → name of its entry: the same; failing that, the same but for folders in front, a video extension, or `v_`.

    Raises:
        InputError: several entries fit one id, or one entry fits several ids.
    """
    names, ids = list(names), list(dict.fromkeys(ids))
    known = set(names)
    found = {id: id for id in ids if id in known}
    whole: dict[str, list[str]] = defaultdict(list)  # an id may have more folders in front than the entry …
    end: dict[str, list[str]] = defaultdict(list)  # … or the entry more than the id
    for name in names:
        if name in found:
            continue
        for form in _forms(name):
            whole[form].append(name)
        parent = name.rpartition("/")[0]  # one array in a group, `video7/frames`, stands for the group
        for tail in dict.fromkeys(form for part in (*_tails(name), *_tails(parent)) for form in _forms(part)):
            end[tail].append(name)
    owner: dict[str, str] = {}
    for id in ids:
        if id in found:
            continue
        candidates = {name: None for form in _forms(id) for name in end.get(form, ())}
        if not candidates:
            candidates = {name: None for tail in _tails(id) for form in _forms(tail) for name in whole.get(form, ())}
        _refuse_several(id, list(candidates), where)
        for name in candidates:
            other = owner.setdefault(name, id)
            if other != id:
                raise InputError(
                    f"{where}: the entry {show(name)} fits both {show(other)} and {show(id)}",
                    hint="Name one array after each id",
                )
            found[id] = name
    for id in (id for id, name in found.items() if id == name):  # what else would have been taken for it
        others = {name for form in _forms(id) for name in end.get(form, ()) if name not in owner}
        _refuse_several(id, [id, *sorted(others)], where)
    return found


def _refuse_several(id: str, names: Sequence[str], where: Path) -> None:
    if len(names) > 1:
        raise InputError(
            f"{where}: {len(names)} entries fit {show(id)}: {examples(map(show, names))}; expected one",
            hint="Name one array after each id",
        )


def _tails(name: str) -> list[str]:
    """`a/b/c` → `a/b/c`, `b/c`, `c`."""
    parts = name.split("/") if name else []
    return ["/".join(parts[i:]) for i in range(len(parts))]


def _forms(name: str) -> list[str]:
    """A name as it stands, without its video extension, and both without `v_`."""
    name = unicodedata.normalize("NFC", name)
    short = split_extension(name)[0]
    if short == name:
        short = name.removesuffix(".null").removesuffix(".") or name
    both = [name, short]
    return list(dict.fromkeys([*both, *(form.removeprefix("v_") for form in both if len(form) > 2)]))


# --- videos -----------------------------------------------------------------------------------------------------------


def frame_readers(arrays: Arrays, annotations: Annotations, notes: list[str]) -> FrameReaders:
    """Readers of the videos that have features; notes how many entries belong to none."""
    ids = [video.id for video in annotations.videos]
    if "" in arrays.entries:
        raise InputError(
            f"{arrays.path} holds one array without a name, expected one for each video",
            hint="Give a folder with a file a video, or a file keyed by video",
        )
    found = match(arrays.entries, ids, arrays.path) or _match_by_field(arrays, ids, notes)
    if not found:
        raise NotFoundError(
            f"{arrays.path} has features of none of the {amount(len(ids), 'video')} of {annotations.dataset}, for example "
            f"{ids[0]!r}; it has {examples(map(show, arrays.entries))}",
            hint="Name each file, or each entry, after the id of its video",
        )
    notes += _unused(arrays, found.values(), "video that is listed")
    return _Readers(found, partial(_frames, arrays))


def _match_by_field(arrays: Arrays, ids: Sequence[str], notes: list[str]) -> dict[str, str]:
    """As `match`, by what samples are called in their .json; the field is said."""
    for field, called in arrays.named.items():
        name_of: dict[str, str] = {}
        for name, value in called.items():
            if name in arrays.entries:
                name_of.setdefault(value, name)
        if len(name_of) < len(called):  # what several samples have in common is not their name
            continue
        if found := match(name_of, ids, arrays.path):
            notes.append(f"{arrays.path}: samples are called by {show(field)} of their .json")
            return {id: name_of[value] for id, value in found.items()}
    return {}


def _unused(arrays: Arrays, used: Iterable[str], why: str) -> list[str]:
    used = set(used)
    unused = [name for name in arrays.entries if name not in used]
    share = f"{len(unused)} of {len(arrays.entries)} entries of {arrays.path}"
    return [f"{share} {'belongs' if len(unused) == 1 else 'belong'} to no {why}: {examples(unused)}"] if unused else []


def _frames(arrays: Arrays, name: str) -> EntryFrames:
    rows = _two_axes(arrays.read(name), arrays.where(name))
    times, real = arrays.times(name, len(rows)), rows.any(axis=1)
    place = np.flatnonzero(real) if real.any() else np.arange(len(rows))
    return EntryFrames(rows[place], place, len(rows), None if times is None else times[place])


def without_zeros(rows: np.ndarray) -> np.ndarray:
    """Rows that are not all zero: no model gives a zero vector, but programs fill up with them."""
    return rows[rows.any(axis=1)]


def _two_axes(array: np.ndarray, where: str) -> np.ndarray:
    """(F, D) from that, or (D,) of one frame, with axes of length 1 anywhere."""
    squeezed = array.squeeze()
    if array.ndim == 0 or squeezed.ndim > 2:
        raise InputError(f"{where}: the shape is {array.shape}, expected (F, D), or that with axes of length 1")
    return squeezed.reshape(-1, squeezed.shape[-1] if squeezed.ndim else 1)


# --- captions ---------------------------------------------------------------------------------------------------------


def text_readers(arrays: Arrays, annotations: Annotations, axes: int, notes: list[str]) -> RowReaders:
    """Readers of the captions that have features: (1, D) for `axes` 1, tokens (L, D) for 2.

    An entry is that of a caption, or of a video with a row for each caption, or there is one array with a row for each.
    Rows count the captions as they stand in the files (`Annotations.written`), or those alone that were kept.
    """
    ids = [text.id for text in annotations.texts]
    by_caption = match(arrays.entries, ids, arrays.path)
    if by_caption:
        notes += _unused(arrays, by_caption.values(), "caption that is listed")
        return _Readers(by_caption, partial(_rows, arrays))
    written, kept = annotations.written or ids, frozenset(ids)
    of_video: dict[str, list[str]] = defaultdict(list)
    for id in written:
        of_video[id.rpartition("#")[0]].append(id)
    with_captions = dict.fromkeys(text.video for text in annotations.texts)
    by_video = match(arrays.entries, with_captions, arrays.path)
    if by_video:
        notes += _unused(arrays, by_video.values(), "video with captions")
        readers: dict[str, Callable[[], np.ndarray]] = {}
        for video, name in by_video.items():
            orders = {"captions of its video": of_video[video]}
            orders["captions of its video that are not empty"] = [id for id in of_video[video] if id in kept]
            readers |= dict(_by_row(arrays, name, orders, kept, axes))
        return readers
    if len(arrays.entries) > 1:
        raise NotFoundError(
            f"{arrays.path} has features of none of the {amount(len(ids), 'caption')}, for example {ids[0]!r}; it has "
            f"{examples(map(show, arrays.entries))}",
            hint="Name each entry after its caption or video, or give one array with a row for each caption",
        )
    listed = {video.id for video in annotations.videos}
    orders = {
        "captions in the order of their files": written,
        "captions that are not empty": [id for id in written if id in kept],
        "captions of the chosen splits": [id for id in written if id.rpartition("#")[0] in listed],
    }
    name = next(iter(arrays.entries))
    of_rows = _by_row(arrays, name, orders, kept, axes)
    first = next(iter(of_rows))
    notes.append(f"rows of {arrays.path} are captions in the order of their files; the first that is used is {first}")
    return of_rows


def _by_row(
    arrays: Arrays, name: str, orders: Mapping[str, Sequence[str]], kept: frozenset[str], axes: int
) -> RowReaders:
    """Readers of the rows of one array, which are the captions in that of `orders` (what they are → ids) that fits its length.

    Orders of one length are the same: each leaves out more of the captions as they stand in the files.
    """
    block = arrays.read(name)
    counts = {len(order): what for what, order in list(orders.items())[::-1]}
    if block.ndim == axes and 1 in counts:
        block = block.reshape(1, *block.shape)
    while block.ndim > axes + 1 and 1 in block.shape[1:]:
        block = block.squeeze(1 + block.shape[1:].index(1))
    if block.ndim != axes + 1 or len(block) not in counts:
        shapes = [f"({count}, {'D' if axes == 1 else 'L, D'}): the {counts[count]}" for count in sorted(counts)[::-1]]
        raise InputError(f"{arrays.where(name)}: the shape is {block.shape}, expected {', or '.join(shapes)}")
    ids = orders[counts[len(block)]]
    where = arrays.where(name)
    rows = {id: row for row, id in enumerate(ids) if id in kept}
    return _Readers(rows, lambda row: _two_axes(block[row], f"{where}, row {row}"))


def _rows(arrays: Arrays, name: str) -> np.ndarray:
    return _two_axes(arrays.read(name), arrays.where(name))
