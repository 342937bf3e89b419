"""Files that were made to harm: code in pickles, archives that lead outside, small files that claim whole memories."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import resource
import struct
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from glscl.common.errors import GlsclError, InputError
from glscl.extract.datasets import DATASETS
from glscl.extract.datasets.msvd import read_plain_pickle
from glscl.extract.importing.feature_files import open_arrays
from glscl.train_head.importing.import_checkpoint import read_state_dict

GIB = 2**30


class Malice:
    """Unpickled, it makes a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return os.mkdir, (str(self.sentinel),)


def read_all(path: Path) -> dict[str, np.ndarray]:
    with open_arrays(path) as arrays:
        return {name: arrays.read(name) for name in arrays.entries}


@pytest.fixture
def memory():
    """The process may take two more gigabytes of addresses, no more: what claims a hundred fails at once."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * GIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# --- code -------------------------------------------------------------------------------------------------------------


def as_pickle(folder, malice):
    (folder / "x.pkl").write_bytes(pickle.dumps({"video1": malice}))
    return folder / "x.pkl"


def as_npy(folder, malice):
    np.save(folder / "x.npy", np.array([malice], dtype=object), allow_pickle=True)
    return folder / "x.npy"


def as_npz(folder, malice):
    np.savez(folder / "x.npz", video1=np.array([malice], dtype=object))
    return folder / "x.npz"


def as_pt(folder, malice):
    torch.save({"video1": malice}, folder / "x.pt")
    return folder / "x.pt"


def as_old_pt(folder, malice):
    torch.save({"video1": malice}, folder / "x.pt", _use_new_zipfile_serialization=False)
    return folder / "x.pt"


@pytest.mark.parametrize("write", [as_pickle, as_npy, as_npz, as_pt, as_old_pt])
def test_no_file_of_features_runs_code(tmp_path, write):
    path = write(tmp_path, Malice(tmp_path / "sentinel"))
    with pytest.raises(InputError):
        read_all(path)
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_no_checkpoint_runs_code(tmp_path, name, zipped):
    torch.save({"model": Malice(tmp_path / "sentinel")}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="can run any code"):
        read_state_dict(tmp_path / name)
    assert not (tmp_path / "sentinel").exists()


def test_captions_of_msvd_run_no_code(tmp_path):
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps({"a": Malice(tmp_path / "sentinel")}))
    with pytest.raises(InputError, match="mkdir.*, which could run code"):
        read_plain_pickle(tmp_path / "raw-captions.pkl", dict)
    assert not (tmp_path / "sentinel").exists()


def test_the_sentinel_works(tmp_path):
    pickle.loads(pickle.dumps(Malice(tmp_path / "sentinel")))
    assert (tmp_path / "sentinel").is_dir()


def test_a_pickle_cannot_change_the_functions_that_read_it(tmp_path):
    # _codecs.encode is admitted; BUILD with a pair of states would set attributes of what it names
    state = b"(N}X\x0c\x00\x00\x00__defaults__I1\n\x85st"
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02c_codecs\nencode\n" + state + b"b.")
    with pytest.raises(InputError, match="changes what reads it"):
        read_all(tmp_path / "x.pkl")


# --- outside ----------------------------------------------------------------------------------------------------------


def shard(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        good = tarfile.TarInfo("good.mp4")
        archive.addfile(good, io.BytesIO())
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        content = b"pixels" if kind == tarfile.REGTYPE else b""
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
        below = tarfile.TarInfo("link/evil.mp4")
        below.size = 4
        archive.addfile(below, io.BytesIO(b"evil"))


@pytest.mark.parametrize("end", ["tar", "tgz"])
@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../evil.mp4", tarfile.REGTYPE, ""),
        ("a/../../evil.mp4", tarfile.REGTYPE, ""),
        ("/evil.mp4", tarfile.REGTYPE, ""),
        ("a\\..\\evil.mp4", tarfile.REGTYPE, ""),
        ("a\nb.mp4", tarfile.REGTYPE, ""),
        ("link", tarfile.SYMTYPE, "../.."),
        ("link", tarfile.SYMTYPE, "/tmp"),
        ("link.mp4", tarfile.LNKTYPE, "/etc/passwd"),
        ("pipe.mp4", tarfile.FIFOTYPE, ""),
        ("disk.mp4", tarfile.BLKTYPE, ""),
    ],
)
def test_a_shard_writes_nothing_outside_the_folder_of_videos(tmp_path, name, kind, link, end):
    (tmp_path / "shards").mkdir()
    shard(tmp_path / "shards" / f"0.{end}", name, kind, link)
    videos = tmp_path / "deep" / "deeper" / "videos"
    try:
        DATASETS["webdataset"].read(tmp_path / "shards", videos)
    except GlsclError as error:
        assert f"0.{end}" in str(error)
    written = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if not p.is_dir()}
    assert written <= {f"shards/0.{end}"} | {n for n in written if re.fullmatch(r"deep/deeper/videos/0\.\w+\.tar", n)}
    assert not any(p.is_symlink() for p in tmp_path.rglob("*"))


@pytest.mark.parametrize("id", ["../x", "a/../b", "/etc/passwd", "..", "a\0b", "x/\ud800", ""])
def test_ids_that_lead_elsewhere_are_refused(tmp_path, id):
    (tmp_path / "c.json").write_text(json.dumps([{"video": "a.mp4", "id": id or " ", "caption": "x"}]))
    with pytest.raises(InputError):
        DATASETS["csv"].read(tmp_path / "c.json", None)


# --- more than there is -----------------------------------------------------------------------------------------------


def test_a_pickle_that_numbers_objects_by_the_billion_is_refused(tmp_path, memory):
    data = b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b"."
    for path, read in ((tmp_path / "x.pkl", read_all), (tmp_path / "y.pkl", lambda p: read_plain_pickle(p, dict))):
        path.write_bytes(data)
        with pytest.raises(InputError, match="numbers an object 2147483647"):
            read(path)


def test_lists_that_repeat_each_other_without_end_are_refused(tmp_path, memory):
    value = [1.0, 2.0]
    for _ in range(40):
        value = [value, value]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"video1": value}))
    with pytest.raises(InputError, match="repeat each other"):
        read_all(tmp_path / "x.pkl")


def test_dictionaries_that_repeat_each_other_without_end_are_refused(tmp_path, memory):
    value: dict = {"a": 1.0}
    for _ in range(40):
        value = {"a": value, "b": value}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(InputError, match="repeat each other"):
        read_all(tmp_path / "x.pkl")


def test_an_array_that_a_pickle_repeats_without_end_is_refused(tmp_path, memory):
    array = np.ones((1000, 1000), np.float32)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"video1": [array] * 2000}))
    with pytest.raises(InputError, match="repeat each other"):
        read_all(tmp_path / "x.pkl")


def test_an_hdf5_file_that_claims_what_it_does_not_hold_is_refused(tmp_path, memory):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("video1", (200_000, 100_000), "f4", chunks=(100, 100), fillvalue=1.0)
    with pytest.raises(InputError, match="claims 80000000000 bytes, but stores 0"):
        read_all(tmp_path / "x.h5")


def test_an_hdf5_file_reads_no_other_file(tmp_path):
    (tmp_path / "secret").write_bytes(np.ones(8, np.float32).tobytes())
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("video1", (8,), "f4", external=[(str(tmp_path / "secret"), 0, 32)])
    with pytest.raises(InputError, match="lie in other files"):
        read_all(tmp_path / "x.h5")


@pytest.mark.parametrize(
    "tensor",
    [
        lambda: torch.ones(1).expand(100_000, 100_000),
        lambda: torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1), (100_000, 100_000)),
    ],
    ids=["expanded", "sparse"],
)
def test_a_tensor_that_claims_what_it_does_not_hold_is_refused(tmp_path, memory, tensor):
    torch.save({"video1": tensor()}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="claims 40000000000 bytes, but stores"):
        read_all(tmp_path / "x.pt")


def test_an_npy_file_that_claims_what_it_does_not_hold_is_refused(tmp_path, memory):
    head = repr({"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}).encode().ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + b"\0" * 64
    (tmp_path / "x.npy").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("video1.npy", data)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(InputError, match="cannot be read"):
            read_all(tmp_path / name)


def test_text_files_of_one_endless_line_are_read_or_refused_in_linear_time(tmp_path):
    """A million characters each; what is quadratic would need minutes."""
    long = "x" * 1_000_000
    files = {
        "a.csv": f"video,caption\na.mp4,{long}",
        "b.csv": f"video,caption\n{long},x",
        "c.csv": f'video,caption\na.mp4,"{long}',
        "d.jsonl": json.dumps({"video": "a.mp4", "caption": long}),
        "e.json": json.dumps({long: ["x"]}),
        "f.json": "[" * 1_000_000,
        "g.json": '{"a":' * 200_000,
        "h.jsonl": "[1," * 300_000,
        "i.csv": "," * 1_000_000,
        "j.csv": '"' * 1_000_001,
        "k.json": "1" * 1_000_000,
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        try:
            DATASETS["csv"].read(tmp_path / name, None)
        except GlsclError as error:
            assert len(str(error)) < 1000, name
