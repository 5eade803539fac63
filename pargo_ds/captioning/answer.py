"""What a captioner answers: the caption of the whole and those of the parts, read leniently."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

CELLS: dict[str, tuple[int, int]] = {
    "top left": (0, 0),
    "top": (1, 0),
    "top right": (2, 0),
    "left": (0, 1),
    "centre": (1, 1),
    "right": (2, 1),
    "bottom left": (0, 2),
    "bottom": (1, 2),
    "bottom right": (2, 2),
}
"""Cell -> (column, row) of the 3 x 3 grid in which the middle of a part lies."""
OTHER_NAMES = {
    "center": "centre",
    "middle": "centre",
    "upper left": "top left",
    "upper right": "top right",
    "lower left": "bottom left",
    "lower right": "bottom right",
    "top center": "top",
    "bottom center": "bottom",
    "top centre": "top",
    "bottom centre": "bottom",
    "center left": "left",
    "center right": "right",
}
FENCE = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n?```\s*$", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """One part of an image: `where` is a key of CELLS, `what` a text about it."""

    where: str
    what: str


@dataclass(frozen=True)
class Caption:
    """The caption of the whole image and of its parts."""

    whole: str
    parts: tuple[Part, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What had to be left out of the answer to read it."""


def cell_of(where: object) -> str | None:
    """Return the cell that a text names ("at the Top-Left", "upper left"); None for none."""
    if not isinstance(where, str):
        return None
    words = re.sub(r"[^a-z]+", " ", where.lower())
    name = re.sub(r"\b(in|at|on|the|of|image|corner|side|cell)\b", " ", words)
    name = " ".join(name.split())
    name = OTHER_NAMES.get(name, name)
    if name not in CELLS:
        return None
    return name


def read_answer(text: str, *, structured: bool) -> Caption:
    """Read the caption in an answer; with `structured` false the whole answer is the global
    caption.

    JSON may stand in a code fence or between other words. Raises ValueError saying what is missing.
    """
    if not structured:
        if not text.strip():
            raise ValueError("the answer is empty")
        return Caption(text.strip())
    value = _object_in(text)
    whole = value.get("global")
    if not isinstance(whole, str) or not whole.strip():
        raise ValueError(f"it has no text under global; its keys are {', '.join(value) or 'none'}")
    listed = value.get("parts", [])
    if not isinstance(listed, list):
        raise ValueError(f"parts is a {type(listed).__name__}; expected a list")
    parts, notes = [], []
    for entry in listed:
        where, what = _part_of(entry)
        if where is None or what is None:
            notes.append(f"a part that is none was left out: {json.dumps(entry)[:120]}")
        else:
            parts.append(Part(where, what))
    return Caption(whole.strip(), tuple(parts), tuple(notes))


def _part_of(entry: Any) -> tuple[str | None, str | None]:
    if not isinstance(entry, dict):
        return None, None
    said, what = None, entry.get("what")
    if isinstance(what, str) and what.strip():
        said = what.strip()
    return cell_of(entry.get("where")), said


def _object_in(text: str) -> dict[str, Any]:
    """The one JSON object of an answer."""
    fenced = FENCE.match(text)
    if fenced:
        text = fenced[1]
    start = text.find("{")
    if start < 0:
        raise ValueError("the answer holds no JSON object")
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start:])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the answer's JSON is broken ({str(error)[:80]})") from error
    return value


def place_phrase(where: str) -> str:
    """Return where a cell is, in words: "top left" -> "at the top left"; "left" -> "on the left";
    "centre" -> "in the centre".
    """
    preposition = {"centre": "in", "left": "on", "right": "on"}.get(where, "at")
    return f"{preposition} the {where}"


def detailed_caption(whole: str, parts: Sequence[Part]) -> str:
    """Return the text that training reads: the whole, then a sentence for each part, with its
    place.

    A part whose text names its place already is taken as it is.
    """
    sentences = [whole.strip()]
    for part in parts:
        what = part.what.strip().rstrip(".")
        if place_phrase(part.where) not in what.lower():
            first, second = what[:1], what[1:2]
            if second.islower() or second == " ":
                first = first.lower()
            phrase = place_phrase(part.where)
            what = f"{phrase[0].upper()}{phrase[1:]}: {first}{what[1:]}"
        sentences.append(f"{what}.")
    return " ".join(sentences)
