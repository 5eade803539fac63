"""The demo's report: one dictionary of figures -> report.json, report.html (self-contained) and report.png."""

from __future__ import annotations

import base64
import html
import io
import json
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

PAGE = (Path(__file__).parent / "report.html.template").read_text(encoding="utf-8")
EXPLANATION = (
    "A small vision-language model with ParGo's partial-global projector, trained on this machine by DeepSpeed "
    "ZeRO-3 between a pretrained picture encoder and a pretrained language model, exported, loaded again with "
    "from_pretrained in a new process, and asked about pictures that it never saw."
)
CAVEAT = (
    "The pictures are composed scenes, not photographs: one large object and a few small ones, drawn from emoji "
    "pictures at known places, so that the truth of every question is known. The model trained for minutes: what it "
    "claims is that the picture helps, not that the answers are good."
)


@dataclass(frozen=True)
class ShownScene:
    """One scene: its picture, and (question, answer, truth, right) for each question asked about it.

    `blind` are the model's answers to the same questions beside a plain grey picture, where it was asked.
    """

    picture: Image.Image
    lines: Sequence[tuple[str, str, str, bool]]
    blind: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """All that the report shows.

    `figures` becomes report.json; it needs `accuracy`, `blind_accuracy`, `questions` (see evaluation/scoring.py),
    `caption_loss` (evaluation/captions.py), `split` and `run` (flat dictionaries that are shown as they are).
    `curves` maps a stage's title to its metrics.jsonl rows; `masks` are (title, boolean mask, meaning of the columns).
    """

    figures: Mapping[str, Any]
    curves: Mapping[str, Sequence[Mapping[str, Any]]]
    masks: Sequence[tuple[str, np.ndarray, str]]
    scenes: Sequence[ShownScene] = field(default_factory=list)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write report.json, report.html and report.png into `folder` (made if absent); returns their paths.

    scene.png is the first shown scene, to ask further questions about. All are rendered before the first is
    written, so a fault leaves no half report.
    """
    content = {
        "report.json": (json.dumps(report.figures, indent=2, ensure_ascii=False) + "\n").encode(),
        "report.html": render_html(report).encode(),
        "report.png": render_png(report),
    }
    if report.scenes:
        content["scene.png"] = _png(report.scenes[0].picture)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in content]


def summary(report: Report) -> str:
    """Three lines for the terminal."""
    result = report.figures
    gap = result["caption_loss"]["wrong_minus_right"]
    return (
        f"{_answers_words(result)}\n"
        f"caption loss, wrong minus right picture: {gap['mean']:+.3f} "
        f"[{gap['low']:+.3f}, {gap['high']:+.3f}] nats a token\n"
        f"{_verdict_words(result['caption_loss'])}"
    )


def render_html(report: Report) -> str:
    """The whole page, pictures inside as data: addresses; every text is escaped."""
    result = report.figures
    return Template(PAGE).substitute(
        explanation=html.escape(EXPLANATION),
        caveat=html.escape(CAVEAT),
        split=_facts(result["split"]),
        lead=_lead(report.scenes[0]) if report.scenes else "",
        summary=html.escape(_answers_words(result)),
        verdict=_verdict(result["caption_loss"]),
        losses=_picture(figures.to_png(figures.loss_figure(report.curves)), "loss curves"),
        masks=_picture(figures.to_png(figures.mask_figure(report.masks)), "attention masks of the projector"),
        scenes="\n".join(_card(scene) for scene in report.scenes),
        table=_accuracy_rows(result),
        bars=_picture(
            figures.to_png(figures.accuracy_figure(result["accuracy"], result["blind_accuracy"])), "accuracy bars"
        ),
        captions=_picture(figures.to_png(figures.caption_figure(result["caption_loss"])), "caption loss"),
        run=_facts(result["run"]),
    )


def _picture(png: bytes, description: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.convert("RGB").save(file, format="PNG")
    return file.getvalue()


def _card(scene: ShownScene) -> str:
    lines = "".join(
        f'<p><span class="q">{html.escape(question)}</span><br>'
        f'<span class="{"right" if right else "wrong"}">{html.escape(answer) or "(nothing)"}</span>'
        f"{'' if right else f' <span class=truth>truth: {html.escape(truth)}</span>'}</p>"
        for question, answer, truth, right in scene.lines
    )
    return f'<div class="card">{_picture(_png(scene.picture), "held-out scene")}{lines}</div>'


def _lead(scene: ShownScene) -> str:
    """The first held-out scene beside its questions: truth, answer, and the answer without the picture."""
    blind = scene.blind or [""] * len(scene.lines)
    rows = "".join(
        f"<tr><td>{html.escape(question)}</td><td>{html.escape(truth)}</td>"
        f'<td class="{"right" if right else "wrong"}">{html.escape(answer) or "(nothing)"}</td>'
        f"<td>{html.escape(without)}</td></tr>"
        for (question, answer, truth, right), without in zip(scene.lines, blind, strict=True)
    )
    head = "<tr><th>question</th><th>truth</th><th>the model</th><th>the model, picture hidden</th></tr>"
    return f'<div class="pair">{_picture(_png(scene.picture), "held-out scene")}<table>{head}{rows}</table></div>'


def _answers_words(result: Mapping[str, Any]) -> str:
    gain = result["accuracy_minus_blind"]
    return (
        f"right answers {result['accuracy']['overall']:.1%}, blind {result['blind_accuracy']['overall']:.1%}, "
        f"difference {gain['mean']:+.1%} [{gain['low']:+.1%}, {gain['high']:+.1%}]"
    )


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(str(name).replace('_', ' '))}</th><td>{html.escape(_plain(value))}</td></tr>"
        for name, value in facts.items()
    )
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
        f"With another scene's picture the held-out caption loss is {gap['mean']:+.3f} nats per token "
        f"compared with the right picture; its 95 % interval [{gap['low']:.3f}, {gap['high']:.3f}]. "
        f"{_verdict_words(caption_loss)}"
    )


def _verdict_words(caption_loss: Mapping[str, Any]) -> str:
    if caption_loss["wrong_minus_right"]["low"] > 0:
        return "The interval of the caption loss lies clear of zero: the model uses the picture."
    return "The interval of the caption loss does not lie clear of zero: no use of the picture is shown."


def _accuracy_rows(result: Mapping[str, Any]) -> str:
    model, blind, counts = result["accuracy"], result["blind_accuracy"], result["questions"]
    rows = [
        (kind, size, *(table["by_type_and_size"][kind][size] for table in (model, blind, counts)))
        for kind, size in figures.type_and_size_pairs(model)
    ]
    for group, word in (("by_type", "all sizes"), ("by_size", "all types"), ("by_concept", "concept")):
        rows += [
            (name.replace("_", " "), word, *(table[group][name] for table in (model, blind, counts)))
            for name in model.get(group, {})
        ]
    rows.append(("all questions", "", model["overall"], blind["overall"], counts["overall"]))
    return "".join(
        f'<tr class="{"better" if share > base else ""}"><td>{html.escape(kind)}</td><td>{html.escape(size)}</td>'
        f"<td>{share:.1%}</td><td>{base:.1%}</td><td>{number}</td></tr>"
        for kind, size, share, base, number in rows
    )


def render_png(report: Report) -> bytes:
    """The essentials on one picture: losses, masks, accuracy, caption loss, and scenes with a question each."""
    result = report.figures
    shown = report.scenes[:12]
    figure = Figure(figsize=(15, 17 if shown else 11), layout="constrained")
    parts = figure.subfigures(4 if shown else 3, 1, height_ratios=[3.2, 2.8, 3.6, 7][: 4 if shown else 3])
    figure.suptitle("ParGo demo: composed held-out scenes", fontsize=15)
    for axes, (title, rows) in zip(
        parts[0].subplots(1, len(report.curves), squeeze=False)[0], report.curves.items(), strict=True
    ):
        figures.draw_losses(axes, title, rows)
    for axes, (title, mask, seen) in zip(
        parts[1].subplots(1, len(report.masks), squeeze=False)[0], report.masks, strict=True
    ):
        figures.draw_mask(axes, title, mask, seen)
    accuracy, captions = parts[2].subplots(1, 2, width_ratios=[2, 1])
    figures.draw_accuracy(accuracy, result["accuracy"], result["blind_accuracy"])
    figures.draw_caption_loss(captions, result["caption_loss"])
    if shown:
        _draw_scenes(parts[3].subplots(2, 6, squeeze=False).flat, shown)
    return figures.to_png(figure, dpi=80)


def _draw_scenes(all_axes: Any, shown: Sequence[ShownScene]) -> None:
    for number, axes in enumerate(all_axes):
        axes.axis("off")
        if number >= len(shown):
            continue
        scene = shown[number]
        axes.imshow(np.asarray(scene.picture.convert("RGB")))
        if scene.lines:
            # another kind of question over each picture
            question, answer, truth, right = scene.lines[number % len(scene.lines)]
            text = answer if right else f"{answer} (truth: {truth})"
            wrapped = [line for part in (question, text) for line in textwrap.wrap(part, 34)[:2]]
            # a dollar sign would start a formula
            title = "\n".join(wrapped).replace("$", r"\$")
            axes.set_title(title, fontsize=8, color=figures.RIGHT if right else figures.WRONG)
