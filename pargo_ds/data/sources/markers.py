"""Replace the marks by which other projects show the places of images in texts by `<image>`, and
sort the images in the order of their marks.
"""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

from pargo_ds.data.shards.schema import IMAGE_PLACEHOLDER
from pargo_ds.data.sources.rejects import Reject

INLINE = re.compile(r"<img>([^<>\n]+)</img>")
"""Qwen-VL writes the path of an image into the text."""
VISION_TAGS = re.compile(r"<\|vision_start\|>(?:<\|image_pad\|>)+<\|vision_end\|>")
OTHER = re.compile(
    r"<(?:image|imagehere|image_placeholder|start_of_image|\|image\||\|image_pad\|)>", re.IGNORECASE
)
NUMBERED = re.compile(r"<(?:image|img)[ _-]?0*(\d{1,4})>|<\|image_0*(\d{1,4})\|>", re.IGNORECASE)
"""The marks <image 1> of MMMU and InternLM, and <|image_1|> of Phi 3."""
GROUNDING = re.compile("<bbox>|<ref-object>")
"""Places at which ms-swift writes coordinates and names of an entry's `objects`."""
LEFT = re.compile(
    "|".join(f"(?i:{one.pattern})" for one in (NUMBERED, VISION_TAGS, OTHER, GROUNDING))
)

Turns = list[dict[str, str]]


def inline_images(text: str) -> tuple[str, list[str]]:
    """Take the images out of a text: `<img>a.png</img> what?` -> (`<image> what?`, ["a.png"])."""
    if "<img>" not in text:
        return text, []
    return INLINE.sub(IMAGE_PLACEHOLDER, text), [path.strip() for path in INLINE.findall(text)]


def placed(turns: Turns, images: list[Any], names: list[str]) -> tuple[Turns, list[Any]]:
    """Return turns in which every image has a placeholder, and the images in the order of the
    placeholders.

    `names` are the marks of the images, if the record gives them. Marks are searched in questions
    and system texts only; a mark in an answer is ordinary text. Raises Reject when marks and images
    do not fit together, and when a mark in another spelling is left over.
    """
    found, ordered = _placed(turns, images, names)
    for turn in found:
        pattern = GROUNDING if turn["role"] == "assistant" else LEFT
        marks = (match.group() for match in pattern.finditer(turn["content"]))
        left = next((mark for mark in marks if mark != IMAGE_PLACEHOLDER), None)
        if left is not None:
            raise Reject(
                "placeholders", f"{left} in the text stands for something that is not read"
            )
    return found, ordered


def _asked(turns: Turns) -> list[str]:
    """The texts of questions and system turns, in which marks count."""
    return [turn["content"] for turn in turns if turn["role"] != "assistant"]


def _placed(turns: Turns, images: list[Any], names: list[str]) -> tuple[Turns, list[Any]]:
    if names:
        return _by_name(turns, images, names)
    asked = _asked(turns)
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
            raise Reject(
                "placeholders", f"{found} times {mark} in the text but {len(images)} images"
            )
    if not images or any(IMAGE_PLACEHOLDER in turn["content"] for turn in turns):
        return turns, images  # the check that follows refuses a placeholder in an answer
    first = next(number for number, turn in enumerate(turns) if turn["role"] == "user")
    changed = list(turns)
    changed[first] = {
        "role": "user",
        "content": f"{IMAGE_PLACEHOLDER}\n" * len(images) + turns[first]["content"],
    }
    return changed, images


def _replaced(turns: Turns, pattern: re.Pattern[str]) -> Turns:
    replaced = []
    for turn in turns:
        if turn["role"] != "assistant":
            turn = {**turn, "content": pattern.sub(IMAGE_PLACEHOLDER, turn["content"])}
        replaced.append(turn)
    return replaced


def _by_number(turns: Turns, images: list[Any]) -> tuple[Turns, list[Any]]:
    """`<image 2> or <image 1>?` -> `<image> or <image>?` with the second image first."""
    marks = list(chain.from_iterable(map(NUMBERED.finditer, _asked(turns))))
    numbers = [int(match[1] or match[2]) for match in marks]
    first = min(numbers)  # some count from 0
    if first > 1 or sorted(numbers) != list(range(first, first + len(images))):
        shown = ", ".join(dict.fromkeys(match.group() for match in marks))
        raise Reject(
            "placeholders",
            f"{shown} in the text but {len(images)} images; expected each of them once",
        )
    return _replaced(turns, NUMBERED), [images[number - first] for number in numbers]


def _by_name(turns: Turns, images: list[Any], names: list[str]) -> tuple[Turns, list[Any]]:
    pattern = re.compile("|".join(map(re.escape, names)))
    marks = list(chain.from_iterable(map(pattern.findall, _asked(turns))))
    if sorted(marks) != sorted(names):
        raise Reject(
            "placeholders",
            f"the images are named {', '.join(names)}; expected each of these once in a question",
        )
    by_name = dict(zip(names, images, strict=True))
    return _replaced(turns, pattern), [by_name[mark] for mark in marks]
