"""Faults of known kinds, put into copies of captions: what the filter finds of them is its recall.

No label is needed: a copy whose text was changed is wrong by construction (but for the rare one
that becomes true by chance, such as a colour that the thing has too). The copies are scored and
decided like all captions and never kept.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pargo_ds.captioning.answer import CELLS
from pargo_ds.captioning.run_files import (
    Row,
    RunFolder,
    read_lines,
    read_object,
    write_lines,
    write_object,
)
from pargo_ds.captioning.select.image_hash import draw_of

COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "grey",
    "gray",
)
NUMBERS = ("one", "two", "three", "four", "five", "six")
COLOUR = re.compile(rf"\b({'|'.join(COLOURS)})\b", re.IGNORECASE)
NUMBER = re.compile(rf"\b({'|'.join(NUMBERS[1:])})\b", re.IGNORECASE)
SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)
WHOLE = -1
"""The guilty piece of a fault that concerns the global caption or all of it; parts count from 0."""
POOL = 500
"""Captions that others take their wrong texts from."""

Planted = tuple[Row, int]
"""A changed copy, and its guilty piece."""


def swapped_image(row: Row, donor: Row, rng: random.Random) -> Planted | None:
    """Return all of another image's caption."""
    return {**row, "global": donor["global"], "parts": donor["parts"]}, WHOLE


def swapped_part(row: Row, donor: Row, rng: random.Random) -> Planted | None:
    """A part's text is that of another image's part; its place stays."""
    if not row["parts"] or not donor["parts"]:
        return None
    place = rng.randrange(len(row["parts"]))
    what = rng.choice(donor["parts"])["what"]
    if what in [part["what"] for part in row["parts"]]:
        return None
    return _with_part(row, place, {**row["parts"][place], "what": what}), place


def left_right(row: Row, donor: Row, rng: random.Random) -> Planted | None:
    """A part is moved to the other side, in its place and its words."""
    sides = [n for n, part in enumerate(row["parts"]) if SIDE.search(part["where"])]
    if not sides:
        return None
    place = rng.choice(sides)
    part = row["parts"][place]
    changed = {name: SIDE.sub(_other_side, text) for name, text in part.items()}
    return _with_part(row, place, changed), place


def colour(row: Row, donor: Row, rng: random.Random) -> Planted | None:
    """A part has another colour."""
    coloured = [n for n, part in enumerate(row["parts"]) if COLOUR.search(part["what"])]
    if not coloured:
        return None
    place = rng.choice(coloured)
    part = row["parts"][place]
    what = _replaced(part["what"], COLOUR, COLOURS[:-1], rng)
    return _with_part(row, place, {**part, "what": what}), place


def count(row: Row, donor: Row, rng: random.Random) -> Planted | None:
    """The global caption counts wrongly."""
    if not NUMBER.search(row["global"]):
        return None
    return {**row, "global": _replaced(row["global"], NUMBER, NUMBERS[1:], rng)}, WHOLE


def added_object(row: Row, donor: Row, rng: random.Random) -> Planted | None:
    """A further part names a thing of another image, at a place that no part has."""
    free = sorted(set(CELLS) - {part["where"] for part in row["parts"]})
    if not free or not donor["parts"]:
        return None
    part = {"where": rng.choice(free), "what": rng.choice(donor["parts"])["what"]}
    if part["what"] in [own["what"] for own in row["parts"]]:
        return None
    return {**row, "parts": [*row["parts"], part]}, len(row["parts"])


def cut_off(row: Row, donor: Row, rng: random.Random) -> Planted | None:
    """The global caption ends in the middle, as an answer does at max_tokens."""
    text = row["global"]
    end = rng.randrange(len(text) // 2, max(len(text) // 2 + 1, len(text) - 3))
    return {**row, "global": text[:end].rstrip(" .!?")}, WHOLE


def repeated(row: Row, donor: Row, rng: random.Random) -> Planted | None:
    """The last sentence comes four times more, as models do that lose themselves."""
    last = re.split(r"(?<=[.!?])\s+", row["global"].strip())[-1]
    return {**row, "global": " ".join([row["global"].strip(), *[last] * 4])}, WHOLE


FAULTS: dict[str, Callable[[Row, Row, random.Random], Planted | None]] = {
    "swapped image": swapped_image,
    "swapped part": swapped_part,
    "left/right": left_right,
    "colour": colour,
    "count": count,
    "added object": added_object,
    "cut off": cut_off,
    "repeated": repeated,
}


def plant(captions: Path, number: int, seed: int = 0) -> Iterator[Row]:
    """Yield the changed copies of about `number` captions, every kind of each that can be had, in
    the order of the file.

    A copy has `fault`, `guilty` (a piece) and `of`, the id whose image it goes with.
    """
    good = sum(row["outcome"] == "ok" for row in read_lines(captions))
    if not good:
        return
    share = min(1.0, number / good)
    pool = _pool(captions)
    for row in read_lines(captions):
        if row["outcome"] != "ok" or draw_of(row["image"], seed ^ 0x5EED) >= share:
            continue
        rng = random.Random(f"{seed}/{row['image']}")
        donors = [other for other in pool if other["global"] != row["global"]]
        if not donors:
            continue
        for kind, put in FAULTS.items():
            planted = put(row, rng.choice(donors), rng)
            if planted is not None:
                copy, guilty = planted
                yield {
                    **copy,
                    "id": f"{row['id']}~{kind}",
                    "of": row["id"],
                    "fault": kind,
                    "guilty": guilty,
                }


def write_planted(run: RunFolder, number: int) -> None:
    """Write the copies of a run's captions, unless those that are there are of this file of captions
    and of this number (planted.json): all parts of a Slurm array ask for them.
    """
    file = run.captions.stat()
    of = {"number": number, "bytes": file.st_size, "mtime_ns": file.st_mtime_ns}
    there = run.planted.is_file() and run.planted_of.is_file()
    if there and read_object(run.planted_of) == of:
        return
    run.planted_of.unlink(missing_ok=True)  # until the copies are there, nothing vouches for them
    write_lines(run.planted, plant(run.captions, number))
    write_object(run.planted_of, of)


def _pool(captions: Path) -> list[Row]:
    pool: list[Row] = []
    for row in read_lines(captions):
        if row["outcome"] == "ok":
            pool.append({name: row[name] for name in ("global", "parts")})
            if len(pool) == POOL:
                break
    return pool


def _with_part(row: Row, place: int, part: dict[str, Any]) -> Row:
    return {**row, "parts": [*row["parts"][:place], part, *row["parts"][place + 1 :]]}


def _other_side(found: re.Match[str]) -> str:
    return {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}.get(
        found[0], found[0]
    )


def _replaced(
    text: str, pattern: re.Pattern[str], words: tuple[str, ...], rng: random.Random
) -> str:
    """The text with one of the pattern's words made another one."""
    found = rng.choice(list(pattern.finditer(text)))
    same = {"gray": "grey"}.get(found[0].lower(), found[0].lower())
    other = rng.choice([word for word in words if word != same])
    if found[0][0].isupper():
        other = other.capitalize()
    return text[: found.start()] + other + text[found.end() :]
