"""Folders on the Hugging Face Hub: pushed with a card, pulled whole. huggingface_hub does the transfer."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from glscl.common.errors import UsageError
from glscl.common.remote import remote_errors

_ADDRESS = re.compile(r"hf:/+(datasets/|models/)?([\w.-]+/[\w.-]+)(?:@([^/]+))?/?")
_CARD = "README.md"
_NOTES = ".cache/huggingface"  # where the Hub's library keeps what it has brought into a folder


class Repository(NamedTuple):
    """A repository of the Hub: "dataset" or "model", `USER/NAME`, and the revision that an address asks for."""

    kind: str
    name: str
    revision: str | None

    @classmethod
    def at(cls, address: str) -> Repository:
        """Of `hf://datasets/USER/NAME` or `hf://USER/NAME`, perhaps with `@REVISION`. Raises UsageError."""
        found = _ADDRESS.fullmatch(address)
        if found is None:
            raise UsageError(
                f"{address[:200]} is no repository of the Hub; expected hf://datasets/USER/NAME or hf://USER/NAME"
            )
        return cls("dataset" if found[1] == "datasets/" else "model", found[2], found[3])

    @property
    def address(self) -> str:
        """As it is written."""
        return f"hf://{'datasets/' if self.kind == 'dataset' else ''}{self.name}"


def push_folder(folder: Path, where: Repository, card: str, *, leave: Sequence[str] = (), public: bool = False) -> str:
    """Put a folder into a repository, which is made, private unless `public`, where there is none; what is there already is not sent.

    Args:
        card: README.md, unless the repository has one.
        leave: patterns of files that stay here.

    Returns:
        The address of its page.

    Raises:
        StorageError: the Hub cannot be reached, or there is no token that allows it.
    """
    with remote_errors(where.address, "push to"):
        api = _hub().HfApi(endpoint=_endpoint())
        about: dict[str, Any] = {"repo_id": where.name, "repo_type": where.kind}
        url = api.create_repo(**about, private=not public, exist_ok=True)
        if not api.file_exists(filename=_CARD, **about):
            api.upload_file(path_or_fileobj=card.encode(), path_in_repo=_CARD, commit_message="Add a card", **about)
        api.upload_folder(
            folder_path=folder, ignore_patterns=[_CARD, ".*", "**/.*", *leave], commit_message="Add files", **about
        )
    return str(url)


def replaced_by(folder: Path, where: Repository) -> list[str]:
    """Names of the files of a folder that stand in a repository with another content. Raises StorageError, as `push_folder`."""
    with remote_errors(where.address, "push to"):
        api, about = _hub().HfApi(endpoint=_endpoint()), {"repo_id": where.name, "repo_type": where.kind}
        if not api.repo_exists(**about):
            return []
        there = [file for file in api.list_repo_tree(recursive=True, **about) if hasattr(file, "blob_id")]
    return [file.path for file in there if (folder / file.path).is_file() and not _is_same(folder / file.path, file)]


def _is_same(path: Path, file: Any) -> bool:
    """Whether a file is what the Hub says of one of its name: by SHA-256 where it is kept beside Git, else as Git hashes it."""
    if path.stat().st_size != file.size:
        return False
    if file.lfs is not None:
        with open(path, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == file.lfs.sha256
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == file.blob_id


def read_file(where: Repository, name: str) -> bytes:
    """A file of a repository. Raises NotFoundError, StorageError."""
    with remote_errors(where.address, "read"):
        return Path(
            _hub().hf_hub_download(
                where.name, name, repo_type=where.kind, revision=where.revision, endpoint=_endpoint()
            )
        ).read_bytes()


def begun(out: Path) -> bool:
    """Whether a `pull_folder` into this folder was stopped."""
    return (out / _NOTES).is_dir()


def pull_folder(where: Repository, out: Path) -> None:
    """Bring all files of a repository into a folder that holds nothing else; stopped, the same call goes on.

    Raises:
        NotFoundError: there is none. StorageError: the Hub cannot be reached, or not be read without a token.
    """
    with remote_errors(where.address, "pull"):
        _hub().snapshot_download(
            where.name, repo_type=where.kind, revision=where.revision, local_dir=out, endpoint=_endpoint()
        )
    shutil.rmtree(out / _NOTES, ignore_errors=True)
    with contextlib.suppress(OSError):
        (out / ".cache").rmdir()
    (out / ".gitattributes").unlink(missing_ok=True)


def _hub() -> Any:
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    return huggingface_hub


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")
