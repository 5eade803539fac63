"""Results of several exports as a page, a JSON file and Markdown rows."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from string import Template
from typing import Any

from pargo_ds.files.figures_json import figures_json
from pargo_ds.files.whole_file import write_whole
from pargo_ds.inspection.page import blocks_html
from pargo_ds.inspection.results import Change, Results
from pargo_ds.inspection.tables import Table

PAGE = Path(__file__).with_name("results.html.template").read_text(encoding="utf-8")
NONE = "—"
MOST_CHANGES = 40
"""Number of changes that are shown of each benchmark and export; all of them stand in the JSON
file.
"""


def write_results(results: Results, folder: Path) -> list[Path]:
    """Write results.html, results.json and results.md, each whole or absent, and return their
    paths.
    """
    content = {
        "results.html": render_page(results),
        "results.json": figures_json(asdict(results)),
        "results.md": markdown(results),
    }
    for name, text in content.items():
        write_whole(folder / name, text)
    return [folder / name for name in content]


def interval(values: Mapping[str, float] | None, sign: str = "") -> str:
    """Return an interval such as `145.3 [123.3, 167.3]`; a dash where there is no number."""
    if values is None or not math.isfinite(values["value"]):
        return NONE
    return f"{values['value']:{sign}.1f} [{values['low']:{sign}.1f}, {values['high']:{sign}.1f}]"


def markdown(results: Results) -> str:
    """Return a row for each export: the headline of each benchmark with its 95 % interval."""
    heads = [_headline(results, name) for name in results.benchmarks]
    lines = [f"| export | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for export, found in results.scores.items():
        cells = [_own(found.get(name)) for name in results.benchmarks]
        lines.append(f"| {export.replace('|', ' ')} | {' | '.join(cells)} |")
    scored = chain.from_iterable(found.values() for found in results.scores.values())
    if not all(one["complete"] for one in scored):
        lines += ["", "\\* a part of the benchmark: not comparable with published figures"]
    return "\n".join(lines) + "\n"


def _headline(results: Results, name: str) -> str:
    found = next(found[name] for found in results.scores.values() if name in found)
    return f"{found['title']}, {found['headline']} ({found['unit']})"


def _own(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return NONE
    cell = interval(found["figures"][found["headline"]])
    if found["images"] != "real":
        cell += f", images {found['images']}"
    if not found["complete"]:
        cell += " \\*"
    return cell


def render_page(results: Results) -> str:
    """Return the whole page, which is self-contained; everything in it is escaped."""
    blocks = [headlines(results), *(subtasks(results, name) for name in results.benchmarks)]
    blocks.append(faults(results))
    for export, found in results.changes.items():
        blocks += [changes(results.first, export, name, list_) for name, list_ in found.items()]
    return Template(PAGE).substitute(
        first=html.escape(results.first),
        exports=html.escape(", ".join(f"{k} ({v})" for k, v in results.folders.items())),
        blocks=blocks_html(blocks),
    )


def headlines(results: Results) -> Table:
    """Return a table of benchmarks by exports; below each figure's row stand the differences to the
    first export.
    """
    rows = []
    for name in results.benchmarks:
        row = [_headline(results, name)]
        for found in results.scores.values():
            row.append(_own(found.get(name)).replace(" \\*", " *"))
        rows.append(row)
        if results.changes:
            rows.append(["", *_differences(results, name)])
    title = "Benchmarks, with 95 % intervals; below each, the difference to the first export"
    return Table(title, ["", *results.folders], rows)


def _differences(results: Results, name: str) -> list[str]:
    """Of the headline, a cell for each export; a dash for the first."""
    cells = []
    for found in results.scores.values():
        one = found.get(name, {})
        cells.append(interval(one.get("difference", {}).get(one.get("headline")), sign="+"))
    return cells


def subtasks(results: Results, name: str) -> Table:
    """Return every figure of a benchmark: a column for each export, then one for each
    difference.
    """
    asked = {export: found[name] for export, found in results.scores.items() if name in found}
    figures = dict.fromkeys(chain.from_iterable(found["figures"] for found in asked.values()))
    compared = [export for export, found in asked.items() if "difference" in found]
    rows = []
    for figure in figures:
        own = [interval(found["figures"].get(figure)) for found in asked.values()]
        less = [interval(asked[export]["difference"].get(figure), "+") for export in compared]
        rows.append([figure, *own, *less])
    columns = [*asked, *(f"{export} less {results.first}" for export in compared)]
    title = next(iter(asked.values()))["title"]
    return Table(f"{title} by subtask", ["", *columns], rows)


def faults(results: Results) -> Table:
    """Return how each benchmark was asked, and how many answers were of no use."""
    header = ["", "export", "prompt", "images", "questions", "unparsed", "empty", "cut",
              "yes-ratio", "within rounding"]  # fmt: skip
    rows = []
    for name in results.benchmarks:
        for export, scores in results.scores.items():
            if name not in scores:
                continue
            found = scores[name]
            counts = [f"{found[key]:,}" for key in ("asked", "unparsed", "empty", "cut")]
            shares = [_share(found[key]) for key in ("yes", "close")]
            rows.append(
                [found["title"], export, found["prompt"], found["images"], *counts, *shares]
            )
    return Table("How they were asked", header, rows)


def _share(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.1%}"


def changes(first: str, export: str, name: str, found: list[Change]) -> Table:
    """Return the questions that changed sides, with what both exports said."""
    won = sum(change.won for change in found)
    images = len({change.images for change in found})
    title = (
        f"{name}: on {images:,} images {export} wins {won:,} questions and loses "
        f"{len(found) - won:,} against {first}"
    )
    rows = [_change_row(change) for change in found[:MOST_CHANGES]]
    if len(found) > MOST_CHANGES:
        rows.append([f"and {len(found) - MOST_CHANGES:,} more in results.json", *[""] * 5])
    return Table(title, ["image", "question", "truth", first, export, ""], rows)


def _change_row(change: Change) -> list[str]:
    images, question = ", ".join(change.images), change.prompt.replace("<image>", "").strip()
    outcome = "won" if change.won else "lost"
    return [images, question, str(change.truth), change.first, change.other, outcome]
