"""Sections of the GPU benchmark in small on the emulated device, in one process.

python sections.py FILE      FILE: JSON, a list of names of sections; prints the lines of their results
"""

import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[2] / "benchmarks")]

import emulated_cuda


def lines_of(names):
    import torch
    from gpu_bench import SMALL, Bench
    from gpu_sections import SECTIONS

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(torch.device("cuda"), SMALL, lines.append, lambda: lines, Path(folder))
        for bench.section in names:
            SECTIONS[bench.section].run(bench)
    return lines


if __name__ == "__main__":
    emulated_cuda.install()
    print(json.dumps(lines_of(json.loads(Path(sys.argv[1]).read_text()))))
