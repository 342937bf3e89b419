"""The tests that need a GPU, on the emulated device.

python marked.py FILE      FILE: JSON, a list of test files
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import emulated_cuda

if __name__ == "__main__":
    emulated_cuda.install()
    import pytest

    files = [file for file in json.loads(Path(sys.argv[1]).read_text()) if "emulated" not in Path(file).name]
    pytest.main(["-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=line", *files])
