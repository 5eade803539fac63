"""Write the report of the demo from a dictionary of figures: report.json, report.html
(self-contained) and report.png.
"""

from __future__ import annotations

import html
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from pargo_ds.evaluation import figures
from pargo_ds.evaluation.figures import image_tag
from pargo_ds.files.figures_json import figures_json

MASKS = """<section><h2>The projector's masks</h2>
<p class="note">Dark: the token of this row sees the column. Each partial token sees its own patches, global
tokens see all; the window among the partial tokens widens from layer to layer.</p>"""
PAGE = (Path(__file__).parent / "report.html.template").read_text(encoding="utf-8")
EXPLANATION = (
    "A small vision-language model with ParGo's partial-global projector, trained on this machine by DeepSpeed "
    "ZeRO-3 between a pretrained image encoder and a pretrained language model, exported, loaded again with "
    "from_pretrained in a new process, and asked about images that it never saw."
)
CAVEAT = (
    "The images are composed scenes, not photographs: one large object and a few small ones, drawn from emoji "
    "images at known places, so that the truth of every question is known. The model trained for minutes: what it "
    "claims is that the image helps, not that the answers are good."
)


@dataclass(frozen=True)
class ShownScene:
    """One scene: its image, and (question, answer, truth, right) for each question asked about it.

    `blind` are the model's answers to the same questions with a plain grey image, if it was asked.
    """

    image: Image.Image
    lines: Sequence[tuple[str, str, str, bool]]
    blind: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """All that the report shows.

    `figures` becomes report.json; it needs `accuracy`, `blind_accuracy`, `questions` (see
    evaluation/scoring.py), `caption_loss` (evaluation/captions.py), `split` and `run` (flat
    dictionaries that are shown as they are). `curves` maps a stage's title to its metrics.jsonl
    rows; `masks` are (title, boolean mask, meaning of the columns).
    """

    figures: Mapping[str, Any]
    curves: Mapping[str, Sequence[Mapping[str, Any]]]
    masks: Sequence[tuple[str, np.ndarray, str]]
    scenes: Sequence[ShownScene] = field(default_factory=list)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write report.json, report.html and report.png into `folder`, which is made if it is absent.
    Return their paths.

    scene.png, the first shown scene, is written for people who want to ask more about it. All files
    are rendered before the first one is written, so a fault leaves no half of a report.
    """
    content = {
        "report.json": figures_json(report.figures).encode(),
        "report.html": render_html(report).encode(),
        "report.png": render_png(report),
    }
    if report.scenes:
        content["scene.png"] = _png(report.scenes[0].image)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in content]


def summary(report: Report) -> str:
    """Return three lines for the terminal."""
    result = report.figures
    gap = result["caption_loss"]["wrong_minus_right"]
    return (
        f"{_answers_words(result)}\n"
        f"caption loss, wrong minus right image: {gap['mean']:+.3f} "
        f"[{gap['low']:+.3f}, {gap['high']:+.3f}] nats a token\n"
        f"{_verdict_words(result['caption_loss'])}"
    )


def render_html(report: Report) -> str:
    """Return the whole page. Images are inside the page, and every text is escaped."""
    result = report.figures
    lead = ""
    if report.scenes:
        lead = _lead(report.scenes[0])
    return Template(PAGE).substitute(
        explanation=html.escape(EXPLANATION),
        caveat=html.escape(CAVEAT),
        split=_facts(result["split"]),
        lead=lead,
        summary=html.escape(_answers_words(result)),
        verdict=_verdict(result["caption_loss"]),
        losses=image_tag(figures.to_png(figures.loss_figure(report.curves)), "loss curves"),
        masks=_masks(report.masks),
        scenes="\n".join(_card(scene) for scene in report.scenes),
        table=_accuracy_rows(result),
        bars=image_tag(
            figures.to_png(figures.accuracy_figure(result["accuracy"], result["blind_accuracy"])),
            "accuracy bars",
        ),
        captions=image_tag(
            figures.to_png(figures.caption_figure(result["caption_loss"])), "caption loss"
        ),
        run=_facts(result["run"]),
    )


def _masks(masks: Sequence[tuple[str, np.ndarray, str]]) -> str:
    """Return the section of the masks; "" for a projector without masks."""
    if not masks:
        return ""
    png = figures.to_png(figures.mask_figure(masks))
    return f"{MASKS}{image_tag(png, 'attention masks of the projector')}</section>"


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.convert("RGB").save(file, format="PNG")
    return file.getvalue()


def _card(scene: ShownScene) -> str:
    lines = ""
    for question, answer, truth, right in scene.lines:
        shown = _answer(answer, right)
        if not right:
            shown += f" <span class=truth>truth: {html.escape(truth)}</span>"
        lines += f'<p><span class="q">{html.escape(question)}</span><br>{shown}</p>'
    return f'<div class="card">{image_tag(_png(scene.image), "held-out scene")}{lines}</div>'


def _answer(answer: str, right: bool, tag: str = "span") -> str:
    """Return an answer with the colour of a right or a wrong one."""
    kind = "right" if right else "wrong"
    return f'<{tag} class="{kind}">{html.escape(answer) or "(nothing)"}</{tag}>'


def _lead(scene: ShownScene) -> str:
    """Return the first held-out scene and its questions with truth, answer, and answer without the
    image.
    """
    blind = scene.blind or [""] * len(scene.lines)
    rows = ""
    for (question, answer, truth, right), without in zip(scene.lines, blind, strict=True):
        rows += f"<tr><td>{html.escape(question)}</td><td>{html.escape(truth)}</td>"
        rows += f"{_answer(answer, right, 'td')}<td>{html.escape(without)}</td></tr>"
    head = (
        "<tr><th>question</th><th>truth</th><th>the model</th><th>the model, image hidden</th></tr>"
    )
    return f'<div class="pair">{image_tag(_png(scene.image), "held-out scene")}<table>{head}{rows}</table></div>'


def _answers_words(result: Mapping[str, Any]) -> str:
    gain = result["accuracy_minus_blind"]
    return (
        f"right answers {result['accuracy']['overall']:.1%}, blind {result['blind_accuracy']['overall']:.1%}, "
        f"difference {gain['mean']:+.1%} [{gain['low']:+.1%}, {gain['high']:+.1%}]"
    )


def _facts(facts: Mapping[str, Any]) -> str:
    rows = ""
    for name, value in facts.items():
        title = html.escape(str(name).replace("_", " "))
        rows += f"<tr><th>{title}</th><td>{html.escape(_plain(value))}</td></tr>"
    return f'<table class="facts">{rows}</table>'


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(entry)}" for name, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return str(value)


def _verdict(caption_loss: Mapping[str, Any]) -> str:
    gap = caption_loss["wrong_minus_right"]
    return html.escape(
        f"With another scene's image the held-out caption loss is {gap['mean']:+.3f} nats per token "
        f"compared with the right image; its 95 % interval [{gap['low']:.3f}, {gap['high']:.3f}]. "
        f"{_verdict_words(caption_loss)}"
    )


def _verdict_words(caption_loss: Mapping[str, Any]) -> str:
    if caption_loss["wrong_minus_right"]["low"] > 0:
        return "The interval of the caption loss lies clear of zero: the model uses the image."
    return (
        "The interval of the caption loss does not lie clear of zero: no use of the image is shown."
    )


def _accuracy_rows(result: Mapping[str, Any]) -> str:
    tables = result["accuracy"], result["blind_accuracy"], result["questions"]
    rows = ""
    for kind, size in figures.type_and_size_pairs(tables[0]):
        found = [table["by_type_and_size"][kind][size] for table in tables]
        rows += _accuracy_row(kind, size, found)
    groups = {"by_type": "all sizes", "by_size": "all types", "by_concept": "concept"}
    for group, word in groups.items():
        for name in tables[0].get(group, {}):
            found = [table[group][name] for table in tables]
            rows += _accuracy_row(name.replace("_", " "), word, found)
    return rows + _accuracy_row("all questions", "", [table["overall"] for table in tables])


def _accuracy_row(kind: str, size: str, found: Sequence[Any]) -> str:
    """Return a row of the table; `found` are accuracy, blind accuracy and number of questions."""
    share, base, number = found
    better = "better" if share > base else ""
    return (
        f'<tr class="{better}"><td>{html.escape(kind)}</td><td>{html.escape(size)}</td>'
        f"<td>{share:.1%}</td><td>{base:.1%}</td><td>{number}</td></tr>"
    )


def render_png(report: Report) -> bytes:
    """Draw one image with the essentials: losses, masks, accuracy, caption loss, and scenes with
    one question each.
    """
    result = report.figures
    shown = report.scenes[:12]
    heights = {"losses": 3.2, "masks": 2.8, "accuracy": 3.6, "scenes": 7.0}
    if not report.masks:
        del heights["masks"]
    if not shown:
        del heights["scenes"]
    figure = Figure(figsize=(15, sum(heights.values()) + 1.0), layout="constrained")
    panels = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=list(heights.values()))
    parts = dict(zip(heights, panels[:, 0], strict=True))
    figure.suptitle("ParGo demo: composed held-out scenes", fontsize=15)
    for axes, (title, rows) in zip(
        parts["losses"].subplots(1, len(report.curves), squeeze=False)[0],
        report.curves.items(),
        strict=True,
    ):
        figures.draw_losses(axes, title, rows)
    if report.masks:
        places = parts["masks"].subplots(1, len(report.masks), squeeze=False)[0]
        for axes, (title, mask, seen) in zip(places, report.masks, strict=True):
            figures.draw_mask(axes, title, mask, seen)
    accuracy, captions = parts["accuracy"].subplots(1, 2, width_ratios=[2, 1])
    figures.draw_accuracy(accuracy, result["accuracy"], result["blind_accuracy"])
    figures.draw_caption_loss(captions, result["caption_loss"])
    if shown:
        _draw_scenes(parts["scenes"].subplots(2, 6, squeeze=False).flat, shown)
    return figures.to_png(figure, dpi=80)


def _draw_scenes(all_axes: Any, shown: Sequence[ShownScene]) -> None:
    for number, axes in enumerate(all_axes):
        axes.axis("off")
        if number >= len(shown):
            continue
        scene = shown[number]
        axes.imshow(np.asarray(scene.image.convert("RGB")))
        if scene.lines:
            # another kind of question over each image
            question, answer, truth, right = scene.lines[number % len(scene.lines)]
            text, colour = answer, figures.RIGHT
            if not right:
                text, colour = f"{answer} (truth: {truth})", figures.WRONG
            wrapped = textwrap.wrap(question, 34)[:2] + textwrap.wrap(text, 34)[:2]
            # a dollar sign would start a formula
            title = "\n".join(wrapped).replace("$", r"\$")
            axes.set_title(title, fontsize=8, color=colour)
