"""Loss of an exported model on held-out samples, and the share of right answers to their questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pargo_ds.config import DataSection
from pargo_ds.data.conversation import conversations_of, encode
from pargo_ds.data.shards.mds import read_samples
from pargo_ds.data.shards.schema import Sample
from pargo_ds.evaluation.answers import answer_questions
from pargo_ds.evaluation.captions import PROMPTS
from pargo_ds.evaluation.scoring import (
    accuracy_table,
    blind_answers,
    count_table,
    questions_of,
    whole_scenes,
)


def texts_of(samples: Sequence[Sample]) -> DataSection:
    """Return the texts to measure where no run file says it: the samples' conversations, or else
    their captions.
    """
    text = "turns" if all(sample.turns for sample in samples) else "captions"
    return DataSection.model_validate({"train": "unused", "text": text, "caption_prompts": PROMPTS})


@torch.no_grad()
def validation_loss(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    data: DataSection,
    *,
    where: str = "",
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, Any]:
    """Return the mean cross-entropy (nats) over the target tokens of all conversations that
    training would make of the samples.

    {"loss", "target_tokens", "conversations"}. One conversation a call, so that nothing can leak
    into it. Raises SampleError (a ValueError) for a sample that training would refuse.
    """
    total, targets, conversations = 0.0, 0, 0
    for sample in samples:
        for turns in conversations_of(sample, data, where):
            encoded = encode(sample, turns, processor, where)
            labels = torch.tensor([encoded.labels], device=model.device)
            output = model(
                input_ids=torch.tensor([encoded.input_ids], device=model.device),
                labels=labels,
                pixel_values=encoded.pixels.to(model.device),
                num_items_in_batch=1,
                use_cache=False,
                return_logits=False,
            )
            total += float(output.loss)
            targets += int((labels[0, 1:] >= 0).sum())
            conversations += 1
        progress(1)
    return {
        "loss": total / max(1, targets),
        "target_tokens": targets,
        "conversations": conversations,
    }


def question_figures(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    train: Path | None,
    *,
    most: int,
    batch_size: int,
) -> dict[str, Any] | None:
    """Return accuracy and number of questions by type and size, beside the best answers without
    looking where training shards are there; None when the samples bring no questions.
    """
    asked = whole_scenes(questions_of(samples), most)
    if not asked:
        return None
    answers = answer_questions(model, processor, samples, asked, batch_size=batch_size)
    blind = None
    if train is not None and (known := questions_of(read_samples(train))):
        blind = accuracy_table(asked, blind_answers(known, asked))
    return {
        "accuracy": accuracy_table(asked, answers),
        "blind_accuracy": blind,
        "questions": count_table(asked),
    }


def table(figures: dict[str, Any]) -> str:
    """Return the figures as lines of text: loss, then a row for each type of question."""
    loss, asked = figures["validation"], figures["questions"]
    lines = [
        f"held-out loss {loss['loss']:.4f} nats per target token "
        f"({loss['target_tokens']:,} target tokens, {loss['conversations']:,} conversations)"
    ]
    if asked is None:
        return "\n".join([*lines, "no questions: the shards' samples have no meta['questions']"])
    lines.append(f"{'questions':<20}{'right':>8}{'blind':>8}{'number':>8}")
    for kind in [*asked["accuracy"]["by_type"], "overall"]:
        right, number = _cell(asked["accuracy"], kind), _cell(asked["questions"], kind)
        blind = "-"
        if asked["blind_accuracy"] is not None:
            blind = f"{_cell(asked['blind_accuracy'], kind):.1%}"
        lines.append(f"{kind:<20}{right:>8.1%}{blind:>8}{number:>8}")
    return "\n".join(lines)


def _cell(figures: dict[str, Any], kind: str) -> Any:
    if kind == "overall":
        return figures["overall"]
    return figures["by_type"][kind]
