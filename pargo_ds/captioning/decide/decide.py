"""Fourth stage: what is kept of each caption, and why the rest is not. Pure but for reading files.

The rules of the text speak for themselves. Scores are compared within their kind (of whole images,
of parts), because detailed captions score lower than short ones: a piece has a scorer's vote
against it when it lies among the lowest of its kind, and goes when enough scorers agree. A wrong
part is cut out; only a wrong whole loses the caption. All reasons are kept, those too that did not
suffice.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pargo_ds.captioning.answer import Part, detailed_caption
from pargo_ds.captioning.ask.captions import OK
from pargo_ds.captioning.run_files import (
    Row,
    RunFolder,
    needed,
    read_lines,
    write_lines,
    write_object,
)
from pargo_ds.captioning.score.planted import WHOLE, write_planted
from pargo_ds.captioning.score.scores import Scores, read_scores, scorers_of
from pargo_ds.captioning.text_rules import (
    TextRules,
    global_problems,
    part_problems,
    without_opening,
    words_of,
)

KINDS = ("global", "part", "place")


@dataclass(frozen=True)
class Settings:
    """`lowest` and `lowest_parts` in percent of their kind; `votes` of the scorers decide (None:
    two, or one where there is one scorer); captions with fewer than `least_parts` parts are dropped.
    """

    text: TextRules = TextRules()
    lowest: float = 5.0
    lowest_parts: float = 5.0
    votes: int | None = None
    least_parts: int = 0

    def __post_init__(self) -> None:
        for name in ("lowest", "lowest_parts"):
            if not 0 <= getattr(self, name) < 100:
                raise ValueError(
                    f"{name} is {getattr(self, name)} percent; expected 0 to below 100"
                )
        if self.votes is not None and self.votes < 1:
            raise ValueError(f"votes is {self.votes}; expected at least 1")

    def votes_of(self, scorers: int) -> int:
        """Return the votes that decide among so many scorers."""
        if self.votes is None:
            return min(2, scorers)
        return self.votes


Thresholds = dict[str, dict[str, float]]
"""Scorer -> kind -> the score below which a piece lies among the lowest."""


def decide_row(
    row: Row, scores: dict[str, Scores], thresholds: Thresholds, settings: Settings
) -> Row:
    """Return the decision about one caption (its row of captions.jsonl, and each scorer's scores of
    it).

    `kept`, the `global` caption and `parts` that remain, `detailed` (what training reads), the
    reasons against the whole (`reasons`), and `cut`, the parts that go with theirs.
    """
    decision = {name: row[name] for name in ("id", "image", "coarse", "provenance")}
    if row["outcome"] != OK:
        reason = next(iter(row["notes"]), "no caption")
        return {**decision, "kept": False, "global": "", "parts": [], "detailed": "", "cut": [],
                "reasons": {row["outcome"]: reason}, "weak": {}}  # fmt: skip
    votes = settings.votes_of(len(scores))
    whole = without_opening(row["global"])
    reasons = global_problems(whole, settings.text)
    strong, weak = _votes(WHOLE, scores, thresholds, votes)
    reasons |= strong
    parts, cut = [], []
    seen: set[tuple[str, str]] = set()
    for place, part in enumerate(row["parts"]):
        what = without_opening(part["what"])
        against = part_problems(what, settings.text)
        if (part["where"], what) in seen:
            against["said before"] = "an earlier part says the same of the same place"
        seen.add((part["where"], what))
        strong, of_part = _votes(place, scores, thresholds, votes)
        against |= strong
        weak |= {f"part {place}: {name}": said for name, said in of_part.items()}
        if against:
            cut.append({"part": place, **part, "reasons": against})
        else:
            parts.append({"where": part["where"], "what": what})
    detailed = detailed_caption(whole, [Part(**part) for part in parts])
    reasons |= _sum_problems(detailed, parts, settings)
    return {**decision, "kept": not reasons, "global": whole, "parts": parts,
            "detailed": detailed, "cut": cut, "reasons": reasons, "weak": weak}  # fmt: skip


def _sum_problems(detailed: str, parts: list[Any], settings: Settings) -> dict[str, str]:
    problems = {}
    words = len(words_of(detailed))
    if not settings.text.least_words <= words <= settings.text.most_words:
        problems["length"] = (
            f"{words} words in all; {settings.text.least_words} to {settings.text.most_words} are "
            "expected"
        )
    if len(parts) < settings.least_parts:
        problems["too few parts"] = f"{len(parts)} parts; at least {settings.least_parts}"
    return problems


def _votes(
    piece: int, scores: dict[str, Scores], thresholds: Thresholds, needed_votes: int
) -> tuple[dict[str, str], dict[str, str]]:
    """(reasons that decide, reasons that do not suffice) of the scorers against a piece."""
    found: dict[str, str] = {}
    against = 0
    for name, own in scores.items():
        limits = thresholds[name]
        kinds = kinds_against(piece, own, limits)
        against += bool(kinds)
        for kind in kinds:
            found[f"{kind} {name}"] = f"{own.of(piece, kind):.3f} is below {limits[kind]:.3f}"
    if against >= needed_votes:
        return found, {}
    return {}, found


def kinds_against(piece: int, own: Scores, limits: dict[str, float]) -> list[str]:
    """Return the kinds of a piece's scores that are below their limits; a scorer votes against the
    piece when there is one.
    """
    found = []
    for kind in KINDS:
        value, limit = own.of(piece, kind), limits.get(kind)
        if value is not None and limit is not None and value < limit:
            found.append(kind)
    return found


def thresholds_of(run: RunFolder, scorers: list[str], settings: Settings) -> Thresholds:
    """Return the percentiles of all scores of real captions, each kind for itself; 8 bytes a score."""
    found: Thresholds = {}
    for name in scorers:
        values = {kind: array("d") for kind in KINDS}
        for scores in read_scores(run, name):
            if scores.whole is not None:
                values["global"].append(scores.whole)
            values["part"].extend(value for value in scores.parts if value is not None)
            values["place"].extend(value for value in scores.places if value is not None)
        percents = {
            "global": settings.lowest,
            "part": settings.lowest_parts,
            "place": settings.lowest_parts,
        }
        found[name] = {}
        for kind in KINDS:
            if values[kind]:
                limit = np.percentile(np.frombuffer(values[kind]), percents[kind])
                found[name][kind] = float(limit)
    return found


@dataclass
class Tally:
    """Counts of one kind of caption: real ones, or copies with one kind of fault."""

    all: int = 0
    found: int = 0

    def as_dict(self) -> dict[str, float]:
        """Return {"all", "found", "share", "low", "high"}: a Wilson interval of 95 %."""
        low, high = wilson(self.found, self.all)
        share = self.found / max(1, self.all)
        return {"all": self.all, "found": self.found, "share": share, "low": low, "high": high}


def wilson(found: int, of: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share (1927); (0, 1) for none of none."""
    if of == 0:
        return 0.0, 1.0
    z, share = 1.959964, found / of
    middle = share + z * z / (2 * of)
    spread = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    scale = 1 + z * z / of
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


@dataclass
class Found:
    """The account of all decisions."""

    captions: int = 0
    kept: int = 0
    parts: int = 0
    parts_cut: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    part_reasons: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row, decision: Row) -> None:
        """Count one decision."""
        self.captions += 1
        self.kept += decision["kept"]
        self.parts += len(row["parts"])
        self.parts_cut += len(decision["cut"])
        self.reasons.update(decision["reasons"].keys())
        for part in decision["cut"]:
            self.part_reasons.update(part["reasons"].keys())


def decide(
    run: RunFolder, settings: Settings, scorers: list[str] | None = None, *, plants: int = 400
) -> dict[str, Any]:
    """Decide about all captions and about copies with planted faults; writes decisions.jsonl and
    returns its account (decisions.json).

    `scorers`: None for all that have scored. Copies are those that were scored, else `plants`
    captions are copied now. Raises CaptionError when scores are missing or those of other captions.
    """
    needed(run.captions, "caption")
    names = scorers
    if names is None:
        names = scorers_of(run)
    thresholds = thresholds_of(run, names, settings)
    found = Found()
    bases: dict[str, tuple[bool, int, int]] = {}
    if not names:
        write_planted(run, plants)
    of_plants = {row["of"] for row in read_lines(needed(run.planted, "score"))}

    def rows() -> Iterator[Row]:
        for row, scores in _with_scores(run, names):
            decision = decide_row(row, scores, thresholds, settings)
            found.add(row, decision)
            if row["id"] in of_plants:
                bases[row["id"]] = decision["kept"], len(row["parts"]), len(decision["cut"])
            yield decision

    write_lines(run.decisions, rows())
    account = {
        "settings": asdict(settings),
        "scorers": names,
        "votes": settings.votes_of(len(names)),
        "thresholds": thresholds,
        "captions": found.captions,
        "kept": found.kept,
        "parts": found.parts,
        "parts_cut": found.parts_cut,
        "reasons": dict(found.reasons.most_common()),
        "part_reasons": dict(found.part_reasons.most_common()),
        "originals": _originals(bases),
        "planted": _recall(run, names, thresholds, settings),
    }
    write_object(run.decided, account)
    return account


def _originals(bases: dict[str, tuple[bool, int, int]]) -> dict[str, Any]:
    """What happens to the unchanged captions that were copied: false drops, where they are true."""
    dropped = Tally(len(bases), sum(not kept for kept, _, _ in bases.values()))
    cut = Tally(
        sum(parts for _, parts, _ in bases.values()), sum(cut for _, _, cut in bases.values())
    )
    return {"dropped": dropped.as_dict(), "parts cut": cut.as_dict()}


def _recall(
    run: RunFolder, names: list[str], thresholds: Thresholds, settings: Settings
) -> dict[str, Any]:
    """Fault -> how many of its copies were found: dropped, or the guilty part cut out."""
    tallies: dict[str, Tally] = {}
    for row, scores in _with_scores(run, names, planted=True):
        decision = decide_row(row, scores, thresholds, settings)
        tally = tallies.setdefault(row["fault"], Tally())
        tally.all += 1
        guilty_cut = row["guilty"] in [part["part"] for part in decision["cut"]]
        tally.found += guilty_cut or not decision["kept"]
    return {kind: tally.as_dict() for kind, tally in tallies.items()}


def _with_scores(
    run: RunFolder, names: list[str], *, planted: bool = False
) -> Iterator[tuple[Row, dict[str, Scores]]]:
    """Rows of captions (or planted copies), each with all scorers' scores of it."""
    streams = {name: read_scores(run, name, planted=planted) for name in names}
    for row in read_lines(run.planted if planted else run.captions):
        scores = {name: next(stream, None) for name, stream in streams.items()}
        yield row, {name: Scores.checked(own, row, name) for name, own in scores.items()}
