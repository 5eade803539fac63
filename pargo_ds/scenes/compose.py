"""Composed scenes: one large salient object and a few small ones at named places on a plain
background.

Pure: `compose_scene` turns a random generator and the shapes of the images into a layout whose
truth is known; `draw_background` and `draw_scene` turn the layout into pixels. Nothing here reads
files or knows about splits.

Axes: x to the right, y down, in pixels; a box is (x0, y0, x1, y1) with x1 and y1 just outside.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

PLACES: dict[str, tuple[int, int]] = {
    "at the top left": (0, 0),
    "at the top": (1, 0),
    "at the top right": (2, 0),
    "on the left": (0, 1),
    "in the centre": (1, 1),
    "on the right": (2, 1),
    "at the bottom left": (0, 2),
    "at the bottom": (1, 2),
    "at the bottom right": (2, 2),
}
"""Place -> (column, row) of the 3 x 3 grid in which the middle of the object's box lies."""
LARGE_PLACES = ("in the centre", "on the left", "on the right", "at the top", "at the bottom")

SMALL_COUNTS = (2, 3, 4)
_LARGE_SIDE = (0.42, 0.48)  # longer side of an object, as a share of the image's side
_SMALL_SIDE = (0.18, 0.22)
_MARGIN = 0.016  # least distance to the image's edge and to other objects


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One drawn thing.

    `size` is "salient" or "small"; `colour` is None when no colour clearly dominates.
    """

    name: str
    size: str
    place: str
    box: tuple[int, int, int, int]
    colour: str | None = None
    held_out: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Background:
    """A plain colour (`start == end`) or a straight gradient along `direction` (x, y)."""

    start: tuple[int, int, int]
    end: tuple[int, int, int]
    direction: tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """A layout with its whole truth; the first object is the salient one."""

    id: str
    size: int
    style: str
    background: Background
    objects: tuple[SceneObject, ...]

    @property
    def salient(self) -> SceneObject:
        """The one large object."""
        return self.objects[0]

    @property
    def small(self) -> tuple[SceneObject, ...]:
        """The small objects."""
        return self.objects[1:]

    def names(self) -> set[str]:
        """Return the names of everything that is in the scene."""
        return {thing.name for thing in self.objects}


@dataclasses.dataclass(frozen=True)
class Thing:
    """An image of a concept that can be placed into a scene: its name, its width and height in
    pixels, and its colour.
    """

    name: str
    width: int
    height: int
    colour: str | None = None
    held_out: bool = False


def compose_scene(
    rng: random.Random, *, id: str, size: int, style: str, salient: Thing, small: Sequence[Thing]
) -> Scene:
    """Lay out one scene of `size` x `size` pixels.

    The middle of each object lies in the cell of its place. No cell has two objects, and boxes have
    a distance from each other. The same state of the generator gives the same scene.

    Raises:
        ValueError: the size is below 64 pixels, or there are more small objects than `SMALL_COUNTS`
            allows.
    """
    if size < 64:
        raise ValueError(
            f"a scene of {size} pixels is too small to show small objects; expected at least 64"
        )
    if len(small) > max(SMALL_COUNTS):
        raise ValueError(
            f"{len(small)} small objects; a scene has room for {max(SMALL_COUNTS)} at most"
        )
    background = _choose_background(rng)
    place = rng.choice(LARGE_PLACES)
    box = _place_large(rng, size, place, salient)
    objects = [_object(salient, "salient", place, box)]
    free = [name for name in PLACES if name != place]
    rng.shuffle(free)
    for thing in small:
        place, box = _place_small(rng, size, thing, free, [other.box for other in objects])
        free.remove(place)
        objects.append(_object(thing, "small", place, box))
    return Scene(id=id, size=size, style=style, background=background, objects=tuple(objects))


def _object(thing: Thing, size: str, place: str, box: tuple[int, int, int, int]) -> SceneObject:
    return SceneObject(
        name=thing.name,
        size=size,
        place=place,
        box=box,
        colour=thing.colour,
        held_out=thing.held_out,
    )


def _choose_background(rng: random.Random) -> Background:
    """Choose light, unobtrusive colours, so that dark outlines and bright things stand out."""
    start, end = _light(rng), _light(rng)
    direction = rng.choice([(1, 0), (0, 1), (1, 1), (-1, 1)])
    if rng.random() < 0.5:
        end = start
    return Background(start=start, end=end, direction=direction)


def _light(rng: random.Random) -> tuple[int, int, int]:
    return rng.randint(190, 250), rng.randint(190, 250), rng.randint(190, 250)


def _scaled(
    rng: random.Random, size: int, thing: Thing, sides: tuple[float, float]
) -> tuple[int, int]:
    """Return (width, height) with the longer side drawn from `sides`, in shares of the image's
    side.
    """
    scale = rng.uniform(*sides) * size / max(thing.width, thing.height)
    return max(4, round(thing.width * scale)), max(4, round(thing.height * scale))


def _place_large(
    rng: random.Random, size: int, place: str, thing: Thing
) -> tuple[int, int, int, int]:
    """Put the large object at its side of the image or in the middle, with a small random
    offset.
    """
    width, height = _scaled(rng, size, thing, _LARGE_SIDE)
    margin = round(_MARGIN * size)
    corner = []
    for cell, extent in zip(PLACES[place], (width, height), strict=True):
        jitter = rng.randint(-margin // 2, margin // 2)
        middle = (size - extent) // 2 + jitter
        corner.append(
            {0: margin + abs(jitter), 1: middle, 2: size - extent - margin - abs(jitter)}[cell]
        )
    x, y = corner
    return x, y, x + width, y + height


def _place_small(
    rng: random.Random,
    size: int,
    thing: Thing,
    free: Sequence[str],
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[str, tuple[int, int, int, int]]:
    """Find a place in one of the free cells. There always is one, because the large object leaves
    at least five cells free.
    """
    margin, cell = round(_MARGIN * size), size / 3
    width, height = _scaled(rng, size, thing, _SMALL_SIDE)
    for place in free:
        column, row = PLACES[place]
        for _ in range(30):
            x = round(rng.uniform(column * cell + margin, (column + 1) * cell - width - margin))
            y = round(rng.uniform(row * cell + margin, (row + 1) * cell - height - margin))
            box = (x, y, x + width, y + height)
            if not any(overlap(box, other, margin) for other in taken):
                return place, box
    raise AssertionError(
        f"no room for {thing.name} beside {taken}; the sizes above leave room in every layout"
    )


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int], margin: int = 0) -> bool:
    """Return whether the distance of two boxes is below `margin` pixels."""
    return (
        a[0] < b[2] + margin
        and b[0] < a[2] + margin
        and a[1] < b[3] + margin
        and b[1] < a[3] + margin
    )


def draw_background(background: Background, size: int) -> np.ndarray:
    """Return the background as uint8 pixels (size, size, 3)."""
    y, x = np.mgrid[0:size, 0:size]
    steps = x * background.direction[0] + y * background.direction[1]
    steps -= steps.min()  # 0 at one edge or corner, the largest at the other
    start, end = np.array(background.start), np.array(background.end)
    shades = start + np.linspace(0, 1, steps.max() + 1)[:, None] * (end - start)  # (steps, 3)
    return np.rint(shades).astype(np.uint8)[steps]


def draw_scene(scene: Scene, image_of: Callable[[str, str], Image.Image]) -> Image.Image:
    """Draw a scene as an RGB image; `image_of(style, name)` gives RGBA images cut to their outline.

    Nothing is drawn outside the objects' boxes.
    """
    canvas = Image.fromarray(draw_background(scene.background, scene.size))
    for thing in scene.objects:
        x0, y0, x1, y1 = thing.box
        image = image_of(scene.style, thing.name).resize(
            (x1 - x0, y1 - y0), Image.Resampling.LANCZOS
        )
        canvas.paste(image, (x0, y0), image)
    return canvas
