"""The backbone against open_clip's own functions, for every kind of text tower; and its errors."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from glscl.common import compiling
from glscl.common.errors import BackboneError, DecodeError, NotFoundError, UsageError
from glscl.extract.backbone import encoder, loading
from glscl.extract.backbone.encoder import TokenizedTexts, expected_preprocessing, load_backbone
from glscl.extract.decode.sampling import Sampling
from glscl.extract.decode.video import Decoding, decode
from glscl.extract.settings import ExtractSettings

KINDS = ("clip_vit", "clip_resnet", "custom_text", "coca")
TEXTS = ["a man is cooking", "two dogs run over the green grass " * 20, "", "Ein Hund läuft, 犬が走る"]


@pytest.fixture(params=KINDS)
def loaded(request, tiny_clip):
    return load_backbone(f"local-dir:{tiny_clip(request.param)}")


def test_pooled_text_features_are_open_clips(loaded):
    """Its own path from sentence to feature; of the sentence that is cut at 32 tokens, what is left of it."""
    cut = [TEXTS[0], "two dogs run over the green grass " * 4 + "two dogs", *TEXTS[2:]]
    with torch.no_grad():
        expected = loaded.model.encode_text(loaded.tokenizer(cut), normalize=False)
    np.testing.assert_allclose(loaded.encode_texts(TEXTS).text_features, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip_vit", "custom_text"])
def test_the_end_of_text_row_of_the_tokens_is_the_pooled_feature(tiny_clip, kind):
    backbone = load_backbone(f"local-dir:{tiny_clip(kind)}")
    tokens = backbone.tokenize(TEXTS)
    encoded = backbone.encode_tokens(tokens)
    ends = encoded.token_features[np.arange(len(TEXTS)), tokens.lengths - 1]
    np.testing.assert_allclose(ends, encoded.text_features, atol=1e-5)


def test_captions_do_not_see_what_they_are_batched_with(loaded):
    tokens = loaded.tokenize(TEXTS)
    together = loaded.encode_tokens(tokens)
    for row in range(len(TEXTS)):
        alone = loaded.encode_tokens(TokenizedTexts(tokens.ids[row : row + 1], tokens.lengths[row : row + 1]))
        length = int(tokens.lengths[row])
        np.testing.assert_allclose(alone.text_features[0], together.text_features[row], atol=1e-5)
        np.testing.assert_allclose(alone.token_features[0, :length], together.token_features[row, :length], atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.exhaustive if k != "clip_vit" else ()) for k in KINDS]
)
def test_compiled_code_gives_the_features_of_plain_code(kind, tiny_clip, monkeypatch):
    """Traced whole; what a GPU's compiler makes of the trace needs a GPU."""
    loaded = load_backbone(f"local-dir:{tiny_clip(kind)}")
    traced, torch_compile = [], torch.compile

    def without_a_compiler(function, **options):
        traced.append(options)
        return torch_compile(function, dynamic=options["dynamic"], fullgraph=True, backend="eager")

    frames = np.random.default_rng(0).integers(0, 256, (3, *loaded.transform.size, 3), dtype=np.uint8)
    plain = loaded.encode_frames(frames)
    monkeypatch.setattr(torch, "compile", without_a_compiler)
    monkeypatch.setattr(encoder, "require_gpu_compiler", lambda device: None)
    monkeypatch.setattr(compiling, "missing_compiler", lambda device: None)
    loaded.compile(3)
    np.testing.assert_allclose(loaded.encode_frames(frames), plain, atol=1e-6)
    assert traced == [{"dynamic": False, "mode": None}], (
        "no recording: what a batch gave is fetched while the next is made"
    )
    torch.compiler.reset()


def test_compiled_code_is_refused_where_it_gains_nothing(tiny_clip, monkeypatch):
    loaded = load_backbone(f"local-dir:{tiny_clip()}")
    with pytest.raises(UsageError, match="`compile` of an extraction is for a GPU, found cpu"):
        loaded.compile(3)
    monkeypatch.setattr(compiling, "missing_compiler", lambda device: "Triton is not installed")
    with pytest.raises(UsageError, match="`compile`: Triton is not installed"):
        encoder.require_gpu_compiler(torch.device("cuda"))


def test_captions_are_cut_to_the_words_with_the_end_token_last(tiny_clip):
    backbone = load_backbone(f"local-dir:{tiny_clip()}", words=9)
    tokens = backbone.tokenize(TEXTS)
    assert tokens.lengths.tolist()[:3] == [6, 9, 2]
    start, end = backbone.tokenizer.sot_token_id, backbone.tokenizer.eot_token_id
    assert (tokens.ids[:, 0] == start).all()
    assert (tokens.ids[np.arange(4), tokens.lengths - 1] == end).all()
    whole = backbone.tokenizer.encode(TEXTS[1])
    assert tokens.ids[1].tolist() == [start, *whole[:7], end]


@pytest.mark.parametrize(
    "size",
    [(320, 240), (31, 500), (5, 5), *(pytest.param(s, marks=pytest.mark.exhaustive) for s in ((240, 320), (32, 32)))],
)
def test_frames_are_encoded_exactly_as_open_clip_preprocesses_them(loaded, size):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    transform = image_transform_v2(PreprocessCfg(**loaded.model.visual.preprocess_cfg), is_train=False)
    with torch.no_grad():
        expected = loaded.model.encode_image(transform(picture)[None], normalize=False)
    np.testing.assert_allclose(loaded.encode_frames(loaded.transform(picture)[None]), expected, atol=1e-6)


def test_the_transform_travels_to_workers(loaded):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    again = pickle.loads(pickle.dumps(loaded.transform))
    np.testing.assert_array_equal(again(picture), loaded.transform(picture))
    assert again(picture).shape == (*loaded.transform.size, 3) and again(picture).dtype == np.uint8


@pytest.mark.parametrize("preprocess", ["open_clip", "fast"])
def test_what_is_done_to_pictures_is_told_before_weights_are_read(tiny_clip, preprocess):
    settings = ExtractSettings(backbone=f"local-dir:{tiny_clip()}", pretrained="", preprocess=preprocess)
    told = expected_preprocessing(settings)
    backbone = load_backbone(settings.backbone, preprocess=preprocess)
    found = backbone.description.preprocessing
    assert told is not None and told.same_pictures(found) and told.same_pictures({**found, "mean": [0.0] * 3})
    for other in ({"interpolation": "bilinear"}, {"size": 64}, {"method": "another"}):
        assert not told.same_pictures({**found, **other})
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    np.testing.assert_array_equal(told.transform(picture), backbone.transform(picture))
    for name in ("hf-hub:org/repo", "local-dir:/nowhere", "no architecture"):
        assert expected_preprocessing(dataclasses.replace(settings, backbone=name)) is None


def test_pieces_are_what_heads_start_from(loaded):
    pieces = loaded.tensors_for_heads()
    blocks = {name.split(".")[2] for name in pieces if name.startswith("transformer.resblocks.")}
    assert blocks == {"0", "1", "2", "3"}
    assert pieces["transformer.resblocks.0.attn.in_proj_weight"].shape == (192, 64)
    assert pieces["positional_embedding"].shape[1] == 64
    assert np.exp(pieces["logit_scale"][0]) == pytest.approx(1 / 0.07, rel=1e-4)
    black = loaded.transform(Image.new("RGB", (60, 40)))
    np.testing.assert_allclose(pieces["black_frame"], loaded.encode_frames(black[None])[0], atol=1e-6)


def test_the_description_depends_on_the_weights_and_not_on_their_file(tiny_clip, tmp_path):
    import open_clip

    folder = tiny_clip()
    one = load_backbone(f"local-dir:{folder}").description
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())
    model = open_clip.create_model(f"local-dir:{folder}")
    torch.save(model.state_dict(), copy / "open_clip_pytorch_model.bin")
    two = load_backbone(f"local-dir:{copy}").description
    assert dataclasses.replace(two, name=one.name) == one
    with torch.no_grad():
        model.visual.conv1.weight[0, 0, 0, 0] += 1
    torch.save(model.state_dict(), copy / "open_clip_pytorch_model.bin")
    assert load_backbone(f"local-dir:{copy}").description.weights != one.weights


def test_a_file_of_weights_loads_by_architecture(tiny_clip, tmp_path):
    import open_clip

    (tmp_path / "tiny-test.json").write_text(
        json.dumps(json.loads((tiny_clip() / "open_clip_config.json").read_text())["model_cfg"])
    )
    open_clip.add_model_config(tmp_path / "tiny-test.json")
    weights = tmp_path / "weights.pt"
    torch.save(open_clip.create_model(f"local-dir:{tiny_clip()}").state_dict(), weights)
    by_file = load_backbone("tiny-test", str(weights))
    by_folder = load_backbone(f"local-dir:{tiny_clip()}")
    tokens = by_file.tokenize(TEXTS)
    np.testing.assert_array_equal(
        by_file.encode_tokens(tokens).text_features, by_folder.encode_tokens(tokens).text_features
    )
    assert (by_file.description.name, by_file.description.pretrained) == ("tiny-test", "weights.pt")
    weights.write_bytes(b"not weights")
    with pytest.raises(BackboneError, match=r"weights.pt is text, not weights"):
        load_backbone("tiny-test", str(weights))


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-B-33", "openai", "no architecture 'ViT-B-33'; close to it: .*ViT-B-32"),
        ("ViT-B-32", "laion9b", "'laion9b' is neither a file nor a tag of ViT-B-32; its tags are openai"),
        ("ViT-B-32", None, "needs weights"),
        ("local-dir:/nowhere", None, "no open_clip_config.json"),
        ("demo", "tuned.pt", "'tuned.pt' is no file or folder with weights"),
        ("hf-hub:org/repo", "runs/tuned", "'runs/tuned' is no file or folder with weights"),
    ],
)
def test_unknown_backbones_are_named_with_the_choices(name, pretrained, message):
    with pytest.raises(BackboneError, match=message):
        load_backbone(name, pretrained)


def test_weights_that_cannot_be_downloaded_end_soon_in_a_line_that_says_what_to_do(monkeypatch):
    def no_network(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(loading.socket, "getaddrinfo", no_network)
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    with pytest.raises(BackboneError, match=r"Cannot load the weights of ViT-B-32/openai.*`pretrained=FILE`"):
        load_backbone("ViT-B-32", "openai")
    assert os.environ.pop("HF_HUB_OFFLINE") == "1"  # without it the hub's client retries for a minute
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_words_and_precision_are_checked(tiny_clip):
    with pytest.raises(UsageError, match="reads at most 77 tokens"):
        load_backbone(f"local-dir:{tiny_clip()}", words=78)
    with pytest.raises(UsageError, match="expected one of auto, fp32, fp16, bf16"):
        load_backbone(f"local-dir:{tiny_clip()}", precision="fp8")


def test_bf16_stays_near_float32(tiny_clip):
    exact = load_backbone(f"local-dir:{tiny_clip()}")
    rough = load_backbone(f"local-dir:{tiny_clip()}", precision="bf16")
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    a, b = exact.encode_frames(frames), rough.encode_frames(frames)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert (cosine > 0.999).all() and not np.array_equal(a, b)
    assert exact.description != rough.description
    near, far = exact.encode_texts(TEXTS), rough.encode_texts(TEXTS)
    assert (torch.cosine_similarity(near.text_features, far.text_features) > 0.999).all()
    assert (torch.cosine_similarity(near.token_features, far.token_features, dim=-1)[near.token_mask] > 0.999).all()


def test_bf16_on_a_processor_multiplies_weights_that_were_cast_once(tiny_clip):
    rough = load_backbone(f"local-dir:{tiny_clip()}", precision="bf16")
    exact = load_backbone(f"local-dir:{tiny_clip()}")
    assert {weight.dtype for weight in rough.model.parameters()} == {torch.bfloat16}, "no second copy is held"
    assert rough.description.weights == exact.description.weights
    for name, tensor in exact.tensors_for_heads().items():
        if name.startswith(("positional", "transformer")):
            np.testing.assert_array_equal(rough.tensors_for_heads()[name], tensor)
    seen = []
    rough.model.visual.transformer.register_forward_pre_hook(
        lambda _, given: seen.append((given[0].dtype, torch.is_autocast_enabled("cpu")))
    )
    rough.encode_frames(np.zeros((2, 32, 32, 3), np.uint8))
    assert seen == [(torch.bfloat16, False)]
    # what autocast once gave under this name differs by rounding: caches of both never mix
    assert rough.description.precision == "bf16 weights"


def test_sentences_are_encoded_in_one_call_with_the_mask_of_their_tokens(loaded):
    encoded = loaded.encode_texts(TEXTS)
    tokens = loaded.tokenize(TEXTS)
    assert (
        encoded.text_features.shape == (len(TEXTS), loaded.embed_dim) and encoded.text_features.dtype == torch.float32
    )
    assert encoded.token_mask.sum(1).tolist() == tokens.lengths.tolist()
    assert encoded.token_features.shape == (*encoded.token_mask.shape, loaded.embed_dim)
    torch.testing.assert_close(encoded.text_features, loaded.encode_tokens(tokens).text_features)


def test_a_video_file_is_encoded_in_one_call(loaded, make_video, tmp_path):
    clip = make_video(tmp_path / "clip.mp4", frames=30)
    features, times = loaded.encode_video(clip, Decoding(sampling=Sampling(fps=2.0)), start=0.5)
    frames, expected = decode(clip, 2.0, start=0.5, prepare=loaded.transform)
    np.testing.assert_array_equal(times, expected)
    np.testing.assert_allclose(features, loaded.encode_frames(frames), atol=1e-5)
    with pytest.raises(NotFoundError, match=r"No video file at .*gone.mp4"):
        loaded.encode_video(tmp_path / "gone.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DecodeError, match=r"text.mp4 gives no frames: "):
        loaded.encode_video(tmp_path / "text.mp4")


def test_frames_as_decoded_are_transformed_and_what_are_no_frames_is_said(loaded, make_video, tmp_path):
    clip = make_video(tmp_path / "clip.mp4", frames=12)
    frames, _ = decode(clip, 2.0)
    assert frames.shape[1:3] != loaded.transform.size
    prepared, _ = decode(clip, 2.0, prepare=loaded.transform)
    for given in (frames, torch.from_numpy(frames)):
        np.testing.assert_array_equal(loaded.encode_frames(given), loaded.encode_frames(prepared))
    turned = [np.ascontiguousarray(each[..., ::-1]) for each in (frames, prepared)]
    for given, want in zip((frames[..., ::-1], prepared[..., ::-1]), turned, strict=True):  # cv2's BGR as RGB
        np.testing.assert_array_equal(loaded.encode_frames(given), loaded.encode_frames(want))
    pictures = [Image.fromarray(each) for each in frames]
    np.testing.assert_array_equal(loaded.encode_frames(pictures), loaded.encode_frames(prepared))
    assert loaded.encode_frames(frames[:0]).shape == (0, loaded.embed_dim)
    for wrong, said in (
        (frames[0], r"uint8; expected \(n, H, W, 3\)"),
        (frames / 255.0, "float64; expected"),
        (frames[:, :0], r", 0, .* uint8; expected"),
        (["clip.mp4"], "expected"),
        (None, "object; expected"),
        ([frames[0], prepared[0]], "are no array"),
    ):
        with pytest.raises(UsageError, match=said):
            loaded.encode_frames(wrong)


def test_a_backbone_shows_itself_in_one_line(loaded):
    assert repr(loaded) == f"<Backbone {loaded.name} (local-dir), {loaded.embed_dim}-d, fp32 on cpu>"
    assert repr(loaded.transform) == "<PictureTransform to 32 x 32 pixels>"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_frames_fed_to_a_gpu_ahead_give_the_features_of_frames_given_one_batch_at_a_time():
    backbone = load_backbone("demo", device="cuda", precision="fp32")
    random = np.random.default_rng(0)
    batches = [random.integers(0, 256, (n, *backbone.transform.size, 3), dtype=np.uint8) for n in (64, 64, 7, 100, 3)]
    later = [backbone.encode_later([frames[: len(frames) // 2], frames[len(frames) // 2 :]]) for frames in batches]
    for frames, features in zip(batches, later):
        np.testing.assert_allclose(features(), backbone.encode_frames(frames), rtol=1e-3, atol=1e-3)
