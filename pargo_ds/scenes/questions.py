"""Questions that follow from a scene's truth.

The kinds of question are those of MME's perception part: existence, count, position, colour, and
naming. Yes/no questions come in pairs: a question that is asked in a scene where the answer is yes
is also asked, in the same words, in another scene of the same split where the answer is no. So a
model that uses the words alone gets one half right, and only a model that sees the images gets
more.
"""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from pargo_ds.data.shards.schema import IMAGE_PLACEHOLDER
from pargo_ds.scenes.captions import NUMBER_WORDS
from pargo_ds.scenes.compose import Scene, SceneObject
from pargo_ds.scenes.concepts import with_article

T = TypeVar("T")

LEAST_QUESTIONS = 3
# The share of scenes in which a kind of question is asked. Nearly all scenes have questions about
# the name and the colour of the salient object, because a small model learns them in minutes on a
# CPU. There are fewer questions that a small model only guesses, because they widen every interval.
SALIENT_EXISTENCE = 1 / 6  # all other scenes have a question for the name of the salient object
SALIENT_POSITION = 1 / 4
SMALL_POSITION = 1 / 2
SMALL_NAMING = 1 / 2
SMALL_EXISTENCE = 1 / 2
COUNT = 1 / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question about a scene.

    Attributes:
        type: existence, count, position, colour or naming.
        size: the object of the question: salient, small, or scene for counts.
        place: the place of the object in the scene; "" for counts and for an absent object.
        held_out: whether the question is about a concept that training never shows.
    """

    type: str
    size: str
    question: str
    answer: str
    held_out: bool = False
    place: str = ""


def to_turns(questions: Sequence[Question]) -> list[dict[str, str]]:
    """Return the conversation. The image is at the start of the first question; answers are short
    and in lower case.
    """
    turns = []
    mark = f"{IMAGE_PLACEHOLDER}\n"
    for asked in questions:
        turns.append({"role": "user", "content": mark + asked.question})
        turns.append({"role": "assistant", "content": asked.answer})
        mark = ""
    return turns


def ask_questions(scenes: Sequence[Scene], seed: str) -> list[list[Question]]:
    """Return 3 to 7 questions for each scene of one split, balanced over the split.

    Every yes/no text has the same number of yes and no; counts and naming depend on the scenes. No
    question of a scene reveals the answer of a later one: if the answer of a question is the name
    of a small object, no other question mentions it, and a question whether something exists comes
    before one for its place. The result depends on (scenes, seed) only.
    """
    rng = random.Random(f"{seed}/questions")
    asked: list[_Asked] = [_Asked() for _ in scenes]
    _ask_small_positions(scenes, asked, rng)
    _ask_salient_positions(scenes, asked, rng)
    _ask_identities(scenes, asked, rng)
    _ask_counts(scenes, asked, rng)
    _ask_colours(scenes, asked, rng)
    for scene, own in zip(scenes, asked, strict=True):
        _fill_up(scene, own, rng)
    return [own.in_order(rng) for own in asked]


def ask_names(scenes: Sequence[Scene], seed: str) -> list[list[Question]]:
    """Return for each scene a question for the name of every object, in random order.

    These questions measure what is seen, and where: nothing but the image answers them. The result
    depends on (scenes, seed) only.
    """
    rng = random.Random(f"{seed}/names")
    asked = []
    for scene in scenes:
        own = _Asked()
        for thing in scene.objects:
            _name(thing, own)
        asked.append(own.in_order(rng))
    return asked


ASKING: dict[str, Callable[[Sequence[Scene], str], list[list[Question]]]] = {
    "mixed": ask_questions,
    "names": ask_names,
}
"""Word of a data set's settings -> how its questions are asked."""


class _Asked:
    """The questions of one scene, each with the names that it reveals."""

    def __init__(self) -> None:
        self.entries: list[tuple[Question, str]] = []
        self.placed: set[str] = set()
        """Small objects whose place is asked: naming them would give it away."""
        self.spent: set[str] = set()
        """Small objects that are named or whose existence is asked."""

    def add(self, question: Question, about: str = "") -> None:
        """Add a question; `about` is the name that it reveals, if it does."""
        self.entries.append((question, about))

    def in_order(self, rng: random.Random) -> list[Question]:
        """Shuffle the questions, but ask for the place of a thing after its name and its
        existence.
        """
        entries = list(self.entries)
        rng.shuffle(entries)
        for place, (question, about) in enumerate(entries):
            if question.type != "position" or not about:
                continue
            for later in range(place + 1, len(entries)):
                if entries[later][1] == about and entries[later][0].type in ("naming", "existence"):
                    entries[place], entries[later] = entries[later], entries[place]
                    break
        return [question for question, _ in entries]


def pair_off(
    values: Sequence[T], refutes: Callable[[int, T], bool], rng: random.Random
) -> list[tuple[int, int]]:
    """Find pairs of positions (a, b) with `refutes(b, values[a])`: the statement that is true at a
    is false at b. Each position is used once.

    Positions without a partner are left out. The order of the pairs and of the two positions is
    random.
    """
    waiting = list(range(len(values)))
    rng.shuffle(waiting)
    pairs = []
    while waiting:
        first = waiting.pop()
        for place in range(len(waiting) - 1, -1, -1):
            if refutes(waiting[place], values[first]):
                pairs.append((first, waiting.pop(place)))
                break
    return pairs


def _part(scenes: Sequence[Scene], share: float, rng: random.Random) -> list[int]:
    """Return the sorted numbers of a random share of the scenes. It is an even number of scenes if
    there are two or more.
    """
    count = max(2, 2 * round(len(scenes) * share / 2))
    return sorted(rng.sample(range(len(scenes)), min(count, len(scenes))))


def _ask_small_positions(scenes: Sequence[Scene], asked: list[_Asked], rng: random.Random) -> None:
    """Ask "Is the dog at the top left?" in two scenes with a small dog, which is there in one of
    them.
    """
    by_name: dict[str, list[tuple[int, SceneObject]]] = defaultdict(list)
    for number in _part(scenes, SMALL_POSITION, rng):
        for thing in scenes[number].small:
            by_name[thing.name].append((number, thing))
    used: set[int] = set()
    names = sorted(by_name)
    rng.shuffle(names)
    for name in names:
        entries = [(number, thing) for number, thing in by_name[name] if number not in used]
        used.update(_ask_places(entries, asked, rng))


def _ask_salient_positions(
    scenes: Sequence[Scene], asked: list[_Asked], rng: random.Random
) -> None:
    """Ask for the place of the salient object: by its name if another scene has the same object,
    else as "the large object".
    """
    by_name: dict[str, list[tuple[int, SceneObject]]] = defaultdict(list)
    chosen = _part(scenes, SALIENT_POSITION, rng)
    for number in chosen:
        by_name[scenes[number].salient.name].append((number, scenes[number].salient))
    used: set[int] = set()
    for name in sorted(by_name):
        used.update(_ask_places(by_name[name], asked, rng))
    rest = [(number, scenes[number].salient) for number in chosen if number not in used]
    _ask_places(rest, asked, rng, called="large object")


def _ask_places(
    entries: Sequence[tuple[int, SceneObject]],
    asked: list[_Asked],
    rng: random.Random,
    called: str = "",
) -> set[int]:
    """Ask paired questions for places among (scene number, object) entries. Return the scenes that
    got a question.
    """
    used: set[int] = set()
    places = [thing.place for _, thing in entries]
    for pair in pair_off(places, lambda b, place: places[b] != place, rng):
        for position, answer in zip(pair, ("yes", "no"), strict=True):
            number, thing = entries[position]
            text = f"Is the {called or thing.name} {places[pair[0]]}?"
            held_out = thing.held_out and not called
            question = Question(
                type="position",
                size=thing.size,
                question=text,
                answer=answer,
                held_out=held_out,
                place=thing.place,
            )
            asked[number].add(question, "" if called else thing.name)
            if thing.size == "small":
                asked[number].placed.add(thing.name)
            used.add(number)
    return used


def _ask_identities(scenes: Sequence[Scene], asked: list[_Asked], rng: random.Random) -> None:
    """In some scenes ask whether the salient object exists ("Is there a dog?"), and in the others
    ask for its name; the same for small objects.

    If a scene has both questions about small objects, they are about different objects.
    """
    existence = _part(scenes, SALIENT_EXISTENCE, rng)
    paired = _ask_existence(
        scenes, asked, [(number, scenes[number].salient) for number in existence], rng
    )
    for number, scene in enumerate(scenes):
        if number not in paired:
            _name(scene.salient, asked[number])
    named: dict[int, SceneObject] = {}
    for number in _part(scenes, SMALL_NAMING, rng):
        named[number] = rng.choice(
            [thing for thing in scenes[number].small if thing.name not in asked[number].placed]
        )
        _name(named[number], asked[number])
    chosen = []
    for number in _part(scenes, SMALL_EXISTENCE, rng):
        chosen.append(
            (
                number,
                rng.choice(
                    [thing for thing in scenes[number].small if thing is not named.get(number)]
                ),
            )
        )
    _ask_existence(scenes, asked, chosen, rng)


def _ask_existence(
    scenes: Sequence[Scene],
    asked: list[_Asked],
    entries: Sequence[tuple[int, SceneObject]],
    rng: random.Random,
) -> set[int]:
    """Ask "Is there a dog?" in the scene of the entry's object, and in a scene that has no dog of
    any size.
    """
    used: set[int] = set()
    things = [thing for _, thing in entries]

    def absent(position: int, thing: SceneObject) -> bool:
        return thing.name not in scenes[entries[position][0]].names()

    for pair in pair_off(things, absent, rng):
        thing = things[pair[0]]
        for position, answer in zip(pair, ("yes", "no"), strict=True):
            number = entries[position][0]
            text = f"Is there {with_article(thing.name)}?"
            question = Question(
                type="existence",
                size=thing.size,
                question=text,
                answer=answer,
                held_out=thing.held_out,
                place=thing.place if answer == "yes" else "",
            )
            asked[number].add(question, thing.name)
            asked[number].spent.add(thing.name)
            used.add(number)
    return used


def _name(thing: SceneObject, own: _Asked) -> None:
    text = f"What is {thing.place}?"
    if thing.size == "salient":
        text = "What is the large object?"
    question = Question(
        type="naming",
        size=thing.size,
        question=text,
        answer=thing.name,
        held_out=thing.held_out,
        place=thing.place,
    )
    own.add(question, thing.name)
    own.spent.add(thing.name)


def _ask_counts(scenes: Sequence[Scene], asked: list[_Asked], rng: random.Random) -> None:
    """Ask "How many small objects are there?" in some scenes and "Are there three small objects?"
    in others.
    """
    numbers = _part(scenes, COUNT, rng)
    rng.shuffle(numbers)
    half = numbers[: len(numbers) // 2]
    counts = [len(scenes[number].small) for number in half]
    paired: set[int] = set()
    for pair in pair_off(counts, lambda b, count: counts[b] != count, rng):
        text = f"Are there {NUMBER_WORDS[counts[pair[0]]]} small objects?"
        for position, answer in zip(pair, ("yes", "no"), strict=True):
            asked[half[position]].add(
                Question(type="count", size="scene", question=text, answer=answer)
            )
            paired.add(half[position])
    for number in numbers:
        if number not in paired:
            answer = NUMBER_WORDS[len(scenes[number].small)]
            question = Question(
                type="count",
                size="scene",
                question="How many small objects are there?",
                answer=answer,
            )
            asked[number].add(question)


def _ask_colours(scenes: Sequence[Scene], asked: list[_Asked], rng: random.Random) -> None:
    """Ask for the colour of the salient object or of one small object. The question names the place
    of the object and not its name, because frogs are green.
    """
    for scene, own in zip(scenes, asked, strict=True):
        coloured = [thing for thing in scene.small if thing.colour]
        if scene.salient.colour and (not coloured or rng.random() < 0.85):
            thing, called = scene.salient, "the large object"
        elif coloured:
            thing = rng.choice(coloured)
            called = f"the object {thing.place}"
        else:
            continue
        question = Question(
            type="colour",
            size=thing.size,
            question=f"What colour is {called}?",
            answer=thing.colour or "",
            held_out=thing.held_out,
            place=thing.place,
        )
        own.add(question)


def _fill_up(scene: Scene, own: _Asked, rng: random.Random) -> None:
    """Ask for the names of further small objects, which no other question reveals, until there are
    enough questions.
    """
    left = [thing for thing in scene.small if thing.name not in own.spent | own.placed]
    rng.shuffle(left)
    while len(own.entries) < LEAST_QUESTIONS and left:
        _name(left.pop(), own)
