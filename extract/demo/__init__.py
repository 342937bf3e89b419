"""The built-in demo: a synthetic video corpus rendered to real mp4 files, and a tiny CLIP that knows its world.

    world.py           what can happen: things, scenes, stories, and how they are drawn by lot
    grammar.py         captions of stories and of single frames
    render.py          scenes → RGB frames
    corpus.py          stories → mp4 files and annotations; the dataset reader of `--dataset demo`
    train_backbone.py  the script that made `backbone/`
    backbone/          open_clip_config.json, open_clip_model.safetensors, merges of the byte-pair tokenizer

The tiny CLIP loads like any open_clip model in a folder:

    open_clip.create_model(f"local-dir:{BACKBONE_DIR}")
    open_clip.get_tokenizer(f"local-dir:{BACKBONE_DIR}", bpe_path=str(BPE_PATH))
"""

from pathlib import Path

BACKBONE_DIR = Path(__file__).parent / "backbone"
BPE_PATH = BACKBONE_DIR / "bpe_merges.txt.gz"
