"""Fifth stage: what became of the images and the money, as a page, as JSON, and as a dataset card."""

from __future__ import annotations

import html
import io
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from pargo_ds.captioning.report.agreement import agreement_of, agreement_table
from pargo_ds.captioning.report.card import card
from pargo_ds.captioning.report.statistics import Lengths, score_blocks
from pargo_ds.captioning.report.tables import decision_tables
from pargo_ds.captioning.run_files import (
    Row,
    RunFolder,
    needed,
    read_lines,
    read_object,
    write_object,
)
from pargo_ds.captioning.select.select import read_images
from pargo_ds.inspection.page import blocks_html, figure, visible
from pargo_ds.inspection.tables import Block, Table

PAGE = Path(__file__).with_name("report.html.template").read_text(encoding="utf-8")
EXAMPLES = 4
"""Images shown of each reason."""


@dataclass
class Shown:
    """Decisions that the page shows, a few of each reason."""

    of_reason: dict[str, list[tuple[int, Row]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, position: int, decision: Row) -> None:
        """Keep a decision under each of its reasons that has too few examples."""
        reasons = list(decision["reasons"])
        for part in decision["cut"]:
            reasons += part["reasons"]
        for name in reasons:
            if len(self.of_reason[name]) < EXAMPLES:
                self.of_reason[name].append((position, decision))


def report(run: RunFolder) -> dict[str, Any]:
    """Write report.html, report.json and README.md; returns what report.json holds."""
    account = read_object(needed(run.decided, "decide"))
    money, selection = read_object(run.money), read_object(run.selection)
    lengths, shown, outcomes = Lengths(), Shown(), Counter[str]()
    models, prompts = Counter[str](), Counter[str]()
    positions = (row["position"] for row in read_lines(run.selected))
    for position, decision in zip(positions, read_lines(run.decisions), strict=True):
        shown.add(position, decision)
        made = decision["provenance"]
        models[made.get("answered_by") or made.get("model", "?")] += 1
        prompts[made.get("prompt", "none")] += 1
        if decision["kept"]:
            lengths.add(decision)
            outcomes["kept"] += 1
        else:
            outcomes[next(iter(decision["reasons"]))] += 1
    found = {
        "selection": selection["funnel"],
        "money": {**money, "maybe_paid": len(money["maybe_paid"])},
        "maybe_paid": money["maybe_paid"],
        "decisions": account,
        "first_reasons": dict(outcomes.most_common()),
        "models": dict(models.most_common()),
        "prompts": dict(prompts.most_common()),
        "agreement": agreement_of(run, account),
    }
    blocks: list[Block] = [
        Table(
            "Funnel",
            ("images", "", "share of the step before"),
            _funnel(selection, account, outcomes),
        ),
        Table("Money", ("", ""), money_rows(money, account["kept"])),
        *decision_tables(account),
        *lengths.blocks(),
    ]
    if found["agreement"]["pairs"]:
        blocks.append(agreement_table(found["agreement"]))
    for name in account["scorers"]:
        blocks += score_blocks(run, name, account["thresholds"][name])
    _write_page(run, blocks, shown)
    write_object(run.path / "report.json", found)
    text = card(found, blocks)
    (run.path / "README.md").write_text(text, encoding="utf-8")
    return found


def _funnel(
    selection: dict[str, Any], account: dict[str, Any], outcomes: Counter[str]
) -> list[tuple[str, str, str]]:
    """Images from the inputs to what is kept, with what each step leaves out."""
    rows, before = [], 0
    for name, count in selection["funnel"].items():
        if count < 0:
            name = f"- {name}"
        rows.append((name, f"{abs(count):,}", _share(abs(count), before)))
        before = before or count
    before = selection["funnel"]["selected"]
    for name, count in outcomes.most_common():
        if name != "kept":
            rows.append((f"- {name}", f"{count:,}", _share(count, before)))
    kept = account["kept"]
    return [*rows, ("kept", f"{kept:,}", _share(kept, before))]


def _share(count: int, before: int) -> str:
    """The share in percent of those before; "" where there were none."""
    if not before:
        return ""
    return f"{count / before:.1%}"


def money_rows(money: dict[str, Any], kept: int) -> list[tuple[str, str]]:
    """Return what the captions cost, in dollars."""
    spent = money["spent"]
    rows = [("answers", f"{money['answers']:,}"), ("cost of them", f"${spent:,.4f}")]
    if kept:
        rows.append(("for 1,000 kept captions", f"${1000 * spent / kept:,.4f}"))
    if money["answers"]:
        for name, words in (("prompt_tokens", "tokens in"), ("completion_tokens", "tokens out")):
            mean = money[name] / money["answers"]
            rows.append((f"{words}, all and of one answer", f"{money[name]:,}, {mean:,.0f}"))
        rows.append(("spent by all runs of the ledger", f"${money['ledger_spent']:,.4f}"))
        rows.append(("of it perhaps, without an answer", f"${money['ledger_unknown']:,.4f}"))
    rows.append(("requests perhaps paid twice", f"{len(money['maybe_paid']):,}"))
    return rows


def _write_page(run: RunFolder, blocks: list[Block], shown: Shown) -> None:
    cards = []
    for reason, some in shown.of_reason.items():
        cards.append(f"<h3>{html.escape(reason)}</h3>")
        images = read_images(run, np.array([position for position, _ in some], np.int64))
        for (_, decision), sample in zip(some, images, strict=True):
            image = Image.open(io.BytesIO(sample.images[0])).convert("RGB")
            cards.append(_card(decision, figure(image, decision["id"])))
    page = Template(PAGE).substitute(
        path=html.escape(str(run.path)), blocks=blocks_html(blocks), cards="\n".join(cards)
    )
    (run.path / "report.html").write_text(page, encoding="utf-8")


def _card(decision: Row, image: str) -> str:
    lines = [f"<p>{visible(decision['global'])}</p><ul>"]
    for part in decision["parts"]:
        lines.append(f"<li>{visible(part['where'])}: {visible(part['what'])}</li>")
    for cut in decision["cut"]:
        said = json.dumps(cut["reasons"], ensure_ascii=False)
        lines.append(
            f"<li class=cut>{visible(cut['where'])}: {visible(cut['what'])}<br>{visible(said)}</li>"
        )
    lines.append("</ul>")
    for name, text in decision["reasons"].items():
        lines.append(f"<p class=cut>{visible(name)}: {visible(text)}</p>")
    return f"<section class=card>{image}<div>{''.join(lines)}</div></section>"
