"""The dataset card of a run: what a stranger must know before training on its captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pargo_ds.inspection.tables import Bars, Block, Table

CARD = """\
---
task_categories: [image-to-text]
pretty_name: Captions of whole images and their parts
---
# Captions of whole images and of their parts

Made with pargo_ds (tools/caption.py): images were selected, described by a captioner, scored, and kept when nothing
spoke against the caption; parts that did not fit were cut out. Each sample's `meta.caption` says who described it with
which prompt, what it cost, and what was cut out and why.

- captioner: {models}
- prompt: {prompts}
- scorers: {scorers}

The images keep the licences of their sources, which are in each sample's `license`. The captions are a model's: they
may be wrong (see below how much of planted faults the filter finds), and the terms of the model's provider hold for
what may be trained on them. Nobody has looked for persons, private data or unlawful images: use sources that have been.

{tables}
"""


def card(found: dict[str, Any], blocks: Sequence[Block]) -> str:
    """Return the README.md of a run, from what the report found."""
    return CARD.format(
        models=_named(found["models"]),
        prompts=_named(found["prompts"]),
        scorers=", ".join(found["decisions"]["scorers"]) or "none; the texts alone were looked at",
        tables="\n\n".join(map(_markdown, blocks)),
    )


def _named(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())


def _markdown(block: Block) -> str:
    rows: Sequence[Sequence[str]]
    header: Sequence[str]
    if isinstance(block, Bars):
        rows = [(label, f"{count:,}", f"{share:.1%}") for label, count, share in block.shares()]
        header = ("", "number", "share")
    else:
        assert isinstance(block, Table)
        rows, header = block.rows, block.header
    if not rows:
        return f"## {block.title}\n\nnone"
    lines = [_line(cells) for cells in (header, ["---"] * len(header), *rows)]
    return f"## {block.title}\n\n" + "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    """One line of a table in Markdown."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
