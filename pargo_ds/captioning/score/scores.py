"""Scores on the disk: one folder a scorer, so that adding one recomputes nothing.

    RUN/scores/NAME/about.json           what scored: its settings, weights' hashes, its decoys
                    captions-00000.jsonl  500 captions each, whole or absent
                    planted-00000.jsonl   the copies with planted faults

A line is {"id", "texts": hash, "global": [raw, score, place, decoy], "parts": [[...], ...]}: `score`
is the raw one against the decoys, `place` beside the other cells, `decoy` what another image gets
(scorers/base.py). Null: not scored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from pargo_ds.captioning.run_files import Row, RunFolder, read_lines
from pargo_ds.errors import CaptionError

ABOUT = "about.json"


def texts_hash(row: Row) -> str:
    """Return what stands for a caption's texts and places: scores of others are not taken for its
    own.
    """
    said = json.dumps([row["global"], row["parts"]], sort_keys=True)
    return xxhash.xxh64_hexdigest(said.encode())


@dataclass(frozen=True)
class Scores:
    """One scorer's normalised scores of a caption: of the whole (None: not scored) and the parts."""

    id: str
    texts: str
    whole: float | None
    parts: tuple[float | None, ...]
    places: tuple[float | None, ...] = ()
    """How much better each part fits its own cell than the other ones."""
    decoys: tuple[float | None, ...] = ()
    """What the whole, then each part, gets with another image."""

    def of(self, piece: int, kind: str) -> float | None:
        """Return the score of a piece: of the whole (-1), or of a part (from 0) or its place."""
        if kind == "global":
            return self.whole if piece < 0 else None
        values = self.parts if kind == "part" else self.places
        if not 0 <= piece < len(values):
            return None
        return values[piece]

    @staticmethod
    def checked(own: Scores | None, row: Row, name: str) -> Scores:
        """Return the scores themselves. Raises CaptionError when they are not those of this
        caption.
        """
        if own is None or own.id != row["id"] or own.texts != texts_hash(row):
            raise CaptionError(
                f"the scores of {name} are not those of caption {row['id']}: the captions have "
                f"changed. Run tools/caption.py score with --scorers {name}"
            )
        return own


def scorers_of(run: RunFolder) -> list[str]:
    """Return the names of the scorers that have scored, in the order of the alphabet."""
    return sorted(path.parent.name for path in run.scores.glob(f"*/{ABOUT}"))


def part_files(folder: Path, planted: bool) -> list[Path]:
    """Return the finished parts of a scorer, in order."""
    kind = "planted" if planted else "captions"
    return sorted(folder.glob(f"{kind}-[0-9]*.jsonl"))


def read_scores(run: RunFolder, name: str, *, planted: bool = False) -> Iterator[Scores]:
    """Read the scores of all captions (or planted copies), in their order.

    Raises CaptionError when the scorer has not scored.
    """
    folder = run.scores / name
    if not (folder / ABOUT).is_file():
        raise CaptionError(
            f"{name} has not scored {run.path}; there are {', '.join(scorers_of(run)) or 'none'}. Run "
            f"tools/caption.py score {run.path} --scorers {name}"
        )
    for path in part_files(folder, planted):
        for row in read_lines(path):
            of_whole = row["global"] or [None] * 4
            decoys = [of_whole, *row["parts"]]
            yield Scores(
                id=row["id"],
                texts=row["texts"],
                whole=of_whole[1],
                parts=tuple(values[1] for values in row["parts"]),
                places=tuple(values[2] for values in row["parts"]),
                decoys=tuple(values[3] for values in decoys),
            )
