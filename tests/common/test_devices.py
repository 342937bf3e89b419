"""Which device a process takes, and what is said where a GPU cannot be used. GPUs are made up here."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType

from glscl.common import devices
from glscl.common.devices import arithmetic, choose_device, lost_gpu
from glscl.common.errors import UsageError
from glscl.common.launch import Launch
from glscl.train_head import distributed
from glscl.train_head.distributed import make_accelerator, refuse_shared_gpus
from glscl.train_head.settings import precision_on, resolve


@pytest.fixture
def gpus(monkeypatch):
    """Lets torch believe in so many of them."""

    def make(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    make(0)
    return make


@pytest.mark.parametrize(
    ("count", "name", "place", "taken"),
    [
        (0, "auto", Launch(), "cpu"),
        (2, "auto", Launch(), "cuda"),
        (2, "cpu", Launch(), "cpu"),
        (2, "cuda:1", Launch(), "cuda:1"),
        (2, "auto", Launch(3, 4, 1, 2), "cuda:1"),
        (1, "cuda", Launch(3, 4, 3, 4), "cuda:0"),  # a batch system that shows each process its own
        (0, "auto", Launch(3, 4, 3, 4), "cpu"),
    ],
)
def test_each_process_takes_a_gpu_of_its_own(gpus, count, name, place, taken):
    gpus(count)
    assert choose_device(name, place) == torch.device(taken)


@pytest.mark.parametrize("count", [0, 2])
def test_a_number_that_torch_would_wrap_is_no_gpu(gpus, count):
    gpus(count)
    for name in ("cuda:2", "cuda:256", "cuda:999"):
        with pytest.raises(UsageError, match=f"'{name}', which this machine does not have"):
            choose_device(name, Launch())


def test_more_processes_than_gpus_are_refused(gpus):
    gpus(2)
    with pytest.raises(UsageError, match=r"^3 processes on this machine, which has 2 GPUs\. Start one process a GPU$"):
        choose_device("auto", Launch(2, 3, 2, 3))


def test_a_gpu_that_is_not_there_is_refused_with_the_reason(gpus, monkeypatch, tmp_path):
    with pytest.raises(UsageError, match=r"'cuda', which this machine does not have\. "):
        choose_device("cuda", Launch())
    there = tmp_path / "version"
    there.write_text("NVRM version: 470")
    monkeypatch.setattr(devices, "_OF_NVIDIA", (str(there),))
    monkeypatch.setattr(torch.cuda, "init", lambda: (_ for _ in ()).throw(RuntimeError("the driver is too old\nmore")))
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert lost_gpu() == "the driver is too old"
    with pytest.raises(UsageError, match=r"does not have: the driver is too old\. "):
        choose_device("cuda", Launch())
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert "built without CUDA" in lost_gpu()
    for shown in ("1", "0,1", "11", "GPU-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        assert lost_gpu(), f"{shown} shows one"
    for hidden in ("", "-1", " -1,0", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert lost_gpu() is None, "it was hidden on purpose"


def test_auto_says_once_that_a_gpu_cannot_be_used(gpus, monkeypatch, capsys):
    from glscl.commands.options import CommonConfig, Run

    monkeypatch.setattr(devices, "lost_gpu", lambda: "the driver is too old")
    run = Run(CommonConfig())
    assert run.device() == run.device() == torch.device("cpu")
    said = capsys.readouterr().out.splitlines()
    assert said == ["note: this machine has a GPU that cannot be used (the driver is too old); all runs on the CPU"]


def test_a_gpu_computes_in_full_or_in_tf32_and_never_attends_by_cudnn_inside_a_block_alone():
    def state():
        cudnn = torch.backends.cudnn.allow_tf32, torch.backends.cuda.cudnn_sdp_enabled()
        return torch.get_float32_matmul_precision(), *cudnn

    before = state()
    with arithmetic(torch.device("cpu"), tf32=True):
        assert state() == before
    with arithmetic(torch.device("cuda"), tf32=True):
        assert state() == ("high", True, False)
        with arithmetic(torch.device("cuda")):
            assert state() == ("highest", False, False)
        assert state() == ("high", True, False)
    assert state() == before


def test_bf16_is_chosen_where_the_gpu_computes_in_it(monkeypatch):
    native = [True]
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native[0]
    )
    assert precision_on("cuda") == "bf16"
    assert precision_on("cuda", large=False) == "tf32"
    native[0] = False  # Turing: torch emulates it
    assert precision_on("cuda") == precision_on("cuda", large=False) == "fp16"
    assert precision_on("cpu") == "fp32"
    with pytest.raises(UsageError, match="`precision=tf32` needs a CUDA device"):
        precision_on("cpu", "tf32")


def test_heads_take_tf32_on_a_gpu_but_for_those_with_a_network_on_every_pair(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    found = {
        name: resolve({"head": name}, dataset="x", device_type="cuda").precision for name in ("glscl", "tight_transf")
    }
    assert found == {"glscl": "tf32", "tight_transf": "bf16"}


def test_processes_that_share_a_gpu_are_told_so_all_of_them():
    def meet(gpus):
        store, refused = dist.HashStore(), {}

        def process(rank):
            try:
                refuse_shared_gpus(store, rank, len(gpus), gpus[rank])
            except UsageError as error:
                refused[rank] = str(error)

        threads = [threading.Thread(target=process, args=(rank,)) for rank in range(len(gpus))]
        for each in threads:
            each.start()
        for each in threads:
            each.join(30)
        return refused

    assert meet(["a of one", "b of one", "a of two"]) == {}
    refused = meet(["a of one", "b of one", "a of one"])
    assert refused.keys() == {0, 2} and "processes 0, 2 share one GPU (a of one)" in refused[2]


def test_gradients_are_summed_on_the_one_gpu_that_a_process_sees(monkeypatch):
    asked = {}

    class ThirdOfThree(Accelerator):
        num_processes, multi_device, device = 3, True, torch.device("cuda:0")  # type: ignore[assignment]
        distributed_type = DistributedType.MULTI_GPU  # type: ignore[assignment]  # by which older ones go

        def __init__(self, **options):
            super().__init__(**{**options, "cpu": True})
            self.state.local_process_index = 2

    class Parallel(torch.nn.Module):
        def __init__(self, module, **options):
            super().__init__()
            asked.update(options)

    monkeypatch.setattr(distributed, "Accelerator", ThirdOfThree)
    monkeypatch.setattr(distributed, "refuse_shared_gpus", lambda *_: None)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name="made up"))
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", Parallel)
    make_accelerator("cuda", "fp32").prepare_model(torch.nn.Linear(2, 2), device_placement=False)
    assert asked["device_ids"] == [0] and asked["output_device"] == 0
