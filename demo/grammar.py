"""Captions: one grammar with synonyms and paraphrases for stories (many scenes) and for single frames.

A caption names some of what can be seen, never anything that cannot. Most captions of a story speak of one or two of
its scenes.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from glscl.demo.render import actor_pose
from glscl.demo.world import Scene, Story, Thing

CAPTIONS = 20  # a story
KINDS = ("scene", "pair", "order", "direction", "whole")  # `pair` two scenes, `order` two or three with their order

SHAPE_WORDS = {
    "circle": ("circle", "circle", "ball", "disc"),
    "square": ("square", "square", "box", "block"),
    "triangle": ("triangle", "triangle", "pyramid"),
    "star": ("star",),
    "ring": ("ring", "ring", "hoop", "donut"),
    "heart": ("heart",),
    "cross": ("cross", "cross", "plus"),
    "moon": ("moon", "moon", "crescent"),
    "flower": ("flower", "flower", "blossom"),
    "arrow": ("arrow", "arrow", "pointer"),
    "house": ("house", "house", "hut", "cottage"),
    "fish": ("fish",),
}
COLOUR_WORDS = {
    "red": ("red", "red", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow", "yellow", "golden"),
    "green": ("green",),
    "blue": ("blue", "blue", "navy"),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink", "pink", "rose"),
    "brown": ("brown", "brown", "chocolate"),
    "white": ("white",),
    "black": ("black",),
}
TEXTURE_WORDS = {
    "plain": (("plain", ""),),
    "striped": (("striped", ""), ("striped", ""), ("", "with stripes")),
    "spotted": (("spotted", ""), ("dotted", ""), ("", "with dots")),
    "checked": (("checked", ""), ("checkered", ""), ("", "with a checked pattern")),
}  # (before the shape, after the shape)
SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
PLACE_WORDS = {
    "beach": ("on the beach", "on a beach", "by the sea", "at the seaside"),
    "forest": ("in the forest", "in a forest", "in the woods", "among the trees"),
    "desert": ("in the desert", "in a desert", "over the dunes"),
    "snow": ("in the snow", "in a snowy place", "while it snows"),
    "night": ("at night", "in the dark", "under the stars"),
    "city": ("in the city", "in a city", "on the street", "in front of tall buildings"),
    "wall": ("in front of a brick wall", "by a wall", "on the bricks"),
    "wood": ("on a wooden floor", "on the wood", "on wooden planks"),
    "ocean": ("under water", "in the ocean", "under the sea"),
    "meadow": ("on the meadow", "on the grass", "on a green field", "on a lawn"),
}
# (third person, gerund); {side} is the side it comes from or goes to, {new} a colour, {old} the colour before
ACTION_WORDS = {
    "enter": (("comes in", "coming in"), ("enters", "entering"), ("slides into view", "sliding into view")),
    "leave": (("goes away", "going away"), ("leaves", "leaving"), ("slides out of view", "sliding out of view")),
    "grow": (("grows", "growing"), ("gets bigger", "getting bigger"), ("becomes larger", "becoming larger")),
    "shrink": (("shrinks", "shrinking"), ("gets smaller", "getting smaller"), ("becomes tiny", "becoming tiny")),
    "spin": (("spins", "spinning"), ("turns around", "turning around"), ("rotates", "rotating")),
    "jump": (("jumps", "jumping"), ("bounces", "bouncing"), ("hops up and down", "hopping up and down")),
    "recolour": (
        ("turns {new}", "turning {new}"),
        ("becomes {new}", "becoming {new}"),
        ("changes its colour to {new}", "changing its colour to {new}"),
    ),
    "vanish": (("vanishes", "vanishing"), ("disappears", "disappearing"), ("fades away", "fading away")),
    "rest": (("stays still", "staying still"), ("rests", "resting"), ("does not move", "not moving")),
}
DIRECTION_WORDS = {
    "enter": (
        ("comes in from the {side}", "coming in from the {side}"),
        ("enters from the {side}", "entering from the {side}"),
        ("slides in from the {side} side", "sliding in from the {side} side"),
    ),
    "leave": (
        ("goes away to the {side}", "going away to the {side}"),
        ("leaves to the {side}", "leaving to the {side}"),
        ("slides out on the {side} side", "sliding out on the {side} side"),
    ),
}
ORDER_FRAMES = (
    "first {a} , then {b}",
    "{a} and then {b}",
    "{a} before {b}",
    "{a} , followed by {b}",
    "after {a} comes {b}",
    "{b} after {a}",
)
PAIR_FRAMES = ("{a} and {b}", "{a} , and {b}", "a video of {a} and {b}", "{a} ; also {b}", "we see {a} and {b}")


class Caption(NamedTuple):
    """One sentence; `kind` is one of KINDS, `scenes` the numbers of the scenes it speaks of, as they follow."""

    text: str
    kind: str
    scenes: tuple[int, ...]


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def describe_thing(rng: random.Random, thing: Thing, *, named: set[str], article: bool = True) -> str:
    """A noun phrase with the attributes in `named` (of "colour", "texture", "size")."""
    before, after = rng.choice(TEXTURE_WORDS[thing.texture]) if "texture" in named else ("", "")
    size = rng.choice(SIZE_WORDS[thing.size]) if "size" in named else ""
    colour = rng.choice(COLOUR_WORDS[thing.colour]) if "colour" in named else ""
    middle = [before, colour] if rng.random() < 0.3 else [colour, before]
    words = " ".join(word for word in (size, *middle, rng.choice(SHAPE_WORDS[thing.shape])) if word)
    return " ".join(word for word in (_article(words) if article else words, after) if word)


def _draw_named(rng: random.Random, thing: Thing, *, rich: float, sized: bool) -> set[str]:
    chances = {"colour": 0.94, "texture": rich if thing.texture != "plain" else 0.06, "size": 0.35 if sized else 0.0}
    return {name for name, chance in chances.items() if rng.random() < chance}


def _action(rng: random.Random, scene: Scene, *, directed: bool) -> tuple[str, str]:
    third, gerund = rng.choice((DIRECTION_WORDS if directed else ACTION_WORDS)[scene.action])
    colour = rng.choice(COLOUR_WORDS[scene.new_colour])
    return third.format(side=scene.side, new=colour), gerund.format(side=scene.side, new=colour)


def describe_scene(rng: random.Random, scene: Scene, *, brief: bool = False, directed: bool = False) -> str:
    """A clause without a full stop about one scene: the actor, and some of what it does, where, and beside what.

    Args:
        brief: name fewer attributes, for sentences about several scenes.
        directed: tell the side the actor comes from or goes to (only for `enter` and `leave`).
    """
    steady = scene.action not in ("grow", "shrink")  # a size worth telling
    named = _draw_named(rng, scene.actor, rich=0.5 if brief else 0.75, sized=steady and not brief)
    actor = describe_thing(rng, scene.actor, named=named)
    place = rng.choice(PLACE_WORDS[scene.background]) if rng.random() < (0.5 if brief else 0.75) else ""
    acts = directed or rng.random() < (0.45 if brief else 0.65)
    if not place and not acts:
        if rng.random() < 0.5:
            place = rng.choice(PLACE_WORDS[scene.background])
        else:
            acts = True
    if scene.companion is not None and not directed and rng.random() < (0.2 if brief else 0.6):
        rich = 0.0 if brief else 0.4
        other = describe_thing(rng, scene.companion, named=_draw_named(rng, scene.companion, rich=rich, sized=False))
        actor = f"{actor} {rng.choice(('next to', 'beside', 'near'))} {other}"
    third, gerund = _action(rng, scene, directed=directed)
    if not acts:
        return f"{actor} {place}"
    verb = gerund if brief or rng.random() < 0.4 else third
    if not place:
        return f"{actor} {verb}"
    if verb is third and rng.random() < 0.25:
        return f"{place} {actor} {third}"
    return f"{actor} {place} {gerund}" if rng.random() < 0.2 else f"{actor} {verb} {place}"


def _scene_sentence(rng: random.Random, scene: Scene, *, directed: bool = False) -> str:
    clause = describe_scene(rng, scene, directed=directed)
    if not clause.startswith(("a ", "an ")):  # the place stands in front
        return clause
    return rng.choices(("{}", "a video of {}", "we see {}", "{} in this clip"), weights=(7, 1, 1, 1))[0].format(clause)


def caption_story(story: Story, seed: int) -> list[Caption]:
    """CAPTIONS captions of one story: about 11 of one scene, 4 of two, 3 of their order, 1 of direction where there is
    one, 1 of all scenes. Fixed by the seed and the story's id."""
    rng = random.Random(f"glscl-demo/{seed}/captions/{story.split}/{story.id}")
    count = len(story.scenes)
    captions: list[Caption] = []

    def brief(k: int) -> str:
        return describe_scene(rng, story.scenes[k], brief=True)

    for _ in range(4):
        a, b = rng.sample(range(count), 2)
        text = rng.choice(PAIR_FRAMES).format(a=brief(a), b=brief(b))
        captions.append(Caption(text, "pair", (min(a, b), max(a, b))))
    for _ in range(3):
        a, b = sorted(rng.sample(range(count), 2))
        captions.append(Caption(rng.choice(ORDER_FRAMES).format(a=brief(a), b=brief(b)), "order", (a, b)))
    moving = [k for k in range(count) if story.scenes[k].action in DIRECTION_WORDS]
    if moving:
        k = rng.choice(moving)
        captions.append(Caption(_scene_sentence(rng, story.scenes[k], directed=True), "direction", (k,)))
    things = []
    for scene in story.scenes:
        things.append(describe_thing(rng, scene.actor, named={"colour"}))
    listed = " , ".join(things[:-1]) + " and " + things[-1]
    frame = rng.choice(("{}", "a video of {}", "we see {}"))
    captions.append(Caption(frame.format(listed), "whole", tuple(range(count))))
    turn = rng.randrange(count)
    while len(captions) < CAPTIONS:
        k = (turn + len(captions)) % count
        captions.append(Caption(_scene_sentence(rng, story.scenes[k]), "scene", (k,)))
    rng.shuffle(captions)
    return [Caption(_tidy(text), kind, scenes) for text, kind, scenes in captions]


def _tidy(text: str) -> str:
    return text.replace(" ,", ",").replace(" ;", ";")


def caption_frame(rng: random.Random, scene: Scene, u: float) -> str:
    """A caption of the one frame at share `u` of a scene: what is in it then, perhaps with what is going on."""
    pose = actor_pose(scene, u)
    place = rng.choice(PLACE_WORDS[scene.background])
    things: list[str] = []
    if pose.opacity > 0.3 and -0.05 < pose.x < 1.05:
        size = "big" if pose.radius > 0.23 else "small"
        seen = Thing(scene.actor.shape, pose.colour, scene.actor.texture, size)
        sized = pose.radius > 0.24 or pose.radius < 0.16
        actor = describe_thing(rng, seen, named=_draw_named(rng, seen, rich=0.85, sized=sized))
        if rng.random() < 0.3:
            third, gerund = _action(rng, scene, directed=scene.action in DIRECTION_WORDS and rng.random() < 0.2)
            actor = f"{actor} {gerund if rng.random() < 0.6 else third}"
        things.append(actor)
    if scene.companion is not None and (not things or rng.random() < 0.8):
        other = describe_thing(rng, scene.companion, named=_draw_named(rng, scene.companion, rich=0.7, sized=False))
        things.append(other)
    if not things:
        return rng.choice(("nothing {}", "an empty place {}", "there is nothing {}")).format(place)
    if len(things) == 2 and rng.random() < 0.4:
        things.reverse()
    text = rng.choice((" and ", " next to ", " beside ", " near ")).join(things)
    if rng.random() < 0.8:
        if rng.random() < 0.1:
            return f"{place} {text}"
        text = f"{text} {place}"
    return rng.choices(("{}", "a picture of {}", "we see {}"), weights=(8, 1, 1))[0].format(text)


def vocabulary() -> list[str]:
    """Every word (and mark) a caption can hold, sorted."""
    frames = ORDER_FRAMES + PAIR_FRAMES
    words = set(" ".join(frames).replace("{a}", " ").replace("{b}", " ").split())
    words |= set(
        [
            "a",
            "an",
            "and",
            "next",
            "to",
            "beside",
            "near",
            "with",
            "video",
            "of",
            "we",
            "see",
            "in",
            "this",
            "clip",
            "picture",
            "nothing",
            "empty",
            "place",
        ]
    )
    words |= {"there", "is", "left", "right"}
    for table in (SHAPE_WORDS, COLOUR_WORDS, SIZE_WORDS, PLACE_WORDS):
        words |= set(" ".join(" ".join(options) for options in table.values()).split())
    words |= set(" ".join(" ".join(pair) for options in TEXTURE_WORDS.values() for pair in options).split())
    for table in (ACTION_WORDS, DIRECTION_WORDS):
        for options in table.values():
            text = " ".join(" ".join(pair) for pair in options)
            words |= set(text.replace("{side}", "").replace("{new}", "").split())
    return sorted(words)
