"""The demo's stories and captions: fixed by the seed, no leak between splits, captions of one or two scenes."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from glscl.demo.grammar import CAPTIONS, KINDS, PLACE_WORDS, caption_frame, caption_story, vocabulary
from glscl.demo.render import actor_pose
from glscl.demo.world import ACTIONS, BACKGROUNDS, COLOURS, SHAPES, draw_scene, draw_stories, draw_story

SIZES = {"train": 400, "val": 50, "test": 100}


@pytest.fixture(scope="module")
def stories():
    return list(draw_stories(0, SIZES))


def test_the_same_seed_tells_the_same_stories(stories):
    assert list(draw_stories(0, SIZES)) == stories
    assert [caption_story(story, 0) for story in stories[:20]] == [caption_story(story, 0) for story in stories[:20]]


def test_another_seed_tells_other_stories(stories):
    others = {story.combination for story in draw_stories(1, SIZES)}
    assert len(others & {story.combination for story in stories}) == 0


def test_no_two_videos_share_their_combination_of_scenes(stories):
    assert len({story.combination for story in stories}) == len(stories) == sum(SIZES.values())


def test_no_story_of_a_held_out_split_is_a_training_story_in_another_order(stories):
    train = {story.combination for story in stories if story.split == "train"}
    held_out = {story.combination for story in stories if story.split != "train"}
    assert not train & held_out


def test_a_larger_training_split_leaves_the_held_out_splits_alone(stories):
    larger = [story for story in draw_stories(0, {**SIZES, "train": 450}) if story.split != "train"]
    assert larger == [story for story in stories if story.split != "train"]


def test_a_story_that_is_taken_gives_way():
    assert draw_story(0, "train", 3, attempt=1).combination != draw_story(0, "train", 3).combination


def test_every_video_has_two_to_four_scenes_on_different_backgrounds_and_lasts_three_to_nine_seconds(stories):
    assert {len(story.scenes) for story in stories} == {2, 3, 4}
    for story in stories:
        assert len({scene.background for scene in story.scenes}) == len(story.scenes)
        assert 3.1 <= story.seconds <= 9.5


def test_scenes_of_a_video_differ_in_length_and_most_videos_have_a_card(stories):
    lengths = [sorted(scene.seconds for scene in story.scenes) for story in stories]
    assert sum(longest > 1.8 * shortest for shortest, *_, longest in lengths) > 100
    assert 0.8 < sum(story.opening + story.ending > 0 for story in stories) / len(stories) < 1


def test_every_attribute_occurs(stories):
    scenes = [scene for story in stories for scene in story.scenes]
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {scene.action for scene in scenes} == set(ACTIONS)
    assert {scene.actor.shape for scene in scenes} == set(SHAPES)
    assert {scene.actor.colour for scene in scenes} == set(COLOURS)


def test_a_companion_can_be_told_from_the_actor(stories):
    for scene in (scene for story in stories for scene in story.scenes if scene.companion):
        assert scene.companion.shape != scene.actor.shape
        assert scene.companion.colour not in (scene.actor.colour, scene.new_colour)


def test_most_captions_speak_of_one_or_two_scenes(stories):
    captions = [caption for story in stories for caption in caption_story(story, 0)]
    few = sum(len(caption.scenes) <= 2 for caption in captions)
    assert few / len(captions) > 0.9
    kinds = Counter(caption.kind for caption in captions)
    assert set(kinds) == set(KINDS)
    assert kinds["scene"] > len(captions) / 2


def test_every_story_has_its_captions_and_hardly_repeats_one(stories):
    repeats = 0
    for story in stories:
        captions = caption_story(story, 0)
        assert len(captions) == CAPTIONS
        assert all(set(caption.scenes) <= set(range(len(story.scenes))) for caption in captions)
        repeats += CAPTIONS - len({caption.text for caption in captions})
    assert repeats / (CAPTIONS * len(stories)) < 0.02


def test_a_place_that_a_caption_names_is_one_of_its_scenes(stories):
    # longest phrases first: "under the sea" is not "the sea"
    phrases = [(phrase, name) for name, options in PLACE_WORDS.items() for phrase in options]
    phrases.sort(key=lambda pair: -len(pair[0]))
    for story in stories[:100]:
        for caption in caption_story(story, 0):
            text, named = f" {caption.text.replace(',', ' ,')} ", set()
            for phrase, name in phrases:
                if f" {phrase} " in text:
                    named.add(name)
                    text = text.replace(f" {phrase} ", " ")
            assert named <= {story.scenes[k].background for k in caption.scenes}


def test_order_captions_name_two_scenes_in_the_order_of_the_video(stories):
    for story in stories[:100]:
        for caption in caption_story(story, 0):
            if caption.kind == "order":
                assert len(caption.scenes) == 2 and caption.scenes[0] < caption.scenes[1]
                assert any(word in caption.text.split() for word in ("first", "then", "before", "after", "followed"))


def test_captions_read_as_one_line_of_known_words(stories):
    known = set(vocabulary())
    rng = random.Random(0)
    texts = [caption.text for story in stories[:100] for caption in caption_story(story, 0)]
    texts += [caption_frame(rng, draw_scene(rng), rng.random()) for _ in range(500)]
    for text in texts:
        assert text == " ".join(text.split())
        assert "{" not in text and " ," not in text
        assert set(text.replace(",", " ,").replace(";", " ;").split()) <= known, text


def test_a_frame_without_its_actor_is_captioned_as_empty():
    rng = random.Random(3)
    seen = 0
    while seen < 20:
        scene = draw_scene(rng)
        if scene.action == "vanish" and scene.companion is None:
            assert actor_pose(scene, 1.0).opacity == 0
            assert set(caption_frame(rng, scene, 1.0).split()) & {"nothing", "empty"}
            seen += 1
