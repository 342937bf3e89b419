"""A head that learns from a trained run, and losses that are chosen."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.common.errors import FingerprintError, GlsclError, UsageError
from glscl.train_head.checkpoint import load_run
from glscl.train_head.heads import build_head
from glscl.train_head.learner import ContrastiveStep
from glscl.train_head.loop import fit
from glscl.train_head.losses import contrastive_loss, distillation_loss, sigmoid_loss
from glscl.train_head.settings import TrainSettings
from glscl.train_head.teaching import Teacher, load_teacher, reads_tokens
from glscl.train_head.train import train

SHORT = TrainSettings(epochs=1, batch_size=4, validation=0, precision="fp32")


@pytest.fixture
def cache(small_cache):
    return small_cache(videos=8, captions=2).fill()


@pytest.fixture
def teacher(cache, tmp_path):
    """A run of a head that reads tokens."""
    options = {"aggregator": "none"}
    train(cache, tmp_path / "teacher", dataclasses.replace(SHORT, head="ti", options=options, lr=1e-2))
    return tmp_path / "teacher"


def batch(cache):
    table = cache.table("train", tokens=True)
    rows = torch.tensor([0, 2, 4, 6])
    return table.texts(rows), table.videos(table.video_of_text[rows])


def test_the_loss_is_that_of_the_pairs_and_what_the_teacher_says(cache, teacher):
    settings = dataclasses.replace(SHORT, head="projection", teacher=teacher, teacher_weight=0.7)
    found = load_teacher(settings, cache, pytest.fail)
    assert reads_tokens(settings) and not reads_tokens(dataclasses.replace(settings, teacher=None))
    head = build_head("projection", embed_dim=cache.embed_dim)
    text, video = batch(cache)
    trained, _ = load_run(teacher)
    with torch.no_grad():
        ours = head(text, video).similarity * head.logit_scale.exp()
        theirs = trained(text, video).similarity * trained.logit_scale.exp()
    expected = contrastive_loss(ours) + 0.7 * distillation_loss(ours, theirs)
    loss = ContrastiveStep(head, teacher=found)(text, video)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in found.head.parameters())


def test_a_run_says_who_taught_it_and_goes_on_with_no_other(cache, teacher, tmp_path):
    settings = dataclasses.replace(SHORT, head="projection", teacher=teacher)
    train(cache, tmp_path / "run", settings)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["teacher"]["head"] == "ti" and record["settings"]["teacher"] == str(teacher)
    assert (
        record["teacher"]["sha256"] == json.loads((teacher / "run.json").read_text())["checkpoints"]["best"]["sha256"]
    )
    train(cache, tmp_path / "alone", dataclasses.replace(settings, teacher=None))
    taught, alone = (load_run(tmp_path / name)[0].state_dict() for name in ("run", "alone"))
    assert any(not torch.equal(taught[name], alone[name]) for name in taught)
    longer = dataclasses.replace(settings, epochs=3)
    stopped = tmp_path / "stopped"
    train(cache, stopped, longer)
    record = json.loads((stopped / "run.json").read_text()) | {"complete": False}
    record["teacher"]["sha256"] = "of another one"
    (stopped / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="the teacher of .* is another one now"):
        train(cache, stopped, longer, resume=True)


def test_a_teacher_of_other_features_is_refused(cache, teacher, tmp_path):
    settings = dataclasses.replace(SHORT, head="projection", teacher=teacher)
    record = json.loads((teacher / "run.json").read_text())
    record["cache_configuration"]["backbone"]["name"] = "another"
    (teacher / "run.json").write_text(json.dumps(record | {"cache_fingerprint": "0" * 16}))
    with pytest.raises(FingerprintError, match="teacher expects another"):
        train(cache, tmp_path / "run", settings)
    with pytest.raises(GlsclError, match="nobody"):
        train(cache, tmp_path / "run", dataclasses.replace(settings, teacher=tmp_path / "nobody"))


def test_the_sigmoid_loss_begins_as_siglip_does_and_learns_its_bias(cache, tmp_path):
    settings = dataclasses.replace(SHORT, head="projection", loss="sigmoid", epochs=3, lr=1e-2)
    train(cache, tmp_path / "run", settings)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["options"]["logit_bias"] == -10 and record["options"]["logit_scale"] == pytest.approx(2.302585)
    head, _ = load_run(tmp_path / "run")
    assert head.logit_bias.item() != -10 and head.logit_scale.item() != pytest.approx(2.302585, abs=1e-6)
    text, video = batch(cache)
    with torch.no_grad():
        logits = head(text, video).similarity * head.logit_scale.exp() + head.logit_bias
        assert ContrastiveStep(head, loss="sigmoid")(text, video).item() == pytest.approx(
            sigmoid_loss(logits).item(), rel=1e-6
        )


def test_each_level_of_video_colbert_has_a_loss_of_its_own(cache):
    head = build_head(
        "video_colbert", embed_dim=cache.embed_dim, aggregator_layers=1, logit_bias=-10.0, logit_scale=2.3
    )
    text, video = batch(cache)
    with torch.no_grad():
        encoded = head.encode_text(text), head.encode_video(video)
        levels = [each * head.logit_scale.exp() + head.logit_bias for each in head.contrasts(*encoded)]
        expected = sum(sigmoid_loss(each).item() for each in levels)
        assert len(levels) == 2
        assert ContrastiveStep(head)(text, video).item() == pytest.approx(expected, rel=1e-6)


def test_a_teacher_counts_for_a_batch_as_for_its_parts():
    """The weight 0 leaves the loss as it is."""
    head, other = (build_head("projection", embed_dim=8) for _ in range(2))
    torch.nn.init.normal_(other.text_map.weight)
    text, video = (
        TextFeatures(torch.randn(3, 8)),
        VideoFeatures(torch.randn(3, 2, 8), torch.ones(3, 2, dtype=torch.bool)),
    )
    plain = ContrastiveStep(head)(text, video)
    assert torch.equal(ContrastiveStep(head, teacher=Teacher(other, 0.0))(text, video), plain)
    assert not torch.equal(ContrastiveStep(head, teacher=Teacher(other, 1.0))(text, video), plain)


def test_a_table_alone_has_no_teacher(cache, tmp_path):
    settings = dataclasses.replace(SHORT, head="projection", teacher=tmp_path)
    with pytest.raises(UsageError, match="`teacher` is compared with a cache"):
        fit(build_head("projection", embed_dim=cache.embed_dim), cache.table("train"), settings)
