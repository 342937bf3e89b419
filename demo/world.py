"""What can happen in the demo's videos: things, scenes of one background each, and stories of two to four scenes.

Everything is drawn by lot from `random.Random(text)`, so a story depends on its seed, split and number alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

SHAPES = ("circle", "square", "triangle", "star", "ring", "heart", "cross", "moon", "flower", "arrow", "house", "fish")
COLOURS = {
    "red": (222, 44, 48),
    "orange": (250, 140, 22),
    "yellow": (252, 222, 52),
    "green": (46, 168, 70),
    "blue": (38, 92, 222),
    "purple": (138, 60, 190),
    "pink": (252, 136, 188),
    "brown": (124, 76, 40),
    "white": (250, 250, 250),
    "black": (34, 34, 40),
}  # RGB, 0..255
TEXTURES = ("plain", "striped", "spotted", "checked")
SIZES = ("small", "big")
BACKGROUNDS = ("beach", "forest", "desert", "snow", "night", "city", "wall", "wood", "ocean", "meadow")
ACTIONS = ("enter", "leave", "grow", "shrink", "spin", "jump", "recolour", "vanish", "rest")
SIDES = ("left", "right")

CARD_SECONDS = (0.0, 1.0, 1.6, 2.2)

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Thing:
    """One coloured shape. `texture` "plain" and either size are seldom named in captions."""

    shape: str
    colour: str
    texture: str
    size: str


@dataclass(frozen=True)
class Scene:
    """One shot: an actor that does something in front of a background, perhaps beside a companion that rests.

    Attributes:
        side: where the actor comes from or goes to (`enter`, `leave`), else the side it stands on.
        new_colour: colour after a `recolour`, else the actor's own.
        seconds: length of the shot.
        look: seed of everything no caption speaks of: places, phases, the lie of the land.
    """

    background: str
    actor: Thing
    action: str
    side: str
    new_colour: str
    companion: Thing | None
    seconds: float
    look: int

    @property
    def signature(self) -> tuple[str, ...]:
        """What makes two scenes the same to a viewer: background, actor and action."""
        actor = self.actor
        return (self.background, actor.shape, actor.colour, actor.texture, self.action, self.new_colour)


@dataclass(frozen=True)
class Story:
    """One video: two to four scenes with hard cuts between them, often between an opening and an end card.

    Scenes differ in length by up to four times and captions know nothing of the cards, so a plain mean over frames
    speaks of the longest scene and of test patterns.

    Attributes:
        opening, ending: seconds of the cards, 0 for none.
        look: seed of the cards' pictures.
    """

    id: str
    split: str
    scenes: tuple[Scene, ...]
    opening: float
    ending: float
    look: int

    @property
    def combination(self) -> frozenset[tuple[str, ...]]:
        """The set of its scenes, whatever their order: no two stories of a corpus share it, so no split leaks."""
        return frozenset(scene.signature for scene in self.scenes)

    @property
    def seconds(self) -> float:
        return self.opening + sum(scene.seconds for scene in self.scenes) + self.ending


def draw_thing(rng: random.Random) -> Thing:
    """A thing of any look; two in five are plain."""
    texture = "plain" if rng.random() < 0.4 else rng.choice(TEXTURES[1:])
    return Thing(rng.choice(SHAPES), rng.choice(tuple(COLOURS)), texture, rng.choice(SIZES))


def draw_scene(rng: random.Random) -> Scene:
    """A scene of 1.5 to 2.4 seconds (stories set their own). What grows starts small, what shrinks starts big."""
    action = rng.choice(ACTIONS)
    actor = draw_thing(rng)
    if action in ("grow", "shrink"):
        actor = Thing(actor.shape, actor.colour, actor.texture, "small" if action == "grow" else "big")
    new_colour = actor.colour
    if action == "recolour":
        new_colour = rng.choice([colour for colour in COLOURS if colour != actor.colour])
    companion = None
    if rng.random() < 0.3:
        companion = draw_thing(rng)
        while companion.shape == actor.shape or companion.colour in (actor.colour, new_colour):
            companion = draw_thing(rng)
    return Scene(
        background=rng.choice(BACKGROUNDS),
        actor=actor,
        action=action,
        side=rng.choice(SIDES),
        new_colour=new_colour,
        companion=companion,
        seconds=round(rng.uniform(1.5, 2.4), 2),
        look=rng.getrandbits(32),
    )


def draw_story(seed: int, split: str, number: int, *, attempt: int = 0) -> Story:
    """The story with this number; another `attempt` gives another one under the same name."""
    rng = random.Random(f"glscl-demo/{seed}/{split}/{number}/{attempt}")
    count = rng.choices((2, 3, 4), weights=(3, 4, 3))[0]
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = draw_scene(rng)
        if all(scene.background != other.background for other in scenes):  # a cut must be seen
            scenes.append(scene)
    weights = [rng.choice((1, 1, 2, 4)) for _ in scenes]
    whole = rng.uniform(3.2, 4.6)
    scenes = [replace(s, seconds=round(max(0.5, whole * w / sum(weights)), 1)) for s, w in zip(scenes, weights)]
    opening, ending = rng.choice(CARD_SECONDS), rng.choice(CARD_SECONDS)
    return Story(f"{split}{number:04d}", split, tuple(scenes), opening, ending, rng.getrandbits(32))


def draw_stories(seed: int, sizes: dict[str, int]) -> Iterator[Story]:
    """Stories of all splits, no two with the same combination of scenes.

    Held-out splits are drawn first, so the training stories give way and a larger training split leaves test unchanged.
    """
    seen: set[frozenset[tuple[str, ...]]] = set()
    for split in ("test", "val", "train"):
        for number in range(sizes.get(split, 0)):
            attempt = 0
            while (story := draw_story(seed, split, number, attempt=attempt)).combination in seen:
                attempt += 1
            seen.add(story.combination)
            yield story
