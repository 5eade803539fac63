"""The 80 things that COCO names, and the words by which texts name them. Pure.

The idea is CHAIR's (Rohrbach et al. 2018): of the things that a caption names, how many are there?
The words here are plain ones and their plurals, and fewer than CHAIR's list: a word that often means
something else is left out.
"""

from __future__ import annotations

import functools
import re

from pargo_ds.captioning.language import SMALL_WORDS
from pargo_ds.captioning.text_rules import words_of

IDS = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train",
    8: "truck", 9: "boat", 10: "traffic light", 11: "fire hydrant", 13: "stop sign",
    14: "parking meter", 15: "bench", 16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep",
    21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe", 27: "backpack",
    28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove",
    41: "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass",
    47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple",
    54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza",
    60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote",
    76: "keyboard", 77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink",
    82: "refrigerator", 84: "book", 85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear",
    89: "hair drier", 90: "toothbrush",
}  # fmt: skip
"""COCO's numbers, which leave out some from 1 to 90, and its names."""
SYNONYMS = {
    "person": "people man men woman women boy girl child children kid baby adult lady ladies guy "
    "gentleman gentlemen rider cyclist pedestrian player worker policeman astronaut photographer",
    "bicycle": "bike",
    "car": "automobile sedan taxi",
    "motorcycle": "motorbike moped",
    "airplane": "aeroplane aircraft plane airliner",
    "truck": "lorry lorries",
    "boat": "ship ferry canoe kayak yacht sailboat rowboat",
    "traffic light": "traffic-light stoplight",
    "fire hydrant": "hydrant",
    "bird": "pigeon seagull duck parrot owl sparrow swan goose geese",
    "cat": "kitten",
    "dog": "puppy puppies",
    "horse": "pony ponies foal",
    "sheep": "lamb",
    "cow": "cattle calf calves",
    "backpack": "rucksack",
    "handbag": "purse",
    "tie": "necktie",
    "sports ball": "football basketball baseball volleyball",
    "suitcase": "luggage",
    "skis": "ski",
    "cup": "mug teacup",
    "knife": "knives",
    "donut": "doughnut",
    "chair": "armchair",
    "couch": "sofa",
    "potted plant": "houseplant",
    "dining table": "table desk",
    "tv": "television",
    "remote": "remote-control",
    "cell phone": "cellphone phone smartphone",
    "refrigerator": "fridge",
    "hair drier": "hairdryer",
}
"""Class -> other words for it; plurals in s and es need not be told."""
ADJECTIVE_TOO = {"orange", "remote"}
"""Classes whose word is also said of other things: an orange cat. Before such a word it names none."""
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
           "eleven", "twelve")  # fmt: skip
LONGEST = 3
"""Words of the longest name."""


def plural_of(name: str) -> str:
    """Return the plural of a class's name: "person" -> "people", "bus" -> "buses"."""
    odd = {"person": "people", "knife": "knives", "sheep": "sheep", "broccoli": "broccoli"}
    if name in odd:
        return odd[name]
    if name in ("skis", "scissors"):
        return name
    if re.search(r"(s|x|ch|sh)$", name):
        return f"{name}es"
    return f"{name}s"


@functools.cache
def _names() -> dict[tuple[str, ...], str]:
    """The words of each name -> the class."""
    found: dict[tuple[str, ...], str] = {}
    for name in IDS.values():
        for said in (name, *SYNONYMS.get(name, "").split()):
            for form in (said, plural_of(said)):
                found[tuple(form.split())] = name
    found["hair", "dryer"] = found["hair", "dryers"] = "hair drier"
    found["mobile", "phone"] = found["mobile", "phones"] = "cell phone"
    return found


def things_in(text: str) -> list[str]:
    """Return the classes that a text names, each once, in the order of their first names.

    The longest name counts: a hot dog is no dog.
    """
    words, names = words_of(text), _names()
    found: dict[str, None] = {}
    place = 0
    while place < len(words):
        step = 1
        for length in range(LONGEST, 0, -1):
            said = tuple(words[place : place + length])
            if len(said) < length or said not in names:
                continue
            if said[-1] not in ADJECTIVE_TOO or _ends_a_phrase(words, place + length):
                found[names[said]] = None
                step = length
            break
        place += step
    return list(found)


def _ends_a_phrase(words: list[str], following: int) -> bool:
    """Whether no noun can follow here: the end of the text, a small word or a number."""
    if following >= len(words):
        return True
    return words[following] in SMALL_WORDS or words[following] in NUMBERS
