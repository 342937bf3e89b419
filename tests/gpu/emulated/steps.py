"""Steps of training on the emulated device: what they give, and what they cost the host.

python steps.py FILE      FILE: JSON, a list of [head, device, steps, settings]; prints as many of {"losses", "counts", "notes"}

`counts` are those of every window of WINDOW steps, at the end of which the loop reports.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import emulated_cuda

WINDOW, BATCH, DIM = 4, 4, 64
SMALL = {"glscl": {"queries": 2, "decoder_layers": 2, "aggregator_layers": 2}}


def made_up_table(steps):
    import torch

    from glscl.cache.schema import TextFeatures, VideoFeatures
    from glscl.cache.table import FeatureTable

    random = torch.Generator().manual_seed(0)
    count, words, frames = steps * BATCH, 24, 6
    mask = torch.arange(words) < torch.randint(3, 13, (count, 1), generator=random)
    real = torch.arange(frames) < torch.randint(4, frames + 1, (count, 1), generator=random)
    features = (torch.randn(count, n, DIM, generator=random) for n in (1, words, frames))
    pooled, tokens, images = features
    return FeatureTable.from_features(TextFeatures(pooled[:, 0], tokens, mask), VideoFeatures(images, real))


def trained(name, device, steps, settings):
    import torch

    from glscl.train_head.heads import build_head
    from glscl.train_head.loop import fit
    from glscl.train_head.reports import Reporter
    from glscl.train_head.settings import TrainSettings

    counts, notes = [], []

    class Watch(Reporter):
        def step(self, report):
            counts.append(dict(emulated_cuda.COUNTS))
            emulated_cuda.COUNTS.clear()

        def note(self, line):
            notes.append(line)

    torch.manual_seed(0)
    head = build_head(name, embed_dim=DIM, **SMALL.get(name, {}))
    about = TrainSettings(
        **{"epochs": 1, "batch_size": BATCH, "log_every": WINDOW, "warmup": 0.2, "lr": 1e-2, **settings}
    )
    found = fit(head, made_up_table(steps), about, device=device, reporter=Watch())
    return {"losses": found.losses, "counts": counts, "notes": notes}


if __name__ == "__main__":
    emulated_cuda.install()
    print(json.dumps([trained(*asked) for asked in json.loads(Path(sys.argv[1]).read_text())]))
