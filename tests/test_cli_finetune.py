"""The second pass on the command line: from a cache to a run, from the run to numbers, and what it says on the way."""

from __future__ import annotations

import json
import shlex


def test_finetune_leaves_a_run_that_pixels_and_new_features_judge_alike(glscl, tmp_path, make_video):
    lines = ["video,caption,split"]
    for i in range(8):
        split = "train" if i < 6 else "test"
        make_video(tmp_path / "videos" / f"clip{i}.mp4", frames=8, seed=i)
        lines += [f"clip{i}.mp4,a red circle number {i} {word},{split}" for word in ("moving", "turning")]
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    data = ("--dataset", "csv", "--annotations", tmp_path / "captions.csv", "--videos", tmp_path / "videos")
    cache, out, again = tmp_path / "cache", tmp_path / "ft", tmp_path / "again"
    extract = ("extract", *data, "--backbone", "demo", "--dtype", "float32", "--workers", 1)
    assert glscl(*extract, "--out", cache, "--store-frames", "uint8")[0] == 0

    asked = ("--head", "projection", "--epochs", 1, "--batch-size", 4, "--lr", 1e-3, "--backbone-lr-scale", 0.1)
    status, text, _ = glscl("finetune", "--cache", cache, "--out", out, *asked, "--micro-batch", 2)
    assert status == 0 and "judge it from pixels, or extract again" in text
    assert "  backbone: lr 0.0001, micro_batch 2" in text
    by_pixels, extraction, by_features = (
        shlex.split(line)[1:] for line in text.splitlines() if line.startswith("  glscl ")
    )
    assert json.loads((out / "run.json").read_text())["frozen_backbone"] is False

    status, _, error = glscl("eval", "--run", out)
    assert status == 1 and "trained the backbone itself" in error and "--pretrained" in error
    assert "--store-frames uint8" in error and f"glscl eval --run {out} --videos {tmp_path / 'videos'}" in error
    status, text, _ = glscl(*by_pixels, "--json", "--out", tmp_path / "a.json")
    assert status == 0
    assert extraction == [*map(str, extract), "--store-frames", "uint8", *extraction[-4:]]
    assert glscl(*[again if word == "CACHE" else word for word in extraction])[0] == 0
    status, same, _ = glscl(*[again if word == "CACHE" else word for word in by_features], "--json")
    assert status == 0
    of_pixels, of_features = json.loads(text), json.loads(same)
    assert of_pixels["text_to_video"] == of_features["text_to_video"]
    assert of_pixels["frozen_backbone"] is of_features["frozen_backbone"] is False

    for wrong, says in [
        (("--lora-rank", 2, "--freeze-layers", 1), "--lora-rank leaves the backbone as it is"),
        (("--freeze-layers", 9), "the vision tower of demo has 4 blocks"),
        (("--patch-embedding", "3d"), "needs an open_clip vision transformer"),
        (("--out", out), "holds a run already"),
    ]:
        status, _, error = glscl("finetune", "--cache", cache, "--out", tmp_path / "bad", *asked, *wrong)
        assert status in (1, 2) and says in error and error.count("\n") <= 4, error
        assert not (tmp_path / "bad").exists()
