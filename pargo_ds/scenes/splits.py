"""A whole data set of scenes: the concepts and styles that each split may show, and its samples.

One process lays out all scenes and questions from the seed; only drawing and encoding are divided
over processes. So the samples do not depend on the number of workers.

A sample's `meta` holds the truth: split, size (pixels), style, background, objects (name, size,
place, box, colour, held_out) and questions, which run parallel to the question turns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pargo_ds.data.shards.schema import Sample
from pargo_ds.scenes.captions import captions
from pargo_ds.scenes.colours import dominant_colour
from pargo_ds.scenes.compose import SMALL_COUNTS, Scene, Thing, compose_scene, draw_scene
from pargo_ds.scenes.concepts import chosen_concepts, held_out_concepts, vocabulary
from pargo_ds.scenes.glyphs import STYLES, glyph
from pargo_ds.scenes.questions import ASKING, Question, to_turns

SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesPlan:
    """The settings of a data set. Sizes are in pixels.

    `hold_out_style`, if given, occurs in validation only. `concepts` is the number of concepts
    (None: the whole vocabulary). `questions` is a word of ASKING: mixed, or names.
    """

    seed: int = 0
    train: int = 1200
    validation: int = 200
    size: int = 256
    styles: tuple[str, ...] = ("openmoji",)
    hold_out_style: str | None = None
    concepts: int | None = None
    held_out_share: float = 0.15
    questions: str = "mixed"
    cache: Path | None = None

    def __post_init__(self) -> None:
        for name in ("train", "validation"):
            if getattr(self, name) < 2:
                raise ValueError(
                    f"{name} is {getattr(self, name)} scenes; expected at least 2 (questions come in pairs)"
                )
        if self.size < 64:
            raise ValueError(f"size is {self.size} pixels; expected at least 64, for example 256")
        if self.questions not in ASKING:
            raise ValueError(
                f"questions is {self.questions!r}; expected one of {', '.join(ASKING)}"
            )
        unknown = [style for style in self.styles if style not in STYLES]
        if unknown or not self.styles or len(set(self.styles)) < len(self.styles):
            raise ValueError(
                f"styles are {list(self.styles)}; expected one or more, once each, of {', '.join(STYLES)}"
            )
        if self.hold_out_style is not None:
            if self.hold_out_style not in self.styles:
                raise ValueError(
                    f"the style held out, {self.hold_out_style!r}, is not among the styles {list(self.styles)}"
                )
            if len(self.styles) == 1:
                raise ValueError(
                    f"holding out {self.hold_out_style!r}, the only style, leaves none to train on; add a style"
                )

    def styles_of(self, split: str) -> list[str]:
        """Return the styles that a split may show."""
        if self.hold_out_style is None:
            return list(self.styles)
        if split == "validation":
            return [self.hold_out_style]
        return [style for style in self.styles if style != self.hold_out_style]

    def concepts_of(self, split: str) -> list[str]:
        """Return the names that a split may show: validation shows all names, and train those that
        are not held out.
        """
        shown = set(itertools.chain(*chosen_concepts(self.seed, self.concepts).values()))
        if split != "validation":
            shown -= set(self.held_out_concepts())
        return [name for name in vocabulary() if name in shown]

    def held_out_concepts(self) -> list[str]:
        """Return the names that training never shows, sorted."""
        return held_out_concepts(self.seed, self.held_out_share, self.concepts)

    def description(self) -> dict[str, Any]:
        """Return the contents of split.json: seed, sizes, styles and concepts of each split, and
        the origin of the images.
        """
        return {
            "kind": "scenes",
            "seed": self.seed,
            "size": self.size,
            "questions": self.questions,
            "counts": {split: getattr(self, split) for split in SPLITS},
            "styles": {split: self.styles_of(split) for split in SPLITS},
            "hold_out_style": self.hold_out_style,
            "held_out_concepts": self.held_out_concepts(),
            "concepts": {split: self.concepts_of(split) for split in SPLITS},
            "sources": {style: dataclasses.asdict(STYLES[style]) for style in self.styles},
        }


def compose_split(plan: ScenesPlan, split: str) -> list[Scene]:
    """Return the scenes of one split ("train" or "validation"), laid out but not drawn.

    Concepts are dealt like cards, each twice in a round, so that all occur about equally often and
    a question for a position finds its partner. Counts and styles occur equally often. Raises
    GlyphError when images are not available.
    """
    count = getattr(plan, split)
    rng = random.Random(f"{plan.seed}/{split}/deal")
    concepts = plan.concepts_of(split)
    counts = _dealt(SMALL_COUNTS, count, rng)
    styles = _dealt(plan.styles_of(split), count, rng)
    salient = _dealt_twice(concepts, count, rng)
    small = _deal_small(concepts, salient, counts, rng)
    held_out = set(plan.held_out_concepts())
    things = {style: _things(style, plan.cache, held_out) for style in plan.styles_of(split)}
    scenes = []
    for number in range(count):
        of_style = things[styles[number]]
        scenes.append(
            compose_scene(
                random.Random(f"{plan.seed}/{split}/{number}"),
                id=f"scenes-{plan.seed}-{split}-{number:06d}",
                size=plan.size,
                style=styles[number],
                salient=of_style[salient[number]],
                small=[of_style[name] for name in small[number]],
            )
        )
    return scenes


def _dealt(choices: Sequence[Any], count: int, rng: random.Random) -> list[Any]:
    """Return `count` choices in random order. The numbers of equal choices differ by at most
    one.
    """
    dealt = [choices[number % len(choices)] for number in range(count)]
    rng.shuffle(dealt)
    return dealt


def _dealt_twice(names: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Return `count` names, dealt from shuffled decks, each name twice."""
    singles: list[str] = []
    while 2 * len(singles) < count:
        singles += rng.sample(names, len(names))
    dealt: list[str] = []
    for name in singles[: (count + 1) // 2]:
        dealt += [name, name]
    dealt = dealt[:count]
    rng.shuffle(dealt)
    return dealt


def _deal_small(
    names: Sequence[str], salient: Sequence[str], counts: Sequence[int], rng: random.Random
) -> list[list[str]]:
    """Return each scene's small concepts, all different from each other and from the salient
    one.
    """
    deck = _dealt_twice(names, sum(counts), rng)
    hands = []
    for own, count in zip(salient, counts, strict=True):
        hand: list[str] = []
        for _ in range(count):
            taken = (own, *hand)
            from_the_top = range(len(deck) - 1, -1, -1)
            place = next((place for place in from_the_top if deck[place] not in taken), None)
            if place is not None:
                hand.append(deck.pop(place))
            else:  # at the end the deck may have only names that the scene has already
                hand.append(rng.choice([name for name in names if name not in taken]))
        hands.append(hand)
    return hands


@functools.lru_cache(maxsize=8)
def _shapes_and_colours(style: str, cache: Path | None) -> dict[str, tuple[int, int, str | None]]:
    """Return (width, height, dominant colour) of each image of a style by its name."""
    images = {name: glyph(style, name, cache) for name in vocabulary()}
    return {name: (*image.size, dominant_colour(image)) for name, image in images.items()}


def _things(style: str, cache: Path | None, held_out: set[str]) -> dict[str, Thing]:
    facts = _shapes_and_colours(style, cache)
    return {name: Thing(name, *values, held_out=name in held_out) for name, values in facts.items()}


def scene_samples(plan: ScenesPlan, split: str, *, workers: int = 1) -> Iterator[Sample]:
    """Yield the samples of one split in order. `workers` processes draw them; the samples do not
    depend on this number.

    The processes are spawned: a script that calls this with workers > 1 needs the `if __name__ ==
    "__main__"` guard.

    Raises:
        GlyphError: a style's images cannot be had (raised before anything is drawn).
        ValueError: workers is below 1.
    """
    if workers < 1:
        raise ValueError(f"{workers} workers; expected at least 1")
    scenes = compose_split(plan, split)
    questions = ASKING[plan.questions](scenes, f"{plan.seed}/{split}")
    images = {}
    for style, name in itertools.product(plan.styles_of(split), vocabulary()):
        images[style, name] = glyph(style, name, plan.cache)
    with contextlib.ExitStack() as stack:
        if workers == 1:
            files: Iterator[bytes] = (draw_png(scene, images) for scene in scenes)
        else:
            # Spawned, not forked: the caller may have threads (torch, streaming), which a fork can
            # lock up. The images are sent once; drawing them from SVG again would cost each process
            # some seconds.
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(context.Pool(workers, _receive_images, (images,)))
            files = pool.imap(_draw_received, scenes, chunksize=16)
        for scene, asked, file in zip(scenes, questions, files, strict=True):
            yield _sample(scene, asked, file, split)


def draw_png(scene: Scene, images: dict[tuple[str, str], Image.Image]) -> bytes:
    """Return the scene as the bytes of a PNG file; `images` maps (style, name) to RGBA images."""
    file = io.BytesIO()
    draw_scene(scene, lambda style, name: images[style, name]).save(file, format="PNG")
    return file.getvalue()


_received: dict[tuple[str, str], Image.Image] = {}


def _receive_images(images: dict[tuple[str, str], Image.Image]) -> None:
    _received.update(images)


def _draw_received(scene: Scene) -> bytes:
    return draw_png(scene, _received)


def _sample(scene: Scene, questions: Sequence[Question], image: bytes, split: str) -> Sample:
    facts = dataclasses.asdict(scene)
    facts.pop("id")
    facts["objects"] = [{**thing, "box": list(thing["box"])} for thing in facts["objects"]]
    facts["background"] = {name: list(value) for name, value in facts["background"].items()}
    return Sample(
        id=scene.id,
        images=[image],
        turns=to_turns(questions),
        captions=captions(scene),
        source=f"scenes composed of {STYLES[scene.style].source}",
        license=STYLES[scene.style].license,
        meta={
            "split": split,
            **facts,
            "questions": [dataclasses.asdict(question) for question in questions],
        },
    )
