"""Readers of other programs' arrays and weights under hostile input."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from hostile_reader import Reader

NAMES = [f"video{i}" for i in range(4)]


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((3, 8)).astype(np.float32) for name in NAMES}


def _npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.stack(list(_arrays().values())))
    return out.getvalue()


def _npz(*, compressed: bool) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **_arrays())
    return out.getvalue()


def _pickle(protocol: int) -> bytes:
    return pickle.dumps({"videos": _arrays(), "list": [[1.0, 2.0], [0.5, 1.5]]}, protocol=protocol)


def _pt(folder: Path) -> None:
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in _arrays().items()}, folder / "features.pt")


def _old_pt(folder: Path) -> None:
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in _arrays().items()}
    torch.save(tensors, folder / "features.pth", _use_new_zipfile_serialization=False)


def _h5(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "features.h5", "w") as file:
        for i, (name, array) in enumerate(_arrays().items()):
            file.create_dataset(f"group/{name}", data=array, compression="gzip" if i % 2 else None)


def _h5_packed(folder: Path) -> None:
    import h5py

    ways = [{"fletcher32": True}, {"compression": "lzf"}, {"compression": "gzip", "shuffle": True, "fletcher32": True}]
    with h5py.File(folder / "features.h5", "w") as file:
        for i, (name, array) in enumerate(_arrays().items()):
            file.create_dataset(name, data=array, chunks=(max(1, len(array) - 1), *array.shape[1:]), **ways[i % 3])


def _h5_listed(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "features.h5", "w") as file:
        file["features"], file["video_ids"] = np.stack(list(_arrays().values())), NAMES
        file["lengths"] = [3, 2, 1, 3]


def _npy_dictionary() -> bytes:
    out = io.BytesIO()
    np.save(out, _arrays(), allow_pickle=True)  # type: ignore[arg-type]
    return out.getvalue()


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for i, (name, array) in enumerate(_arrays().items()):
            kept = io.BytesIO()
            if i % 2:
                np.savez(kept, clip_embeddings=array, fps=np.ones(1))
            else:
                np.save(kept, array)
            for end, data in (("npz" if i % 2 else "npy", kept.getvalue()), ("json", b'{"videoID": "%d"}' % i)):
                info = tarfile.TarInfo(f"{name}.{end}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _read_arrays(folder: Path, _: Path | None) -> dict[str, Any]:
    from glscl.common.errors import InputError
    from glscl.extract.importing.feature_files import open_arrays

    (path,) = folder.iterdir()
    sizes: dict[str, Any] = {}
    refusal = None
    with open_arrays(path) as arrays:
        for name in arrays.entries:
            try:
                array = arrays.read(name)
            except InputError as error:  # the others are read all the same
                refusal = error
                continue
            assert array.dtype == np.float32 and np.isfinite(array).all() and array.size
            sizes[name] = array.shape
    if refusal is not None:
        raise refusal
    return sizes


def _import(folder: Path, _: Path | None) -> dict[str, Any]:
    from glscl.extract.datasets import DATASETS
    from glscl.extract.importing.import_features import FeatureFiles, import_features
    from glscl.extract.settings import ImportSettings

    found = DATASETS["csv"].read(folder / "captions.csv", None)
    done = import_features(
        found,
        FeatureFiles(folder / "frames", folder / "texts.npz"),
        folder.parent / "out",
        ImportSettings(shard_videos=3, format="hdf5"),
    )
    return done.as_dict()


def _import_files(folder: Path) -> None:
    (folder / "frames").mkdir()
    arrays = _arrays()
    np.save(folder / "frames" / "video0.npy", arrays["video0"])
    np.savez(folder / "frames" / "video1.npz", arrays["video1"])
    (folder / "frames" / "video2.pkl").write_bytes(pickle.dumps(arrays["video2"]))
    np.save(folder / "frames" / "video3.npy", arrays["video3"].astype(np.float16))
    np.savez(folder / "texts.npz", **{f"{name}#0": array[0] for name, array in arrays.items()})
    rows = [f"{name},a made-up thing {name},{'test' if name == 'video3' else 'train'}" for name in NAMES]
    (folder / "captions.csv").write_text("\n".join(["video,caption,split", *rows]))


def _foreign() -> dict[str, Any]:
    """A small state dict as CLIP4Clip names it: one transformer block over frames."""
    import torch

    block, width = "transformerClip.resblocks.0", 16
    shapes = {
        "frame_position_embeddings.weight": (4, width),
        f"{block}.attn.in_proj_weight": (3 * width, width),
        f"{block}.attn.in_proj_bias": (3 * width,),
        f"{block}.attn.out_proj.weight": (width, width),
        f"{block}.attn.out_proj.bias": (width,),
        f"{block}.ln_1.weight": (width,),
        f"{block}.ln_1.bias": (width,),
        f"{block}.mlp.c_fc.weight": (4 * width, width),
        f"{block}.mlp.c_fc.bias": (4 * width,),
        f"{block}.mlp.c_proj.weight": (width, 4 * width),
        f"{block}.mlp.c_proj.bias": (width,),
        f"{block}.ln_2.weight": (width,),
        f"{block}.ln_2.bias": (width,),
        "clip.logit_scale": (),
    }
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def _weights_pt(folder: Path) -> None:
    import torch

    torch.save({"model": _foreign()}, folder / "weights.pt")


def _weights_safetensors(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(_foreign(), folder / "weights.safetensors")


def _read_weights(folder: Path, _: Path | None) -> dict[str, Any]:
    from glscl.train_head.importing.foreign_weights import head_from_state_dict
    from glscl.train_head.importing.import_checkpoint import read_state_dict

    (path,) = folder.iterdir()
    head = head_from_state_dict(read_state_dict(path), "clip4clip", embed_dim=16)
    return {"head": type(head).__name__, "options": head.options}


FEATURES = [
    Reader("npy", {"features.npy": _npy()}, _read_arrays),
    Reader("npz", {"features.npz": _npz(compressed=False)}, _read_arrays),
    Reader("npz-compressed", {"features.npz": _npz(compressed=True)}, _read_arrays),
    Reader("pickle-2", {"features.pkl": _pickle(2)}, _read_arrays),
    Reader("pickle-5", {"features.pkl": _pickle(5)}, _read_arrays),
    Reader("torch", _pt, _read_arrays, few=40),
    Reader("torch-old", _old_pt, _read_arrays, few=40),
    Reader("h5", _h5, _read_arrays),
    Reader("h5-packed", _h5_packed, _read_arrays),
    Reader("h5-listed", _h5_listed, _read_arrays),
    Reader("npy-dictionary", {"features.npy": _npy_dictionary()}, _read_arrays),
    Reader("tar", {"features.tar": _tar()}, _read_arrays),
    Reader("import-features", _import_files, _import, writes=True),
    Reader("checkpoint-torch", _weights_pt, _read_weights, few=40),
    Reader("checkpoint-safetensors", _weights_safetensors, _read_weights),
]
