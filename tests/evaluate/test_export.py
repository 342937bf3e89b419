"""Exported vectors: their dot products are the similarities, and only heads that have such vectors export any."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.table import FeatureTable
from glscl.common.errors import NonFiniteError, UsageError
from glscl.evaluate.exporting.vectors import export_vectors, vectors_of
from glscl.evaluate.similarity import similarity_matrix
from glscl.train_head.heads import HEADS, build_head

ABLE = sorted(name for name, of in HEADS.items() if of.query_independent)


@pytest.fixture
def table():
    random = torch.Generator().manual_seed(0)
    texts, frames = 3 * torch.randn(12, 16, generator=random), torch.randn(7, 4, 16, generator=random)
    return FeatureTable.from_features(
        TextFeatures(texts),
        VideoFeatures(frames, torch.arange(4) < torch.randint(1, 5, (7, 1), generator=random)),
        torch.arange(12) % 7,
        video_ids=[f"vidéo {i}" for i in range(7)],
        captions=[f"caption {i}" for i in range(12)],
    )


def head(name):
    torch.manual_seed(1)
    built = build_head(name, embed_dim=16, adapter="mlp")
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def test_the_heads_that_can_are_those_of_the_issue():
    assert set(ABLE) == {"mean_pool", "projection", "seq_lstm", "seq_transf", "attention_pool"}


@pytest.mark.parametrize("to", ["npy", "safetensors"])
@pytest.mark.parametrize("name", ABLE)
def test_dot_products_are_the_similarities(table, tmp_path, name, to):
    built = head(name).train()
    done = export_vectors(built, table, tmp_path / "out", to=to, about={"run": "here"})
    assert built.training
    if to == "npy":
        found = {n: np.load(tmp_path / "out" / f"{n}.npy") for n in ("video_vectors", "text_vectors")}
    else:
        found = load_file(tmp_path / "out" / "vectors.safetensors")
    assert found["video_vectors"].shape == (7, 16) and found["text_vectors"].shape == (12, 16)
    for values in found.values():
        assert values.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, atol=1e-6)
    expected = similarity_matrix(built, table).numpy()
    np.testing.assert_allclose(found["text_vectors"] @ found["video_vectors"].T, expected, atol=1e-6)
    ids = json.loads((tmp_path / "out" / "ids.json").read_text())
    assert ids["video_ids"] == table.video_ids and ids["captions"] == table.captions and ids["run"] == "here"
    assert ids["video_of_text"] == table.video_of_text.tolist() and ids["vectors"]["video_vectors"] == [7, 16]
    assert sorted(done.files) == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_batches_change_nothing(table, monkeypatch):
    built = head("seq_transf")
    whole = vectors_of(built, table)
    monkeypatch.setattr("glscl.evaluate.exporting.vectors._BATCH", 3)
    for name, values in vectors_of(built, table).items():
        torch.testing.assert_close(values, whole[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", sorted(set(HEADS) - set(ABLE)))
def test_a_head_that_needs_the_caption_is_refused_and_those_that_do_not_are_named(table, tmp_path, name):
    with pytest.raises(UsageError, match=f"^{name} .*mean_pool, projection, seq_lstm, seq_transf, attention_pool"):
        export_vectors(build_head(name, embed_dim=16), table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_and_vectors_that_are_not_finite_are_refused(table, tmp_path):
    with pytest.raises(UsageError, match="--to is 'csv'; expected one of npy, safetensors"):
        export_vectors(head("mean_pool"), table, tmp_path / "out", to="csv")
    table.frame_features[3, 0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="video vidéo 3"):
        export_vectors(head("mean_pool"), table, tmp_path / "out")
    assert not (tmp_path / "out").exists()
