"""Captions that follow from a scene's truth."""

from __future__ import annotations

from pargo_ds.scenes.compose import PLACES, Scene, SceneObject
from pargo_ds.scenes.concepts import with_article

NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}


def captions(scene: Scene) -> dict[str, str]:
    """Return the coarse caption, which names the salient object only, as web captions do, and the
    detailed caption, which names everything.

    A place is said before the thing that is there, and places follow one another as lines of text
    do: so the words before a name say which thing is meant, and only the image says what it is.

    {"coarse": "A red apple.", "detailed": "A large red apple in the centre and two small objects.
    At the top left a dog, at the bottom right a blue car."}
    """
    whole = f"{_phrase(scene.salient, 'large')} {scene.salient.place}"
    reading_order = list(PLACES)
    small = sorted(scene.small, key=lambda thing: reading_order.index(thing.place))
    parts = ", ".join(f"{thing.place} {_phrase(thing)}" for thing in small)
    return {
        "coarse": f"{_capitalised(_phrase(scene.salient))}.",
        "detailed": f"{_capitalised(whole)} and {NUMBER_WORDS[len(scene.small)]} small objects. {_capitalised(parts)}.",
    }


def _phrase(thing: SceneObject, size: str = "") -> str:
    return with_article(" ".join(word for word in (size, thing.colour, thing.name) if word))


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
