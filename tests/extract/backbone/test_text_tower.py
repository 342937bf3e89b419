"""Text towers of every kind against open_clip's own path: its tokenizer at its own length, its `encode_text`."""

from __future__ import annotations

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from stand_ins import OF_OPEN_CLIP, SPECIAL, TEXTS, folder_of

from glscl.common.errors import BackboneError, FingerprintError
from glscl.extract.backbone.encoder import introduce, load_backbone
from glscl.extract.backbone.text_tower import _reads_text_alone

TRANSFORMERS = ("roberta", "xlm-roberta", "mt5", "m2m_100")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    return {kind: folder_of(root / kind, kind) for kind in SPECIAL}


def open_clips(folder) -> torch.Tensor:
    """What open_clip makes of TEXTS, without any code of ours."""
    model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()
    with torch.no_grad():
        return model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS))


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("cut", [True, False], ids=["fewer words than the tower reads", "all words"])
def test_pooled_features_are_those_of_open_clips_own_path(folders, kind, cut):
    expected = open_clips(folders[kind])
    words = 20 if cut else 24 if kind in OF_OPEN_CLIP else 77
    backbone = load_backbone(f"local-dir:{folders[kind]}", words=words)
    found = backbone.encode_texts(TEXTS).text_features
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_token_features_are_the_last_states_through_the_projection(folders, kind):
    backbone = load_backbone(f"local-dir:{folders[kind]}")
    encoded = backbone.encode_texts(TEXTS)
    tower, longest = backbone.model.text, encoded.token_mask.shape[1]
    ids = open_clip.get_tokenizer(f"local-dir:{folders[kind]}")(TEXTS)
    with torch.no_grad():
        states = tower.transformer(ids, attention_mask=(ids != SPECIAL[kind][0]).long()).last_hidden_state
        expected = tower.proj(states)[:, :longest]
    real = encoded.token_mask
    torch.testing.assert_close(encoded.token_features[real], expected[real], rtol=0, atol=2e-6)
    ends = real.sum(1) - 1
    assert (ids[torch.arange(len(TEXTS)), ends] == SPECIAL[kind][2]).all(), "the end token is a real one"


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_cut_caption_is_encoded_alike_whatever_stands_beside_it(folders, kind):
    backbone = load_backbone(f"local-dir:{folders[kind]}", words=6)
    long = "a sentence far longer than the tower may read"
    together, alone = backbone.encode_texts([long, "a"]), backbone.encode_texts([long])
    torch.testing.assert_close(together.text_features[0], alone.text_features[0], rtol=0, atol=2e-6)
    assert int(together.token_mask.sum(1)[0]) == (5 if kind == "siglip" else 6), "SigLIP ends with what it pads with"


def test_padding_that_a_tower_sees_is_part_of_the_fingerprint_where_it_was_wrong_once(folders):
    def described(kind: str, words: int) -> str:
        return load_backbone(f"local-dir:{folders[kind]}", words=words).description.tokenizer

    assert described("siglip", 12) == "HFTokenizer, padded with 1 to 24"
    assert described("siglip", 24) == "HFTokenizer", "nothing was padded, so these values were right before"
    assert described("gemma", 12) == "HFTokenizer", "its padding is what was always taken"
    assert described("xlm-v", 12) == "HFTokenizer", "nothing sees what stands behind it"


def test_a_tower_without_states_gives_pooled_features_alone(folders, monkeypatch):
    backbone = load_backbone(f"local-dir:{folders['siglip']}")
    pooled = backbone.encode_texts(TEXTS).text_features
    monkeypatch.setattr(backbone.text_tower, "gives_tokens", False)
    encoded = backbone.encode_texts(TEXTS)
    assert encoded.token_features is None and encoded.token_mask is None
    np.testing.assert_array_equal(encoded.text_features, pooled)


def test_where_nobody_says_how_many_words_the_tower_says_it(folders):
    assert load_backbone(f"local-dir:{folders['siglip']}").words == 24
    assert load_backbone(f"local-dir:{folders['roberta']}").words == 32


TOKENIZER = open_clip.get_tokenizer("ViT-B-32")
FAST = _reads_text_alone(TOKENIZER)  # for all examples: it remembers words
ODD = [
    "", "\x00", "\x1c", "\ufeff", "\x1b[1mbold\x1b[0m", "caf\u00c3\u00a9", "it&#39;s", "&amp;lt;", "\u201cq\u201d", "don't",
    "\u0130stanbul'DA", "e\u0301\u0323", "\U0001f469\u200d\U0001f467", "\u212a\u017f", "\u0661\u00bd\u2167", "'" * 9, "a" * 999,
    "<|endoftext|>",
]  # fmt: skip
LETTERS = st.one_of(st.characters(codec="utf-8"), st.sampled_from("'&;#<>sStTlLdDrReEvVmM019 \t\n\x85\xa0"))


@given(st.lists(st.one_of(st.text(LETTERS), st.sampled_from(ODD))).map(" ".join))
def test_captions_become_the_tokens_that_open_clip_gives(caption):
    assume("_of_text>" not in TOKENIZER.clean_fn(caption))  # a command to open_clip, text to us
    assert FAST.encode(caption) == TOKENIZER.encode(caption)
    assert FAST([caption]).tolist() == TOKENIZER([caption]).tolist()


def _retold(folder, file: str, **values: object) -> None:
    """Change entries of a JSON file of a folder; those of `text_cfg` in open_clip_config.json."""
    about = json.loads((folder / file).read_text())
    (about["model_cfg"]["text_cfg"] if file.startswith("open_clip") else about).update(values)
    (folder / file).write_text(json.dumps(about))


@pytest.mark.parametrize("words", [20, 24], ids=["fewer words than the tower reads", "all words"])
def test_a_class_token_behind_the_padding_stays_there(tmp_path, words):
    """As CLIPS has it, which pools it."""
    folder = folder_of(tmp_path / "clips", "bert")
    _retold(folder, "open_clip_config.json", tokenizer_mode="clips")
    _retold(folder, "tokenizer_config.json", bos_token="<s>", cls_token="<1>")
    backbone = load_backbone(f"local-dir:{folder}", words=words)
    encoded = backbone.encode_texts(TEXTS)
    torch.testing.assert_close(encoded.text_features, open_clips(folder), rtol=0, atol=2e-6)
    assert encoded.token_mask.sum(1).tolist() == [len(text) + 2 for text in TEXTS]
    long = "so long that it is cut somewhere"
    tokens = backbone.tokenize([long, "a"])
    assert tokens.lengths.tolist() == [min(words, 23), 3] and backbone.text_tower.cut([long, "a"], tokens) == 1


def test_a_tokenizer_that_pads_on_the_left_is_refused(tmp_path):
    folder = folder_of(tmp_path / "left", "gemma")
    _retold(folder, "tokenizer_config.json", padding_side="left")
    with pytest.raises(BackboneError, match='not known here, such as on their left.*"padding_side" to "right"'):
        load_backbone(f"local-dir:{folder}")


@pytest.mark.parametrize(
    "change", [{"heads": 4}, {"pool_type": "first"}, {"tokenizer_kwargs": {"clean": "canonicalize"}}], ids=str
)
def test_weights_that_give_other_features_than_a_cache_was_made_with_are_refused(tmp_path, folders, change):
    folder = shutil.copytree(folders["gemma"], tmp_path / "model")
    made, library = load_backbone(f"local-dir:{folder}"), Kept(tmp_path)
    introduce(made.name, made.tensors_for_heads(), library)
    again = load_backbone(f"local-dir:{folder}")
    introduce(again.name, again.tensors_for_heads(), library)
    _retold(folder, "open_clip_config.json", **change)
    other = load_backbone(f"local-dir:{folder}")
    assert other.description == made.description, "nothing else tells them apart"
    with pytest.raises(FingerprintError, match="same weights of .* but captions had other features"):
        introduce(other.name, other.tensors_for_heads(), library)


class Kept:
    """The part of a library that keeps tensors."""

    def __init__(self, path) -> None:
        self.path, self.kept = path, None

    def write_backbone_tensors(self, tensors) -> None:
        self.kept = self.kept or tensors

    def backbone_tensors(self, names):
        return {name: self.kept[name] for name in names}
