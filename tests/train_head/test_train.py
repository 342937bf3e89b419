"""Training: it learns, it repeats itself to the last bit, it survives being stopped, and it stops when it must."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from glscl.cache.additions import write_addition
from glscl.cache.encoded_items import video_arrays
from glscl.cache.lists import make_list, write_list
from glscl.cache.schema import Status
from glscl.cache.store import open_store
from glscl.cache.table import FeatureTable
from glscl.common.errors import CheckpointError, FingerprintError, NonFiniteError, UsageError
from glscl.evaluate.evaluation import validation_metrics
from glscl.train_head.checkpoint import load_resume, load_run, read_run
from glscl.train_head.heads import HEADS, build_head
from glscl.train_head.holdout import hold_out
from glscl.train_head.recording import why_not_recorded
from glscl.train_head.settings import TrainSettings, resolve
from glscl.train_head.train import Reporter, fit, train

SMALL = {
    "glscl": {"queries": 2, "decoder_layers": 1, "aggregator_layers": 1},
    "seq_transf": {"aggregator_layers": 1},
    "tight_transf": {"layers": 1},
    "dicosa": {"aggregator_layers": 1},
    "xclip": {"aggregator_layers": 1},
    "wti": {"aggregator_layers": 1},
    "ti": {"aggregator_layers": 1},
}


def new_head(name: str, table: FeatureTable, seed: int = 0):
    torch.manual_seed(seed)
    return build_head(name, embed_dim=table.embed_dim, **SMALL.get(name, {}))


def tensors_of(head) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in head.state_dict().items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def read_run_history(folder) -> list[dict]:
    return json.loads((folder / "run.json").read_text())["history"]


class Stop(Reporter):
    """Interrupts after one step of one epoch, as Ctrl-C would."""

    def __init__(self, epoch: int, step: int) -> None:
        self.at = (epoch, step)

    def step(self, report) -> None:
        if (report.epoch, report.step) == self.at:
            raise KeyboardInterrupt


class Listen(Reporter):
    def __init__(self) -> None:
        self.notes, self.steps, self.epochs = [], [], []

    def note(self, text):
        self.notes.append(text)

    def step(self, report):
        self.steps.append(report)

    def epoch(self, row, *, best):
        self.epochs.append((row, best))


# --- learning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["projection", "glscl"])
def test_a_planted_signal_is_learned(planted, name):
    table = planted()
    head = new_head(name, table)
    before = validation_metrics(head, table)["text_to_video"]["R@1"]
    fitted = fit(head, table, TrainSettings(epochs=12, batch_size=24, lr=5e-3))
    after = validation_metrics(head, table)
    assert np.mean(fitted.losses[-6:]) < 0.3 * np.mean(fitted.losses[:6])
    assert before < 10 and after["text_to_video"]["R@1"] > 60 and after["video_to_text"]["R@1"] > 60


@pytest.mark.parametrize("name", sorted(HEADS))
def test_every_head_trains_two_steps_and_changes(planted, name):
    table = planted(videos=8, captions=2)
    head = new_head(name, table)
    before = tensors_of(head)
    fitted = fit(head, table, TrainSettings(epochs=1, batch_size=8, lr=1e-3, warmup=0))
    assert all(math.isfinite(loss) for loss in fitted.losses) and len(fitted.losses) == 2
    changed = [key for key, value in head.state_dict().items() if not torch.equal(value, before[key])]
    assert changed and head.logit_scale <= math.log(100) + 1e-6


def test_the_held_out_videos_improve_too(planted):
    table = planted(videos=300, captions=2, dim=8)
    parts = hold_out(table, size=0.2, seed=0)
    head = new_head("projection", table)
    before = validation_metrics(head, parts.validation)["text_to_video"]["MnR"]
    fit(head, parts.train, TrainSettings(epochs=8, batch_size=60, lr=1e-2))
    assert validation_metrics(head, parts.validation)["text_to_video"]["MnR"] < 0.5 * before


def test_auxiliary_losses_are_part_of_what_is_minimised(planted):
    table = planted(videos=8, captions=1)
    losses = []
    for beta in (0.0, 1000.0):
        torch.manual_seed(0)
        head = build_head("glscl", embed_dim=16, beta=beta, dropout=0.0, **SMALL["glscl"])
        losses.append(fit(head, table, TrainSettings(epochs=1, batch_size=8)).losses[0])
    assert losses[1] > losses[0] + 0.1


def test_masked_captions_of_one_video_do_not_count_as_negatives(planted):
    table = planted(videos=4, captions=6)
    losses = {}
    for same_video in ("mask", "negative"):
        head = new_head("projection", table)
        losses[same_video] = fit(head, table, TrainSettings(epochs=1, batch_size=24, same_video=same_video)).losses[0]
    assert losses["mask"] < losses["negative"]


@pytest.mark.parametrize("captions", [1, 3])
def test_one_video_has_no_other_to_be_told_from(planted, captions):
    table = planted(videos=1, captions=captions)
    with pytest.raises(UsageError, match=f"batches of 1 out of {captions} captions? of 1 video:"):
        fit(new_head("glscl", table), table, TrainSettings(epochs=2))


@pytest.mark.parametrize(("videos", "captions"), [(2, 1), (2, 3)])
def test_tiny_corpora_train(planted, videos, captions):
    table = planted(videos=videos, captions=captions)
    head = new_head("glscl", table)
    heard = Listen()
    fitted = fit(head, table, TrainSettings(epochs=2), validate=lambda h: validation_metrics(h, table), reporter=heard)
    assert all(math.isfinite(loss) for loss in fitted.losses)
    assert len(fitted.history) == 2 and any(f"{videos} captions, not 128" in note for note in heard.notes)


# --- determinism and resuming ------------------------------------------------------------------------------------------


def test_one_seed_gives_the_same_weights_to_the_last_bit_and_another_seed_others(planted):
    table = planted()
    ended = []
    for seed in (3, 3, 4):
        head = new_head("glscl", table)
        fit(head, table, TrainSettings(epochs=2, batch_size=16, seed=seed))
        torch.rand(7)  # what else draws random numbers in between does not matter
        ended.append(tensors_of(head))
    assert_equal(ended[0], ended[1])
    assert any(not torch.equal(ended[0][k], ended[2][k]) for k in ended[0])


def test_reports_and_validation_change_nothing(planted):
    table = planted()
    ended = []
    for log_every, validate in ((1, lambda h: validation_metrics(h, table)), (1000, None)):
        head = new_head("glscl", table)
        fit(head, table, TrainSettings(epochs=2, batch_size=16, log_every=log_every), validate=validate)
        ended.append(tensors_of(head))
    assert_equal(*ended)


def fit_in_four_epochs(head, table, out, **more):
    settings = TrainSettings(epochs=4, batch_size=16, lr=1e-3, log_every=1)
    return fit(head, table, settings, validate=lambda head: validation_metrics(head, table), out=out, **more)


@pytest.fixture(scope="module")
def without_stop(planted, tmp_path_factory):
    """`without_stop(name)`: a head that was trained in one go, what came of it, and the folder; each is made once."""

    @functools.cache
    def made(name):
        head, out = new_head(name, planted()), tmp_path_factory.mktemp(name)
        return head, fit_in_four_epochs(head, planted(), out), out

    return made


@pytest.mark.parametrize("name", ["glscl", pytest.param("seq_lstm", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("stop", [(1, 2), (2, 5), (3, 9), (4, 1)])
def test_a_stopped_training_goes_on_as_if_it_had_not_been(without_stop, planted, tmp_path, name, stop):
    straight, whole, out = without_stop(name)
    table, stopped = planted(), tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fit_in_four_epochs(new_head(name, table), table, stopped, reporter=Stop(*stop))
    stopped_at = load_resume(stopped).state
    assert (stopped_at["epoch"] + 1, stopped_at["step"]) == stop
    assert read_run_history(stopped) == stopped_at["history"]
    resumed = new_head(name, table, seed=99)  # its own start is overwritten
    rest = fit_in_four_epochs(resumed, table, stopped, resume=True)
    assert_equal(tensors_of(straight), tensors_of(resumed))
    assert whole.losses[-len(rest.losses) :] == rest.losses
    measured = ("seconds", "captions_per_second")
    for a, b in zip(whole.history, rest.history, strict=True):
        assert {k: v for k, v in a.items() if k not in measured} == {k: v for k, v in b.items() if k not in measured}
    for name in ("best", "last"):
        file = f"{name}.safetensors"
        assert (out / file).read_bytes() == (stopped / file).read_bytes()
    assert not (stopped / "resume.safetensors").exists()


def test_a_training_killed_between_epochs_resumes_from_its_last_epoch(planted, tmp_path):
    table = planted()
    settings = TrainSettings(epochs=3, batch_size=16, lr=1e-3)
    straight = new_head("glscl", table)
    fit(straight, table, settings)

    class Dies(Reporter):
        def step(self, report):
            if report.epoch == 3:
                raise RuntimeError("the power went")

    with pytest.raises(RuntimeError):
        fit(new_head("glscl", table), table, settings, out=tmp_path, reporter=Dies())
    assert load_resume(tmp_path).state["epoch"] == 2
    resumed = new_head("glscl", table)
    fit(resumed, table, settings, out=tmp_path, resume=True)
    assert_equal(tensors_of(straight), tensors_of(resumed))


def test_ctrl_c_ends_the_step_saves_and_stops(planted, tmp_path):
    table = planted()

    class Presses(Reporter):
        def step(self, report):
            if report.step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(
            new_head("glscl", table),
            table,
            TrainSettings(epochs=2, batch_size=16, log_every=1),
            out=tmp_path,
            reporter=Presses(),
        )
    assert load_resume(tmp_path).state["step"] == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_training_runs_in_another_thread(planted):
    table, losses = planted(videos=4), []
    worker = threading.Thread(
        target=lambda: losses.extend(
            fit(new_head("projection", table), table, TrainSettings(epochs=1, batch_size=4)).losses
        )
    )
    worker.start()
    worker.join()
    assert len(losses) == 3


def test_another_training_cannot_be_taken_up(planted, tmp_path):
    table = planted()
    with pytest.raises(KeyboardInterrupt):
        fit(
            new_head("glscl", table),
            table,
            TrainSettings(epochs=2, batch_size=16, log_every=1),
            out=tmp_path,
            reporter=Stop(1, 2),
        )
    with pytest.raises(CheckpointError, match="another training: epochs is 2, expected 3"):
        fit(new_head("glscl", table), table, TrainSettings(epochs=3, batch_size=16), out=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="does not fit the head"):
        fit(new_head("projection", table), table, TrainSettings(epochs=2, batch_size=16), out=tmp_path, resume=True)


# --- stopping when it must ---------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_epoch_step_and_captions_and_keeps_the_last_good_weights(planted, tmp_path):
    table = planted(videos=8, captions=2)
    head = new_head("projection", table)
    good = {}

    class Breaks(Reporter):
        def step(self, report):
            if (report.epoch, report.step) == (2, 1):
                with torch.no_grad():
                    head.text_map.weight.fill_(torch.nan)

        def epoch(self, row, *, best):
            good.update(tensors_of(head))

    with pytest.raises(NonFiniteError) as error:
        fit(head, table, TrainSettings(epochs=3, batch_size=8, log_every=1), out=tmp_path, reporter=Breaks())
    text = str(error.value)
    assert "The loss is nan in epoch 2, step 2 of 2, on the captions video" in text
    assert f"{tmp_path} keeps the weights of epoch 1" in text and "\n" not in text
    fresh = new_head("projection", table)
    from glscl.train_head.checkpoint import load_weights

    load_weights(tmp_path / "last.safetensors", fresh)
    assert_equal(tensors_of(fresh), good)


def test_weights_that_break_after_a_finite_loss_are_never_saved(planted, tmp_path):
    """Neither as a checkpoint within an epoch nor at its end, so that --resume goes on from before."""
    table = planted(videos=8, captions=2)

    class Breaks(Reporter):
        def __init__(self, at):
            self.at = at

        def step(self, report):
            if report.step == self.at:
                with torch.no_grad():
                    head.text_map.weight[0, 0] = torch.inf

    for at in (1, 2):
        head = new_head("projection", table)
        with pytest.raises(
            NonFiniteError, match=f"The weights became .* in epoch 1, step {at} of 2, on the captions video"
        ):
            fit(
                head,
                table,
                TrainSettings(epochs=2, batch_size=8, log_every=1, checkpoint_every=1),
                out=tmp_path,
                reporter=Breaks(at),
            )
        assert not list(tmp_path.glob("*.safetensors")) if at == 1 else (tmp_path / "resume.safetensors").is_file()
    fit(new_head("projection", table), table, TrainSettings(epochs=2, batch_size=8), out=tmp_path, resume=True)


def test_features_that_are_not_finite_are_named(planted):
    table = planted(videos=8, captions=1)
    table.frame_features[5, 0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="epoch 1, step 1 of 1: video 'video5' has features"):
        fit(new_head("projection", table), table, TrainSettings(epochs=1, batch_size=8))
    table = planted(videos=8, captions=1)
    table.text_features[3, 2] = torch.nan
    with pytest.raises(NonFiniteError, match="caption 'video3#3' has features"):
        fit(new_head("projection", table), table, TrainSettings(epochs=1, batch_size=8))


# --- validation and selection ------------------------------------------------------------------------------------------


def test_best_is_the_epoch_with_the_highest_recall_then_the_lower_rank_then_the_earlier(planted, tmp_path):
    table = planted(videos=8, captions=1)
    of_epoch = iter([(10, 5), (30, 4), (30, 4), (30, 3), (20, 1)])
    kept = []

    def validate(head):
        recall, rank = next(of_epoch)
        return {"text_to_video": {"R@1": recall, "MnR": rank}, "video_to_text": {"R@1": recall, "MnR": rank}}

    class Keeps(Reporter):
        def epoch(self, row, *, best):
            kept.append(best)

    fitted = fit(
        new_head("projection", table), table, TrainSettings(epochs=5), validate=validate, out=tmp_path, reporter=Keeps()
    )
    assert kept == [True, True, False, True, False] and fitted.best["epoch"] == 4


def test_validation_happens_every_n_epochs_and_at_the_end(planted):
    table = planted(videos=4, captions=1)
    fitted = fit(
        new_head("projection", table),
        table,
        TrainSettings(epochs=5, eval_every=2),
        validate=lambda h: validation_metrics(h, table),
    )
    assert [row["epoch"] for row in fitted.history if "validation" in row] == [2, 4, 5]


def test_held_out_videos_follow_from_ids_and_seed_alone(planted):
    table = planted(videos=40)
    first = hold_out(table, size=None, seed=0)
    assert first.validation.num_videos == 4 and first.train.num_videos == 36
    assert not set(first.validation.video_ids) & set(first.train.video_ids)
    assert first.train.num_texts + first.validation.num_texts == table.num_texts
    shuffled = table.subset(torch.randperm(40, generator=torch.Generator().manual_seed(1)))
    assert set(hold_out(shuffled, size=None, seed=0).validation.video_ids) == set(first.validation.video_ids)
    assert set(hold_out(table, size=None, seed=1).validation.video_ids) != set(first.validation.video_ids)
    assert hold_out(table, size=7, seed=0).validation.num_videos == 7
    assert hold_out(table, size=0.5, seed=0).validation.num_videos == 20
    assert hold_out(table, size=0, seed=0).validation is None
    few = hold_out(planted(videos=19), size=None, seed=0)
    assert few.validation is None and "19 training videos" in few.note
    with pytest.raises(UsageError, match="none would be left"):
        hold_out(table, size=40, seed=0)


# --- whole runs on a cache ---------------------------------------------------------------------------------------------


GLSCL = {"head": "glscl", "options": {"queries": "2", "decoder_layers": "1", "aggregator_layers": "1"}}


def settings_for(store, **asked):
    return resolve({"head": "projection", "epochs": 2, **asked}, dataset=store.recipe)


def test_a_run_says_what_it_is_and_loads_again(small_cache, tmp_path):
    store = small_cache(videos=40).fill()
    heard = Listen()
    result = train(
        store,
        tmp_path / "run",
        settings_for(store, batch_size=8, **GLSCL),
        validate=validation_metrics,
        reporter=heard,
        command="glscl train-head",
    )
    head, run = load_run(result.run)
    assert result.selection == run["selection"] == "validation" and run["complete"]
    assert run["cache_fingerprint"] == store.fingerprint and run["frozen_backbone"] is True
    assert run["backbone"] == "made" and run["pretrained"] == "seed" and run["command"] == "glscl train-head"
    assert run["training"]["videos"] + run["validation"]["videos"] == 23 and run["validation"]["videos"] == 2
    assert len(run["history"]) == 2 and run["best"]["validation"]["text_to_video"]["queries"] == 6
    assert head.options["queries"] == 2 and run["settings"]["options"]["temperature"] == 3.0
    assert {"torch", "glscl"} <= run["versions"].keys()
    assert [row["epoch"] for row, _ in heard.epochs] == [1, 2] and heard.steps
    assert any("validation: 2 videos" in note for note in heard.notes)
    assert any("from the backbone: none" in note for note in heard.notes)
    json.dumps(run, allow_nan=False)


def test_parts_of_the_backbone_start_the_head(small_cache, tmp_path):
    store = small_cache().create()
    store.write_backbone_tensors({"logit_scale": np.array([2.5], np.float32)})
    store = small_cache().fill()
    heard = Listen()
    settings = settings_for(store, head="mean_pool", lr=1e-9, epochs=1)
    head, _ = load_run(train(store, tmp_path / "run", settings, reporter=heard).run)
    assert head.logit_scale.item() == pytest.approx(2.5, abs=1e-6)
    given = settings_for(store, head="mean_pool", options={"logit_scale": "1.5"}, lr=1e-9, epochs=1)
    head, _ = load_run(train(store, tmp_path / "given", given).run)
    assert head.logit_scale.item() == pytest.approx(1.5, abs=1e-6)


def test_learned_positions_are_as_many_as_the_features_need(small_cache, tmp_path):
    store = small_cache().fill()
    settings = settings_for(store, head="xclip", options={"aggregator_layers": "1"}, max_frames=3, epochs=1)
    _, run = load_run(train(store, tmp_path / "run", settings).run)
    assert run["options"]["frame_positions"] == 77 and run["options"]["max_frames"] == 12


def test_few_videos_are_all_trained_on_and_the_last_epoch_is_kept(small_cache, tmp_path):
    store = small_cache().fill()
    heard = Listen()
    result = train(store, tmp_path / "run", settings_for(store), validate=validation_metrics, reporter=heard)
    assert result.selection == "last" and any("too few to hold some out" in note for note in heard.notes)
    best, last = (tmp_path / "run" / f"{name}.safetensors" for name in ("best", "last"))
    assert best.read_bytes() == last.read_bytes()
    with pytest.raises(UsageError, match="`select=validation`: 6 training videos"):
        train(store, tmp_path / "other", settings_for(store, select="validation"), validate=validation_metrics)


def test_selecting_on_test_is_possible_and_warned_about(small_cache, tmp_path):
    store = small_cache().fill()
    heard = Listen()
    result = train(
        store, tmp_path / "run", settings_for(store, select="test"), validate=validation_metrics, reporter=heard
    )
    assert result.selection == read_run(tmp_path / "run")["selection"] == "test"
    assert any("optimistic" in note for note in heard.notes)


def test_a_run_folder_is_not_overwritten_and_a_finished_run_is_left_alone(small_cache, tmp_path):
    store = small_cache().fill()
    settings = settings_for(store)
    train(store, tmp_path / "run", settings)
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(UsageError, match=r"holds a run already.*`resume`"):
        train(store, tmp_path / "run", settings)
    assert train(store, tmp_path / "run", settings, resume=True).already_complete
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_run_stopped_before_its_first_epoch_resumes_too(small_cache, tmp_path):
    store = small_cache().fill()
    settings = settings_for(store, batch_size=2, validation=2, log_every=1)
    train(store, tmp_path / "straight", settings, validate=validation_metrics)
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path / "run", settings, validate=validation_metrics, reporter=Stop(1, 3))
    train(store, tmp_path / "run", settings, validate=validation_metrics, resume=True)
    for name in ("best", "last"):
        file = f"{name}.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()


def test_resuming_on_another_cache_or_with_other_settings_is_refused(small_cache, tmp_path):
    store = small_cache().fill()
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path / "run", settings_for(store, batch_size=2, log_every=1), reporter=Stop(2, 1))
    with pytest.raises(UsageError, match="begun with other settings"):
        train(store, tmp_path / "run", settings_for(store, batch_size=2, lr=0.5), resume=True)
    other = small_cache(dtype="float32", name="other").fill()
    with pytest.raises(FingerprintError, match="was begun on another cache"):
        train(other, tmp_path / "run", settings_for(other, batch_size=2), resume=True)


def seen_at(cache, **changes):
    """The cache at another list, or version of its own, that is written for it."""
    made = replace(cache.list, **changes)
    keys = {"video_key": made.video_key, "video_content": made.video_content, "text_key": made.text_key}
    made = make_list(cache.annotations, name=made.name, family="made", recipe="", **keys)
    write_list(cache.path, made, cache.format)
    return open_store(cache.path, f"{made.name}@{made.hash}")


def test_a_run_goes_on_with_its_own_version_of_a_list_alone(small_cache, tmp_path):
    cache = small_cache()
    store = cache.fill()
    settings = settings_for(store, batch_size=2, log_every=1)
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path / "run", settings, reporter=Stop(2, 1))
    run = read_run(tmp_path / "run")
    assert (run["list"], run["list_hash"], run["annotations"]) == ("made", store.list_hash, store.list.annotations)
    assert run["dataset"] == "made"
    keys = cache.list.video_key
    keys[3] = keys[4]  # as if a file had been replaced by a copy of another
    for other, says in (
        (seen_at(cache, video_key=keys), ", the same annotations with other files"),
        (seen_at(cache, name="second", video_key=keys), "found second@"),
    ):
        with pytest.raises(UsageError, match="begun on other data") as error:
            train(other, tmp_path / "run", settings, resume=True)
        assert says in str(error.value) and f"`list=made@{store.list_hash}`" in str(error.value)
    assert train(store, tmp_path / "run", settings, resume=True).history[-1]["epoch"] == 2


def test_a_run_does_not_go_on_where_more_could_be_read_since(small_cache, tmp_path):
    cache = small_cache()
    store = cache.fill()
    settings = settings_for(store, batch_size=2, log_every=1)
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path / "run", settings, reporter=Stop(2, 1))
    failed, read = np.flatnonzero(store.status() == Status.DECODE_ERROR)[0], cache.videos[0]
    keys = cache.list.video_key[failed : failed + 1]
    again = write_addition(cache.path, "video", keys, shard_items=1, attempt=1)
    arrays = video_arrays(keys, [read], embed_dim=8, dtype=cache.dtype)
    store.library.add(again)
    store.library.commit(again, 0, arrays)
    with pytest.raises(
        UsageError, match="begun with 6 videos with 18 captions for training; .* gives 7 videos with 21"
    ):
        train(open_store(cache.path), tmp_path / "run", settings, resume=True)


def test_a_full_disk_leaves_the_last_epoch_whole(small_cache, tmp_path, monkeypatch):
    store = small_cache().fill()
    from glscl.common.errors import StorageError
    from glscl.train_head import resume_state as module

    real, calls = module.save_resume, []

    def full(folder, resume):
        calls.append(1)
        if len(calls) == 2:
            raise StorageError("Cannot write: the disk is full")
        real(folder, resume)

    monkeypatch.setattr(module, "save_resume", full)
    settings = settings_for(store, batch_size=2, epochs=3)
    with pytest.raises(StorageError):
        train(store, tmp_path / "run", settings)
    monkeypatch.undo()
    train(store, tmp_path / "run", settings, resume=True)
    train(store, tmp_path / "straight", settings)
    assert (tmp_path / "run/last.safetensors").read_bytes() == (tmp_path / "straight/last.safetensors").read_bytes()


def test_one_process_trains_in_different_arithmetic_one_after_another(planted):
    table = planted(videos=8)
    for precision in ("fp32", "bf16", "fp32"):
        fitted = fit(new_head("glscl", table), table, TrainSettings(epochs=1, batch_size=2, precision=precision))
        assert all(math.isfinite(loss) for loss in fitted.losses)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_gpu_learns_the_same_signal(planted, precision):
    table = planted()
    head = new_head("glscl", table)
    fit(head, table, TrainSettings(epochs=12, batch_size=24, lr=5e-3, precision=precision), device="cuda")
    assert validation_metrics(head, table.to("cuda"))["text_to_video"]["R@1"] > 60


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_steps_are_those_of_the_plain_loop(planted):
    table = planted(videos=48, captions=2)

    def losses(**how):
        settings = TrainSettings(epochs=6, batch_size=12, lr=5e-3, precision="tf32", **how)
        return fit(new_head("glscl", table), table, settings, device="cuda").losses

    assert losses(cuda_graphs=True) == pytest.approx(losses(), rel=1e-3, abs=1e-4)


def test_where_steps_cannot_be_recorded_the_reason_is_said_and_they_run_as_they_are(planted):
    class Notes(Reporter):
        def __init__(self):
            self.lines = []

        def note(self, line):
            self.lines.append(line)

    table, notes = planted(videos=8, captions=1), Notes()
    plain = fit(new_head("glscl", table), table, TrainSettings(epochs=1, batch_size=4))
    asked = TrainSettings(epochs=1, batch_size=4, cuda_graphs=True)
    assert fit(new_head("glscl", table), table, asked, reporter=notes).losses == plain.losses
    assert notes.lines == ["`cuda_graphs` is left out: it needs a CUDA device, and this training runs on cpu"]

    def why_not(**other):
        usual = {"processes": 1, "precision": "tf32", "optimizer": "adamw", "compiled": False}
        return str(why_not_recorded(torch.device("cuda"), **usual | other))

    assert why_not() == "None"
    assert "2 share" in why_not(processes=2) and "overflowed" in why_not(precision="fp16")
    assert "on the host" in why_not(optimizer="bert_adam") and "`compile`" in why_not(compiled=True)
