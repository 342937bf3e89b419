"""Small files that would unpack to far more than they store: refused in one line, before anything is unpacked."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from glscl.common.archive_limits import FLOOR, RATIO, check_zip
from glscl.common.errors import InputError
from glscl.common.state_dicts import read_state_dict
from glscl.extract.datasets import webdataset
from glscl.extract.importing.feature_files import open_arrays

FLOATS = (FLOOR + (8 << 20)) // 4  # 24 MiB of zeros


def deflated(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def zeros() -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros((FLOATS // 8, 8), np.float32))
    return out.getvalue()


def npz(folder: Path) -> Path:
    return deflated(folder / "features.npz", {"video0.npy": zeros()})


def npz_in_pieces(folder: Path) -> Path:
    """Each entry is within the limit, all together are not."""
    piece = io.BytesIO()
    np.save(piece, np.zeros((FLOOR // 64, 8), np.float32))
    return deflated(folder / "features.npz", {f"video{i}.npy": piece.getvalue() for i in range(4)})


def h5(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "features.h5", "w") as file:
        file.create_dataset("video0", data=np.zeros((FLOATS // 8, 8), np.float32), compression="gzip")
    return folder / "features.h5"


def pt(folder: Path) -> Path:
    """A file of torch, its storage deflated as the format allows."""
    import torch

    plain = io.BytesIO()
    torch.save({"video0": torch.zeros(FLOATS)}, plain)
    with zipfile.ZipFile(plain) as archive:
        return deflated(folder / "features.pt", {name: archive.read(name) for name in archive.namelist()})


@pytest.mark.parametrize("make", [npz, npz_in_pieces, h5, pt])
def test_features_that_would_unpack_to_too_much_are_refused(make, tmp_path):
    path = make(tmp_path)
    assert path.stat().st_size < 2**18
    with pytest.raises(InputError, match=r"it claims \d+ bytes, but stores") as caught, open_arrays(path) as arrays:
        arrays.read("video0")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_that_would_unpack_to_too_much_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"it claims \d+ bytes, but stores"):
        read_state_dict(pt(tmp_path))


def test_padded_features_are_no_bomb(tmp_path):
    padded = np.zeros((96, 128, 512), np.float32)  # 24 MiB, of which a twentieth is not zero
    padded[:, :6] = np.random.default_rng(0).standard_normal((96, 6, 512))
    np.savez_compressed(tmp_path / "padded.npz", video0=padded)
    assert (tmp_path / "padded.npz").stat().st_size < padded.nbytes / 15
    with open_arrays(tmp_path / "padded.npz") as arrays:
        np.testing.assert_array_equal(arrays.read("video0"), padded)


def shard(file: io.BufferedIOBase, size: int) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, count in (("clip.mp4", size), ("clip.txt", 9)):
            member = tarfile.TarInfo(name)
            member.size = count
            archive.addfile(member, io.BytesIO(bytes(count) if count > 9 else b"a caption"))


@pytest.mark.parametrize("size", [4 * FLOATS, 1000])
def test_a_compressed_shard_may_not_grow_beyond_all_measure(tmp_path, size):
    with gzip.open(tmp_path / "000.tar.gz", "wb") as file:
        shard(file, size)
    videos = tmp_path / "videos"
    if size > FLOOR:
        with pytest.raises(InputError, match=r"000\.tar\.gz.*clip\.mp4.*it claims \d+ bytes, but stores"):
            webdataset.read(tmp_path, videos)
        assert [path for path in videos.rglob("*") if path.is_file()] == []
    else:
        assert len(webdataset.read(tmp_path, videos).videos) == 1


def test_a_sparse_member_that_claims_a_terabyte_is_refused(tmp_path):
    member = tarfile.TarInfo("clip.mp4")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 512
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"00000000000\x0000000000000\x00"[:24]  # one piece: nothing, at the beginning
    block[483:495] = b"%011o\x00" % (8 << 30)
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:512]))
    (tmp_path / "000.tar").write_bytes(bytes(block) + bytes(512 * 4))
    with pytest.raises(InputError, match=r"it claims \d+ bytes, but stores"):
        webdataset.read(tmp_path, tmp_path / "videos")


HEADERS = {
    "long name": tarfile.GNUTYPE_LONGNAME,
    "long link": tarfile.GNUTYPE_LONGLINK,
    "attributes": tarfile.XHDTYPE,
    "attributes of all": tarfile.XGLTYPE,
}


def header(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("clip.mp4")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.fixture(scope="module")
def half_a_gigabyte() -> bytes:
    """Zeros, as a part of a gzip file."""
    return gzip.compress(bytes(2**24), 1) * 2**5


@pytest.mark.parametrize("kind", HEADERS.values(), ids=HEADERS.keys())
@pytest.mark.parametrize("behind", [False, True])
def test_a_header_that_would_take_all_memory_is_refused_unread(tmp_path, kind, behind, half_a_gigabyte, monkeypatch):
    """Half a gigabyte of zeros, in half a megabyte of .tar.gz: within the limit of what a shard may grow to."""
    before = header(tarfile.REGTYPE, 512) + bytes(512) if behind else b""
    (tmp_path / "000.tar.gz").write_bytes(gzip.compress(before + header(kind, 2**29)) + half_a_gigabyte)
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: read(self, size) if 0 <= size < 2**22 else 1 / 0)
    with pytest.raises(
        InputError, match=f"a header of {2**29} bytes; at most {webdataset.HEADER_LIMIT} are taken"
    ) as error:
        webdataset.read(tmp_path, tmp_path / "videos")
    assert "\n" not in str(error.value)


def test_long_names_that_are_names_are_read(tmp_path):
    for number, format in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        name = "folder/" * 30 + f"clïp{number}.mp4"
        with tarfile.open(tmp_path / f"{number}.tar", "w", format=format) as archive:
            member = tarfile.TarInfo(name)
            member.size = 5
            archive.addfile(member, io.BytesIO(b"bytes"))
    assert len(webdataset.read(tmp_path, None).videos) == 2


def test_headers_without_end_are_refused(tmp_path):
    (tmp_path / "0.tar").write_bytes(header(tarfile.GNUTYPE_LONGNAME, 0) * 5000)
    with pytest.raises(InputError, match="damaged or truncated shard"):
        webdataset.read(tmp_path, None)


def test_a_map_of_a_sparse_member_is_not_read_on_and_on(tmp_path):
    block = bytearray(header(tarfile.GNUTYPE_SPARSE, 512))
    block[482] = 1  # the map goes on
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:512]))
    (tmp_path / "0.tar").write_bytes(bytes(block) + bytes(512 * 4))
    with pytest.raises(InputError, match="sparse, in many pieces"):
        webdataset.read(tmp_path, None)
    pax = tarfile.TarInfo("clip.mp4")
    pax.size, pax.pax_headers = 512, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "clip.mp4"}
    (tmp_path / "0.tar").write_bytes(pax.tobuf(tarfile.PAX_FORMAT) + b"99999999\n" * 56 + bytes(512 * 4))
    with pytest.raises(InputError, match="sparse member, in many pieces"):
        webdataset.read(tmp_path, None)


def test_the_limit_is_stated_and_files_that_are_no_archives_are_left_to_their_readers(tmp_path):
    (tmp_path / "text").write_text("no archive")
    check_zip(tmp_path / "text")
    with pytest.raises(ValueError, match=f"at most {RATIO} times as many, and {FLOOR >> 20} MiB, are taken"):
        check_zip(npz(tmp_path))
