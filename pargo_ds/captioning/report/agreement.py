"""Do the scorers agree? The rank correlation of each pair's scores, and their votes, chance aside.

Scorers that say the same add nothing to each other; scorers that agree no more than by chance cannot
both be right. Wholes and parts are apart, since a part's score is of one cell.
"""

from __future__ import annotations

import itertools
import math
from array import array
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pargo_ds.captioning.decide.decide import Settings, kinds_against, thresholds_of
from pargo_ds.captioning.report.statistics import average_ranks
from pargo_ds.captioning.run_files import RunFolder, read_lines
from pargo_ds.captioning.score.planted import WHOLE
from pargo_ds.captioning.score.scores import Scores, read_scores, scorers_of
from pargo_ds.errors import CaptionError
from pargo_ds.inspection.tables import Table


class Judged(NamedTuple):
    """What one scorer says of each piece: its score (pieces,), NaN where it has none, and whether it
    votes against it.
    """

    scores: NDArray[np.float64]
    against: NDArray[np.bool_]


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Return Spearman's rank correlation of two (n,) series, equal values sharing their mean rank;
    None where one of them is constant.
    """
    ranks = [average_ranks(values) for values in (one, other)]
    first, second = (values - values.mean() for values in ranks)
    spread = math.sqrt(float(first @ first) * float(second @ second))
    if spread == 0:
        return None
    return float(first @ second) / spread


def kappa(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float | None:
    """Return Cohen's kappa (1960) of two (n,) series of votes: 1 for the same votes, 0 for as many
    equal ones as by chance; None where chance alone would make all of them equal.
    """
    equal = float((one == other).mean())
    p, q = float(one.mean()), float(other.mean())
    chance = p * q + (1 - p) * (1 - q)
    if chance == 1:
        return None
    return (equal - chance) / (1 - chance)


def compare(one: Judged, other: Judged) -> dict[str, Any]:
    """Return how far two scorers agree about the pieces that both have scored: their number, the
    rank correlation of the scores, the share of equal votes, kappa, and the votes of each.
    """
    both = ~(np.isnan(one.scores) | np.isnan(other.scores))
    pieces = int(both.sum())
    if not pieces:
        return {"pieces": 0, "rank_correlation": None, "equal_votes": None, "kappa": None,
                "against": [0, 0], "both_against": 0}  # fmt: skip
    votes = one.against[both], other.against[both]
    return {
        "pieces": pieces,
        "rank_correlation": rank_correlation(one.scores[both], other.scores[both]),
        "equal_votes": float((votes[0] == votes[1]).mean()),
        "kappa": kappa(*votes),
        "against": [int(vote.sum()) for vote in votes],
        "both_against": int((votes[0] & votes[1]).sum()),
    }


def agreement_of(run: RunFolder, account: dict[str, Any]) -> dict[str, Any]:
    """Return {"pairs": what `compare` gives for each pair of scorers and kind of piece, "left_out":
    scorers whose scores are of other captions}.

    Every scorer that has scored counts, whether it voted or not (`--use`); `account` is that of the
    decisions, whose percentages hold.
    """
    settings = Settings(
        lowest=account["settings"]["lowest"], lowest_parts=account["settings"]["lowest_parts"]
    )
    judged, left_out = {}, []
    for name in scorers_of(run):
        limits = account["thresholds"].get(name)
        if limits is None:
            limits = thresholds_of(run, [name], settings)[name]
        try:
            judged[name] = _judged(run, name, limits)
        except CaptionError:
            left_out.append(name)
    pairs = []
    for one, other in itertools.combinations(judged, 2):
        for kind in ("global", "part"):
            found = compare(judged[one][kind], judged[other][kind])
            pairs.append({"scorers": [one, other], "kind": kind, **found})
    return {"pairs": pairs, "left_out": left_out}


def _judged(run: RunFolder, name: str, limits: dict[str, float]) -> dict[str, Judged]:
    """Kind of piece -> what a scorer says of all of them; raises CaptionError when its scores are
    not of these captions.
    """
    scores = {"global": array("d"), "part": array("d")}
    against = {"global": array("b"), "part": array("b")}
    stream = read_scores(run, name)
    for row in read_lines(run.captions):
        own = Scores.checked(next(stream, None), row, name)
        for piece in range(WHOLE, len(row["parts"])):
            kind = "global" if piece == WHOLE else "part"
            value = own.of(piece, kind)
            scores[kind].append(math.nan if value is None else value)
            against[kind].append(bool(kinds_against(piece, own, limits)))
    return {kind: Judged(np.array(scores[kind]), np.array(against[kind], bool)) for kind in scores}


def agreement_table(agreement: dict[str, Any]) -> Table:
    """Return the table of the pages."""
    rows = []
    for pair in agreement["pairs"]:
        votes = ", ".join(f"{count:,}" for count in pair["against"])
        rows.append(
            (
                " and ".join(pair["scorers"]),
                pair["kind"],
                f"{pair['pieces']:,}",
                _number(pair["rank_correlation"], ".3f"),
                _number(pair["equal_votes"], ".1%"),
                _number(pair["kappa"], ".3f"),
                f"{votes}; {pair['both_against']:,}",
            )
        )
    title = "Agreement of the scorers"
    if agreement["left_out"]:
        names = ", ".join(agreement["left_out"])
        title += f" (left out, because they scored other captions: {names})"
    header = ("scorers", "kind", "pieces", "rank correlation", "equal votes", "kappa",
              "votes against: each; both")  # fmt: skip
    return Table(title, header, rows)


def _number(value: float | None, form: str) -> str:
    if value is None:
        return "none"
    return format(value, form)
