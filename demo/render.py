"""Scenes → RGB frames, drawn with Pillow: backgrounds and sprites once a look, then one affine paste a frame.

Places are in units of the frame's side (x to the right, y down, 0..1); angles in radians, turning clockwise.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from glscl.demo.world import COLOURS, Scene, Story, Thing

SIDE = 128  # pixels of a frame
MARGIN = 12  # pixels of background beyond each side, for the camera's slow pan
RADIUS = {"small": 0.15, "big": 0.29}  # of a thing, in units of the frame's side
SPRITE = 112  # pixels of a sprite's canvas; its shape has radius 0.42 of it
REACH = 0.42
LANDS = 16  # variants of every background
_SHADOW = [v // 4 for v in range(256)]  # alpha of a shadow


class Pose(NamedTuple):
    """Where and how a thing is at one moment. `radius` in units of the frame's side, `opacity` 0..1."""

    x: float
    y: float
    radius: float
    angle: float
    colour: str
    opacity: float


# ---------------------------------------------------------------------------------------------------- backgrounds


def _gradient(size: tuple[int, int], top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    ramp = np.linspace(0.0, 1.0, size[1])[:, None]
    column = np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp
    return Image.fromarray(np.repeat(column.astype(np.uint8)[:, None], size[0], axis=1))


def _hill(draw: ImageDraw.ImageDraw, size: tuple[int, int], level: float, height: float, colour, rng) -> None:
    """A wavy line at `level` (share of the height) with everything below it filled."""
    width, tall = size
    phase, waves = rng.uniform(0, 6.28), rng.uniform(0.7, 1.6)
    line = [(x, tall * (level + height * math.sin(phase + waves * 6.28 * x / width))) for x in range(0, width + 8, 8)]
    draw.polygon([*line, (width + 8, tall), (0, tall)], fill=colour)


def _beach(size, rng):
    image = _gradient(size, (126, 196, 240), (214, 238, 250))
    draw = ImageDraw.Draw(image)
    width, tall = size
    x, y, r = width * rng.uniform(0.15, 0.85), tall * 0.14, tall * 0.07
    draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 244, 180))
    draw.rectangle((0, tall * 0.42, width, tall), fill=(36, 140, 190))
    for k in range(3):
        draw.rectangle((0, tall * (0.46 + 0.06 * k), width, tall * (0.475 + 0.06 * k)), fill=(92, 184, 216))
    _hill(draw, size, 0.66, 0.03, (244, 250, 250), rng)
    _hill(draw, size, 0.69, 0.03, (238, 214, 156), rng)
    return image


def _forest(size, rng):
    image = _gradient(size, (150, 190, 150), (86, 130, 84))
    draw = ImageDraw.Draw(image)
    width, tall = size
    for row, (shade, base) in enumerate((((58, 104, 66), 0.66), ((32, 76, 46), 0.8))):
        x = rng.uniform(-0.1, 0.0) * width
        while x < width * 1.1:
            high, half = tall * rng.uniform(0.45, 0.65), width * rng.uniform(0.06, 0.09)
            foot = tall * base
            draw.rectangle((x - half / 5, foot - 4, x + half / 5, foot + tall * 0.08), fill=(74, 52, 34))
            for k in range(3):
                y, w = foot - high * k / 4, half * (1 - 0.22 * k)
                draw.polygon([(x - w, y), (x + w, y), (x, y - high / 2)], fill=shade)
            x += half * rng.uniform(1.5, 2.2) * (1 + row * 0.3)
    draw.rectangle((0, tall * 0.86, width, tall), fill=(50, 68, 36))
    return image


def _desert(size, rng):
    image = _gradient(size, (250, 176, 96), (254, 226, 170))
    draw = ImageDraw.Draw(image)
    width, tall = size
    x, y, r = width * rng.uniform(0.2, 0.8), tall * 0.3, tall * 0.12
    draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 240, 200))
    for level, shade in ((0.55, (222, 150, 84)), (0.68, (204, 124, 60)), (0.83, (182, 102, 46))):
        _hill(draw, size, level, 0.06, shade, rng)
    return image


def _snow(size, rng):
    image = _gradient(size, (164, 182, 204), (208, 218, 230))
    draw = ImageDraw.Draw(image)
    width, tall = size
    _hill(draw, size, 0.5, 0.07, (196, 210, 228), rng)
    _hill(draw, size, 0.64, 0.05, (222, 232, 244), rng)
    _hill(draw, size, 0.8, 0.04, (240, 246, 252), rng)
    for _ in range(70):
        x, y, r = rng.uniform(0, width), rng.uniform(0, tall), rng.uniform(1.5, 4)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255))
    return image


def _night(size, rng):
    image = _gradient(size, (10, 12, 42), (48, 44, 96))
    draw = ImageDraw.Draw(image)
    width, tall = size
    for _ in range(60):
        x, y, r = rng.uniform(0, width), rng.uniform(0, tall * 0.85), rng.choice((1, 1, 2))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(240, 240, 255) if r > 1 else (170, 170, 210))
    _hill(draw, size, 0.88, 0.04, (16, 16, 30), rng)
    return image


def _city(size, rng):
    image = _gradient(size, (176, 190, 206), (226, 220, 214))
    draw = ImageDraw.Draw(image)
    width, tall = size
    x = -rng.uniform(0, 20)
    while x < width:
        wide, high = rng.uniform(28, 48), tall * rng.uniform(0.35, 0.8)
        shade = rng.choice(((94, 104, 122), (120, 126, 140), (74, 82, 100)))
        draw.rectangle((x, tall - high, x + wide, tall), fill=shade)
        for wx in range(int(x) + 6, int(x + wide) - 8, 11):
            for wy in range(int(tall - high) + 8, int(tall * 0.86), 15):
                draw.rectangle((wx, wy, wx + 5, wy + 8), fill=(246, 226, 150) if rng.random() < 0.4 else (52, 60, 78))
        x += wide + rng.uniform(0, 6)
    draw.rectangle((0, tall * 0.88, width, tall), fill=(70, 70, 74))
    for x in range(0, width, 40):
        draw.rectangle((x, tall * 0.935, x + 20, tall * 0.95), fill=(230, 230, 220))
    return image


def _wall(size, rng):
    image = Image.new("RGB", size, (206, 196, 184))
    draw = ImageDraw.Draw(image)
    width, tall = size
    high, wide = 26, 56
    for row in range(tall // high + 1):
        x = -(row % 2) * wide / 2 - rng.uniform(0, 6)
        while x < width:
            k = rng.uniform(0.85, 1.1)
            fill = (int(168 * k), int(84 * k), int(66 * k))
            draw.rectangle((x, row * high, x + wide - 4, row * high + high - 4), fill=fill)
            x += wide
    return image


def _wood(size, rng):
    image = Image.new("RGB", size, (96, 62, 34))
    draw = ImageDraw.Draw(image)
    width, tall = size
    x = -rng.uniform(0, 30)
    while x < width:
        k = rng.uniform(0.88, 1.08)
        draw.rectangle((x, 0, x + 37, tall), fill=(int(190 * k), int(140 * k), int(88 * k)))
        for _ in range(3):
            grain, dark = x + rng.uniform(4, 34), (int(164 * k), int(114 * k), int(68 * k))
            draw.line((grain, 0, grain + rng.uniform(-5, 5), tall), fill=dark, width=2)
        x += 41
    return image


def _ocean(size, rng):
    image = _gradient(size, (40, 176, 196), (6, 52, 104))
    draw = ImageDraw.Draw(image, "RGBA")
    width, tall = size
    for _ in range(4):
        x, w = rng.uniform(0, width), rng.uniform(14, 34)
        lean = rng.uniform(-40, 40)
        ray = [(x, 0), (x + w, 0), (x + w * 1.6 + lean, tall), (x - w * 0.6 + lean, tall)]
        draw.polygon(ray, fill=(220, 255, 250, 30))
    for _ in range(16):
        x, y, r = rng.uniform(0, width), rng.uniform(0, tall), rng.uniform(2, 7)
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(210, 244, 250, 170), width=2)
    for _ in range(9):
        x, high = rng.uniform(0, width), tall * rng.uniform(0.1, 0.24)
        bend = rng.uniform(-12, 12)
        draw.line([(x, tall), (x + bend, tall - high / 2), (x, tall - high)], fill=(20, 120, 84, 255), width=6)
    return image


def _meadow(size, rng):
    image = _gradient(size, (108, 180, 246), (206, 232, 252))
    draw = ImageDraw.Draw(image)
    width, tall = size
    for _ in range(3):
        x, y = rng.uniform(0, width), tall * rng.uniform(0.06, 0.26)
        for dx, r in ((-18, 10), (0, 15), (18, 10)):
            draw.ellipse((x + dx - r, y - r, x + dx + r, y + r), fill=(255, 255, 255))
    _hill(draw, size, 0.56, 0.05, (138, 200, 90), rng)
    _hill(draw, size, 0.7, 0.04, (112, 182, 70), rng)
    for _ in range(40):
        x, y = rng.uniform(0, width), tall * rng.uniform(0.76, 0.99)
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=rng.choice(((255, 255, 255), (250, 220, 80), (244, 150, 190))))
    return image


_PAINTERS = {
    "beach": _beach,
    "forest": _forest,
    "desert": _desert,
    "snow": _snow,
    "night": _night,
    "city": _city,
    "wall": _wall,
    "wood": _wood,
    "ocean": _ocean,
    "meadow": _meadow,
}


@cache
def background(name: str, land: int) -> Image.Image:
    """One variant of a background, SIDE high and wider by a margin on both sides; painted at twice the size."""
    size = (2 * (SIDE + 2 * MARGIN), 2 * SIDE)
    image = _PAINTERS[name](size, random.Random(f"{name}/{land}"))
    return image.reduce(2)


# -------------------------------------------------------------------------------------------------------- sprites


def _star(points: int, inner: float, turn: float) -> list[tuple[float, float]]:
    corners = []
    for k in range(2 * points):
        r, a = (1.0 if k % 2 == 0 else inner), turn + math.pi * k / points
        corners.append((r * math.cos(a), r * math.sin(a)))
    return corners


def _heart() -> list[tuple[float, float]]:
    turns = [2 * math.pi * k / 60 for k in range(60)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.08,
        )
        for t in turns
    ]


def _disc(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    r: float,
    fill: int | tuple[int, ...],
    unit: float,
    squash: float = 1.0,
) -> None:
    c = draw.im.size[0] / 2
    draw.ellipse(
        (c + (x - r) * unit, c + (y - r * squash) * unit, c + (x + r) * unit, c + (y + r * squash) * unit), fill=fill
    )


def _silhouette(shape: str, side: int) -> Image.Image:
    """(side, side) mask, 255 inside the shape, whose reach is REACH of the canvas."""
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    unit, c = REACH * side, side / 2

    def polygon(*corners: tuple[float, float]) -> None:
        draw.polygon([(c + x * unit, c + y * unit) for x, y in corners], fill=255)

    if shape == "circle":
        _disc(draw, 0, 0, 0.95, 255, unit)
    elif shape == "square":
        polygon((-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82))
    elif shape == "triangle":
        polygon((0, -1), (0.98, 0.78), (-0.98, 0.78))
    elif shape == "star":
        polygon(*_star(5, 0.42, -math.pi / 2))
    elif shape == "ring":
        _disc(draw, 0, 0, 1.0, 255, unit)
        _disc(draw, 0, 0, 0.5, 0, unit)
    elif shape == "heart":
        polygon(*_heart())
    elif shape == "cross":
        polygon((-0.32, -1), (0.32, -1), (0.32, 1), (-0.32, 1))
        polygon((-1, -0.32), (1, -0.32), (1, 0.32), (-1, 0.32))
    elif shape == "moon":
        _disc(draw, 0, 0, 1.0, 255, unit)
        _disc(draw, 0.5, -0.12, 0.82, 0, unit)
    elif shape == "flower":
        for k in range(6):
            a = math.pi * k / 3
            _disc(draw, 0.6 * math.cos(a), 0.6 * math.sin(a), 0.38, 255, unit)
        _disc(draw, 0, 0, 0.45, 255, unit)
    elif shape == "arrow":
        polygon((-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3))
    elif shape == "house":
        polygon((-0.72, -0.1), (0.72, -0.1), (0.72, 0.9), (-0.72, 0.9))
        polygon((0, -1), (1, -0.08), (-1, -0.08))
        polygon((0.35, -0.9), (0.62, -0.9), (0.62, -0.2), (0.35, -0.2))
    elif shape == "fish":
        _disc(draw, -0.2, 0, 0.78, 255, unit, 0.72)
        polygon((0.3, 0), (1.0, -0.6), (0.88, 0), (1.0, 0.6))
    else:
        raise ValueError(f"unknown shape {shape!r}")
    return mask


def _pattern(texture: str, side: int) -> Image.Image | None:
    """(side, side) mask, 255 where the second colour goes."""
    if texture == "plain":
        return None
    y, x = np.mgrid[:side, :side] / side
    if texture == "striped":
        on = ((x + y) * 6.5) % 1 < 0.45
    elif texture == "checked":
        on = ((x * 7.5).astype(int) + (y * 7.5).astype(int)) % 2 == 0
    else:  # spotted: discs on a staggered grid
        row = np.floor(y * 6.5)
        u, v = (x * 6.5 + 0.5 * (row % 2)) % 1 - 0.5, (y * 6.5) % 1 - 0.5
        on = u * u + v * v < 0.085
    return Image.fromarray((on * 255).astype(np.uint8))


@cache
def sprite(shape: str, colour: str, texture: str) -> tuple[Image.Image, Image.Image]:
    """RGBA picture of a thing at full and half size: outline, fill, pattern; coloured beyond the edge (no fringe)."""
    side = 2 * SPRITE
    outer = _silhouette(shape, side)
    inner = outer.filter(ImageFilter.MinFilter(9))
    fill = COLOURS[colour]
    light = sum(fill) > 560 or colour == "yellow"
    outline = tuple(int(v * 0.5) for v in fill) if colour != "black" else (150, 150, 160)
    second = tuple(int(v * (0.42 if light else 0.0) + (0 if light else 248)) for v in fill)
    paint = Image.new("RGB", (side, side), fill)
    pattern = _pattern(texture, side)
    if pattern is not None:
        paint.paste(second, mask=pattern)
    picture = Image.new("RGB", (side, side), outline)
    picture.paste(paint, mask=inner)
    if shape == "fish":  # an eye, so that its head is known
        eye = ImageDraw.Draw(picture)
        _disc(eye, -0.6, -0.16, 0.13, (255, 255, 255), REACH * side)
        _disc(eye, -0.62, -0.16, 0.07, (20, 20, 20), REACH * side)
    picture.putalpha(outer)
    return picture.reduce(2), picture.reduce(4)


# --------------------------------------------------------------------------------------------------------- motion


def _ease(u: float) -> float:
    u = min(max(u, 0.0), 1.0)
    return u * u * (3 - 2 * u)


def actor_pose(scene: Scene, u: float) -> Pose:
    """Pose of the actor at share `u` (0..1) of the scene. Opacity 0 means it is not there at all."""
    rng = random.Random(scene.look)
    side = -1.0 if scene.side == "left" else 1.0
    away = (0.22 if scene.companion else 0.12) * side
    x, y = 0.5 + away + rng.uniform(-0.05, 0.05), 0.55 + rng.uniform(-0.08, 0.08)
    radius = RADIUS[scene.actor.size] * rng.uniform(0.92, 1.08)
    angle, colour, opacity = rng.uniform(-0.15, 0.15), scene.actor.colour, 1.0
    if scene.companion is not None:
        radius *= 0.85
    drift = 0.03 * math.sin(6.28 * u)
    if scene.action in ("enter", "leave"):
        # from beyond its side to its place, or past the middle where it is alone; leaving is the same backwards
        far, near = 0.5 + side * 0.85, x if scene.companion else 0.5 - side * 0.08
        x = far + (near - far) * (_ease(u / 0.7) if scene.action == "enter" else _ease((1 - u) / 0.7))
    elif scene.action == "grow":
        radius = RADIUS["small"] * 0.8 + (RADIUS["big"] * 1.1 - RADIUS["small"] * 0.8) * _ease(u)
    elif scene.action == "shrink":
        radius = RADIUS["big"] * 1.1 - (RADIUS["big"] * 1.1 - RADIUS["small"] * 0.8) * _ease(u)
    elif scene.action == "spin":
        angle += 6.28 * 1.5 * u
    elif scene.action == "jump":
        y -= 0.24 * abs(math.sin(6.28 * 1.5 * u)) - 0.06
    elif scene.action == "recolour":
        colour = scene.actor.colour if u < 0.5 else scene.new_colour
        x += drift
    elif scene.action == "vanish":
        opacity = 1 - _ease((u - 0.55) / 0.2)
        x += drift
    return Pose(x, y, radius, angle, colour, opacity)


def companion_pose(scene: Scene, u: float) -> Pose:
    """Pose of the companion: it stands on the other side and hardly moves."""
    assert scene.companion is not None
    rng = random.Random(scene.look + 1)
    side = 1.0 if scene.side == "left" else -1.0
    radius = RADIUS[scene.companion.size] * 0.85
    x, y = 0.5 + 0.25 * side, 0.56 + rng.uniform(-0.12, 0.12) + 0.01 * math.sin(6.28 * u)
    return Pose(x, y, radius, rng.uniform(-0.12, 0.12), scene.companion.colour, 1.0)


def _place(canvas: Image.Image, thing: Thing, pose: Pose) -> None:
    """Paste a thing with a soft shadow."""
    if pose.opacity <= 0.01:
        return
    full, half = sprite(thing.shape, pose.colour, thing.texture)
    zoom = pose.radius * SIDE / (REACH * SPRITE)  # frame pixels a sprite pixel
    source = full
    if zoom < 0.55:
        source, zoom = half, zoom * 2
    span = math.ceil(source.width * zoom * 1.2)  # room for a turned corner
    cos, sin = math.cos(pose.angle) / zoom, math.sin(pose.angle) / zoom
    left, top = pose.x * SIDE - span / 2, pose.y * SIDE - span / 2
    x, y = math.floor(left), math.floor(top)
    ox, oy, middle = span / 2 + left - x, span / 2 + top - y, source.width / 2
    turn = (cos, sin, middle - cos * ox - sin * oy, -sin, cos, middle + sin * ox - cos * oy)
    patch = source.transform((span, span), Image.Transform.AFFINE, turn, Image.Resampling.BILINEAR)
    alpha = patch.getchannel("A")
    if pose.opacity < 1:
        alpha = alpha.point([int(v * pose.opacity) for v in range(256)])
    canvas.paste((0, 0, 0), (x + 3, y + 4), alpha.point(_SHADOW))
    canvas.paste(patch.convert("RGB"), (x, y), alpha)


def draw_frame(scene: Scene, u: float) -> Image.Image:
    """The frame at share `u` (0..1) of a scene: RGB, SIDE × SIDE."""
    pan = 1 if scene.look & 1 else -1
    left = MARGIN + round(pan * (u - 0.5) * MARGIN * 1.5)
    canvas = background(scene.background, (scene.look >> 1) % LANDS).crop((left, 0, left + SIDE, SIDE))
    if scene.companion is not None:
        _place(canvas, scene.companion, companion_pose(scene, u))
    _place(canvas, scene.actor, actor_pose(scene, u))
    return canvas


@lru_cache(maxsize=8)
def draw_card(look: int) -> Image.Image:
    """An opening or end card: colour bars, lines of a title, or a film leader. RGB, SIDE × SIDE."""
    rng = random.Random(look)
    size, kind = 2 * SIDE, rng.choice(("bars", "title", "leader"))
    image = Image.new("RGB", (size, size), (18, 18, 22))
    draw = ImageDraw.Draw(image)
    if kind == "bars":
        level = rng.randint(150, 235)
        for k, on in enumerate(((1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 1, 0), (1, 0, 1), (1, 0, 0), (0, 0, 1))):
            draw.rectangle((k * size / 7, 0, (k + 1) * size / 7, size * 0.78), fill=tuple(level * v for v in on))
        for k in range(6):
            draw.rectangle((k * size / 6, size * 0.78, (k + 1) * size / 6, size), fill=(k * 40,) * 3)
    elif kind == "title":
        top = size * rng.uniform(0.25, 0.45)
        for k, thick in enumerate((22, 10, 10)[: rng.randint(1, 3)]):
            half, y = size * rng.uniform(0.18, 0.38), top + 44 * k
            draw.rounded_rectangle((size / 2 - half, y, size / 2 + half, y + thick), 4, fill=(232, 228, 214))
    else:
        image.paste((196, 192, 180), (0, 0, size, size))
        c, turn = size / 2, rng.uniform(0, 360)
        draw.pieslice((-c, -c, 3 * c, 3 * c), -90, turn - 90, fill=(150, 146, 136))
        for r in (0.42, 0.36):
            draw.ellipse((c - size * r, c - size * r, c + size * r, c + size * r), outline=(40, 40, 40), width=5)
        draw.line((c, 0, c, size), fill=(40, 40, 40), width=4)
        draw.line((0, c, size, c), fill=(40, 40, 40), width=4)
    return image.reduce(2)


def frames_of_scene(scene: Scene, fps: int) -> int:
    """Frames of one scene, at least two."""
    return max(2, round(scene.seconds * fps))


def frames_of_story(story: Story, fps: int) -> int:
    """Frames that `draw_frames` gives."""
    return round(story.opening * fps) + sum(frames_of_scene(s, fps) for s in story.scenes) + round(story.ending * fps)


def draw_frames(story: Story, fps: int) -> Iterator[Image.Image]:
    """All frames of a story in order, `fps` a second: opening card, scenes, end card."""
    for _ in range(round(story.opening * fps)):
        yield draw_card(story.look)
    for scene in story.scenes:
        count = frames_of_scene(scene, fps)
        for k in range(count):
            yield draw_frame(scene, k / (count - 1))
    for _ in range(round(story.ending * fps)):
        yield draw_card(story.look + 1)
