"""Public figures beside a study's own, with where they were read.

They are of other training data, other budgets and other code, of one seed each and without
intervals. Nothing is claimed about their difference to a study's figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HONEYBEE = "Honeybee, arXiv 2312.06742, as printed in khanrc/honeybee; Vicuna-7B"
PARGO = "ParGo, arXiv 2408.12928, abstract"
COLUMNS = {
    "MMB": ("mmbench", "MMBench, overall"),
    "MME": ("mme", "MME, perception + cognition"),
    "SEED-I": ("seed", "SEED-Bench, image part"),
}
"""Column -> (benchmark of this project, what it is)."""


@dataclass(frozen=True)
class Row:
    """A published model."""

    name: str
    figures: Mapping[str, float]
    source: str


ROWS = (
    Row(
        "Honeybee C-Abstractor, 144 tokens", {"MMB": 70.1, "MME": 1891.3, "SEED-I": 64.5}, HONEYBEE
    ),
    Row(
        "Honeybee D-Abstractor, 144 tokens", {"MMB": 70.8, "MME": 1835.5, "SEED-I": 63.8}, HONEYBEE
    ),
    Row(
        "Honeybee C-Abstractor, 256 tokens", {"MMB": 71.0, "MME": 1951.3, "SEED-I": 65.5}, HONEYBEE
    ),
)
CLAIM = ("ParGo minus a Q-Former projector, MME", 259.96, PARGO)


def beside_published(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the published rows, then a row for each variant, as a table; "—" where a benchmark was
    not asked.
    """
    head = f"{'':<36}" + "".join(f"{name:>9}" for name in COLUMNS)
    lines = ["", "published, and this study (means over seeds)", head]
    for row in ROWS:
        lines.append(_line(row.name, row.figures) + f"  {row.source}")
    for variant, own in scores.items():
        lines.append(_line(variant, own_figures(own)) + "  this study")
    name, value, source = CLAIM
    lines += ["", f"{name}: {value:+.2f}  ({source})"]
    if (ours := claim_of(scores)) is not None:
        lines.append(f"the same of this study: {ours:+.2f}")
    lines.append(
        "Other data, budgets and code, one seed each: no claim is made about differences to them."
    )
    return "\n".join(lines)


def own_figures(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return the columns' figures of one variant of a study, where its benchmarks were asked."""
    found = {}
    for column, (benchmark, _) in COLUMNS.items():
        if benchmark in scores:
            own = scores[benchmark]
            found[column] = own["figures"][own["headline"]]
    return found


def claim_of(scores: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return the MME of the variant ParGo minus that of Q-Former, where a study has both."""
    pargo = own_figures(scores.get("ParGo", {})).get("MME")
    qformer = own_figures(scores.get("Q-Former", {})).get("MME")
    if pargo is None or qformer is None:
        return None
    return pargo - qformer


def _line(name: str, figures: Mapping[str, float]) -> str:
    line = f"{name:<36}"
    for column in COLUMNS:
        cell = "—"
        if column in figures:
            cell = f"{figures[column]:.1f}"
        line += f"{cell:>9}"
    return line
