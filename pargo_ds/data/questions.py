"""Captions and questions that follow from a scene's truth.

The kinds of question are those of MME's perception part: existence, count, position, colour, and naming. Yes/no
questions come in pairs: a question asked in a scene where the answer is yes is asked, in the same words, in another
scene of the same split where it is no. So knowing the words alone gives one half, and what is above that was seen.
"""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

from pargo_ds.data.concepts import with_article
from pargo_ds.data.scenes import Scene, SceneObject
from pargo_ds.data.schema import IMAGE_PLACEHOLDER

NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}
MOST_QUESTIONS = 7
LEAST_QUESTIONS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question about a scene.

    `type` is existence, count, position, colour or naming; `size` tells which object it is about (salient, small, or
    scene for counts); `held_out` says whether it is about a concept that training never shows.
    """

    type: str
    size: str
    question: str
    answer: str
    held_out: bool = False


def captions(scene: Scene) -> dict[str, str]:
    """Return the coarse caption (the salient object alone, as web captions do) and the detailed one (everything).

    {"coarse": "A red apple.", "detailed": "A large red apple in the centre and two small objects. A small dog at the
    top left, a small blue car at the bottom right."}
    """
    whole = f"{_phrase(scene.salient, 'large')} {scene.salient.place}"
    parts = ", ".join(f"{_phrase(thing, 'small')} {thing.place}" for thing in scene.small)
    return {
        "coarse": f"{_capitalised(_phrase(scene.salient))}.",
        "detailed": f"{_capitalised(whole)} and {NUMBER_WORDS[len(scene.small)]} small objects. {_capitalised(parts)}.",
    }


def _phrase(thing: SceneObject, size: str = "") -> str:
    return with_article(" ".join(word for word in (size, thing.colour, thing.name) if word))


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def to_turns(questions: Sequence[Question]) -> list[dict[str, str]]:
    """Return the conversation: one picture at the start of the first question, short answers in lower case."""
    turns = []
    for number, asked in enumerate(questions):
        mark = f"{IMAGE_PLACEHOLDER}\n" if number == 0 else ""
        turns.append({"role": "user", "content": mark + asked.question})
        turns.append({"role": "assistant", "content": asked.answer})
    return turns


def ask_questions(scenes: Sequence[Scene], seed: str) -> list[list[Question]]:
    """Return 5 to 7 questions for each scene of one split, balanced over the split.

    Every yes/no text has exactly as many yes as no; counts and naming depend on the scenes. No question of a scene is
    answered by an earlier one: a small object that is named is not asked after otherwise, and whether something exists
    is asked before where it is. Deterministic in (scenes, seed).
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


class _Asked:
    """The questions of one scene, each with the names it gives away."""

    def __init__(self) -> None:
        self.entries: list[tuple[Question, str]] = []
        self.placed: set[str] = set()  # small objects whose place is asked: naming them would give it away
        self.spent: set[str] = set()  # small objects that are named or whose existence is asked

    def add(self, question: Question, about: str = "") -> None:
        self.entries.append((question, about))

    def in_order(self, rng: random.Random) -> list[Question]:
        """Shuffle, but ask where a thing is only after what it is and whether it is there."""
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
    values: Sequence[Hashable], refutes: Callable[[int, Hashable], bool], rng: random.Random
) -> list[tuple[int, int]]:
    """Pair positions (a, b), each used once, so that `refutes(b, values[a])`: what is true at a is false at b.

    Positions without a partner stay out; the order of the pairs and who is asked the true one is random.
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


def _ask_small_positions(scenes: Sequence[Scene], asked: list[_Asked], rng: random.Random) -> None:
    """Ask "Is the dog at the top left?" in two scenes with a small dog, one of which has it there."""
    by_name: dict[str, list[tuple[int, SceneObject]]] = defaultdict(list)
    for number, scene in enumerate(scenes):
        for thing in scene.small:
            by_name[thing.name].append((number, thing))
    used: set[int] = set()
    names = sorted(by_name)
    rng.shuffle(names)
    for name in names:
        entries = [(number, thing) for number, thing in by_name[name] if number not in used]
        used.update(_ask_places(entries, asked, rng))


def _ask_salient_positions(scenes: Sequence[Scene], asked: list[_Asked], rng: random.Random) -> None:
    """Ask where the salient object is by its name where another scene has it too, else as "the large object"."""
    by_name: dict[str, list[tuple[int, SceneObject]]] = defaultdict(list)
    for number, scene in enumerate(scenes):
        by_name[scene.salient.name].append((number, scene.salient))
    used: set[int] = set()
    for name in sorted(by_name):
        used.update(_ask_places(by_name[name], asked, rng))
    rest = [(number, scene.salient) for number, scene in enumerate(scenes) if number not in used]
    _ask_places(rest, asked, rng, called="large object")


def _ask_places(
    entries: Sequence[tuple[int, SceneObject]], asked: list[_Asked], rng: random.Random, called: str = ""
) -> set[int]:
    """Ask paired place questions among (scene number, object) entries; return the scenes that got one."""
    used: set[int] = set()
    places = [thing.place for _, thing in entries]
    for pair in pair_off(places, lambda b, place: places[b] != place, rng):
        for position, answer in zip(pair, ("yes", "no"), strict=True):
            number, thing = entries[position]
            text = f"Is the {called or thing.name} {places[pair[0]]}?"
            held_out = thing.held_out and not called
            question = Question(type="position", size=thing.size, question=text, answer=answer, held_out=held_out)
            asked[number].add(question, "" if called else thing.name)
            asked[number].placed.update([thing.name] if thing.size == "small" else [])
            used.add(number)
    return used


def _ask_identities(scenes: Sequence[Scene], asked: list[_Asked], rng: random.Random) -> None:
    """Ask "Is there a dog?" after the salient object in a third of the scenes and name it in the others.

    Of the small objects, one is named in every second scene, and another asked after in every scene (as far as partners
    are found).
    """
    numbers = list(range(len(scenes)))
    rng.shuffle(numbers)
    third = sorted(numbers[: len(numbers) // 3])
    paired = _ask_existence(scenes, asked, [(number, scenes[number].salient) for number in third], rng)
    for number, scene in enumerate(scenes):
        if number not in paired:
            _name(scene.salient, asked[number])
    chosen = []
    for number, scene in enumerate(scenes):
        nameable = [thing for thing in scene.small if thing.name not in asked[number].placed]
        named = rng.choice(nameable)
        if number % 2 == 0:
            _name(named, asked[number])
        chosen.append((number, rng.choice([thing for thing in scene.small if thing is not named])))
    _ask_existence(scenes, asked, chosen, rng)


def _ask_existence(
    scenes: Sequence[Scene], asked: list[_Asked], entries: Sequence[tuple[int, SceneObject]], rng: random.Random
) -> set[int]:
    """Ask "Is there a dog?" where the entry's object is, and in a partner's scene that has no dog of any size."""
    used: set[int] = set()
    things = [thing for _, thing in entries]

    def absent(position: int, thing: Hashable) -> bool:
        return thing.name not in scenes[entries[position][0]].names()

    for pair in pair_off(things, absent, rng):
        thing = things[pair[0]]
        for position, answer in zip(pair, ("yes", "no"), strict=True):
            number = entries[position][0]
            text = f"Is there {with_article(thing.name)}?"
            question = Question(
                type="existence", size=thing.size, question=text, answer=answer, held_out=thing.held_out
            )
            asked[number].add(question, thing.name)
            asked[number].spent.add(thing.name)
            used.add(number)
    return used


def _name(thing: SceneObject, own: _Asked) -> None:
    text = "What is the large object?" if thing.size == "salient" else f"What is {thing.place}?"
    question = Question(type="naming", size=thing.size, question=text, answer=thing.name, held_out=thing.held_out)
    own.add(question, thing.name)
    own.spent.add(thing.name)


def _ask_counts(scenes: Sequence[Scene], asked: list[_Asked], rng: random.Random) -> None:
    """Ask "How many small objects are there?" in one half and "Are there three small objects?" in the other."""
    numbers = list(range(len(scenes)))
    rng.shuffle(numbers)
    half = numbers[: len(numbers) // 2]
    counts = [len(scenes[number].small) for number in half]
    paired: set[int] = set()
    for pair in pair_off(counts, lambda b, count: counts[b] != count, rng):
        text = f"Are there {NUMBER_WORDS[counts[pair[0]]]} small objects?"
        for position, answer in zip(pair, ("yes", "no"), strict=True):
            asked[half[position]].add(Question(type="count", size="scene", question=text, answer=answer))
            paired.add(half[position])
    for number, scene in enumerate(scenes):
        if number not in paired:
            answer = NUMBER_WORDS[len(scene.small)]
            question = Question(type="count", size="scene", question="How many small objects are there?", answer=answer)
            asked[number].add(question)


def _ask_colours(scenes: Sequence[Scene], asked: list[_Asked], rng: random.Random) -> None:
    """Ask the colour of the salient or of one small object, by its place, never by its name (frogs are green)."""
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
        )
        own.add(question)


def _fill_up(scene: Scene, own: _Asked, rng: random.Random) -> None:
    """Name further small objects until there are enough questions, none that another question gives away."""
    left = [thing for thing in scene.small if thing.name not in own.spent | own.placed]
    rng.shuffle(left)
    while len(own.entries) < LEAST_QUESTIONS and left:
        _name(left.pop(), own)
