"""Ask a model questions about images, many at a time.

The processor makes the batches: left-padded ids `(questions, tokens)`, uint8 pixels `(images, 3,
height, width)`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList

from pargo_ds.data.images import read_image
from pargo_ds.data.shards.schema import Sample
from pargo_ds.evaluation.benchmark import Answer, ImageRef, Item, images_by_name
from pargo_ds.evaluation.benchmarks.scenes import items_of
from pargo_ds.evaluation.scoring import Question

Turns = list[dict[str, str]]


def read_first_image(sample: Sample) -> Image.Image:
    """Return the sample's first image.

    Raises ValueError with its id when there is none or it cannot be read.
    """
    if not sample.images:
        raise ValueError(f"sample {sample.id}: it has no image to ask about")
    try:
        return read_image(sample.images[0])
    except ValueError as error:
        raise ValueError(f"sample {sample.id}: image 0 {error}") from error


def read_reference(image: ImageRef) -> Image.Image:
    """Return a benchmark's image. Raises ValueError with its name when it cannot be read."""
    try:
        return read_image(image.read())
    except (OSError, ValueError) as error:
        raise ValueError(f"{image.name} {error}") from error


class FirstMargin(LogitsProcessor):
    """Notes how far the best first token lies before the second one; changes nothing.

    `margins`: one number a row, in units of the spacing of `dtype` at the best logit.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.margins: list[float | None] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self.margins:
            best, second = scores.float().topk(2).values.T
            # eps is the spacing from 1 to 2, and it doubles with every power of two.
            power = torch.frexp(best).exponent - 1
            spacing = torch.ldexp(torch.full_like(best, torch.finfo(self.dtype).eps), power)
            self.margins = [_rounded(value) for value in ((best - second) / spacing).tolist()]
        return scores


def _rounded(margin: float) -> float | None:
    """The margin to three decimals; None for infinity and NaN, which JSON does not have."""
    if not math.isfinite(margin):
        return None
    return round(margin, 3)


@torch.no_grad()
def generate(
    model: Any,
    processor: Any,
    conversations: Sequence[Turns],
    images: Sequence[list[Image.Image]],
    *,
    max_new_tokens: int = 16,
    beams: int = 1,
    synced: bool = False,
) -> list[Answer]:
    """Return answers without sampling to conversations that end in a user turn; one left-padded
    batch.

    `images[i]` are the images of conversation i, one for each `<image>` in it; the processor raises
    ValueError where they differ in number. The answers have no id. With several beams there is no
    margin. `synced`: go on until all ranks have ended their answers, as ZeRO-3 needs it.
    """
    inputs = processor.apply_chat_template(
        conversations,
        images=list(images),
        add_generation_prompt=True,
        tokenize=True,
        return_tensors="pt",
        padding_side="left",  # whatever somebody has set on the tokenizer
    )
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    tokenizer = processor.tokenizer
    pad_id = tokenizer.pad_token_id
    if pad_id is None:
        pad_id = tokenizer.eos_token_id
    first = FirstMargin(model.dtype)
    options: dict[str, Any] = {"logits_processor": LogitsProcessorList([first])}
    if beams > 1:
        options = {"num_beams": beams}
    if synced:
        options["synced_gpus"] = True
    output = model.generate(
        **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad_id, **options
    )
    new = output[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(new, skip_special_tokens=True)
    margins = first.margins or [None] * len(texts)
    ends = end_ids(model)
    answers = []
    for row, text, margin in zip(new.tolist(), texts, margins, strict=True):
        tokens, cut = length_of(row, ends, max_new_tokens)
        answers.append(Answer(id="", text=text.strip(), tokens=tokens, cut=cut, margin=margin))
    return answers


def end_ids(model: Any) -> set[int]:
    """Return the ids that end an answer, as `generate` takes them."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return set()
    if isinstance(ends, int):
        return {ends}
    return set(ends)


def length_of(row: Sequence[int], ends: set[int], limit: int) -> tuple[int, bool]:
    """Return (tokens before the one that ends the answer, whether the limit cut it)."""
    for place, token in enumerate(row):
        if token in ends:
            return place, False
    return len(row), len(row) >= limit


def generate_answers(
    model: Any,
    processor: Any,
    conversations: Sequence[Turns],
    images: Sequence[list[Image.Image]],
    *,
    max_new_tokens: int = 16,
) -> list[str]:
    """Return the texts of `generate`, in order."""
    answers = generate(model, processor, conversations, images, max_new_tokens=max_new_tokens)
    return [answer.text for answer in answers]


def answer_items(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    *,
    load: Callable[[ImageRef], Image.Image] = read_reference,
    max_new_tokens: int = 16,
    beams: int = 1,
    synced: bool = False,
) -> list[Answer]:
    """Return the answers to a benchmark's questions in one batch, in their order; each image is
    read once.
    """
    answers = generate(
        model,
        processor,
        [[{"role": "user", "content": item.prompt}] for item in items],
        images_of_each(items, load),
        max_new_tokens=max_new_tokens,
        beams=beams,
        synced=synced,
    )
    pairs = zip(items, answers, strict=True)
    return [dataclasses.replace(answer, id=item.id) for item, answer in pairs]


def images_of_each(
    items: Sequence[Item], load: Callable[[ImageRef], Image.Image]
) -> list[list[Image.Image]]:
    """Return the images of each item; an image that several items show is read once."""
    loaded = {name: load(image) for name, image in images_by_name(items).items()}
    shown = []
    for item in items:
        shown.append([loaded[image.name] for image in item.images])
    return shown


def answer_questions(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    questions: Sequence[Question],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 10,
    progress: Callable[[int], object] = lambda done: None,
) -> list[str]:
    """Ask each question alone with its scene's image; answers in the order of the questions.

    `progress` is called with the number of questions answered since the last call.
    """
    items = items_of(samples, questions)
    answers = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        found = answer_items(model, processor, batch, max_new_tokens=max_new_tokens)
        answers += [answer.text for answer in found]
        progress(len(batch))
    return answers
