"""Sample -> conversations -> token ids and label mask, through the processor that the caller hands over.

`processor` is the model's own ParGoProcessor; this package does not import it. So training and inference
write a chat template, an image placeholder and an end of turn in one place only, and training ids equal
inference ids.
"""

from __future__ import annotations

from typing import Any

import torch

from pargo_ds.batch import IGNORE_INDEX, Encoded
from pargo_ds.config import DataSection
from pargo_ds.data.images import read_fast
from pargo_ds.data.schema import CAPTION_KINDS, IMAGE_PLACEHOLDER, Sample, SampleError, placeholder_problem

Turns = list[dict[str, str]]
"""[{"role": "user" | "assistant" | "system", "content": text}, ...]; `<image>` in a text stands for one picture."""


def text_settings(data: DataSection) -> dict[str, Any]:
    """The settings that decide which conversations a sample gives: part of every fingerprint of the data."""
    refused = {} if data.refused == "error" else {"refused": data.refused}
    if data.text == "turns":
        return {"text": "turns", **refused}
    prompts = data.caption_prompts.model_dump()
    wanted = CAPTION_KINDS if data.caption == "both" else (data.caption,)
    texts = {"caption": data.caption, "caption_prompts": {kind: prompts[kind] for kind in wanted}}
    return {"text": "captions", **texts, **refused}


def views(sample: Sample, data: DataSection, where: str = "") -> list[Turns]:
    """The conversations that training makes of one sample; each is one item of an epoch.

    text: turns -> the sample's own conversation. text: captions -> one question and answer per wanted
    caption: the prompt of that kind below one placeholder per picture, answered by the caption. caption: both
    takes each caption that the sample has.

    Raises SampleError when the sample has no conversation, or not the caption that is wanted.
    """
    if data.text == "turns":
        if not sample.turns:
            raise sample_error(sample, where, "it has no conversation turns; set data.text: captions, or other shards")
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
    return [{"role": "user", "content": question}, {"role": "assistant", "content": sample.captions[kind]}]


def encode_text(sample: Sample, turns: Turns, processor: Any, where: str = "") -> tuple[list[int], list[int]]:
    """Token ids and labels of one conversation, pictures not yet read (their tokens are already in place).

    Raises SampleError for a turn without text, placeholders that do not match the pictures, and a
    conversation in which nothing would be learned.
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
        raise sample_error(sample, where, "no answer token to train on; the conversation needs an assistant turn")
    return ids, labels


def encode(sample: Sample, turns: Turns, processor: Any, where: str = "") -> Encoded:
    """One conversation of a sample as the model will see it: ids, labels and uint8 pixels (images, 3, height,
    width).

    `where` (a folder or shard name) goes into errors. Raises SampleError as `encode_text`, and for a picture
    that cannot be read.
    """
    ids, labels = encode_text(sample, turns, processor, where)
    pixels = torch.zeros(0, 3, processor.image_size, processor.image_size, dtype=torch.uint8)
    if sample.images:
        pixels = torch.stack([_pixels(sample, number, processor, where) for number in range(len(sample.images))])
    return Encoded(sample_id=sample.id, input_ids=ids, labels=labels, pixels=pixels)


def _pixels(sample: Sample, number: int, processor: Any, where: str) -> torch.Tensor:
    try:
        picture = read_fast(sample.images[number])
    except ValueError as error:
        raise sample_error(sample, where, f"picture {number} {error}") from error
    return processor.pixels(picture)


def sample_error(sample: Sample, where: str, reason: str) -> SampleError:
    """The error every fault of a sample is told by: its id, where it lies, and the reason."""
    return SampleError(f"sample {sample.id}{f' in {where}' if where else ''}: {reason}")
