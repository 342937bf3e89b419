"""The second pass, from pixels: with `finetune.py` the only part of this room that goes back to videos."""
