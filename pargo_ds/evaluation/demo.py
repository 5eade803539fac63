"""The demo's measurements in one place: questions, blind baseline, caption loss, and all that the report shows."""

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

from pargo_ds.data.schema import Sample
from pargo_ds.data.shards import read_samples
from pargo_ds.evaluation.answers import answer_questions, read_first_picture
from pargo_ds.evaluation.bootstrap import bootstrap_ratio
from pargo_ds.evaluation.captions import caption_summary, scene_losses
from pargo_ds.evaluation.exported import load_exported
from pargo_ds.evaluation.facts import projector_masks, read_metrics, run_config, run_facts, split_facts, stage_facts
from pargo_ds.evaluation.report import Report, ShownScene
from pargo_ds.evaluation.scoring import Question, accuracy_table, blind_answers, count_table, is_right, questions_of

SHOWN_SCENES = 12
PROMPTS = {"coarse": "What is this?", "detailed": "Describe the picture."}


@dataclass(frozen=True, kw_only=True)
class DemoEvaluation:
    """What to evaluate, on what, and how much of it.

    `shards` is what `tools/build_shards.py scenes` wrote; `metrics` are the stages' metrics.jsonl, in order. The
    caption loss is that of `caption_model` (stage 1) where given, else of `model`. `questions` is an upper bound,
    kept to whole scenes.
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
    """Everything measured. Raises ValueError for inputs that do not fit."""
    curves = {path.parent.name or str(path): read_metrics(path) for path in options.metrics}
    configs = [run_config(path) for path in options.metrics]
    held_out = list(read_samples(options.shards / "held_out"))
    train_questions = questions_of(read_samples(options.shards / "train"))
    split = split_facts(options.shards)
    captions = caption_figures(options, held_out, trained_prompts(configs[0].get("data", {})))
    model, processor = load_exported(options.model)
    started = time.perf_counter()
    asked, answers = questions_and_answers(options, model, processor, held_out)
    seconds = time.perf_counter() - started
    hidden = answers_without_picture(model, processor, held_out, asked)
    blind = blind_answers(train_questions, asked)
    stages = [stage_facts(name, rows, config) for (name, rows), config in zip(curves.items(), configs, strict=True)]
    figures = {
        "accuracy": accuracy_table(asked, answers),
        "blind_accuracy": accuracy_table(asked, blind),
        "accuracy_minus_blind": compare_with_blind(asked, answers, blind, options.seed),
        "questions": count_table(asked),
        "caption_loss": captions,
        "split": split,
        "run": run_facts(options.model, stages) | {"seconds_per_question": seconds / len(asked)},
        "examples": [
            {"id": held_out[item.scene].id, "question": item.question, "answer": answer, "truth": item.answer}
            for item, answer in zip(asked, answers, strict=True)
        ],
    }
    return Report(figures, curves, projector_masks(model), shown_scenes(held_out, asked, answers, hidden))


def trained_prompts(data: dict[str, Any]) -> dict[str, str]:
    """Caption kind -> question, of the kinds that the run's data section trained on."""
    prompts, kind = data.get("caption_prompts") or PROMPTS, data.get("caption", "both")
    return prompts if kind == "both" else {kind: prompts[kind]}


def caption_figures(options: DemoEvaluation, samples: Sequence[Sample], prompts: dict[str, str]) -> dict[str, Any]:
    """Held-out caption loss of the caption model with right and wrong pictures."""
    model, processor = load_exported(options.caption_model or options.model)
    chosen = samples[: options.caption_scenes]
    with tqdm(total=len(chosen), desc="captions", disable=None) as bar:
        losses = scene_losses(model, processor, chosen, prompts, seed=options.seed, progress=bar.update)
    return caption_summary(losses, seed=options.seed)


def questions_and_answers(
    options: DemoEvaluation, model: Any, processor: Any, samples: Sequence[Sample]
) -> tuple[list[Question], list[str]]:
    """Ask the held-out questions, with a progress bar."""
    asked = whole_scenes(questions_of(samples), options.questions)
    with tqdm(total=len(asked), desc="questions", disable=None) as bar:
        answers = answer_questions(model, processor, samples, asked, batch_size=options.batch_size, progress=bar.update)
    return asked, answers


def whole_scenes(questions: Sequence[Question], most: int) -> list[Question]:
    """The questions of the first scenes, whole scenes only, at most `most` of them (but at least one scene's)."""
    chosen: list[Question] = []
    for scene in sorted({item.scene for item in questions}):
        own = [item for item in questions if item.scene == scene]
        if chosen and len(chosen) + len(own) > most:
            break
        chosen += own
    return chosen


def compare_with_blind(
    asked: Sequence[Question], answers: Sequence[str], blind: Sequence[str], seed: int
) -> dict[str, float]:
    """Accuracy minus blind accuracy with its bootstrap interval over scenes."""
    scenes = sorted({item.scene for item in asked})
    gains, counts = dict.fromkeys(scenes, 0.0), dict.fromkeys(scenes, 0)
    for item, answer, guess in zip(asked, answers, blind, strict=True):
        gains[item.scene] += is_right(answer, item.answer) - is_right(guess, item.answer)
        counts[item.scene] += 1
    return bootstrap_ratio(list(gains.values()), list(counts.values()), seed=seed).as_dict()


def answers_without_picture(
    model: Any, processor: Any, samples: Sequence[Sample], asked: Sequence[Question]
) -> list[str]:
    """What the model says to the first scene's questions beside a plain grey picture of the same size."""
    first = min(item.scene for item in asked)
    size = read_first_picture(samples[first]).size
    file = io.BytesIO()
    Image.new("RGB", size, (128, 128, 128)).save(file, format="PNG")
    hidden = [dataclasses.replace(sample, images=[file.getvalue()]) for sample in samples[: first + 1]]
    return answer_questions(model, processor, hidden, [item for item in asked if item.scene == first])


def shown_scenes(
    samples: Sequence[Sample], asked: Sequence[Question], answers: Sequence[str], hidden: Sequence[str]
) -> list[ShownScene]:
    """The first scenes with all their questions; `hidden` are the answers to the first one's without its picture."""
    lines: dict[int, list[tuple[str, str, str, bool]]] = {}
    for item, answer in zip(asked, answers, strict=True):
        line = (item.question, answer, item.answer, is_right(answer, item.answer))
        lines.setdefault(item.scene, []).append(line)
    return [
        ShownScene(read_first_picture(samples[scene]), lines[scene], () if number else hidden)
        for number, scene in enumerate(sorted(lines)[:SHOWN_SCENES])
    ]
