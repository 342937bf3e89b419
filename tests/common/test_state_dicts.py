"""State dicts of every writer are read alike; nothing but tensors is unpickled, and no code of a file is compiled or run."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from glscl.common.errors import InputError, NotFoundError
from glscl.common.state_dicts import is_script, read_state_dict

WEIGHTS = {
    "visual.conv1.weight": torch.arange(24.0).view(2, 3, 2, 2),
    "logit_scale": torch.tensor(4.6),
    "ids": torch.tensor([1, 2], dtype=torch.int32),
    "text.ln.weight": torch.ones(3, dtype=torch.float16),
}
WRAPPERS = {
    "plain": lambda w: w,
    "state_dict": lambda w: {"state_dict": w, "epoch": 4, "optimizer": {"lr": 0.1, "moments": [torch.ones(2)]}},
    "model": lambda w: {"model": w, "args": argparse.Namespace(lr=0.1)},
    "model_state_dict": lambda w: {"model_state_dict": w},
    "module": lambda w: {"module": w, "global_step": 3},
    "two deep": lambda w: {"model": {"state_dict": w}},
    "distributed": lambda w: {f"module.{key}": value for key, value in w.items()},
    "compiled": lambda w: {f"_orig_mod.{key}": value for key, value in w.items()},
    "both": lambda w: {f"module._orig_mod.{key}": value for key, value in w.items()},
    "a compiled part": lambda w: {key.replace("visual.", "visual._orig_mod."): value for key, value in w.items()},
    "Lightning": lambda w: {
        "state_dict": {f"model.{key}": value for key, value in w.items()},
        "pytorch-lightning_version": "2.4.0",
        "callbacks": {"ModelCheckpoint{'monitor': 'r1'}": {"best_model_score": torch.tensor(0.4)}},
        "hyper_parameters": {"lr": 1e-4},
    },
    "open_clip's epoch_N.pt": lambda w: {
        "epoch": 3,
        "name": "run",
        "state_dict": {f"module.{key}": value for key, value in w.items()},
        "optimizer": {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-3}]},
    },
}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = WEIGHTS) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype, name


def test_safetensors_whose_header_is_as_long_as_a_pickle_begins_are_read(tmp_path):
    """The length of the header stands first, and 0x80 begins a pickle of any protocol."""
    path = tmp_path / "model.safetensors"
    for filling in range(256):
        save_file(WEIGHTS, path, metadata={"filling": "x" * filling})
        if path.read_bytes()[0] == 0x80:
            break
    else:
        pytest.fail("no header is so long")
    same(read_state_dict(path))


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_weights_are_found_whatever_they_are_wrapped_in(tmp_path, kind, zipped):
    torch.save(WRAPPERS[kind](WEIGHTS), tmp_path / "f", _use_new_zipfile_serialization=zipped)
    same(read_state_dict(tmp_path / "f"))


def test_safetensors_and_folders_of_shards_are_read(tmp_path):
    save_file(WEIGHTS, tmp_path / "any.name")
    same(read_state_dict(tmp_path / "any.name"))
    shards = tmp_path / "shards"
    shards.mkdir()
    names = list(WEIGHTS)
    for number, part in enumerate((names[:2], names[2:])):
        save_file({name: WEIGHTS[name] for name in part}, shards / f"part-{number}.safetensors")
    places = {name: f"part-{int(i > 1)}.safetensors" for i, name in enumerate(names)}
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    same(read_state_dict(shards))
    (shards / "part-1.safetensors").unlink()
    with pytest.raises(
        NotFoundError, match=r"There is no .*part-1.safetensors, which model.safetensors.index.json names"
    ):
        read_state_dict(shards)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"empty holds no weights"):
        read_state_dict(tmp_path / "empty")


def test_an_index_names_no_file_outside_its_folder(tmp_path):
    save_file(WEIGHTS, tmp_path / "outside.safetensors")
    (tmp_path / "f").mkdir()
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (tmp_path / "f" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(NotFoundError, match="which model.safetensors.index.json names"):
        read_state_dict(tmp_path / "f")


# --- TorchScript -------------------------------------------------------------------------------------------------------


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(self.linear(x))


class Archive(nn.Module):
    """Like OpenAI's: half precision, modules in modules, a matrix stored transposed, three numbers beside the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.projection = nn.Parameter(torch.randn(4, 2).T)
        for number, name in enumerate(("input_resolution", "context_length", "vocab_size")):
            self.register_buffer(name, torch.tensor(number))

    def forward(self, x):
        return self.inner(x) @ self.projection + self.input_resolution + self.context_length + self.vocab_size


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "ViT-B-32.pt"
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(Archive().half().eval()), path)
    return path


def test_a_torchscript_archive_gives_the_weights_that_torch_itself_reads(script):
    expected = torch.jit.load(script).state_dict()
    numbers = {"input_resolution", "context_length", "vocab_size"}
    found = read_state_dict(script)
    assert is_script(script) and numbers < expected.keys()
    same(found, {key: value for key, value in expected.items() if key not in numbers})
    assert found["projection"].dtype == torch.float16


def test_no_code_of_a_torchscript_archive_is_read(script, tmp_path):
    """Its classes could restore themselves with code of their own; here they do not have to be there at all."""
    bare = tmp_path / "bare.pt"
    with zipfile.ZipFile(script) as good, zipfile.ZipFile(bare, "w") as out:
        for name in good.namelist():
            out.writestr(name, b"not code" if "/code/" in name else good.read(name))
    with pytest.raises(RuntimeError):
        torch.jit.load(bare)
    same(read_state_dict(bare), read_state_dict(script))


class Malice:
    def __init__(self, folder) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def altered(script, path, pickled: bytes):
    with zipfile.ZipFile(script) as good, zipfile.ZipFile(path, "w") as out:
        for name in good.namelist():
            out.writestr(name, pickled if name.endswith("/data.pkl") else good.read(name))
    return path


def test_a_torchscript_archive_with_other_objects_is_refused(script, tmp_path):
    hostile = altered(script, tmp_path / "f.pt", pickle.dumps({"a": Malice(tmp_path / "sentinel")}))
    with pytest.raises(InputError, match="other Python objects .*mkdir"):
        read_state_dict(hostile)
    assert not (tmp_path / "sentinel").exists()


def modules(shape) -> bytes:
    """A pickle of stand-in modules; `shape` gives the attributes of each by number, other modules as (number,)."""
    out = io.BytesIO()
    out.write(b"\x80\x02")
    for number in reversed(range(len(shape))):
        out.write(b"c__torch__\nM\n)\x81q" + bytes([number]))
        if number:
            out.write(b"0")
    for number, attributes in shape.items():
        if number:
            out.write(b"h" + bytes([number]))
        out.write(b"}(")
        for name, inner in attributes.items():
            out.write(b"X" + len(name).to_bytes(4, "little") + name.encode() + b"h" + bytes([inner]))
        out.write(b"ub" + (b"0" if number else b""))
    out.write(b".")
    return out.getvalue()


@pytest.mark.parametrize(
    "shape",
    [{0: {"a": 0}}, {0: {"a": 1}, 1: {"b": 0}}, {i: {"a": i + 1, "b": i + 1} if i < 60 else {} for i in range(61)}],
    ids=["itself", "each other", "twice as many at each level"],
)
def test_modules_that_are_no_tree_are_refused_soon(script, tmp_path, shape):
    hostile = altered(script, tmp_path / "f.pt", modules(shape))
    with pytest.raises(InputError, match="its modules are no tree"):
        read_state_dict(hostile)


def test_tensors_that_claim_more_than_is_stored_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "f")
    with pytest.raises(InputError, match="a claims 1000000000000 numbers, more than are stored"):
        read_state_dict(tmp_path / "f")


def test_sparse_tensors_are_no_weights(tmp_path):
    torch.save({"a": torch.ones(2, 2).to_sparse()}, tmp_path / "f")
    with pytest.raises(InputError, match="a is no plain tensor"):
        read_state_dict(tmp_path / "f")


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_damaged_archive_is_refused_in_one_line(script, tmp_path, cut):
    whole = script.read_bytes()
    (tmp_path / "f").write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(InputError, match=str(tmp_path / "f")) as caught:
        read_state_dict(tmp_path / "f")
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def _zip_of(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"x")
    return out.getvalue()


def _saved(content: object) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


SAFE = save({"a": torch.ones(9)})
NO_CHECKPOINTS = {
    "nothing": (b"", "is empty"),
    "a pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:46\n",
        "pointer of Git LFS.*Run git lfs pull",
    ),
    "a page": (b"\n <!DOCTYPE html><title>Not found</title>", "a web page.*Download the file itself"),
    "text": ("my weights, größer".encode(), "is text, not weights"),
    "half a checkpoint": (_saved(WEIGHTS)[:900], "cut short: it begins as a checkpoint of torch.*again"),
    "half of safetensors": (SAFE[:-5], f"cut short: safetensors of {len(SAFE) - 5} bytes"),
    "a header of safetensors": (SAFE[:20], "cut short: safetensors of 20 bytes"),
    "another archive": (_zip_of("readme.txt"), "is a zip archive, but no checkpoint of torch"),
    "packed": (b"\x1f\x8b\x08" + bytes(30), "packed by gzip. Unpack it"),
    "something": (bytes(range(256)), "is neither a torch checkpoint nor safetensors"),
    "an optimiser": (_saved({"state": {}, "param_groups": []}), "holds the state of an optimiser and no weights"),
    "fp8": (
        save({"a": torch.ones(9).to(torch.float8_e4m3fn)}),
        "a in torch.float8_e4m3fn: quantised weights are not read",
    ),
    "quantised": (_saved({"a._packed_params.dtype": torch.qint8}), "holds quantised weights, which are not read"),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
@pytest.mark.filterwarnings("error")
def test_a_file_that_is_no_checkpoint_is_told_by_what_it_is(tmp_path, kind):
    content, said = NO_CHECKPOINTS[kind]
    (tmp_path / "f.pt").write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_state_dict(tmp_path / "f.pt")
    assert "\n" not in str(caught.value) and "header" not in caught.value.message.replace("fit its header", "")
