"""The datasets that can be extracted: one annotation reader a file, each loaded when it is asked for.

A reader reads text files and lists a folder of videos; it decodes nothing. To add one here: a module with `read`, and a
line in `DATASETS`. One of your own needs no change here: `dataset_entry` also takes `package.module:reader`, and names that
an installed package gives in the entry point group `glscl.datasets`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from glscl.common.arguments import types_checked
from glscl.common.errors import UsageError
from glscl.common.outside import attribute, load, outside_name
from glscl.common.tables import amount

if TYPE_CHECKING:
    from glscl.cache.schema import Annotations, Expected
    from glscl.extract.datasets.own_videos import ContentHasher


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """What must be known of a dataset before its reader is loaded.

    Attributes:
        name: of its folders below datasets/ and caches/.
        module: where the function `reader` is, imported at the first call.
        reader: name of the function, with dots where it is an attribute of something else.
        help: one line for docs/cli.md.
        recipe: name of the training recipe that fits.
        max_words: tokens kept of a caption, start and end included (the recipe's).
        fps: frames a second to sample (the recipe's).
        seconds: of a video on average, for forecasts where no file is there; None where nobody knows.
        protocols: names of the ways to read it, the default first; empty where there is only one.
        unpacks: the reader may write below the folder of videos (compressed archives); a dry run must not.
        public_rule: how the public programs sample it, a rule of `glscl.extract.decode.sampling`.
        partially_relevant: its captions tell of a part of a video.
        own: of data of one's own, of which nobody knows the splits: its reader compares what is in the files.
        repo: of the Hub, for the reader of its data sets.
    """

    name: str = ""
    module: str
    reader: str = "read"
    help: str = ""
    recipe: str = "msrvtt"
    max_words: int = 32
    fps: float = 1.0
    seconds: float | None = None
    protocols: tuple[str, ...] = ()
    unpacks: bool = False
    public_rule: str = "public"
    partially_relevant: bool = False
    own: bool = False
    repo: str | None = None

    def read(
        self,
        annotations: Path | str | None,
        videos: Path | str | None,
        *,
        splits: Sequence[str] | None = None,
        protocol: str | None = None,
        dry_run: bool = False,
        contents: ContentHasher | None = None,
        allow_shared: bool = False,
    ) -> Annotations:
        """Read the annotations and find the files.

        Args:
            annotations: folder (or file, for `csv`) with the annotations.
            videos: folder with the videos; None leaves every path None.
            splits: only these; all there are by default.
            protocol: one of `protocols`.
            dry_run: write nothing, which only differs where `unpacks`.
            contents: hashes files, paths → hash of each (or the error), such as `KnownFiles.contents`, which remembers them.
                Only asked where `own`: for splits that are made up, and for files of one size in several splits.
            allow_shared: where `own`, let one content lie in several splits.
        Raises:
            InputError: a file that cannot be read as what it should be, naming file, row and what was expected.
            NotFoundError: a folder or required file that is not there.
            UsageError: an unknown split or protocol, or a reader from outside that gives something else than annotations.
        """
        options: dict[str, object] = {"write": not dry_run} if self.unpacks else {}
        if self.own:
            options |= {"contents": contents, "allow_shared": allow_shared}
        if self.repo is not None:
            options["repo"] = self.repo
        reader: Callable[..., Annotations] = attribute(import_module(self.module), self.reader)
        found = reader(
            None if annotations is None else Path(annotations),
            None if videos is None else Path(videos),
            splits=splits,
            protocol=protocol,
            **options,
        )
        from glscl.cache.schema import Annotations

        if not isinstance(found, Annotations):
            raise UsageError(
                f"The reader {self.module}:{self.reader} gave {type(found).__name__}, expected glscl.cache.schema.Annotations"
            )
        return found

    @property
    def defaults(self) -> dict[str, object]:
        """The layer of an extraction's settings that the dataset decides."""
        return {"fps": self.fps, "max_words": self.max_words}

    @property
    def expected(self) -> Mapping[str, Mapping[str, Expected]]:
        """Published sizes: protocol → split → Expected; empty where nothing is published."""
        return getattr(import_module(self.module), "EXPECTED", {})


def dataset_entry(name: str) -> DatasetEntry:
    """The dataset of a name: one of `DATASETS`, `hf:USER/NAME`, `package.module:reader`, or an entry point of `glscl.datasets`.

    An entry point gives a reader, or a `DatasetEntry` with defaults of its own.

    Raises:
        UsageError: an unknown name, or code that cannot be imported.
    """
    if name in DATASETS:
        return replace(DATASETS[name], name=name)
    if name.startswith("hf:"):
        repo = name.removeprefix("hf:").rstrip("/")
        if not repo or ":" in repo:
            raise UsageError(f"`dataset` is {name!r}; expected hf:USER/NAME, or hf:FOLDER")
        short = re.sub(r"[^A-Za-z0-9._-]+", "-", repo).strip("-")[-100:]
        return DatasetEntry(name=f"hf-{short}", module=f"{_HERE}.hugging_face", own=True, unpacks=True, repo=repo)
    full_name = outside_name(name, GROUP)
    if full_name is None:
        raise UsageError(
            f"`dataset` is {name!r}; expected one of {', '.join(DATASETS)}",
            hint="One of the Hub is `hf:USER/NAME`, one of your own `package.module:reader`; see docs/datasets.md",
        )
    found = load(full_name, setting="dataset")
    module, _, path = full_name.partition(":")
    short = path.rpartition(".")[2] if name == full_name else name
    if isinstance(found, DatasetEntry):
        return replace(found, name=found.name or short)
    if not callable(found):
        raise UsageError(f"`dataset` is {name!r}, which is {type(found).__name__}, expected a function that reads")
    return DatasetEntry(name=short, module=module, reader=path)


GROUP = "glscl.datasets"  # of entry points
_HERE = "glscl.extract.datasets"

DATASETS: dict[str, DatasetEntry] = {
    "csv": DatasetEntry(
        module=f"{_HERE}.csv_file",
        own=True,
        help="Your own videos and captions: a CSV, TSV, JSON Lines or JSON file with video, caption[, split].",
    ),
    "folder": DatasetEntry(
        module=f"{_HERE}.folder",
        own=True,
        help="A folder of video files; captions from text files of the same name, or none (search only).",
    ),
    "webdataset": DatasetEntry(
        module=f"{_HERE}.webdataset",
        own=True,
        help="Shards of video2dataset (.tar with .mp4 and .txt or .json), read where they lie.",
        unpacks=True,
    ),
    "msrvtt": DatasetEntry(
        module=f"{_HERE}.msrvtt",
        seconds=15.0,
        help="MSR-VTT: 1k-A test with 9k (or 7k) training clips, or the full official splits.",
        protocols=("9k", "7k", "full"),
    ),
    "msvd": DatasetEntry(
        module=f"{_HERE}.msvd",
        seconds=9.7,
        help="MSVD: 1,970 clips, about 40 captions each, all of them queries.",
        recipe="msvd",
    ),
    "didemo": DatasetEntry(
        module=f"{_HERE}.didemo",
        help="DiDeMo: paragraphs, the first 31 seconds of each video.",
        recipe="didemo",
        max_words=64,
        public_rule="opencv",
    ),
    "didemo_captions": DatasetEntry(
        module=f"{_HERE}.didemo_captions",
        partially_relevant=True,
        help="DiDeMo by description: sentences that tell of a part of the first 31 seconds (partially relevant).",
        recipe="didemo",
        public_rule="opencv",
    ),
    "lsmdc": DatasetEntry(
        module=f"{_HERE}.lsmdc",
        seconds=4.1,
        help="LSMDC: clips of films, 1,000 test clips.",
        recipe="lsmdc",
    ),
    "activitynet": DatasetEntry(
        module=f"{_HERE}.activitynet",
        seconds=117.6,
        help="ActivityNet Captions: paragraphs, tested on val_1.",
        recipe="activitynet",
        max_words=64,
        public_rule="opencv",
    ),
    "activitynet_captions": DatasetEntry(
        module=f"{_HERE}.activitynet_captions",
        partially_relevant=True,
        help="ActivityNet Captions by caption: sentences that tell of a part of a long video (partially relevant).",
        recipe="activitynet",
    ),
    "charades_sta": DatasetEntry(
        module=f"{_HERE}.charades_sta",
        partially_relevant=True,
        help="Charades-STA: sentences that tell of a part of a video, tested on its test part (partially relevant).",
    ),
    "tvr": DatasetEntry(
        module=f"{_HERE}.tvr",
        partially_relevant=True,
        help="TVR: sentences that tell of a part of a clip of a TV show, tested on the released val part (partially relevant).",
    ),
    "vatex": DatasetEntry(
        module=f"{_HERE}.vatex",
        seconds=10.0,
        help="VATEX: ten English captions a clip.",
    ),
    "youcook2": DatasetEntry(
        module=f"{_HERE}.youcook2",
        help="YouCook2: steps of recipes, one caption a clip, tested on the validation part.",
        protocols=("official", "mil-nce"),
    ),
    "mteb": DatasetEntry(
        module=f"{_HERE}.mteb",
        help="MTEB's video retrieval sets, one caption a video, for testing alone.",
        protocols=("msrvtt", "msvd", "didemo", "vatex", "activitynet", "youcook2"),
    ),
    "demo": DatasetEntry(
        module="glscl.demo.corpus",
        help="The built-in corpus of rendered videos, made on the spot.",
        recipe="demo",
        fps=2.0,
    ),
}


@types_checked
def read_dataset(
    name: str,
    annotations: PathLike[str] | str | None,
    videos: PathLike[str] | str | None = None,
    *,
    protocol: str | None = None,
    splits: Sequence[str] | None = None,
    allow_shared: bool = False,
) -> Annotations:
    """Videos and captions of a data set, with the files that were found; nothing is decoded.

    Args:
        name: "msrvtt", "csv", …, or `package.module:reader` of one's own.
        annotations: folder, or file, with the annotations; None where the reader needs none (`folder`).
        videos: folder with the videos; None leaves every path None.
        protocol: variant of the splits, such as "9k"; the data set's first by default.
        splits: only these of train, val, test.
        allow_shared: of one's own data, let copies of one video lie in several splits.

    Raises:
        UsageError: unknown data set, protocol or split.
        NotFoundError, InputError: files that are not there, or are not what they should be.
    """
    places = [None if place is None else Path(place) for place in (annotations, videos)]
    return dataset_entry(name).read(places[0], places[1], splits=splits, protocol=protocol, allow_shared=allow_shared)


def first_videos(annotations: Annotations, count: int) -> Annotations:
    """Only the first `count` videos of each split, with their captions: a quick try of a large dataset.

    Of a split whose files are partly there, the first that are.
    """
    there = {video.split for video in annotations.videos if video.path is not None}
    taken: dict[str, int] = {}
    videos = []
    for video in annotations.videos:
        if video.path is None and video.split in there:
            continue
        taken[video.split] = taken.get(video.split, 0) + 1
        if taken[video.split] <= count:
            videos.append(video)
    kept = {video.id for video in videos}
    note = f"`limit={count}`: {len(videos):,} of {amount(len(annotations.videos), 'video')} were taken"
    return replace(
        annotations,
        videos=videos,
        texts=[text for text in annotations.texts if text.video in kept],
        notes=[*annotations.notes, note],
    )
