"""The folder of a captioning run: which stage writes which file, and lines of JSON that are whole
or absent.

    RUN/candidates/      select: images that may be captioned, as MDS shards; rejects.jsonl beside
        selected.jsonl   select: one line for each chosen image; left_out.jsonl for the other ones
        ledger/          caption: every paid request, before and after (ask/ledger.py)
        described/       caption: what a captioner of our own made, which costs nothing
        captions.jsonl   caption: one line for each selected image, in that order
        planted.jsonl    score, decide: copies of captions with faults of known kinds; planted.json
        scores/NAME/     score: one folder a scorer
        decisions.jsonl  decide: what is kept of each caption, all reasons; decisions.json: settings
        report.html      report; also report.json and README.md, the dataset's card
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pargo_ds.errors import CaptionError, MachineFault
from pargo_ds.files.whole_file import whole_file, write_whole

Row = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """The paths below a run's folder."""

    path: Path

    @property
    def candidates(self) -> Path:
        """The shards of all images that may be chosen."""
        return self.path / "candidates"

    @property
    def selected(self) -> Path:
        """The chosen images, in the order of their draws."""
        return self.path / "selected.jsonl"

    @property
    def left_out(self) -> Path:
        """The images that were not chosen, each with the reason."""
        return self.path / "left_out.jsonl"

    @property
    def selection(self) -> Path:
        """How many images each step of the choice left."""
        return self.path / "selection.json"

    @property
    def ledger(self) -> Path:
        """The requests and answers of the run, where it shares no ledger."""
        return self.path / "ledger"

    @property
    def described(self) -> Path:
        """What captioners of our own made of the run's images, as a ledger."""
        return self.path / "described"

    @property
    def captions(self) -> Path:
        """The captions as they were answered, one row for each chosen image."""
        return self.path / "captions.jsonl"

    @property
    def planted(self) -> Path:
        """Copies of captions with planted faults."""
        return self.path / "planted.jsonl"

    @property
    def planted_of(self) -> Path:
        """Which captions the planted copies were made of."""
        return self.path / "planted.json"

    @property
    def scores(self) -> Path:
        """A folder of scores for each scorer."""
        return self.path / "scores"

    @property
    def decisions(self) -> Path:
        """The decision about each caption."""
        return self.path / "decisions.jsonl"

    @property
    def decided(self) -> Path:
        """The account of the decisions."""
        return self.path / "decisions.json"

    @property
    def money(self) -> Path:
        """What the answers cost."""
        return self.path / "money.json"


def needed(path: Path, stage: str) -> Path:
    """Return the path itself. Raises CaptionError naming the stage that writes it when it is not
    there.
    """
    if not path.exists():
        raise CaptionError(
            f"{path} is not there: run tools/caption.py {stage} {path.parent} first (each stage reads "
            "what the one before has written)"
        )
    return path


def write_lines(path: Path, rows: Iterable[Row]) -> int:
    """Write one line of JSON for each row, the file whole or not at all; returns their number.

    Raises MachineFault when the disk refuses; an older file of that name is kept then.
    """
    count = 0
    with _told(path), whole_file(path, str(os.getpid())) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_object(path: Path, value: Any) -> None:
    """Write one JSON object for people to read, whole or not at all. Raises as `write_lines`."""
    with _told(path):
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        write_whole(path, text, str(os.getpid()))


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """In here a refusal of the disk becomes a MachineFault that names the file."""
    try:
        yield
    except OSError as error:
        raise MachineFault(
            f"{path} cannot be written ({error.strerror}); what was there before is kept, the same "
            "command goes on once there is room"
        ) from error


def read_lines(path: Path, start: int = 0) -> Iterator[Row]:
    """Yield the rows of a file, one at a time, from the line that begins at byte `start` on.

    Raises CaptionError naming the line that is no JSON object.
    """
    behind = ""
    if start:
        behind = f" after byte {start}"
    with open(path, "rb") as file:
        file.seek(start)
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line.decode())
            except ValueError as error:
                raise CaptionError(
                    f"{path}, line {number}{behind} is not JSON ({error})"
                ) from error
            if not isinstance(row, dict):
                where = f"{path}, line {number}{behind}"
                raise CaptionError(
                    f"{where} is no JSON object: {line[:80].decode(errors='replace')!r}"
                )
            yield row


def starts_of(path: Path, rows: int) -> Iterator[int]:
    """Yield the byte at which every `rows`-th line of a file begins, the first one included."""
    start = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            if number % rows == 0:
                yield start
            start += len(line)


def read_object(path: Path) -> Row:
    """Read a JSON object; CaptionError naming the file when it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CaptionError(f"{path} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise CaptionError(f"{path} is no JSON object")
    return value
