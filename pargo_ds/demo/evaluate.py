"""All measurements of the demo: questions, blind baseline, caption loss, and what the report
shows.
"""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from pargo_ds.data.shards.mds import read_samples
from pargo_ds.data.shards.schema import Sample
from pargo_ds.demo.facts import read_metrics, run_config, run_facts, split_facts, stage_facts
from pargo_ds.demo.report import Report, ShownScene
from pargo_ds.evaluation.answers import answer_questions, read_first_image
from pargo_ds.evaluation.bootstrap import bootstrap_ratio
from pargo_ds.evaluation.captions import PROMPTS, caption_summary, scene_losses
from pargo_ds.evaluation.exported import load_exported
from pargo_ds.evaluation.scoring import (
    Question,
    accuracy_table,
    blind_answers,
    count_table,
    is_right,
    questions_of,
    whole_scenes,
)
from pargo_ds.inspection.mask_figure import projector_masks

SHOWN_SCENES = 12


@dataclass(frozen=True, kw_only=True)
class DemoEvaluation:
    """The inputs of the evaluation.

    Attributes:
        shards: the folder that `tools/build_shards.py scenes` wrote.
        metrics: the files metrics.jsonl of the stages, in order.
        caption_model: the model of stage 1, whose caption loss is measured (default: `model`).
        questions: upper bound of the questions; only whole scenes are used.
    """

    model: Path
    shards: Path
    metrics: Sequence[Path]
    caption_model: Path | None = None
    questions: int = 500
    caption_scenes: int = 100
    batch_size: int = 32
    seed: int = 0


def build_report(options: DemoEvaluation) -> Report:
    """Measure everything. Raises ValueError for inputs that do not fit."""
    curves = {path.parent.name or str(path): read_metrics(path) for path in options.metrics}
    configs = [run_config(path) for path in options.metrics]
    validation = list(read_samples(options.shards / "validation"))
    train_questions = questions_of(read_samples(options.shards / "train"))
    split = split_facts(options.shards)
    captions = caption_figures(options, validation, trained_prompts(configs[0].get("data", {})))
    model, processor = load_exported(options.model)
    started = time.perf_counter()
    asked, answers = questions_and_answers(options, model, processor, validation)
    seconds = time.perf_counter() - started
    hidden = answers_without_image(model, processor, validation, asked)
    blind = blind_answers(train_questions, asked)
    stages = []
    for (name, rows), config in zip(curves.items(), configs, strict=True):
        stages.append(stage_facts(name, rows, config))
    figures = {
        "accuracy": accuracy_table(asked, answers),
        "blind_accuracy": accuracy_table(asked, blind),
        "accuracy_minus_blind": compare_with_blind(asked, answers, blind, options.seed),
        "questions": count_table(asked),
        "caption_loss": captions,
        "split": split,
        "run": run_facts(options.model, stages) | {"seconds_per_question": seconds / len(asked)},
        "examples": examples(validation, asked, answers),
    }
    masks = projector_masks(model.config)
    return Report(figures, curves, masks, shown_scenes(validation, asked, answers, hidden))


def examples(
    samples: Sequence[Sample], asked: Sequence[Question], answers: Sequence[str]
) -> list[dict[str, str]]:
    """Return every question with its answer and its truth, for report.json."""
    found = []
    for item, answer in zip(asked, answers, strict=True):
        found.append(
            {
                "id": samples[item.scene].id,
                "question": item.question,
                "answer": answer,
                "truth": item.answer,
            }
        )
    return found


def trained_prompts(data: dict[str, Any]) -> dict[str, str]:
    """Return the prompt of each kind of caption on which the run trained."""
    prompts, kind = data.get("caption_prompts") or PROMPTS, data.get("caption", "both")
    if kind == "both":
        return prompts
    return {kind: prompts[kind]}


def caption_figures(
    options: DemoEvaluation, samples: Sequence[Sample], prompts: dict[str, str]
) -> dict[str, Any]:
    """Return the held-out caption loss of the caption model with right and with wrong images."""
    model, processor = load_exported(options.caption_model or options.model)
    chosen = samples[: options.caption_scenes]
    with tqdm(total=len(chosen), desc="captions", disable=None) as bar:
        losses = scene_losses(
            model, processor, chosen, prompts, seed=options.seed, progress=bar.update
        )
    return caption_summary(losses, seed=options.seed)


def questions_and_answers(
    options: DemoEvaluation, model: Any, processor: Any, samples: Sequence[Sample]
) -> tuple[list[Question], list[str]]:
    """Ask the held-out questions, with a progress bar."""
    asked = whole_scenes(questions_of(samples), options.questions)
    with tqdm(total=len(asked), desc="questions", disable=None) as bar:
        answers = answer_questions(
            model, processor, samples, asked, batch_size=options.batch_size, progress=bar.update
        )
    return asked, answers


def compare_with_blind(
    asked: Sequence[Question], answers: Sequence[str], blind: Sequence[str], seed: int
) -> dict[str, float]:
    """Return accuracy minus blind accuracy, with its bootstrap interval over scenes."""
    scenes = sorted({item.scene for item in asked})
    gains, counts = dict.fromkeys(scenes, 0.0), dict.fromkeys(scenes, 0)
    for item, answer, guess in zip(asked, answers, blind, strict=True):
        gains[item.scene] += is_right(answer, item.answer) - is_right(guess, item.answer)
        counts[item.scene] += 1
    return bootstrap_ratio(list(gains.values()), list(counts.values()), seed=seed).as_dict()


def answers_without_image(
    model: Any, processor: Any, samples: Sequence[Sample], asked: Sequence[Question]
) -> list[str]:
    """Return the model's answers to the questions of the first scene with a plain grey image of the
    same size.
    """
    first = min(item.scene for item in asked)
    size = read_first_image(samples[first]).size
    file = io.BytesIO()
    Image.new("RGB", size, (128, 128, 128)).save(file, format="PNG")
    grey = [file.getvalue()]
    hidden = [dataclasses.replace(sample, images=grey) for sample in samples[: first + 1]]
    return answer_questions(
        model, processor, hidden, [item for item in asked if item.scene == first]
    )


def shown_scenes(
    samples: Sequence[Sample],
    asked: Sequence[Question],
    answers: Sequence[str],
    hidden: Sequence[str],
) -> list[ShownScene]:
    """Return the first scenes with all their questions. `hidden` are the answers to the questions
    of the first scene without its image.
    """
    lines: dict[int, list[tuple[str, str, str, bool]]] = {}
    for item, answer in zip(asked, answers, strict=True):
        line = (item.question, answer, item.answer, is_right(answer, item.answer))
        lines.setdefault(item.scene, []).append(line)
    shown: list[ShownScene] = []
    for scene in sorted(lines)[:SHOWN_SCENES]:
        without_image: Sequence[str] = () if shown else hidden
        shown.append(ShownScene(read_first_image(samples[scene]), lines[scene], without_image))
    return shown
