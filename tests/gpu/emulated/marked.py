"""The tests that need a GPU, on the emulated device.

python marked.py FILE      FILE: JSON, the folder of all tests
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import emulated_cuda

if __name__ == "__main__":
    emulated_cuda.install()
    import pytest

    tests = Path(json.loads(Path(sys.argv[1]).read_text()))
    files = sorted(str(file) for file in tests.rglob("test_*.py") if "pytest.mark.gpu" in file.read_text("utf-8"))
    pytest.main(["-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=line", *files])
