"""The loops that extraction is compared with take the frames that they say, and every feature finds its clip."""

from __future__ import annotations

import numpy as np
import torch


def test_frames_of_several_clips_share_batches_and_come_back_to_their_clip(
    benchmark_script, tmp_path, monkeypatch, capsys
):
    loops = benchmark_script("loops")
    frames = {"a.mp4": 3, "b.mp4": 0, "c.mp4": 6}
    clips = [tmp_path / name for name in [*frames, "broken.mp4"]]

    def read(path: str) -> list[np.ndarray]:
        name = path.rpartition("/")[2]
        return [np.full((2, 2, 3), 10 * ord(name[0]) % 200 + n, np.uint8) for n in range(frames[name])]

    monkeypatch.setitem(loops.READERS, "made", read)
    sizes = []

    def encode(pixels: torch.Tensor) -> np.ndarray:
        sizes.append(len(pixels))
        return pixels[:, :1].numpy()

    def preprocess(picture):
        return torch.tensor([float(np.asarray(picture)[0, 0, 0])])

    features = loops.in_batches("made", clips, preprocess, encode, size=4)
    assert sizes == [4, 4, 1]
    assert {name: [float(row[0, 0]) for row in rows] for name, rows in features.items()} == {
        "a.mp4": [170.0, 171.0, 172.0],
        "c.mp4": [190.0 + n for n in range(6)],
    }
    assert "broken.mp4" in capsys.readouterr().err


def test_the_table_keeps_the_least_of_all_rounds_and_compares_with_extraction(benchmark_script):
    loops = benchmark_script("loops")
    lines = [
        {"way": "glscl", "precision": "fp32", "seconds": 10.0, "cpu": 18.0, "frames": 7},
        {"way": "glscl", "precision": "fp32", "seconds": 12.0, "cpu": 16.0, "frames": 7},
        {"way": "opencv", "precision": "fp32", "seconds": 25.0, "cpu": 40.0, "frames": 7},
    ]
    rows = loops.table(lines).splitlines()
    assert rows[2] == "| glscl, fp32 | 10 | 16 | 7 | 2 | 1 |"
    assert rows[3] == "| opencv, fp32 | 25 | 40 | 7 | 1 | 2.5 |"
