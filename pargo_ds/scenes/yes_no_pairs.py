"""A question with yes and one with no about one scene, as MME asks about an image.

Other than in `questions`, both are about the same image. Words alone do not tell them apart: what is
asked for is about as often there as not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pargo_ds.scenes.captions import NUMBER_WORDS
from pargo_ds.scenes.compose import SMALL_COUNTS, Scene
from pargo_ds.scenes.concepts import with_article

TASKS = ("existence", "count", "position", "color")
"""The names are those of MME's tasks."""

Pair = tuple[str, str]
"""(question whose answer is yes, question whose answer is no)."""


def pairs_of(scenes: Sequence[Scene], concepts: Sequence[str], seed: str) -> list[tuple[str, Pair]]:
    """Return the task and the pair of questions of each scene; `concepts` are all names that the
    scenes might show.

    A scene has the task that has had fewest scenes so far; a scene in which no thing has a colour
    does not get `color`. The result depends on the arguments only.
    """
    rng = random.Random(f"{seed}/yes-no pairs")
    colours = [thing.colour for scene in scenes for thing in scene.objects if thing.colour]
    given = dict.fromkeys(TASKS, 0)
    found = []
    for scene in scenes:
        pairs = {
            "existence": _existence(scene, concepts, rng),
            "count": _count(scene, rng),
            "position": _position(scene, rng),
            **_colour(scene, colours, rng),
        }
        task = min(pairs, key=given.__getitem__)
        given[task] += 1
        found.append((task, pairs[task]))
    return found


def _existence(scene: Scene, concepts: Sequence[str], rng: random.Random) -> Pair:
    there = rng.choice(scene.objects).name
    absent = rng.choice([name for name in concepts if name not in scene.names()])
    questions = [f"Is there {with_article(name)} in this image?" for name in (there, absent)]
    return questions[0], questions[1]


def _count(scene: Scene, rng: random.Random) -> Pair:
    count = len(scene.small)
    other = rng.choice([number for number in SMALL_COUNTS if number != count])
    words = [NUMBER_WORDS[number] for number in (count, other)]
    questions = [f"Are there {word} small objects in this image?" for word in words]
    return questions[0], questions[1]


def _position(scene: Scene, rng: random.Random) -> Pair:
    """About a small thing at its own place and at that of another small thing."""
    thing, other = rng.sample(scene.small, 2)
    return f"Is the {thing.name} {thing.place}?", f"Is the {thing.name} {other.place}?"


def _colour(scene: Scene, colours: Sequence[str], rng: random.Random) -> dict[str, Pair]:
    """About a thing that is named by its place, because frogs are green; nothing where no thing has
    a colour. `colours` are those of all scenes, each as often as it occurs.
    """
    coloured = [thing for thing in scene.objects if thing.colour]
    if not coloured:
        return {}
    thing = rng.choice(coloured)
    others = [colour for colour in colours if colour != thing.colour]
    if not others:
        return {}
    called = f"object {thing.place}"
    if thing.size == "salient":
        called = "large object"
    return {"color": (f"Is the {called} {thing.colour}?", f"Is the {called} {rng.choice(others)}?")}
