"""Third stage: scorers look at every caption, and at the copies with planted faults.

The work is a list of tasks, each a file of scores that is whole or absent. Who makes which does not
matter: this process, one of the parts of a Slurm array, or actors of a cluster of Ray (pooled.py).
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from PIL import Image

from pargo_ds.captioning.ask.captions import OK
from pargo_ds.captioning.run_files import (
    Row,
    RunFolder,
    needed,
    read_lines,
    read_object,
    starts_of,
    write_lines,
    write_object,
)
from pargo_ds.captioning.score.planted import write_planted
from pargo_ds.captioning.score.scorers.base import Piece, Scorer, piece_scores
from pargo_ds.captioning.score.scores import ABOUT, texts_hash
from pargo_ds.captioning.select.select import read_images
from pargo_ds.data.images import read_image
from pargo_ds.errors import CaptionError
from pargo_ds.files.lock import lock_if_possible

ROWS = 500
"""Captions of a file, which is whole or absent: what a kill costs at most."""
FEWEST_DECOYS = 3


class Task(NamedTuple):
    """A file of scores: `number` of those of "captions" or "planted"; its rows begin at byte `start`
    of the file of texts.
    """

    name: str
    number: int
    start: int

    @property
    def file(self) -> str:
        """The name of the file with these scores."""
        return f"{self.name}-{self.number:05d}.jsonl"


def score(
    run: RunFolder,
    scorers: Sequence[Scorer],
    *,
    plants: int = 400,
    part: tuple[int, int] = (0, 1),
    said: Callable[[str], None] = print,
) -> None:
    """Score all captions with each scorer; what is there already stays, when its texts and what
    scored are the same. `part` i of n makes every n-th file; parts may run at the same time.
    """
    tasks = prepare(run, scorers, plants)
    for scorer in scorers:
        work = Scoring(run, scorer)
        made = [work.make(task) for task in tasks[part[0] :: part[1]]]
        said(f"{scorer.name}: {sum(made)} files scored, {len(made) - sum(made)} were there")


def prepare(run: RunFolder, scorers: Sequence[Scorer], plants: int) -> list[Task]:
    """Plant the faults, empty the folders of scorers whose settings have changed, and return what
    there is to score. Parts of an array do it one after another, and the first one changes things.

    Raises CaptionError when there are no captions, or too few images to compare with.
    """
    needed(run.captions, "caption")
    images = sum(1 for _ in read_lines(run.selected))
    if images < FEWEST_DECOYS + 1:
        raise CaptionError(
            f"{run.path} has {images} images; scores are against other images, so at least "
            f"{FEWEST_DECOYS + 1} are needed"
        )
    run.scores.mkdir(exist_ok=True)
    with open(run.scores / "lock", "w") as lock:
        lock_if_possible(lock)
        write_planted(run, plants)
        tasks = tasks_of(run)
        for scorer in scorers:
            _prepare_folder(run, scorer, {task.file for task in tasks})
    return tasks


def tasks_of(run: RunFolder) -> list[Task]:
    """Return every file of scores that a scorer of this run has to make."""
    sources = {"captions": run.captions, "planted": run.planted}
    tasks = []
    for name, path in sources.items():
        for number, start in enumerate(starts_of(path, ROWS)):
            tasks.append(Task(name, number, start))
    return tasks


def _prepare_folder(run: RunFolder, scorer: Scorer, files: set[str]) -> None:
    folder = run.scores / scorer.name
    about = {"scorer": scorer.name, "decoys": scorer.decoys, **scorer.about()}
    if scorer.learns:
        about["captions"] = xxhash.xxh64_hexdigest(run.captions.read_bytes())
    about = json.loads(json.dumps(about))
    if (folder / ABOUT).is_file() and read_object(folder / ABOUT) != about:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ABOUT).is_file():
        write_object(folder / ABOUT, about)
    for old in folder.glob("*-*.jsonl"):
        if old.name not in files:
            old.unlink()  # of a run that had more captions


class Scoring:
    """One scorer's work on a run that is prepared; it learns, where it does, before the first file
    that is not there.
    """

    def __init__(self, run: RunFolder, scorer: Scorer) -> None:
        self.run, self.scorer = run, scorer
        self.folder = run.scores / scorer.name
        self.positions = {row["id"]: row["position"] for row in read_lines(run.selected)}
        self.bank: list[tuple[str, Any]] = []
        self.last: tuple[str | None, Any] = ("", None)
        self.learned = not scorer.learns

    def make(self, task: Task) -> bool:
        """Write one file of scores; False when it is there already."""
        source = self.run.captions if task.name == "captions" else self.run.planted
        rows = list(itertools.islice(read_lines(source, task.start), ROWS))
        path = self.folder / task.file
        if _same(path, rows):
            return False
        if not self.learned:
            self.scorer.fit(self._pairs())
            self.learned = True
        write_lines(path, map(self._scored, rows))
        return True

    def _pairs(self) -> Iterator[tuple[str, Any, list[Piece]]]:
        """What a scorer that learns learns from."""
        rows = (row for row in read_lines(self.run.captions) if row["outcome"] == OK)
        for row in rows:
            yield row["image"], self._look(row), _pieces(row)

    def _scored(self, row: Row) -> Row:
        result = {"id": row["id"], "texts": texts_hash(row)}
        if row["outcome"] != OK:
            return {**result, "global": None, "parts": []}
        pieces = _pieces(row)
        if not self.scorer.scores_parts:
            pieces = pieces[:1]
        judge = self.scorer.of_image(row["image"])
        bank = [look for image, look in self._bank() if image != row["image"]]
        bank = bank[: self.scorer.decoys]
        # Not the same one for all captions: an odd image fits none, and would flatter the scorer.
        other = int(row["image"][:8], 16) % len(bank)
        found = piece_scores(judge, self._look(row), bank, pieces, other)
        values = [_without_nan(numbers) for numbers in found.round(5).tolist()]
        values += [[None] * 4] * (1 + len(row["parts"]) - len(pieces))
        return {**result, "global": values[0], "parts": values[1:]}

    def _bank(self) -> list[tuple[str, Any]]:
        """(hash, look) of the decoys: the first images of the selection, and one to spare."""
        if not self.bank:
            rows = itertools.islice(read_lines(self.run.captions), self.scorer.decoys + 1)
            self.bank = [(row["image"], self._look(row)) for row in rows]
        return self.bank

    def _look(self, row: Row) -> Any:
        """What the scorer sees of a caption's image; copies of one caption share it."""
        of = row.get("of", row["id"])
        if self.last[0] != of:
            position = np.array([self.positions[of]])
            self.last = (
                of,
                self.scorer.look(_opened(next(read_images(self.run, position)).images[0])),
            )
        return self.last[1]


def _without_nan(numbers: list[float]) -> list[float | None]:
    """The numbers of a piece; no numbers where the scorer has nothing to say about it."""
    if math.isnan(numbers[0]):
        return [None] * len(numbers)
    return list(numbers)


def _opened(data: bytes) -> Image.Image:
    return read_image(data).convert("RGB")


def _pieces(row: Row) -> list[Piece]:
    return [Piece(row["global"]), *(Piece(part["what"], part["where"]) for part in row["parts"])]


def _same(path: Path, rows: list[Row]) -> bool:
    """Whether a file holds the scores of these very rows."""
    if not path.is_file():
        return False
    there = [(line["id"], line["texts"]) for line in read_lines(path)]
    return there == [(row["id"], texts_hash(row)) for row in rows]
