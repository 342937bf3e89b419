"""The built-in demo: a synthetic video corpus rendered to real mp4 files, and a tiny CLIP that knows its world.

In reading order:
    world           what can happen: things, scenes, stories, and how they are drawn by lot
    render          scenes → RGB frames
    grammar         captions of stories and of single frames
    corpus          stories → mp4 files and annotations; the reader of the dataset `demo`
    stages          the whole way on the corpus: extract, train, judge, report

Wings:
    train_backbone  the script that made the folder `backbone` (config, weights, merges of the byte-pair tokenizer)

The tiny CLIP loads like any open_clip model in a folder:

    open_clip.create_model(f"local-dir:{BACKBONE_DIR}")
    open_clip.get_tokenizer(f"local-dir:{BACKBONE_DIR}", bpe_path=str(BPE_PATH))
"""

from pathlib import Path

BACKBONE_DIR = Path(__file__).parent / "backbone"
BPE_PATH = BACKBONE_DIR / "bpe_merges.txt.gz"
