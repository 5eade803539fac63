"""Loss of an exported model on held-out samples, and the share of right answers to their questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pargo_ds.config import DataSection
from pargo_ds.data.conversation import encode, views
from pargo_ds.data.schema import Sample
from pargo_ds.data.shards import read_samples
from pargo_ds.evaluation.answers import answer_questions
from pargo_ds.evaluation.demo import PROMPTS, whole_scenes
from pargo_ds.evaluation.scoring import accuracy_table, blind_answers, count_table, questions_of

HELD_OUT, TRAIN = "held_out", "train"


def split_folders(shards: Path) -> tuple[Path, Path | None]:
    """(held-out shards, training shards or None) of a folder that is either one itself or holds both splits.

    Raises ValueError when it is neither.
    """
    if (shards / "index.json").is_file():
        beside = shards.parent / TRAIN
        return shards, beside if shards.name == HELD_OUT and (beside / "index.json").is_file() else None
    if not (shards / HELD_OUT / "index.json").is_file():
        raise ValueError(f"{shards} holds no shards: neither index.json nor {HELD_OUT}/index.json is there")
    train = shards / TRAIN
    return shards / HELD_OUT, train if (train / "index.json").is_file() else None


def texts_of(samples: Sequence[Sample]) -> DataSection:
    """The texts to measure where no run file says it: the samples' conversations, or else their captions."""
    text = "turns" if all(sample.turns for sample in samples) else "captions"
    return DataSection.model_validate({"train": "unused", "text": text, "caption_prompts": PROMPTS})


@torch.no_grad()
def held_out_loss(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    data: DataSection,
    *,
    where: str = "",
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, Any]:
    """Mean cross-entropy (nats) over the target tokens of all conversations that training would make of the samples.

    {"loss", "target_tokens", "conversations"}. One conversation a call, so that nothing can leak into it. Raises
    SampleError (a ValueError) for a sample that training would refuse.
    """
    total, targets, conversations = 0.0, 0, 0
    for sample in samples:
        for turns in views(sample, data, where):
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
    return {"loss": total / max(1, targets), "target_tokens": targets, "conversations": conversations}


def question_figures(
    model: Any, processor: Any, samples: Sequence[Sample], train: Path | None, *, most: int, batch_size: int
) -> dict[str, Any] | None:
    """Accuracy and number of questions by type and size, beside the best answers without looking where training
    shards are there; None when the samples bring no questions."""
    asked = whole_scenes(questions_of(samples), most)
    if not asked:
        return None
    answers = answer_questions(model, processor, samples, asked, batch_size=batch_size)
    known = questions_of(read_samples(train)) if train is not None else []
    return {
        "accuracy": accuracy_table(asked, answers),
        "blind_accuracy": accuracy_table(asked, blind_answers(known, asked)) if known else None,
        "questions": count_table(asked),
    }


def table(figures: dict[str, Any]) -> str:
    """The figures as lines of text: loss, then a row for each type of question."""
    loss, asked = figures["held_out"], figures["questions"]
    lines = [
        f"held-out loss {loss['loss']:.4f} nats per target token "
        f"({loss['target_tokens']:,} target tokens, {loss['conversations']:,} conversations)"
    ]
    if asked is None:
        return "\n".join([*lines, "no questions: the shards' samples have no meta['questions']"])
    lines.append(f"{'questions':<20}{'right':>8}{'blind':>8}{'number':>8}")
    for kind in [*asked["accuracy"]["by_type"], "overall"]:
        right, blind, number = (_cell(asked[name], kind) for name in ("accuracy", "blind_accuracy", "questions"))
        shown = "-" if blind is None else f"{blind:.1%}"
        lines.append(f"{kind:<20}{right:>8.1%}{shown:>8}{number:>8}")
    return "\n".join(lines)


def _cell(figures: dict[str, Any] | None, kind: str) -> Any:
    if figures is None:
        return None
    return figures["overall"] if kind == "overall" else figures["by_type"][kind]
