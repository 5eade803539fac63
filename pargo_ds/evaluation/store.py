"""The answers on disk: a folder for each benchmark, a whole file for each unit, and a fingerprint.

    OUT/NAME/asked.json       what was asked of what: answers of anything else are refused
    OUT/NAME/items.jsonl      questions and truths, so that scoring needs neither files nor model
    OUT/NAME/units/00017.jsonl    a line on the machine, then an answer a line

Ranks share nothing but the folder. This module imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pargo_ds.errors import UserError, listed
from pargo_ds.evaluation.benchmark import Answer, ImageRef, Item
from pargo_ds.files.whole_file import write_whole

ASKED, ITEMS, UNITS = "asked.json", "items.jsonl", "units"


class OtherAnswersError(UserError):
    """The folder holds answers to something else."""


class MissingAnswersError(UserError):
    """Some units have not been answered yet."""


def item_lines(items: Sequence[Item]) -> str:
    """Return the questions as JSON lines, images by name and size."""
    lines = []
    for item in items:
        images = [{"name": image.name, "size": image.size} for image in item.images]
        plain = {key: value for key, value in vars(item).items() if key != "images"}
        lines.append(json.dumps({**plain, "images": images}, ensure_ascii=False) + "\n")
    return "".join(lines)


def digest(value: Any) -> str:
    """Return SHA-256 of a text or of a value's JSON, in hexadecimal."""
    if not isinstance(value, str):
        value = json.dumps(value, sort_keys=True)
    return hashlib.sha256(value.encode()).hexdigest()


def _not_kept() -> bytes:
    raise UserError("images are not kept with the answers; ask again from the benchmark's files")


def lines_of(path: Path) -> list[str]:
    """Return the lines of a file of JSON lines. str.splitlines would also cut at U+2028, which
    answers may hold.
    """
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def read_items(path: Path) -> list[Item]:
    """Read what `item_lines` wrote; images have names only."""
    items = []
    for line in lines_of(path):
        fields = json.loads(line)
        images = [ImageRef(image["name"], image["size"], _not_kept) for image in fields["images"]]
        tuples = {key: tuple(fields[key]) for key in ("options", "groups")}
        items.append(Item(**{**fields, **tuples, "images": tuple(images)}))
    return items


@dataclass(frozen=True)
class Store:
    """The answers to one benchmark in `folder`."""

    folder: Path

    def open(self, asked: Mapping[str, Any], items: Sequence[Item], writer: str = "") -> None:
        """Note what is asked, or compare it with what was asked here before.

        Raises OtherAnswersError naming the fields that differ.
        """
        path = self.folder / ASKED
        if not path.is_file():
            write_whole(self.folder / ITEMS, item_lines(items), writer)
            write_whole(path, json.dumps(asked, indent=2, ensure_ascii=False) + "\n", writer)
        # Read again even if this process wrote it: another rank may have been quicker.
        before = self.asked()
        other = [name for name in asked if before.get(name) != asked[name]]
        if other:
            said = []
            for name in other:
                there, here = _short(before.get(name)), _short(asked[name])
                said.append(f"{name} {there} instead of {here}")
            raise OtherAnswersError(
                f"{self.folder} holds answers of another kind: {'; '.join(said)}. Choose another "
                "--out, or remove that folder"
            )

    def asked(self) -> dict[str, Any]:
        """Raises UserError when nothing was asked here."""
        path = self.folder / ASKED
        if not path.is_file():
            raise UserError(f"{self.folder} holds no answers: {ASKED} is missing")
        return json.loads(path.read_text(encoding="utf-8"))

    def items(self) -> list[Item]:
        """Return the questions. Raises OtherAnswersError when they are not those that were asked."""
        path = self.folder / ITEMS
        if digest(path.read_text(encoding="utf-8")) != self.asked()["questions"]:
            raise OtherAnswersError(f"{path} was altered; its answers cannot be scored")
        return read_items(path)

    def unit_file(self, number: int) -> Path:
        """Return the place of a unit's answers, whether they are there or not."""
        return self.folder / UNITS / f"{number:05d}.jsonl"

    def missing(self, units: Sequence[int] | range) -> list[int]:
        """Return those of the units that have no file."""
        return [number for number in units if not self.unit_file(number).is_file()]

    def write(self, number: int, head: Mapping[str, Any], answers: Sequence[Answer]) -> None:
        """Write a unit's answers, whole or absent. Nothing in it depends on time or rank."""
        lines = [json.dumps(dict(head), sort_keys=True)]
        lines += [json.dumps(asdict(answer), ensure_ascii=False) for answer in answers]
        write_whole(self.unit_file(number), "\n".join(lines) + "\n")

    def answers(self, items: Sequence[Item]) -> tuple[list[Answer], list[dict[str, Any]]]:
        """Return (answers in the order of the items, heads of the units).

        Raises MissingAnswersError naming units without a file, OtherAnswersError for answers that
        do not belong to the items.
        """
        units = range(self.asked()["units"])
        missing = self.missing(units)
        if missing:
            shown = listed(missing, 10)
            raise MissingAnswersError(
                f"{self.folder}: {len(missing)} of {len(units)} units have no answers yet: {shown}."
                " The same command goes on, on any number of ranks"
            )
        found: dict[str, Answer] = {}
        heads = []
        for number in units:
            head, *lines = lines_of(self.unit_file(number))
            heads.append(json.loads(head))
            for answer in map(_answer, lines):
                found[answer.id] = answer
        if set(found) != {item.id for item in items}:
            raise OtherAnswersError(
                f"{self.folder}: {len(found)} answers to {len(items)} questions, or to others; "
                "remove the folder and ask again"
            )
        return [found[item.id] for item in items], heads


def _answer(line: str) -> Answer:
    fields = json.loads(line)
    fields["losses"] = tuple((total, tokens) for total, tokens in fields["losses"])
    return Answer(**fields)


def _short(value: Any) -> str:
    text = str(value)
    if len(text) == 64 and " " not in text:  # a hash
        return text[:12]
    if len(text) > 200:
        return f"{text[:200]}..."
    return text
