"""What stands in a caption is text; what of it is not read is said."""

from __future__ import annotations

import numpy as np
import pytest

from glscl.cache.schema import Annotations, TextItem, VideoItem
from glscl.extract.backbone.encoder import load_backbone
from glscl.extract.importing.import_features import FeatureFiles, import_features
from glscl.extract.settings import ImportSettings


@pytest.fixture(scope="module")
def backbone(tiny_clip):
    return load_backbone(f"local-dir:{tiny_clip()}", words=12)


@pytest.mark.parametrize(
    "command", ["<end_of_text>", "<END_OF_TEXT>", "<start_of_text>", "&lt;end_of_text&gt;", "<|endoftext|>"]
)
def test_a_command_of_the_tokenizer_in_a_caption_is_text(backbone, command):
    (ids,), (length,) = backbone.tokenize([f"a {command} cat"])
    plain, _ = backbone.tokenize(["a cat"])
    assert length > 5, "the words of the command are tokens like others"
    assert (ids == plain[0, 0]).sum() == 1 and (ids[:length] == plain[0, 3]).sum() == 1, "one start, one end"
    assert ids[length - 2] == plain[0, 2], "the cat behind it is still there"


def test_other_captions_are_tokenized_as_by_open_clip(backbone, tiny_clip):
    import open_clip

    texts = ["a cat", 'She said: "no", didn\'t she?', "über 3 Ünïcode > < 100% _of_ text", ""]
    expected = open_clip.get_tokenizer(f"local-dir:{tiny_clip()}")(texts, context_length=12)
    np.testing.assert_array_equal(backbone.tokenize(texts).ids, expected.numpy())


def test_captions_that_are_cut_are_counted(backbone, tmp_path):
    texts = ["one two three", " ".join(["cat"] * 10), " ".join(["cat"] * 11), " ".join(["dog"] * 30)]
    assert backbone.text_tower.cut(texts, backbone.tokenize(texts)) == 2
    annotations = Annotations(
        dataset="csv",
        videos=[VideoItem("a", "test", None)],
        texts=[TextItem(f"a#{i}", "a", "test", text) for i, text in enumerate(texts)],
    )
    np.savez(tmp_path / "f.npz", a=np.ones((1, backbone.embed_dim), np.float32))
    files = FeatureFiles(tmp_path / "f.npz")
    done = import_features(annotations, files, tmp_path / "c", ImportSettings(max_words=12), backbone=backbone)
    assert "2 captions longer than 12 tokens, of which the first are encoded (`max_words`)" in done.notes
    again = import_features(annotations, files, tmp_path / "c", ImportSettings(max_words=12), backbone=backbone)
    assert not any("longer than" in note for note in again.notes), "nothing was encoded"


@pytest.mark.parametrize(
    ("sentence", "doubts"),
    [
        ("a cat runs", []),
        ("un café, une église", []),
        ("cat " * 20, ["longer than 12 tokens"]),
        ("一只猫", ["hardly knows this script"]),
        ("一只猫在厨房里跑" * 9, ["longer than 12 tokens", "hardly knows this script"]),
        ("बिल्ली दौड़ती है", ["longer than 12 tokens", "hardly knows this script"]),
    ],
)
def test_a_sentence_that_may_not_be_understood_is_doubted(backbone, sentence, doubts):
    found = backbone.doubts(sentence)
    assert len(found) == len(doubts) and all(part in line for part, line in zip(doubts, found)), found
