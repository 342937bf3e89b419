"""--compile: one graph for all batches, the losses of the uncompiled step, and a clear line where it cannot be had."""

from types import SimpleNamespace

import pytest
import torch

from glscl.common import compiling
from glscl.common.errors import UsageError
from glscl.train_head import learner
from glscl.train_head.heads import build_head
from glscl.train_head.loop import fit
from glscl.train_head.settings import TrainSettings


def new_head():
    torch.manual_seed(0)
    return build_head("glscl", embed_dim=16, queries=2, decoder_layers=1, aggregator_layers=1, dropout=0.0)


def test_captions_of_any_length_run_through_one_graph_with_the_losses_of_the_uncompiled_step(planted, monkeypatch):
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    graphs, traced, torch_compile = [], [], torch.compile

    def kept(graph, inputs):
        graphs.append([tuple(value.shape) for value in inputs if isinstance(value, torch.Tensor)])
        return make_boxed_func(graph.forward)

    def without_a_compiler(function, **options):
        traced.append(options)
        return torch_compile(
            function, dynamic=options["dynamic"], fullgraph=True, backend=aot_autograd(fw_compiler=kept)
        )

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", without_a_compiler)
    monkeypatch.setattr(compiling, "missing_compiler", lambda device: None)
    table = planted(videos=16, captions=3)
    table.token_count[:], table.token_count[0] = 2, 5
    table.token_first[:] = table.token_count.cumsum(0) - table.token_count

    def validate(head):
        head.eval()(table.texts(slice(0, 7)), table.videos(slice(0, 5)))
        return {direction: {"R@1": 1.0, "MnR": 1.0} for direction in ("text_to_video", "video_to_text")}

    plain = fit(new_head(), table, TrainSettings(epochs=3, batch_size=12))
    compiled = fit(new_head(), table, TrainSettings(epochs=3, batch_size=12, compile=True), validate=validate)
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-5)
    assert traced == [{"dynamic": False, "mode": None}]
    assert len(graphs) == 2, "forward and backward, once for all steps, whatever is scored between epochs"
    torch.compiler.reset()


def test_without_a_compiler_one_line_says_so(planted, monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(UsageError, match=r"^`compile`: there is no C\+\+ compiler here.*\n?.*leave `compile` out"):
        fit(new_head(), planted(videos=4, captions=1), TrainSettings(epochs=1, compile=True))
    assert "mps" in compiling.missing_compiler(torch.device("mps"))


def test_several_processes_compile_nothing(planted, monkeypatch):
    monkeypatch.setattr(learner, "launch", lambda: SimpleNamespace(world=2))
    with pytest.raises(UsageError, match="`compile` is for one process, found 2"):
        learner.Learner(new_head(), planted(videos=4, captions=1), compile=True).begin(torch.device("cpu"))


def test_on_a_gpu_every_step_begins_anew_and_is_replayed(monkeypatch):
    asked, begun = {}, []
    monkeypatch.setattr(compiling, "missing_compiler", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.update(options) or function)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(True))
    step = compiling.compiled(lambda *values: sum(values), torch.device("cuda"), replayed=True)
    assert step(1, 2) == 3 and step(2, 2) == 4
    assert asked == {"dynamic": False, "mode": "reduce-overhead"} and len(begun) == 2


def test_what_triton_lacks_to_build_is_said_before_the_training(monkeypatch, tmp_path):
    gpu = torch.device("cuda")
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_default_scheme", lambda: "posix_local")  # of Debian's own Python
    monkeypatch.setattr("sysconfig.get_path", lambda name, scheme: str(tmp_path) if scheme == "posix_prefix" else "/no")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if name in there else None)
    monkeypatch.delenv("CC", raising=False)
    there = ["cc"]  # which Triton does not look for
    assert "C compiler here (gcc or clang)" in compiling.missing_compiler(gpu)
    there = ["gcc"]
    assert compiling.missing_compiler(gpu) is None
    monkeypatch.setenv("CC", "icc")
    assert "C compiler here (CC is 'icc')" in compiling.missing_compiler(gpu)
    monkeypatch.delenv("CC")
    (tmp_path / "Python.h").unlink()
    assert "Python.h" in compiling.missing_compiler(gpu)
