"""Turn a sample into conversations, and a conversation into token ids and labels.

The caller passes a `processor`, which is the model's own ParGoProcessor; this package does not
import it. So chat template, image placeholder and end of turn are written by the same code in
training and inference, and training ids equal inference ids.
"""

from __future__ import annotations

from typing import Any

import torch

from pargo_ds.batch import IGNORE_INDEX, ConversationEncoder, Encoded
from pargo_ds.config import DataSection
from pargo_ds.data.images import read_fast
from pargo_ds.data.shards.schema import (
    CAPTION_KINDS,
    IMAGE_PLACEHOLDER,
    Sample,
    placeholder_problem,
)
from pargo_ds.errors import SampleError

Turns = list[dict[str, str]]
"""[{"role": "user" | "assistant" | "system", "content": text}, ...]; `<image>` in a text stands for
one image.
"""


def text_settings(data: DataSection) -> dict[str, Any]:
    """Return the settings on which the conversations of a sample depend; every fingerprint of the
    data contains them.
    """
    settings: dict[str, Any] = {"text": data.text}
    if data.text == "captions":
        prompts = data.caption_prompts.model_dump()
        wanted = CAPTION_KINDS if data.caption == "both" else (data.caption,)
        settings["caption"] = data.caption
        settings["caption_prompts"] = {kind: prompts[kind] for kind in wanted}
    if data.refused != "error":
        settings["refused"] = data.refused
    return settings


def conversations_of(sample: Sample, data: DataSection, where: str = "") -> list[Turns]:
    """Return the conversations that training makes of one sample; each is one item of an epoch.

    text: turns gives the conversation of the sample. text: captions gives one question and answer
    for each wanted caption: the question has a placeholder for each image and then the prompt of
    that kind of caption, and the answer is the caption. With caption: both, each caption that the
    sample has is wanted.

    Raises SampleError when the sample has no conversation or lacks the wanted caption.
    """
    if data.text == "turns":
        if not sample.turns:
            raise sample_error(
                sample,
                where,
                "it has no conversation turns; set data.text: captions, or other shards",
            )
        return [sample.turns]
    wanted = [kind for kind in CAPTION_KINDS if data.caption in ("both", kind)]
    found = [kind for kind in wanted if kind in sample.captions]
    if not found:
        raise sample_error(
            sample,
            where,
            f"it has no {' or '.join(wanted)} caption (found: {', '.join(sample.captions) or 'none'}); "
            "change data.caption or data.text, or use other shards",
        )
    return [_caption_turns(sample, kind, getattr(data.caption_prompts, kind)) for kind in found]


def _caption_turns(sample: Sample, kind: str, prompt: str) -> Turns:
    question = f"{IMAGE_PLACEHOLDER}\n" * len(sample.images) + prompt
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": sample.captions[kind]},
    ]


def encode_text(
    sample: Sample, turns: Turns, processor: ConversationEncoder, where: str = ""
) -> tuple[list[int], list[int]]:
    """Return token ids and labels of one conversation. No image is read, but the ids already
    contain the image tokens.

    Raises SampleError for a turn without text, placeholders that do not match the images, and a
    conversation without a target token.
    """
    for number, turn in enumerate(turns):
        if not turn["content"].strip():
            raise sample_error(sample, where, f"turn {number} ({turn['role']}) has no text")
    problem = placeholder_problem(turns, len(sample.images))
    if problem is not None:
        raise sample_error(sample, where, problem)
    try:
        ids, labels = processor.encode_conversation(turns)
    except ValueError as error:  # the chat template's own rules
        raise sample_error(sample, where, str(error)) from error
    if all(label == IGNORE_INDEX for label in labels[1:]):
        raise sample_error(
            sample, where, "no answer token to train on; the conversation needs an assistant turn"
        )
    return ids, labels


def encode(
    sample: Sample, turns: Turns, processor: ConversationEncoder, where: str = ""
) -> Encoded:
    """Return one conversation of a sample as the model will see it: ids, labels and uint8 pixels of
    shape (images, 3, height, width).

    `where` (the name of a folder or shard) is named in errors. Raises SampleError as `encode_text`,
    and for an image that cannot be read.
    """
    ids, labels = encode_text(sample, turns, processor, where)
    pixels = torch.zeros(0, 3, processor.image_size, processor.image_size, dtype=torch.uint8)
    if sample.images:
        pixels = torch.stack(
            [_pixels(sample, number, processor, where) for number in range(len(sample.images))]
        )
    return Encoded(sample_id=sample.id, input_ids=ids, labels=labels, pixels=pixels)


def _pixels(
    sample: Sample, number: int, processor: ConversationEncoder, where: str
) -> torch.Tensor:
    try:
        image = read_fast(sample.images[number])
    except ValueError as error:
        raise sample_error(sample, where, f"image {number} {error}") from error
    return processor.pixels(image)


def sample_error(sample: Sample, where: str, reason: str) -> SampleError:
    """Return the error for a fault of a sample; its message has the id, the shard folder and the
    reason.
    """
    place = f" in {where}" if where else ""
    return SampleError(f"sample {sample.id}{place}: {reason}")
