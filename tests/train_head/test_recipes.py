"""Recipes as published, and how they meet what was asked for."""

from __future__ import annotations

import json

import pytest

from glscl.common.errors import UsageError
from glscl.common.settings import as_dict
from glscl.train_head.finetuning.settings import resolve_finetune
from glscl.train_head.heads import HEAD_NAMES, build_head
from glscl.train_head.recipes import AUGMENTED, RECIPES, recipe
from glscl.train_head.settings import resolve, settings_from, typed_options

PUBLISHED = {  # words, frames, batch, epochs, queries
    "msrvtt": (32, 12, 128, 5, 8),
    "msvd": (32, 12, 128, 5, 8),
    "lsmdc": (32, 12, 128, 5, 8),
    "didemo": (64, 64, 32, 5, 8),
    "activitynet": (64, 64, 64, 10, 12),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_are_the_published_ones(name):
    found = recipe(name)
    glscl = found.heads["glscl"].options
    settings = resolve({}, dataset=name)
    assert (found.words, found.frames, settings.batch_size, settings.epochs, glscl["queries"]) == PUBLISHED[name]
    assert (found.fps, settings.max_frames) == (1.0, found.frames)
    assert (settings.lr, settings.weight_decay, settings.betas, settings.eps) == (1e-4, 0.2, (0.9, 0.98), 1e-6)
    assert (settings.warmup, settings.clip) == (0.1, 1.0)
    assert {k: glscl[k] for k in glscl if k != "queries"} == {
        "temperature": 5.0 if name == "lsmdc" else 3.0,  # its script leaves the program's defaults
        "alpha": 0.01 if name == "lsmdc" else 1e-4,
        "beta": 0.005,
        "decoder_layers": 3,
        "local_weight": 0.5,
        "dropout": 0.1,
    }


@pytest.mark.parametrize("name", RECIPES)
def test_the_options_of_every_recipe_build_their_head(name):
    for head, own in RECIPES[name].heads.items():
        assert head in HEAD_NAMES
        build_head(head, embed_dim=16, **own.options)
        resolve({"head": head, "recipe": name}, dataset="")
        resolve_finetune({"head": head, "recipe": name}, dataset="")


def test_the_heads_that_were_published_with_changed_frames_are_known():
    assert {*AUGMENTED} == {"glscl", "dicosa"}


def test_a_published_recipe_is_of_a_head_and_a_dataset():
    def of(head, name):
        return resolve_finetune({"head": head, "recipe": f"{name}-published"}, dataset="")

    glscl = of("glscl", "activitynet")
    assert (glscl.optimizer, glscl.decay, glscl.logit_scale_rate, glscl.augment) == (
        "bert_adam", "weights", 1e-3, "randaugment",
    )  # fmt: skip
    assert (glscl.epochs, glscl.planned_epochs, glscl.batch_size, glscl.max_frames) == (10, 5, 64, 64)
    assert (glscl.same_video, glscl.select, glscl.options["consistency_scale"]) == ("negative", "test", "queries")
    assert of("glscl", "msrvtt").options["beta"] == 0.02
    assert of("seq_transf", "didemo").batch_size == 128 and of("seq_transf", "didemo").augment == "none"
    assert [of("xclip", name).batch_size for name in ("msrvtt", "didemo", "activitynet")] == [300, 64, 112]
    xpool = of("xpool", "msrvtt")
    assert (xpool.optimizer, xpool.decay, xpool.batch_size, xpool.lr, xpool.betas) == (
        "adamw",
        "all",
        32,
        3e-5,
        (0.9, 0.999),
    )
    assert xpool.lr * xpool.backbone_lr_scale == pytest.approx(1e-6)
    assert of("dicosa", "didemo").options["correlation_divisor"] == 64
    with pytest.raises(
        UsageError, match="No training of projection on this dataset was published; there is one of glscl"
    ):
        resolve({"head": "projection", "recipe": "msrvtt-published"}, dataset="")


def test_the_dataset_chooses_the_recipe_and_options_override_it():
    settings = resolve({"lr": 3e-4, "options": {"queries": "5"}}, dataset="activitynet")
    assert (settings.recipe, settings.head, settings.epochs, settings.max_frames) == ("activitynet", "glscl", 10, 64)
    assert settings.lr == 3e-4 and settings.options["queries"] == 5 and settings.options["temperature"] == 3.0
    assert (settings.precision, settings.same_video, settings.seed) == ("fp32", "separate", 0)
    assert resolve({}, dataset="mine").recipe == "default"
    assert resolve({"recipe": "didemo"}, dataset="msrvtt").batch_size == 32
    assert resolve({"max_frames": 0}, dataset="msrvtt").max_frames is None
    assert resolve({"head": "wti", "options": {"adapter": "mlp"}}, dataset="msrvtt").options == {"adapter": "mlp"}


def test_options_are_read_with_the_types_the_head_declares():
    texts = {
        "queries": "4",
        "temperature": "2",
        "share-queries": "no",
        "aggregator": "none",
        "aggregator_heads": "none",
    }
    assert typed_options("glscl", texts | {"alpha": "1e-3"}) == {
        "queries": 4,
        "temperature": 2.0,
        "share_queries": False,
        "aggregator": "none",
        "aggregator_heads": None,
        "alpha": 1e-3,
    }
    assert typed_options("glscl", {"aggregator_heads": "2", "logit_scale": "3.5", "beta": 1}) == {
        "aggregator_heads": 2,
        "logit_scale": 3.5,
        "beta": 1,
    }


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("querys", "4", "no option 'querys'; its options are queries, "),
        ("queries", "four", "queries` is 'four'; expected int"),
        ("share_queries", "perhaps", "expected bool"),
        ("temperature", "", "expected float"),
    ],
)
def test_options_that_cannot_be_read_say_what_was_expected(option, text, message):
    with pytest.raises(UsageError, match=message):
        typed_options("glscl", {option: text})


@pytest.mark.parametrize(
    "wrong",
    [
        {"head": "clip"},
        {"recipe": "imagenet"},
        {"epochs": 0},
        {"lr": -1.0},
        {"lr": 0.0},
        {"clip": 0.0},
        {"warmup": 1.5},
        {"select": "validation", "validation": 0.0},
        {"precision": "fp16"},
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong):
    with pytest.raises(UsageError):
        resolve({**wrong}, dataset="msrvtt")


def test_stored_settings_come_back_and_contradictions_are_named():
    settings = resolve({"epochs": 2, "options": {"queries": "5"}, "seed": 4}, dataset="msvd")
    stored = json.loads(json.dumps(as_dict(settings)))
    assert settings_from(stored) == settings
    assert resolve({}, dataset="other", stored=stored) == settings
    assert resolve({"epochs": 2, "precision": "auto", "seed": 4}, dataset="msvd", stored=stored) == settings
    for asked, message in (
        ({"epochs": 3}, "`epochs` is 3; the run to resume was begun with 2"),
        ({"options": {"queries": "6"}}, "`option=queries` is 6; .* begun with 5"),
        ({"head": "wti"}, "`head` is 'wti'"),
    ):
        with pytest.raises(UsageError, match=message):
            resolve(asked, dataset="msvd", stored=stored)
    with pytest.raises(UsageError, match="`seed` is 5"):
        resolve({"seed": 5}, dataset="msvd", stored=stored)
    with pytest.raises(UsageError, match="lack or have beside"):
        settings_from({**stored, "momentum": 0.9})
