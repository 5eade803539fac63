"""How texts mark the places of pictures, in other projects' spellings -> `<image>` and the pictures in that order."""

from __future__ import annotations

import re
from typing import Any

from pargo_ds.data.schema import IMAGE_PLACEHOLDER
from pargo_ds.data.sources.rejects import Reject

INLINE = re.compile(r"<img>([^<>\n]+)</img>")
"""Qwen-VL writes the path of a picture into the text."""
VISION_TAGS = re.compile(r"<\|vision_start\|>(?:<\|image_pad\|>)+<\|vision_end\|>")
OTHER = re.compile(r"<(?:image|imagehere|image_placeholder|start_of_image|\|image\||\|image_pad\|)>", re.IGNORECASE)
NUMBERED = re.compile(r"<(?:image|img)[ _-]?0*(\d{1,4})>|<\|image_0*(\d{1,4})\|>", re.IGNORECASE)
"""MMMU's and InternLM's <image 1>, Phi 3's <|image_1|>."""
GROUNDING = re.compile("<bbox>|<ref-object>")
"""ms-swift writes numbers and names of an entry's `objects` there."""
LEFT = re.compile("|".join(f"(?i:{one.pattern})" for one in (NUMBERED, VISION_TAGS, OTHER, GROUNDING)))

Turns = list[dict[str, str]]


def inline_pictures(text: str) -> tuple[str, list[str]]:
    """`<img>a.png</img> what?` -> (`<image> what?`, ["a.png"])."""
    if "<img>" not in text:
        return text, []
    return INLINE.sub(IMAGE_PLACEHOLDER, text), [path.strip() for path in INLINE.findall(text)]


def placed(turns: Turns, images: list[Any], names: list[str]) -> tuple[Turns, list[Any]]:
    """Turns in which every picture has a placeholder, and the pictures in the order of these.

    `names` are the marks of the pictures, where the record gives them. Only questions and system texts are looked at:
    what an answer says is text. Raises Reject when marks and pictures do not fit together, and for a mark of another
    spelling that is left beside them.
    """
    found, ordered = _placed(turns, images, names)
    for turn in found:
        pattern = GROUNDING if turn["role"] == "assistant" else LEFT
        marks = (match.group() for match in pattern.finditer(turn["content"]))
        left = next((mark for mark in marks if mark != IMAGE_PLACEHOLDER), None)
        if left is not None:
            raise Reject("placeholders", f"{left} in the text stands for something that is not read")
    return found, ordered


def _placed(turns: Turns, images: list[Any], names: list[str]) -> tuple[Turns, list[Any]]:
    if names:
        return _by_name(turns, images, names)
    asked = [turn["content"] for turn in turns if turn["role"] != "assistant"]
    if any(IMAGE_PLACEHOLDER in text for text in asked):
        return turns, images
    if any(NUMBERED.search(text) for text in asked):
        return _by_number(turns, images)
    for pattern in (VISION_TAGS, OTHER):
        found = sum(len(pattern.findall(text)) for text in asked)
        if found == len(images) and found:
            return _replaced(turns, pattern), images
        if found:
            mark = next(match.group() for text in asked if (match := pattern.search(text)))
            raise Reject("placeholders", f"{found} times {mark} in the text but {len(images)} pictures")
    if not images or any(IMAGE_PLACEHOLDER in turn["content"] for turn in turns):
        return turns, images  # one in an answer is told by the check that follows
    first = next(number for number, turn in enumerate(turns) if turn["role"] == "user")
    changed = list(turns)
    changed[first] = {"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n" * len(images) + turns[first]["content"]}
    return changed, images


def _replaced(turns: Turns, pattern: re.Pattern[str]) -> Turns:
    return [
        turn if turn["role"] == "assistant" else {**turn, "content": pattern.sub(IMAGE_PLACEHOLDER, turn["content"])}
        for turn in turns
    ]


def _by_number(turns: Turns, images: list[Any]) -> tuple[Turns, list[Any]]:
    """`<image 2> or <image 1>?` -> `<image> or <image>?` with the second picture first."""
    asked = [turn["content"] for turn in turns if turn["role"] != "assistant"]
    marks = [match for text in asked for match in NUMBERED.finditer(text)]
    numbers = [int(match[1] or match[2]) for match in marks]
    first = min(numbers)  # some count from 0
    if first > 1 or sorted(numbers) != list(range(first, first + len(images))):
        shown = ", ".join(dict.fromkeys(match.group() for match in marks))
        raise Reject("placeholders", f"{shown} in the text but {len(images)} pictures; expected each of them once")
    return _replaced(turns, NUMBERED), [images[number - first] for number in numbers]


def _by_name(turns: Turns, images: list[Any], names: list[str]) -> tuple[Turns, list[Any]]:
    asked = [turn["content"] for turn in turns if turn["role"] != "assistant"]
    pattern = re.compile("|".join(map(re.escape, names)))
    marks = [mark for text in asked for mark in pattern.findall(text)]
    if sorted(marks) != sorted(names):
        raise Reject(
            "placeholders", f"the pictures are named {', '.join(names)}; expected each of these once in a question"
        )
    by_name = dict(zip(names, images, strict=True))
    return _replaced(turns, pattern), [by_name[mark] for mark in marks]
