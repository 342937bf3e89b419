"""What memory can be had, and what is said where it does not suffice."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from forked import Forked

from glscl.cache.reading import read_arrays
from glscl.common import memory
from glscl.common.errors import OutOfMemoryError
from glscl.common.memory import available, is_full, require_memory


@pytest.fixture
def group(tmp_path, monkeypatch):
    """A control group of version 2 below another, as its files tell it; all else is boundless."""
    folder = tmp_path / "outer" / "inner"
    folder.mkdir(parents=True)
    real = memory.Path

    def path(*parts):
        return real(tmp_path / "cgroup") if parts == ("/proc/self/cgroup",) else real(*parts)

    (tmp_path / "cgroup").write_text("0::/outer/inner\n")
    monkeypatch.setattr(memory, "Path", path)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_of_machine", lambda: None)
    monkeypatch.setattr(memory, "_of_process", lambda: None)
    return folder


def limit(folder, most, used, cached=0):
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 0\n")


def test_the_least_of_all_limits_is_what_can_be_had(group):
    assert available() is None
    limit(group, "max", 10)
    assert available() is None
    limit(group.parent, 1000, 400, cached=100)
    assert available() == 700, "the file cache is given back"
    limit(group, 500, 200)
    assert available() == 300
    limit(group, 500, 600)
    assert available() == 0


def test_what_does_not_fit_is_refused_with_both_sizes(group):
    limit(group, 3 * 10**9, 10**9)
    require_memory(2 * 10**9, "a table", hint="Less")
    with pytest.raises(OutOfMemoryError, match=r"a table takes 2\.1 GB of memory; 2\.0 GB can be had\. Less"):
        require_memory(2 * 10**9 + 10**8, "a table", hint="Less")
    assert issubclass(OutOfMemoryError, MemoryError)


def test_features_are_not_read_where_they_do_not_fit(small_cache, monkeypatch):
    library = small_cache().fill().library
    items = range(library.stream("video").num_items)
    monkeypatch.setattr("glscl.cache.reading.LARGE_BYTES", 0)
    monkeypatch.setattr(memory, "available", lambda: 1)
    with pytest.raises(OutOfMemoryError, match=r"video features of .* can be had.*`max_frames`"):
        read_arrays(library, "video", ["values"], items)
    monkeypatch.setattr(memory, "available", lambda: None)
    assert read_arrays(library, "video", ["values"], items)["values"].dtype == np.float16


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 1 GiB"), True),
        (RuntimeError("can't start new thread"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (ImportError("libx.so: failed to map segment: Cannot allocate memory"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_want_of_memory_is_known_in_whatever_words(error, full):
    assert is_full(error) is full


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ulimit -v")
def test_a_command_under_a_limit_of_address_space_ends_in_one_line(small_cache, tmp_path):
    cache = small_cache(videos=40, captions=15, dim=512).fill().path
    program = (
        "import resource, sys\n"
        "import torch, open_clip\n"
        "from pathlib import Path\n"
        "from glscl import cli\n"
        "from glscl.commands.options import main\n"
        "import glscl.train_head.train, glscl.evaluate.evaluation\n"
        "torch.set_num_threads(1)\n"
        "torch.randn(64, 64) @ torch.randn(64, 64)\n"
        "now = int(Path('/proc/self/statm').read_text().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + (24 << 20),) * 2)\n"
        "sys.exit(main(cli.app, sys.argv[1:]))"
    )
    words = ["train-head", "--cache", cache, "--out", tmp_path / "run", "--device", "cpu", "--batch-size", "512"]
    (tmp_path / "program.py").write_text(program)
    ran = Forked([tmp_path / "program.py", *words])
    _, said = ran.communicate(timeout=300)
    assert ran.returncode == 1 and "Traceback" not in said and "Unexpected" not in said, said
    lines = [line for line in said.splitlines() if line.startswith("glscl: ")]
    assert len(lines) == 1 and "memory" in lines[0], said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_a_batch_reuses_the_memory_of_the_one_before():
    program = """
import resource, numpy, glscl.common.memory as memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        numpy.ones(5_000_000), numpy.ones(9_000_000)  # 40 and 72 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before, kept = faults(), memory.keep_freed_memory()
faults()
print(before, faults(), kept)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    before, after, kept = int(said[0]), int(said[1]), said[2] == "True"
    assert not kept or after < before / 20, said
