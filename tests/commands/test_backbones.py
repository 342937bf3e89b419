"""The commands about backbones: the list, a folder for a machine without a network, a whole model judged in one command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import glscl as front_door
from glscl.evaluate.similarity import similarity_matrix

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 4},
}


@pytest.fixture(scope="module")
def backbone_weights(tmp_path_factory):
    """`backbone_weights()`: a backbone of the architecture tiny-adopted as the public programs save it, below `clip.`."""
    import open_clip

    config = tmp_path_factory.mktemp("config") / "tiny-adopted.json"
    config.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(config)

    def make() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return {f"clip.{key}": value for key, value in open_clip.create_model("tiny-adopted").state_dict().items()}

    return make


@pytest.fixture(scope="module")
def whole_model(backbone_weights, tmp_path_factory):
    """An X-Pool checkpoint as its trainer saves it: backbone, head, where the training stood. (architecture, file)."""
    folder = tmp_path_factory.mktemp("xpool")
    weights = backbone_weights()
    for name in ("cross_attn.q_proj", "cross_attn.k_proj", "cross_attn.v_proj", "cross_attn.out_proj", "linear_proj"):
        weights |= {f"pool_frames.{name}.weight": torch.eye(64), f"pool_frames.{name}.bias": torch.zeros(64)}
    for number in (1, 2, 3):
        norm = f"pool_frames.layer_norm{number}"
        weights |= {f"{norm}.weight": torch.ones(64), f"{norm}.bias": torch.zeros(64)}
    file = folder / "pytorch_model.bin.4"  # as most programs name it: the last ending tells no kind
    torch.save({"epoch": 4, "state_dict": weights, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-6}]}}, file)
    return "tiny-adopted", file


def test_backbones_are_listed_with_what_is_at_hand(glscl):
    status, out, _ = glscl("backbones", "pe-core-b")
    assert status == 0 and "PE-Core-B-16" in out and "no weights" in out and "glscl fetch BACKBONE" in out
    status, out, _ = glscl("backbones", "SigLIP", "--json")
    (one, *_), found = (
        [row for row in json.loads(out)["backbones"] if row["backbone"] == "ViT-SO400M-14-SigLIP"],
        json.loads(out),
    )
    assert status == 0 and len(found["backbones"]) > 20
    assert (one["words"], one["embed_dim"], one["at_hand"], one["quick_gelu"]) == (16, 1152, False, False)
    status, out, _ = glscl("backbones", "no-such", "--offline")
    assert status == 0 and out.startswith("0 published weights of architectures whose name holds 'no-such'")
    status, out, _ = glscl("backbones", "RN101", "--offline")
    assert out.startswith("4 published weights of") and ", 0 of them on this machine" in out and "glscl fetch" in out


def test_fetch_asks_which_weights_where_there_are_several(glscl, one_line):
    one_line(glscl("fetch", "demo"), "demo is built in", status=2)
    one_line(glscl("fetch", "ViT-B-33"), "open_clip has no architecture 'ViT-B-33'; close to it: ViT-B-32", status=1)
    one_line(glscl("fetch", "ViT-B-32"), "openai", "laion2b_e16", "Choose one with --pretrained", status=2)
    one_line(
        glscl("fetch", "PE-Core-B-16"), "timm/PE-Core-B-16", "glscl fetch PE-Core-B-16 --pretrained meta", status=1
    )


def test_a_whole_model_is_extracted_with_imported_and_judged_in_one_command(glscl, whole_model, clips, tmp_path):
    name, file = whole_model
    data = ("--dataset", "csv", "--annotations", clips / "captions.csv", "--videos", clips / "videos", "--workers", "1")
    status, out, err = glscl("adopt", file, *data, "--out", tmp_path / "run", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["imported"]["head"] == "xpool" and found["imported"]["backbone"] == "same"
    assert found["judged"]["counts"]["videos"] > 0 and found["judged"]["frozen_backbone"] is False
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    made = record["cache_configuration"]["backbone"]
    assert (made["name"], made["pretrained"], made["quick_gelu"]) == (name, file.name, True)
    assert made["words"] == 20, "the tower reads no more"
    head = torch.load(file, weights_only=True)["state_dict"]["clip.logit_scale"]
    assert found["imported"]["options"]["logit_scale"] and float(head) > 0
    other = torch.load(file, weights_only=True)["state_dict"]  # as if its tower of pictures alone had been trained on
    other["clip.visual.proj"] = other["clip.visual.proj"] + 0.01
    torch.save(other, tmp_path / "other.pth")
    cache = json.loads(out)["extracted"]["cache"]
    status, out, err = glscl(
        "import-checkpoint", tmp_path / "other.pth", "--cache", cache, "--out", tmp_path / "o", "--json"
    )
    assert status == 0 and json.loads(out)["backbone"] == "unknown" and "a backbone that may not be the one" in err


def test_a_whole_model_of_glscl_is_judged_with_the_padding_that_its_program_reads(
    glscl, backbone_weights, clips, tmp_path
):
    meta = json.loads(str(np.load(GOLDEN / "glscl_ragged.npz")["meta"]))  # names and shapes as the program saves them
    draw = torch.Generator().manual_seed(1)
    weights = {key: 0.05 * torch.randn(shape, generator=draw) for key, shape in meta["params"].items()}
    used = set(weights)
    for key in [key for key in weights if "_noun" in key]:  # the copies and weightings that it saves and never uses
        weights[key.replace("_noun", "_spatial")] = weights[key].clone()
        weights[key.replace("transformer_decoder_noun.layers.0", "decoder_layer_noun")] = weights[key].clone()
    weights |= {"noun_queries": torch.rand(8, 64), "weight_fc.0.weight": torch.rand(128, 128)} | backbone_weights()
    file = tmp_path / "pytorch_model.bin.step2850.4"
    torch.save(weights, file)
    data = ("--dataset", "csv", "--annotations", clips / "captions.csv", "--videos", clips / "videos", "--workers", "1")
    public = ("--option", "mask_padding=false", "--option", "consistency_scale=queries")
    status, out, err = glscl("adopt", file, *data, *public, "--out", tmp_path / "run", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert (found["imported"]["head"], found["imported"]["backbone"]) == ("glscl", "same")
    assert not used & {*found["imported"]["dropped_keys"]} and found["judged"]["counts"]["videos"] == 2
    store = front_door.open_cache(found["extracted"]["cache"])
    table = store.table("test", frames=12, padded=True)
    ours = front_door.load_run(tmp_path / "run").head
    theirs = front_door.head_from_state_dict(weights, embed_dim=64, mask_padding=False)
    torch.testing.assert_close(similarity_matrix(ours, table), similarity_matrix(theirs, table), rtol=0, atol=0)


def test_adopting_a_bare_backbone_or_a_bare_head_is_refused(glscl, one_line, whole_model, clips, tmp_path):
    weights = torch.load(whole_model[1], weights_only=True)["state_dict"]
    data = ("--dataset", "csv", "--annotations", clips / "captions.csv", "--videos", clips / "videos")
    torch.save({key: value for key, value in weights.items() if key.startswith("pool_frames.")}, tmp_path / "head.pth")
    one_line(
        glscl("adopt", tmp_path / "head.pth", *data), "the head of X-Pool alone", "glscl import-checkpoint", status=1
    )
    one_line(glscl("adopt", tmp_path / "none.pth", *data), "There is no checkpoint", status=1)
    bare = {key.removeprefix("clip."): value for key, value in weights.items() if key.startswith("clip.")}
    torch.save(bare, tmp_path / "bare.pt")
    one_line(glscl("adopt", tmp_path / "bare.pt", *data), "bare.pt: these weights hold no head of a known", status=1)
    one_line(
        glscl("adopt", whole_model[1], *data, "--source", "drl"),
        "unknown keys: pool_frames.", "and 13 more", "They look like those of xpool", status=1,
    )  # fmt: skip
    assert not (tmp_path / "home").exists(), "nothing was extracted before the head was known to fit"
    one_line(glscl("adopt", whole_model[1], *data, "--pretrained", "x"), "--pretrained", status=2)
