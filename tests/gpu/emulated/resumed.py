"""Trainings that were stopped and taken up again on the emulated device, beside others that were not.

python resumed.py FILE      FILE: JSON, a list of [head, settings]; prints as many largest differences of a weight
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import emulated_cuda
from steps import BATCH, DIM, SMALL, WINDOW, made_up_table


def largest_difference(name, settings):
    import torch

    from glscl.train_head.heads import build_head
    from glscl.train_head.loop import fit
    from glscl.train_head.reports import Reporter
    from glscl.train_head.settings import TrainSettings

    class Stop(Reporter):
        def step(self, report):
            if (report.epoch, report.step) == (1, 2 * WINDOW):
                raise KeyboardInterrupt

    def trained(folder, reporter, resume=False):
        torch.manual_seed(0)
        head = build_head(name, embed_dim=DIM, **SMALL.get(name, {}))
        try:
            fit(head, table, about, device="cuda", reporter=reporter, out=Path(folder), resume=resume)
        except KeyboardInterrupt:
            return {}
        return {key: emulated_cuda.held(value) for key, value in head.state_dict().items()}

    table = made_up_table(3 * WINDOW)
    about = TrainSettings(epochs=2, batch_size=BATCH, log_every=WINDOW, lr=1e-2, **settings)
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as stopped:
        expected = trained(whole, Reporter())
        assert trained(stopped, Stop()) == {}
        found = trained(stopped, Reporter(), resume=True)
    return max((found[key] - expected[key]).abs().max().item() for key in expected)


if __name__ == "__main__":
    emulated_cuda.install()
    print(json.dumps([largest_difference(*asked) for asked in json.loads(Path(sys.argv[1]).read_text())]))
