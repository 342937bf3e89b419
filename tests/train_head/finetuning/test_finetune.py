"""The second pass: what it sees equals what was extracted, what it trains moves, what is frozen does not."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tuning import SMALL_HEAD, Stop, extracted, frames_of, load, tune, weights_in

from glscl.cache.known_files import KnownFiles
from glscl.cache.schema import Annotations
from glscl.cache.store import Store, open_store
from glscl.common.errors import DecodeError, FingerprintError, NotFoundError, UsageError
from glscl.common.settings import as_dict
from glscl.evaluate.evaluation import evaluate_run, validation_metrics
from glscl.evaluate.second_pass.from_pixels import evaluate_from_pixels
from glscl.evaluate.settings import EvaluateSettings
from glscl.extract.backbone.encoder import backbone_of_cache, load_backbone
from glscl.train_head.distributed import make_accelerator
from glscl.train_head.finetuning.backbone_and_head import EndToEnd
from glscl.train_head.finetuning.finetune import finetune
from glscl.train_head.finetuning.gradients import backward_in_chunks
from glscl.train_head.finetuning.pixel_learner import PixelLearner, encode_table
from glscl.train_head.finetuning.pixels import find_videos
from glscl.train_head.finetuning.settings import FinetuneSettings, resolve_finetune
from glscl.train_head.finetuning.towers import unfreeze
from glscl.train_head.heads import build_head
from glscl.train_head.learner import ContrastiveStep
from glscl.train_head.reports import Reporter
from glscl.train_head.settings import resolve
from glscl.train_head.train import train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, painted_corpus) -> Annotations:
    return painted_corpus(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def store(corpus, tmp_path_factory) -> Store:
    """The cache of the corpus, with the frames that the encoder saw: tests that do not decode are quicker."""
    return extracted(corpus, tmp_path_factory.mktemp("made") / "cache", store_frames="uint8")


@pytest.fixture(scope="module")
def plain_store(corpus, tmp_path_factory) -> Store:
    """The same cache without frames: they must be decoded again."""
    return extracted(corpus, tmp_path_factory.mktemp("made") / "plain")


@pytest.fixture(scope="module")
def trained_head(store, tmp_path_factory) -> Path:
    """A run of train-head on that cache."""
    out = tmp_path_factory.mktemp("runs") / "head"
    asked = dict(head="glscl", options=SMALL_HEAD, epochs=1, batch_size=8, max_frames=3)
    train(store, out, resolve(asked, dataset="made"), validate=validation_metrics)
    return out


@pytest.fixture
def model() -> EndToEnd:
    torch.manual_seed(0)
    backbone = load_backbone("demo", precision="fp32")
    unfreeze(backbone, FinetuneSettings())
    return EndToEnd(backbone, build_head("glscl", embed_dim=128, **SMALL_HEAD))


def batch_of(store: Store, model: EndToEnd, **options):
    """The first batch of eight: of the cache and of pixels."""
    table = load(store)
    rows = np.arange(16).reshape(8, 2).T.copy()  # (S, B), one caption of each video a step
    with frames_of(store, table, model) as frames:
        learner = PixelLearner(model, table, store, frames, FinetuneSettings(**options))
        batch = learner.batches(rows, start=0, share=slice(0, 8), mask=False).on(torch.device("cpu"), 0)
    chosen = torch.from_numpy(rows[0])
    return (table.texts(chosen), table.videos(table.video_of_text[chosen])), batch, learner


# --- the same features -------------------------------------------------------------------------------------------------


def test_the_first_score_from_pixels_is_the_score_of_the_cache(plain_store, model):
    (text, video), (captions, clips, _), _ = batch_of(plain_store, model)
    model.eval()
    with torch.no_grad():
        again = model.text_features(captions), model.video_features(clips)
        assert torch.equal(again[0].token_mask, text.token_mask) and torch.equal(again[1].frame_mask, video.frame_mask)
        similarity = model.head(*again).similarity
        torch.testing.assert_close(similarity, model.head(text, video).similarity, rtol=0, atol=1e-3)
        torch.testing.assert_close(model(captions, clips), ContrastiveStep(model.head)(text, video), rtol=0, atol=1e-3)
    model.train()
    torch.testing.assert_close(model.video_features(clips).frame_features, video.frame_features, rtol=0, atol=1e-3)


def test_stored_and_decoded_frames_are_the_same_pixels_and_are_kept(pool, store, plain_store, model):
    table, items = load(store), list(range(8))
    with frames_of(store, table, model) as kept, frames_of(plain_store, table, model) as fresh:
        assert kept._pool is None and fresh._pool is not None
        first = fresh.read(items)
        assert all(np.array_equal(a, b) for a, b in zip(kept.read(items), first))
        assert [len(frames) for frames in first] == [min(3, 2 + i % 4) for i in items]
        fresh._pool.decode = None  # from here on memory must do
        assert all(a is b for a, b in zip(fresh.read(items), first))


def test_frames_beyond_the_budget_are_decoded_again(plain_store, model):
    with frames_of(plain_store, load(plain_store), model, frame_memory=2 * 3 * 96 * 96 * 3 / 1e9) as frames:
        first = frames.read([0, 1, 2])
        assert 0 < sum(f.nbytes for f in frames._kept.values()) <= 2 * 3 * 96 * 96 * 3
        assert all(np.array_equal(a, b) for a, b in zip(frames.read([0, 1, 2]), first))


@pytest.fixture
def elsewhere(plain_store, tmp_path) -> Path:
    """The eight training clips in another folder."""
    folder = tmp_path / "elsewhere"
    (folder / "a").mkdir(parents=True)
    for video in plain_store.plan.videos[:8]:
        shutil.copy(video.path, folder / "a")
    return folder


@pytest.fixture
def moved_store(plain_store, tmp_path) -> Store:
    """The cache on another machine, where nothing tells where videos were seen."""
    copy = shutil.copytree(plain_store.path, tmp_path / "moved")
    (copy / "files.jsonl").unlink()
    return open_store(copy)


def paths_in(store: Store, folder: Path | None) -> tuple[dict[int, str], int]:
    """Where the training videos are, and how many files were hashed to find out."""
    known = KnownFiles.read(store.path)
    return find_videos(store, range(8), folder, known), known.hashed


def test_videos_are_found_where_they_lie_now_by_their_content(plain_store, moved_store, elsewhere):
    extracted_from = {item: plain_store.plan.videos[item].path for item in range(8)}
    assert paths_in(plain_store, None) == (extracted_from, 0)
    found, hashed = paths_in(moved_store, elsewhere)
    assert found == {item: str(elsewhere / "a" / f"clip{item}.mp4") for item in range(8)} and hashed == 8
    assert paths_in(moved_store, elsewhere) == (found, 0), "the cache knows them now"
    os.utime(elsewhere / "a" / "clip2.mp4", ns=(1, 1))
    assert paths_in(moved_store, None) == (found, 1), "what was only touched is the same video"
    (elsewhere / "a" / "clip3.mp4").rename(elsewhere / "a" / "old name.mp4")
    assert paths_in(plain_store, elsewhere)[0] == {**found, 3: extracted_from[3]}


def test_another_video_under_the_same_name_is_never_taken(plain_store, moved_store, model, elsewhere):
    clip = elsewhere / "a" / "clip3.mp4"
    with frames_of(plain_store, load(plain_store), model, videos=elsewhere) as frames:
        clip.write_bytes((elsewhere / "a" / "clip0.mp4").read_bytes())
        with pytest.raises(
            DecodeError, match=r"clip3\.mp4 gives 0 frames now and gave 5 .*changed since it was listed"
        ):
            frames.read([3])
        with pytest.raises(DecodeError, match="changed since"):
            list(frames.ahead([[0, 1], [2, 3]]))
    assert paths_in(plain_store, elsewhere)[0][3] == plain_store.plan.videos[3].path
    with pytest.raises(
        NotFoundError, match=r"1 of 8 videos .*first, clip3, has another content in .*a/clip3\.mp4\. Name"
    ):
        paths_in(moved_store, elsewhere)
    clip.unlink()
    with pytest.raises(NotFoundError, match=r"1 of 8 videos .*first, clip3, is not there\. Name the folder .*`videos`"):
        paths_in(moved_store, elsewhere)


# --- what is trained ---------------------------------------------------------------------------------------------------


def test_gradients_reach_backbone_and_head_and_statistics_stay(store, model):
    _, batch, _ = batch_of(store, model)
    before = {name: value.clone() for name, value in model.towers.named_buffers()}
    model.train()
    model(*batch).backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    unused = {"head.aggregator.frame_positions"}
    assert not {n for n in without if n.startswith("towers.")}, without
    assert len(without - unused) <= 2
    assert not model.towers.logit_scale.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.towers.named_buffers())


@pytest.mark.parametrize(
    ("options", "frozen", "trained"),
    [
        ({"freeze": "text"}, "token_embedding.weight", "visual.conv1.weight"),
        ({"freeze": "vision"}, "visual.conv1.weight", "token_embedding.weight"),
        ({"freeze_layers": 2}, "visual.layer2.0.conv1.weight", "visual.layer3.0.conv1.weight"),
        ({"freeze_layers": 2}, "transformer.resblocks.1.mlp.c_fc.weight", "transformer.resblocks.2.mlp.c_fc.weight"),
        ({"freeze_layers": 4}, "positional_embedding", "text_projection"),
    ],
)
def test_frozen_parts_are_named_by_the_options(options, frozen, trained):
    backbone = load_backbone("demo", precision="fp32")
    unfreeze(backbone, FinetuneSettings(**options))
    parameters = dict(backbone.model.named_parameters())
    assert not parameters[frozen].requires_grad and parameters[trained].requires_grad


def test_more_layers_than_there_are_cannot_be_frozen():
    with pytest.raises(UsageError, match="`freeze_layers` is 5; the vision tower of demo has 4 blocks"):
        unfreeze(load_backbone("demo"), FinetuneSettings(freeze_layers=5))


def test_the_backbone_has_its_own_rate_and_the_head_the_recipes(store, model):
    _, _, learner = batch_of(store, model, backbone_lr_scale=0.01)
    groups = learner.groups(weight_decay=0.2)
    scale = {id(p): group.get("lr_scale", 1.0) for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert scale[id(p)] == (0.01 if name.startswith("towers.") else 1.0), name
            assert decay[id(p)] == (0.2 if p.ndim >= 2 else 0.0), name
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_the_gradient_in_pieces_is_the_plain_one(store, model, micro_batch):
    _, batch, _ = batch_of(store, model)
    model.train()
    plain = model(*batch)
    plain.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    loss = backward_in_chunks(model, *batch, micro_batch=micro_batch, accelerator=make_accelerator("cpu", "fp32"))
    torch.testing.assert_close(loss, plain.detach(), rtol=1e-5, atol=1e-5)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        largest = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(found[name] / largest, gradient / largest, rtol=0, atol=1e-5, msg=name)


def test_micro_batches_are_encoded_twice_with_the_same_random_numbers(store, model):
    _, batch, _ = batch_of(store, model)
    seen: list[torch.Tensor] = []
    model.towers.transformer.register_forward_hook(lambda *_: seen.append(torch.rand(2)))
    model.train()
    backward_in_chunks(model, *batch, micro_batch=3, accelerator=make_accelerator("cpu", "fp32"))
    assert len(seen) == 6 and len({tuple(x.tolist()) for x in seen}) == 3
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:]))


def test_augmentation_changes_all_frames_of_a_video_alike_and_follows_the_seed(store, model):
    _, (_, clips, _), learner = batch_of(store, model, augment="randaugment")
    still = clips._replace(frames=clips.frames[:1].expand(len(clips.frames), -1, -1, -1))
    torch.manual_seed(1)
    changed = learner.augmented(still)
    assert changed.frames.shape == clips.frames.shape and changed.frames.dtype == torch.uint8
    parts = changed.frames.split(clips.counts)
    assert all((part == part[:1]).all() for part in parts)
    assert not torch.equal(parts[0][0], parts[1][0])
    torch.manual_seed(1)
    assert torch.equal(learner.augmented(still).frames, changed.frames)


# --- settings ----------------------------------------------------------------------------------------------------------


def test_the_second_pass_takes_head_options_and_frames_from_the_run(trained_head):
    start = json.loads((trained_head / "run.json").read_text())
    given = {"start": trained_head}
    settings = resolve_finetune({"lr": 1e-3, "freeze": "text", **given}, dataset="made")
    assert (settings.head, settings.max_frames, settings.lr, settings.freeze) == ("glscl", 3, 1e-3, "text")
    assert settings.options == start["options"] and settings.backbone_lr_scale == 1e-3
    with pytest.raises(UsageError, match="the run to start from has glscl"):
        resolve_finetune({"head": "xpool", **given}, dataset="made")
    with pytest.raises(UsageError, match="`option` and `adapter` are of a fresh head"):
        resolve_finetune({"options": {"adapter": "mlp"}, **given}, dataset="made")
    assert resolve_finetune(as_dict(settings), dataset="made") == settings  # as from its own run.json
    with pytest.raises(UsageError, match="`lora_rank` leaves the backbone as it is"):
        resolve_finetune({"lora_rank": 4, "freeze_layers": 1, **given}, dataset="made")
    with pytest.raises(UsageError, match="begun with 'text'"):
        resolve_finetune({"freeze": "vision", **given}, dataset="made", stored=as_dict(settings))


def test_a_frozen_vision_tower_is_read_from_the_cache(corpus, store, trained_head, tmp_path, monkeypatch):
    asked = {"epochs": 1, "freeze": "vision", "micro_batch": 2}
    monkeypatch.setattr("glscl.train_head.finetuning.finetune.DecodedFrames", None)  # no pixels
    out = tmp_path / "run"
    tune(store, out, trained_head, asked)
    before, after = load_backbone("demo").model.state_dict(), weights_in(out)
    for name, value in before.items():
        same = torch.equal(value, after[f"backbone-last/{name}"])
        assert same == (name.startswith("visual.") or name == "logit_scale"), name
    again = extracted(corpus, tmp_path / "again", "demo", str(out / "backbone.safetensors"))
    judged = evaluate_run(again, out, EvaluateSettings(split="val", confidence=False)).result
    best = json.loads((out / "run.json").read_text())["best"]
    assert judged["text_to_video"]["R@1"] == best["validation"]["text_to_video"]["R@1"]


# --- whole runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(store, trained_head, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tuned"
    tune(store, out, trained_head, asked={"freeze": "text"})
    return out


def test_frozen_weights_stay_bit_equal_and_the_others_move(tuned):
    before = load_backbone("demo").model.state_dict()
    after = weights_in(tuned)
    for name, value in before.items():
        same = torch.equal(value, after[f"backbone-last/{name}"])
        frozen = not name.startswith("visual.") or "running_" in name or "num_batches" in name
        assert same == frozen, name


def test_a_run_says_what_it_is(tuned, trained_head):
    run = json.loads((tuned / "run.json").read_text())
    assert run["frozen_backbone"] is False and run["complete"] and run["start"] == str(trained_head)
    assert run["weights"].keys() == {"best", "last"} and run["weights"]["best"]["backbone"] == "backbone.safetensors"
    assert [row["epoch"] for row in run["history"]] == [1, 2] and "validation" in run["history"][0]
    assert run["settings"]["freeze"] == "text" and not (tuned / "resume.safetensors").exists()


def test_old_features_are_refused_and_new_ones_judged_as_pixels_are(corpus, store, tuned, tmp_path):
    with pytest.raises(
        FingerprintError, match=r"Extract again: .*pretrained=.*backbone.safetensors.*, or from pixels: eval"
    ):
        evaluate_run(store, run=tuned)
    again = extracted(corpus, tmp_path / "again", "demo", str(tuned / "backbone.safetensors"))
    by_cache = evaluate_run(again, tuned, EvaluateSettings(confidence=False)).result
    by_pixels = evaluate_from_pixels(store, tuned, videos=None).result
    for direction in ("text_to_video", "video_to_text"):
        assert by_cache[direction] == by_pixels[direction]
    assert by_cache["frozen_backbone"] is False and by_cache["pretrained"] == "backbone.safetensors"
    assert by_pixels["pretrained"] == "backbone.safetensors" and by_pixels["frozen_backbone"] is False
    schema = json.loads((Path(__file__).parents[3] / "docs" / "result.schema.json").read_text())
    for result in (by_cache, by_pixels):
        jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(result)))


def test_from_pixels_only_a_second_pass_is_judged(store, trained_head):
    with pytest.raises(UsageError, match="trained no backbone"):
        evaluate_from_pixels(store, trained_head, videos=None)


def test_a_stopped_run_goes_on_in_the_same_bits(store, trained_head, tuned, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        tune(store, out, trained_head, asked={"freeze": "text"}, reporter=Stop(3))
    tune(store, out, trained_head, asked={"freeze": "text"}, resume=True)
    expected = weights_in(tuned)
    assert all(torch.equal(value, expected[name]) for name, value in weights_in(out).items())


def test_step_checkpoints_stand_before_the_epoch_ends(store, trained_head, tmp_path):
    out = tmp_path / "run"

    class Look(Reporter):
        found: bool | None = None

        def step(self, report) -> None:
            if report.step == 3 and report.epoch == 1:
                self.found = (out / "resume.safetensors").exists()

    look = Look()
    tune(store, out, trained_head, asked={"epochs": 1, "checkpoint_every": 2}, reporter=look)
    assert look.found


def test_a_run_without_progress_stops_early(store, trained_head, tmp_path):
    config = {"epochs": 6, "lr": 1e-12}
    done = tune(store, tmp_path / "run", trained_head, asked={**config, "patience": 2, "micro_batch": 2})
    assert [row["epoch"] for row in done.history] == [1, 2, 3] and done.best["epoch"] == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["complete"]


def test_a_fresh_head_and_bfloat16_work_too(store, tmp_path):
    asked = dict(head="projection", epochs=1, batch_size=8, max_frames=3, precision="bf16", select="last")
    settings = resolve_finetune({**asked, "gradient_checkpointing": True, "workers": 1}, dataset="made")
    done = finetune(store, tmp_path / "run", settings, validate=validation_metrics)
    assert done.selection == "last" and np.isfinite(done.history[0]["loss"])


def test_other_weights_than_the_caches_are_refused(store, tuned):
    with pytest.raises(FingerprintError, match="made with other weights of demo"):
        backbone_of_cache(store.configuration, store.path, str(tuned / "backbone.safetensors"))


def test_features_made_anew_are_those_of_the_cache(store, model):
    table = load(store, "val")
    with frames_of(store, table, model) as frames:
        now = encode_table(model, table, store, frames, device="cpu", batch=1)
    torch.testing.assert_close(now.frame_features, table.frame_features, rtol=0, atol=1e-3)
    torch.testing.assert_close(now.token_values, table.token_values, rtol=0, atol=1e-3)
    torch.testing.assert_close(now.text_features, table.text_features, rtol=0, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_tunes_in_every_precision(store, trained_head, tmp_path, precision):
    config = {"epochs": 1, "precision": precision}
    done = tune(store, tmp_path / "run", trained_head, asked={**config, "micro_batch": 2}, device="cuda")
    assert np.isfinite(done.history[0]["loss"]) and (tmp_path / "run" / "backbone.safetensors").exists()
