"""Ask a model questions about pictures, many at a time.

The processor makes the batches: left-padded ids `(questions, tokens)`, uint8 pixels `(images, 3, height, width)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from pargo_ds.data.images import read_picture
from pargo_ds.data.schema import IMAGE_PLACEHOLDER, Sample
from pargo_ds.evaluation.scoring import Question


def read_first_picture(sample: Sample) -> Image.Image:
    """The sample's first picture. Raises ValueError with its id when there is none or it cannot be read."""
    if not sample.images:
        raise ValueError(f"sample {sample.id}: it has no picture to ask about")
    try:
        return read_picture(sample.images[0])
    except ValueError as error:
        raise ValueError(f"sample {sample.id}: picture 0 {error}") from error


@torch.no_grad()
def generate_answers(
    model: Any,
    processor: Any,
    conversations: Sequence[list[dict[str, str]]],
    pictures: Sequence[list[Image.Image]],
    *,
    max_new_tokens: int = 16,
) -> list[str]:
    """Greedy answers to conversations that end in a user turn; one left-padded batch, answers in order.

    `pictures[i]` are the pictures of conversation i, one for each `<image>` in it; the processor raises ValueError
    where they differ in number.
    """
    inputs = processor.apply_chat_template(
        conversations, images=list(pictures), add_generation_prompt=True, tokenize=True, return_tensors="pt"
    )
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    tokenizer = processor.tokenizer
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad_id)
    new = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


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
    """Ask each question alone with its scene's picture; answers in the order of the questions.

    `progress` is called with the number of questions answered since the last call.
    """
    answers = []
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        conversations = [[{"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n{item.question}"}] for item in batch]
        pictures = [[read_first_picture(samples[item.scene])] for item in batch]
        answers += generate_answers(model, processor, conversations, pictures, max_new_tokens=max_new_tokens)
        progress(len(batch))
    return answers
