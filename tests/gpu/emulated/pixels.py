"""What encoding frames and a second pass cost the host on the emulated device.

python pixels.py FILE      FILE: JSON, [annotations, videos, folder] of the demo corpus; prints {"encoding", "second pass"}

"encoding" are the counts of three batches under way; "second pass" those of every window of WINDOW steps.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import emulated_cuda
from emulated_cuda import COUNTS

WINDOW = 4


def encoding():
    import numpy as np

    from glscl.extract.backbone.encoder import load_backbone

    backbone = load_backbone("demo", device="cuda")
    frames = np.zeros((8, *backbone.transform.size, 3), np.uint8)
    backbone.encode_later([frames])()
    COUNTS.clear()
    under_way = [backbone.encode_later([frames[:count], frames]) for count in (1, 8, 3)]
    counted = dict(COUNTS)
    assert [len(features()) for features in under_way] == [9, 16, 11]
    return counted


def second_pass(annotations, videos, folder):
    from glscl import cli
    from glscl.cache.store import open_store
    from glscl.commands.options import main
    from glscl.train_head.finetuning.finetune import finetune
    from glscl.train_head.finetuning.settings import resolve_finetune
    from glscl.train_head.reports import Reporter

    counts = []

    class Watch(Reporter):
        def step(self, report):
            counts.append(dict(COUNTS))
            COUNTS.clear()

    where = Path(folder)
    data = ["--dataset", "demo", "--annotations", annotations, "--videos", videos, "--backbone", "demo"]
    words = ["extract", *data, "--out", str(where / "cache"), "--store-frames", "uint8", "--device", "cuda"]
    assert main(cli.app, words) == 0
    asked = {"head": "glscl", "options": {"queries": 2, "decoder_layers": 1, "aggregator_layers": 1}, "select": "last"}
    asked |= {"epochs": 1, "batch_size": 16, "log_every": WINDOW, "same_video": "mask"}
    settings = resolve_finetune(asked, dataset="demo", device_type="cuda")
    assert settings.precision == "bf16"
    finetune(open_store(where / "cache"), where / "run", settings, device="cuda", reporter=Watch())
    return counts


if __name__ == "__main__":
    emulated_cuda.install()
    print(json.dumps({"encoding": encoding(), "second pass": second_pass(*json.loads(Path(sys.argv[1]).read_text()))}))
