"""Commands of the program on the emulated device, in one process.

python session.py FILE      FILE: JSON, a list of lists of words; prints a list of exit statuses
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import emulated_cuda

if __name__ == "__main__":
    emulated_cuda.install(int(os.environ.get("EMULATED_MEMORY", 141 * emulated_cuda.GIB)))
    import torch

    try:
        torch.ones(2, device="cuda") + torch.ones(2)
        raise SystemExit("tensors of both devices meet unseen")
    except emulated_cuda.MeetingError:
        pass
    from glscl import cli
    from glscl.commands.options import main

    statuses = []
    for words in json.loads(Path(sys.argv[1]).read_text()):
        print("$", *words, file=sys.stderr, flush=True)
        emulated_cuda.COUNTS.clear()
        statuses.append(main(cli.app, words))
        if words[0] not in ("train-head", "finetune") and emulated_cuda.COUNTS["loose"]:
            raise SystemExit(f"{words[0]} computes in TF32")
    print(json.dumps(statuses))
