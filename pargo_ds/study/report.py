"""The report of a study: report.json, report.html (self-contained) and report.png."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import Any, TypeVar

from matplotlib.figure import Figure
from PIL import Image

from pargo_ds.evaluation.figures import image_tag, to_png
from pargo_ds.files.figures_json import figures_json
from pargo_ds.files.whole_file import write_whole
from pargo_ds.inspection.attention_maps import attention_figure
from pargo_ds.study import figures
from pargo_ds.study.comparisons import BETTER, NOT_SIGNIFICANT, WORSE, Difference
from pargo_ds.study.comparisons import Figure as Number
from pargo_ds.study.findings import Attention, Cost, Example, Findings
from pargo_ds.study.results import ALL

T = TypeVar("T", bound=Number)
PAGE = (Path(__file__).parent / "report.html.template").read_text(encoding="utf-8")


def write_report(findings: Findings, folder: Path) -> list[Path]:
    """Write the three files; all are rendered before the first is written. Returns their paths."""
    content = {
        "report.json": figures_json(as_json(findings)).encode(),
        "report.html": render_html(findings).encode(),
        "report.png": render_png(findings),
    }
    for name, data in content.items():
        write_whole(folder / name, data)
    return [folder / name for name in content]


def summary(findings: Findings) -> str:
    """Return a few lines for the terminal: accuracy in the groups of claims, and every claim that
    can be made.
    """
    groups, accuracy = _claimed_groups(findings), _by_place(findings.accuracy)
    lines = [_columns("right answers", groups)]
    for name in findings.results.variants:
        lines.append(_columns(name, [interval(accuracy[name, group]) for group in groups]))
    if set(groups) <= findings.blind.keys():
        blind = [f"{100 * findings.blind[group]:.1f} %" for group in groups]
        lines.append(_columns("blind", blind))
    return "\n".join([*lines, "", *claims(findings), *findings.notes])


def _columns(name: str, cells: Sequence[str]) -> str:
    return f"{name:<28}" + "".join(f" {cell:<22}" for cell in cells).rstrip()


def _claimed_groups(findings: Findings) -> list[str]:
    """The groups of claims that the questions have, or all questions."""
    known = {one.group for one in findings.accuracy}
    return [group for group in findings.size.claims if group in known] or [ALL]


def claims(findings: Findings) -> list[str]:
    """Return what can be said, in sentences; what is not significant is called so."""
    said = []
    for group, own in _compared(findings).items():
        for one in own:
            if one.verdict in (BETTER, WORSE):
                said.append(
                    f"{group}: {one.variant} is {one.verdict} than {findings.size.reference}: "
                    f"{points(one)} points (p {p_words(one.holm_p)} after Holm)"
                )
        unclear = [one.variant for one in own if one.verdict == NOT_SIGNIFICANT]
        if unclear:
            said.append(f"{group}: not significant: {', '.join(unclear)}")
    return said


def points(one: Number) -> str:
    """Return `+4.0 [+1.2, +6.8]`, in points."""
    if not math.isfinite(one.low):
        return f"{100 * one.mean:+.1f}"
    return f"{100 * one.mean:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"


def interval(one: Number) -> str:
    """Return `54.0 % [50.1, 57.9]`."""
    if not math.isfinite(one.low):
        return f"{100 * one.mean:.1f} %"
    return f"{100 * one.mean:.1f} % [{100 * one.low:.1f}, {100 * one.high:.1f}]"


def p_words(p: float) -> str:
    """Return `0.012`, `< 0.001`, or a dash where there is none."""
    if not math.isfinite(p):
        return "—"
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}"


def as_json(findings: Findings) -> dict[str, Any]:
    """Return every number of the report; NaN where one cannot be told."""
    results = findings.results
    return {
        "title": findings.study.title,
        "question": findings.study.question,
        "machine": findings.size.machine,
        "machines": list(findings.machines),
        "reference": findings.size.reference,
        "held_equal": list(findings.size.held_equal),
        "claims": list(findings.size.claims),
        "seeds": list(results.seeds),
        "scenes": len({question.scene for question in results.questions}),
        "questions": len(results.questions),
        "notes": list(findings.notes),
        "said": claims(findings),
        "accuracy": [asdict(one) for one in findings.accuracy],
        "differences": [asdict(one) for one in findings.differences],
        "blind": dict(findings.blind),
        "costs": {name: asdict(cost) for name, cost in findings.costs.items()},
        "scores": findings.scores,
    }


def render_html(findings: Findings) -> str:
    """Render the whole page, images inside as data: addresses; every text is escaped."""
    results, size = findings.results, findings.size
    scenes = len({question.scene for question in results.questions})
    facts = (
        f"{len(results.variants)} variants, seeds {', '.join(map(str, results.seeds))}, "
        f"{len(results.questions)} questions about {scenes} images. Held equal: {', '.join(size.held_equal)}."
    )
    page = {
        "title": findings.study.title,
        "question": findings.study.question,
        "facts": facts,
        "reference": size.reference,
    }
    own = claims(findings) or ["There is nothing to compare yet."]
    compared = ""
    if _compared(findings):
        compared = image_tag(to_png(forest(findings)), "differences")
    return Template(PAGE).substitute(
        {key: html.escape(text) for key, text in page.items()},
        notes="".join(f"<p><b>{html.escape(note)}</b></p>" for note in findings.notes),
        claims="".join(f"<p>{html.escape(said)}</p>" for said in own),
        forest=compared,
        table=_table(*cost_table(findings)),
        bars=image_tag(to_png(bars(findings)), "accuracy"),
        groups=_table(*group_table(findings)),
        curves=image_tag(to_png(figures.curve_figure(findings.curves)), "learning curves"),
        wins="".join(map(_card, findings.wins)) or "<p>none</p>",
        losses="".join(map(_card, findings.losses)) or "<p>none</p>",
        attention="".join(_attention(name, one) for name, one in findings.attention.items())
        or "<p>No variant's tokens attend to patches.</p>",
        run="".join(f"<p>{html.escape(words)}</p>" for words in findings.machines),
    )


def cost_table(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """Return (head, rows) of accuracy and cost, a row for each variant."""
    accuracy, told = _by_place(findings.accuracy), _by_place(findings.differences)
    groups = _claimed_groups(findings)
    head = ["variant", "tokens", "=", "parameters", "=", "ms"]
    for group in groups:
        head += [f"{group}: accuracy", "difference", "p (Holm)", ""]
    rows = []
    for name in findings.results.variants:
        row = _cost_cells(name, findings.costs[name])
        for group in groups:
            row.append(interval(accuracy[name, group]))
            row += _claim_cells(told.get((name, group)))
        rows.append(row)
    return head, rows


def _by_place(numbers: Sequence[T]) -> dict[tuple[str, str], T]:
    """The numbers by variant and group of questions."""
    return {(one.variant, one.group): one for one in numbers}


def _cost_cells(name: str, cost: Cost) -> list[str]:
    """The variant, its tokens, parameters and milliseconds; "=" follows what equals that of the
    reference.
    """
    row = [name]
    for what, number in (("tokens", cost.tokens), ("parameters", cost.parameters)):
        mark = "=" if cost.equal.get(what) else ""
        row += [f"{number:,}", mark]
    return [*row, f"{cost.ms:.2f}"]


def _claim_cells(one: Difference | None) -> list[str]:
    """The difference, its p and what may be said of it; None is the reference itself."""
    if one is None:
        return ["", "", "reference"]
    return [points(one), p_words(one.holm_p), one.verdict]


def group_table(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """Return (head, rows) by group of questions, a column for each variant, and blind."""
    names = findings.results.variants
    accuracy, told = _by_place(findings.accuracy), _by_place(findings.differences)
    rows = []
    for group in dict.fromkeys(one.group for one in findings.accuracy):
        blind = ""
        if group in findings.blind:
            blind = f"{100 * findings.blind[group]:.0f}"
        row = [group.removeprefix("both: "), blind]
        for name in names:
            words = f"{100 * accuracy[name, group].mean:.0f}"
            if (one := told.get((name, group))) is not None:
                words += f"\n{points(one)}"
            row.append(words)
        rows.append(row)
    return ["questions", "blind", *names], rows


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def cell(text: str) -> str:
        tag = "td"
        if text in (BETTER, WORSE):
            tag += f' class="{text}"'
        return f"<{tag}>{html.escape(text).replace(chr(10), '<br>')}</td>"

    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _card(example: Example) -> str:
    card = '<div class="card">'
    if example.image:
        card += image_tag(_png(example.image), "scene")
    card += f"<p><b>{html.escape(example.question)}</b> {html.escape(example.truth)}</p>"
    for name, answer in example.answers.items():
        right = example.right[name]
        kind = "right" if right > 0.5 else "wrong"
        said = html.escape(answer) or "(nothing)"
        card += f"<p>{html.escape(name)}: <span class={kind}>{said}</span> ({right:.0%})</p>"
    return card + "</div>"


def _attention(name: str, one: Attention) -> str:
    images = [Image.open(io.BytesIO(file)).convert("RGB") for file in one.images]
    figure = attention_figure(images, one.weights, one.num_partial, name)
    return image_tag(to_png(figure), f"attention of {name}")


def _png(file: bytes) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(file)).convert("RGB").save(out, "PNG")
    return out.getvalue()


def _compared(findings: Findings) -> dict[str, list[Difference]]:
    """Group -> differences, of the groups of claims."""
    by_group = {}
    for group in findings.size.claims:
        own = [one for one in findings.differences if one.group == group]
        if own:
            by_group[group] = own
    return by_group


def forest(findings: Findings) -> Figure:
    """Draw the differences of all claims."""
    return figures.forest_figure(_compared(findings), findings.size.reference)


def bars(findings: Findings) -> Figure:
    """Draw the accuracy of every variant in the groups of claims, or over all questions."""
    by_group: dict[str, list[tuple[str, float, float, float]]] = {}
    by_group |= {group: [] for group in _claimed_groups(findings)}
    for one in findings.accuracy:
        if one.group in by_group:
            by_group[one.group].append((one.variant, one.mean, one.low, one.high))
    return figures.accuracy_figure(by_group, findings.blind)


def render_png(findings: Findings) -> bytes:
    """Render the essentials on one image: accuracy, differences, curves."""
    parts = [bars(findings)]
    if _compared(findings):
        parts.append(forest(findings))
    parts.append(figures.curve_figure(findings.curves))
    images = []
    for part in parts:
        png = to_png(part, dpi=90)
        images.append(Image.open(io.BytesIO(png)).convert("RGB"))
    width = max(image.width for image in images)
    page = Image.new("RGB", (width, sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        page.paste(image, ((width - image.width) // 2, top))
        top += image.height
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()
