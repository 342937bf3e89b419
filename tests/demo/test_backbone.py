"""The tiny CLIP of the demo: small, loads through open_clip without a network, knows its words, tells frames apart."""

from __future__ import annotations

import json
import random
import socket

import numpy as np
import pytest
import torch

from glscl.demo import BACKBONE_DIR, BPE_PATH
from glscl.demo.grammar import caption_frame, caption_story, vocabulary
from glscl.demo.train_backbone import (
    CONTEXT,
    IMAGE,
    NORM,
    draw_moment,
    encode_captions,
    learn_merges,
    write_merges,
)
from glscl.demo.world import draw_stories

open_clip = pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def loaded():
    """Model, picture preprocessing and tokenizer, with every way out of this machine shut."""

    def refuse(*_, **__):
        raise AssertionError("the demo's backbone asked for the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(socket.socket, "connect", refuse)
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{BACKBONE_DIR}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{BACKBONE_DIR}", bpe_path=str(BPE_PATH))
    return model.eval(), preprocess, tokenizer


@pytest.fixture(scope="module")
def frames_and_captions():
    from glscl.demo.render import draw_frame

    rng = random.Random(5)
    moments = [draw_moment(99, "for-tests", number) for number in range(200)]
    return [draw_frame(*moment) for moment in moments], [caption_frame(rng, *moment) for moment in moments]


def test_the_folder_is_below_six_megabytes():
    assert sum(path.stat().st_size for path in BACKBONE_DIR.iterdir()) < 6e6


def test_every_word_of_the_corpus_is_one_piece(loaded):
    _, _, tokenizer = loaded
    for word in vocabulary():
        assert len(tokenizer.encode(word)) == 1, word


def test_every_caption_fits_and_comes_back_whole_from_its_tokens(loaded):
    _, _, tokenizer = loaded
    tokenizer.clean_fn, cleaned = str.strip, tokenizer.clean_fn  # cleaning is slow, and changes nothing here
    stories = draw_stories(0, {"train": 300, "test": 50})
    texts = {caption.text for story in stories for caption in caption_story(story, 0)}
    for text in texts:
        pieces = tokenizer.encode(text)
        assert len(pieces) + 2 <= CONTEXT, text
        assert tokenizer.decode(pieces).strip() == text.replace(",", " ,").replace(";", " ;")
    tokenizer.clean_fn = cleaned
    some = sorted(texts)[:20]
    assert [tokenizer.encode(text) for text in some] == [tokenizer.encode(f" {text} ") for text in some]


def test_the_merges_in_the_folder_are_those_of_the_vocabulary(tmp_path):
    size = write_merges(tmp_path / "merges.txt.gz")
    assert (tmp_path / "merges.txt.gz").read_bytes() == BPE_PATH.read_bytes()
    config = json.loads((BACKBONE_DIR / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["vocab_size"] == size


def test_merges_join_the_commonest_neighbours_first():
    assert learn_merges(["aab", "aac"])[0] == ("a", "a")
    assert len(learn_merges(["a"])) == 0


def test_the_model_expects_frames_of_its_size_and_gives_features_about_ten_long(loaded, frames_and_captions):
    model, preprocess, tokenizer = loaded
    frames, captions = frames_and_captions
    pixels = torch.stack([preprocess(frame) for frame in frames])
    assert pixels.shape[1:] == (3, IMAGE, IMAGE)
    with torch.inference_mode():
        images, texts = model.encode_image(pixels), model.encode_text(tokenizer(captions))
    assert images.shape == texts.shape == (200, 128)
    assert images.norm(dim=-1).mean().item() == pytest.approx(NORM, rel=0.1)
    assert texts.norm(dim=-1).mean().item() == pytest.approx(NORM, rel=0.1)


def test_frames_find_their_captions_far_above_chance(loaded, frames_and_captions):
    model, preprocess, tokenizer = loaded
    frames, captions = frames_and_captions
    with torch.inference_mode():
        images = model.encode_image(torch.stack([preprocess(frame) for frame in frames]), normalize=True)
        texts = model.encode_text(tokenizer(captions), normalize=True)
    scores = images @ texts.T
    hits = (scores >= scores.diagonal()[:, None]).sum(1) <= 1
    assert hits.float().mean() > 0.5  # chance is 0.005


def test_captions_cut_to_their_batch_have_the_same_features(loaded, frames_and_captions):
    model, _, tokenizer = loaded
    ids = tokenizer(frames_and_captions[1][:16])
    with torch.inference_mode():
        torch.testing.assert_close(
            encode_captions(model, ids), model.encode_text(ids, normalize=True), rtol=1e-4, atol=1e-5
        )


def test_the_backbone_of_the_pipeline_is_this_folder(frames_and_captions):
    from glscl.extract.backbone.encoder import load_backbone

    backbone = load_backbone("demo")
    assert backbone.embed_dim == 128
    frame = np.asarray(backbone.transform(frames_and_captions[0][0]))
    assert backbone.encode_frames(frame[None]).shape == (1, 128)
    batch = backbone.encode_texts(["a red star on the beach"])
    assert batch.text_features.shape == (1, 128)
    assert np.allclose(batch.token_features[0, 7], batch.text_features[0], atol=1e-5)  # start, six words, end


def test_no_frame_of_the_backbone_comes_from_the_video_corpus():
    told = {scene.look for story in draw_stories(0, {"train": 300, "val": 50, "test": 50}) for scene in story.scenes}
    assert not told & {draw_moment(7, "train", number)[0].look for number in range(3000)}
