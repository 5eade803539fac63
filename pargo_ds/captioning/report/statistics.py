"""Numbers of a run for its report, gathered line by line: lengths of the captions, score histograms."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pargo_ds.captioning.run_files import Row, RunFolder
from pargo_ds.captioning.score.scores import read_scores
from pargo_ds.captioning.text_rules import words_of
from pargo_ds.inspection.distributions import Distribution
from pargo_ds.inspection.tables import Bars, Block, Table

MOST_PAIRS = 2_000_000
"""Different pairs of words that are told apart; memory is bounded by it."""
BINS = 16


class Texts:
    """Lengths of one kind of text."""

    def __init__(self) -> None:
        self.characters, self.words = Distribution(), Distribution()
        self.pairs: set[int] = set()

    def add(self, text: str) -> None:
        """Count one text."""
        words = words_of(text)
        self.characters.add(len(text))
        self.words.add(len(words))
        if len(self.pairs) < MOST_PAIRS:
            self.pairs.update(map(hash, zip(words, words[1:], strict=False)))

    def row(self, name: str) -> Sequence[str]:
        """Return the row of the table of lengths; a plus says that more pairs are there than
        counted.
        """
        pairs = f"{len(self.pairs):,}"
        if len(self.pairs) >= MOST_PAIRS:
            pairs += "+"
        middle = f"{self.words.quantile(0.5):,}"
        return (name, f"{self.words.count:,}", f"{self.characters.mean:.1f}",
                f"{self.words.mean:.1f}", middle, f"{self.words.greatest:,}", pairs)  # fmt: skip


@dataclass
class Lengths:
    """The paper's table 1: what was made, beside the alt texts."""

    coarse: Texts = field(default_factory=Texts)
    whole: Texts = field(default_factory=Texts)
    detailed: Texts = field(default_factory=Texts)
    parts: Distribution = field(default_factory=Distribution)

    def add(self, decision: Row) -> None:
        """Count a kept caption."""
        if decision["coarse"]:
            self.coarse.add(decision["coarse"])
        self.whole.add(decision["global"])
        self.detailed.add(decision["detailed"])
        self.parts.add(len(decision["parts"]))

    def blocks(self) -> list[Block]:
        """Return the table, and the parts of a caption."""
        rows = [
            self.coarse.row("alt text (coarse)"),
            self.whole.row("global caption"),
            self.detailed.row("detailed caption"),
        ]
        header = ("kept captions", "number", "characters", "words", "median words", "most words",
                  "different pairs of words")  # fmt: skip
        blocks: list[Block] = [Table("Captions (characters and words: means)", header, rows)]
        if self.parts.count:
            blocks.append(Bars("Parts of a caption", self.parts.even_bins(9)))
        return blocks


def average_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ranks of (n,) values, from 1; equal ones share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def auc(better: NDArray[np.float64], worse: NDArray[np.float64]) -> float:
    """Return the share of pairs in which the first one is larger, ties counting half
    (Mann-Whitney).
    """
    ranks = average_ranks(np.concatenate([better, worse]))
    n, m = len(better), len(worse)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def score_blocks(run: RunFolder, name: str, thresholds: dict[str, float]) -> list[Block]:
    """Return for one scorer: histograms of the scores of wholes and parts, the cut in them, and
    beside them what other images get.
    """
    own = {"global": array("d"), "part": array("d")}
    decoys = {"global": array("d"), "part": array("d")}
    for scores in read_scores(run, name):
        if scores.whole is not None:
            own["global"].append(scores.whole)
            decoys["global"].append(scores.decoys[0] or 0.0)
        for part, decoy in zip(scores.parts, scores.decoys[1:], strict=True):
            if part is not None:
                own["part"].append(part)
                decoys["part"].append(decoy or 0.0)
    blocks: list[Block] = []
    for kind in own:
        if own[kind]:
            values, others = np.array(own[kind]), np.array(decoys[kind])
            blocks.append(_histogram(name, kind, values, others, thresholds.get(kind)))
    return blocks


def _histogram(
    name: str,
    kind: str,
    own: NDArray[np.float64],
    decoys: NDArray[np.float64],
    cut: float | None,
) -> Table:
    low, high = np.quantile(np.concatenate([own, decoys]), [0.005, 0.995])
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    counts = [np.histogram(np.clip(values, *edges[[0, -1]]), edges)[0] for values in (own, decoys)]
    rows = []
    for start, end, found, other in zip(edges, edges[1:], *counts, strict=False):
        mark = ""
        if cut is not None and start <= cut < end:
            mark = "cut"
        rows.append((f"{start:.2f} to {end:.2f}", f"{found:,}", f"{other:,}", mark))
    title = f"{name}, {kind}: own image above another one in {auc(own, decoys):.1%} of pairs"
    return Table(
        title, ("standard deviations above the decoys", "own image", "another image", ""), rows
    )
