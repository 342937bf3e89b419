"""What happens on the way of a second pass: pictures changed at random, numbers logged, arithmetic, a loss that breaks."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tuning import Steps, extracted, load, tune, weights_in

from glscl.cache.store import Store
from glscl.common.errors import NonFiniteError
from glscl.evaluate.evaluation import validation_metrics
from glscl.train_head.checkpoint import load_run
from glscl.train_head.finetuning.backbone_and_head import EndToEnd
from glscl.train_head.finetuning.pixel_learner import PixelLearner
from glscl.train_head.finetuning.pixels import DecodedFrames
from glscl.train_head.settings import resolve
from glscl.train_head.train import train


@pytest.fixture(scope="module")
def store(tmp_path_factory, painted_corpus, tiny_clip) -> Store:
    corpus = painted_corpus(tmp_path_factory.mktemp("clips"))
    return extracted(
        corpus, tmp_path_factory.mktemp("made") / "cache", f"local-dir:{tiny_clip('clip_vit')}", store_frames="uint8"
    )


@pytest.fixture(scope="module")
def trained_head(store, tmp_path_factory) -> Path:
    """A run of train-head on that cache."""
    out = tmp_path_factory.mktemp("runs") / "head"
    config = dict(head="projection", epochs=1, batch_size=8, max_frames=3)
    train(store, out, resolve(config, dataset="made"))
    return out


# --- augmentation ------------------------------------------------------------------------------------------------------


def test_augmentation_is_four_changes_of_magnitude_seven_of_ten(store, monkeypatch, tmp_path):
    from torchvision.transforms import v2

    made = []

    class Recorded(v2.RandAugment):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(v2, "RandAugment", Recorded)
    tune(store, tmp_path / "run", None, asked={"epochs": 1, "augment": "randaugment"})
    assert made and {(a.num_ops, a.magnitude, a.num_magnitude_bins) for a in made} == {(4, 21, 31)}  # 21 of 0 … 30


def test_augmented_training_follows_the_seed(store, tmp_path):
    augmented = {"augment": "randaugment", "backbone_lr_scale": 1.0}
    runs = {"plain": ({}, 0), "one": (augmented, 0), "two": (augmented, 0), "other": (augmented, 1)}
    losses = {}
    for name, (tuning, seed) in runs.items():
        steps, config = Steps(), {"epochs": 1, "same_video": "negative"}
        with pytest.MonkeyPatch.context() as patched:  # the batches are the same for both seeds, the changes are not
            patched.setattr("glscl.train_head.loop.step_seed", lambda *at, seed=seed: hash((seed, *at[1:])) % 2**63)
            tune(store, tmp_path / name, None, asked={**config, **tuning}, reporter=steps)
        losses[name] = steps.losses
    assert losses["one"] == losses["two"]
    assert losses["plain"] != losses["one"] != losses["other"]
    one, two = weights_in(tmp_path / "one"), weights_in(tmp_path / "two")
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_validation_sees_pictures_as_they_are(store, trained_head, tmp_path, monkeypatch):
    changed = []
    augmented = PixelLearner.augmented
    monkeypatch.setattr(
        PixelLearner, "augmented", lambda self, clips: changed.append(len(clips.counts)) or augmented(self, clips)
    )
    config, tuning = {"epochs": 1, "lr": 1e-12}, {"augment": "randaugment"}
    done = tune(store, tmp_path / "run", trained_head, asked={**config, **tuning})
    expected = validation_metrics(load_run(trained_head)[0], load(store, "val"))
    for direction, numbers in done.history[0]["validation"].items():
        assert numbers == pytest.approx(expected[direction])
    assert changed == [4] * done.history[0]["step"]  # the batches of training, nothing else


def test_a_frozen_vision_tower_still_sees_augmented_pictures(store, tmp_path):
    losses = []
    for name, augment in (("plain", "none"), ("changed", "randaugment")):
        steps = Steps()
        tune(
            store,
            tmp_path / name,
            None,
            asked={"epochs": 1, "freeze": "vision", "augment": augment},
            reporter=steps,
        )
        losses.append(steps.losses[0])
    assert losses[0] != losses[1]


# --- numbers on the way ------------------------------------------------------------------------------------------------


def test_tensorboard_gets_loss_rate_and_validation(store, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = tune(store, tmp_path / "run", None, asked={"tracker": "tensorboard"})
    (file,) = (tmp_path / "run/logs").glob("events.out.tfevents.*")
    found = EventAccumulator(str(file)).Reload()
    steps = done.history[-1]["step"]
    assert [event.step for event in found.Scalars("train/loss")] == list(range(1, steps + 1))
    assert len(found.Scalars("train/learning_rate")) == steps
    logged = [event.value for event in found.Scalars("validation/text_to_video/R1")]
    assert logged == pytest.approx([row["validation"]["text_to_video"]["R@1"] for row in done.history])


def test_the_temperature_is_clamped_after_the_first_step(store, tmp_path):
    hot = {"options": {"logit_scale": "6"}, "epochs": 1, "lr": 1e-9}
    done = tune(store, tmp_path / "run", None, asked=hot)
    assert done.history[0]["logit_scale"] == pytest.approx(math.log(100))


def test_bfloat16_computes_coarser_and_keeps_weights_in_float32(store, tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        steps = Steps()
        tune(store, tmp_path / precision, None, asked={"epochs": 1, "precision": precision}, reporter=steps)
        losses[precision] = steps.losses[0]
    assert losses["bf16"] != losses["fp32"] and losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert {value.dtype for value in weights_in(tmp_path / "bf16").values()} == {torch.float32}


# --- a loss that breaks ------------------------------------------------------------------------------------------------


def test_a_loss_that_breaks_names_its_captions_and_keeps_the_last_good_epoch(store, tmp_path, monkeypatch):
    steps, seen = 2, []  # eight videos in batches of four, one caption each
    forward = EndToEnd.forward

    def breaks(self, captions, clips, exclude=None):
        seen.append(captions.ids.clone())
        return forward(self, captions, clips, exclude) * (math.nan if len(seen) == 2 * steps else 1.0)

    monkeypatch.setattr(EndToEnd, "forward", breaks)
    config = {"epochs": 3, "captions_per_video": 1}
    with pytest.raises(NonFiniteError, match=r"The loss is nan in epoch 2, step 2 of 2, on the captions ") as broken:
        tune(store, tmp_path / "run", None, asked=config)
    assert f"{tmp_path / 'run'} keeps the weights of epoch 1" in str(broken.value) and "`lr`" in str(broken.value.hint)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(run["history"]) == 1 and not run["complete"]
    weights = weights_in(tmp_path / "run")
    assert all(value.isfinite().all() for value in weights.values())
    named = str(broken.value).split("on the captions ")[1].split(";")[0].split(", ")
    table = load(store)
    captions = {table.captions[table.text_ids.index(name)] for name in named}
    tokenizer = load_tokenizer(store)
    ids = torch.from_numpy(tokenizer([*captions]).ids)
    assert len(named) == 4 and {tuple(row.tolist()) for row in ids} == {tuple(row.tolist()) for row in seen[-1]}

    monkeypatch.undo()
    tune(store, tmp_path / "run", None, asked=config, resume=True)
    tune(store, tmp_path / "straight", None, asked=config)
    straight = weights_in(tmp_path / "straight")
    assert all(torch.equal(value, straight[key]) for key, value in weights_in(tmp_path / "run").items())


def load_tokenizer(store: Store):
    from glscl.extract.backbone.encoder import backbone_of_cache

    return backbone_of_cache(store.configuration, store.path, None).tokenize


def test_decoding_ends_with_a_run_that_breaks(store, tmp_path, monkeypatch):
    left = []
    leave = DecodedFrames.__exit__
    monkeypatch.setattr(DecodedFrames, "__exit__", lambda self, *error: left.append(error[0]) or leave(self, *error))
    monkeypatch.setattr(EndToEnd, "forward", lambda self, *batch: self.head.logit_scale * math.nan)
    with pytest.raises(NonFiniteError):
        tune(store, tmp_path / "run", None)
    assert left == [NonFiniteError]
