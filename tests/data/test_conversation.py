"""Promises of conversations: which views a sample gives, one code path for ids, errors with the
sample's id.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from pargo_ds.batch import IGNORE_INDEX, pack
from pargo_ds.config import DataSection
from pargo_ds.data.conversation import conversations_of, encode, text_settings
from pargo_ds.data.shards.schema import Sample
from pargo_ds.errors import SampleError


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 9), colour).save(buffer, "PNG")
    return buffer.getvalue()


def captions(kind: str) -> DataSection:
    prompts = {"coarse": "Briefly.", "detailed": "In detail."}
    return DataSection(train="unused", text="captions", caption=kind, caption_prompts=prompts)


SAMPLE = Sample(
    id="00017",
    images=[png("red"), png("blue")],
    turns=[
        {"role": "user", "content": "<image> or <image>?"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "yes"},
    ],
    captions={"coarse": "two squares", "detailed": "a red square, then a blue one"},
)


def test_turns_give_the_samples_own_conversation(turns_data: DataSection) -> None:
    assert conversations_of(SAMPLE, turns_data) == [SAMPLE.turns]


@pytest.mark.parametrize(
    "kind, texts", [("coarse", ["two squares"]), ("both", list(SAMPLE.captions.values()))]
)
def test_captions_give_one_question_per_wanted_caption(kind: str, texts: list[str]) -> None:
    found = conversations_of(SAMPLE, captions(kind))
    assert [turns[1] for turns in found] == [
        {"role": "assistant", "content": text} for text in texts
    ]
    assert found[0][0] == {"role": "user", "content": "<image>\n<image>\nBriefly."}


def test_both_takes_the_captions_that_a_sample_has() -> None:
    only_coarse = replace(SAMPLE, captions={"coarse": "two"})
    assert len(conversations_of(only_coarse, captions("both"))) == 1
    with pytest.raises(
        SampleError, match="sample 00017 in here: it has no detailed caption \\(found: coarse\\)"
    ):
        conversations_of(only_coarse, captions("detailed"), where="here")


def test_a_sample_without_turns_is_refused_where_turns_are_wanted(turns_data: DataSection) -> None:
    with pytest.raises(SampleError, match="sample 00017: it has no conversation turns"):
        conversations_of(replace(SAMPLE, turns=[]), turns_data)


def test_settings_that_do_not_matter_are_not_in_the_fingerprint(turns_data: DataSection) -> None:
    other = DataSection(
        train="unused", text="turns", caption="coarse", caption_prompts={"coarse": "x"}
    )
    assert text_settings(turns_data) == text_settings(other)
    assert text_settings(captions("coarse")) != text_settings(captions("both"))


def test_training_ids_equal_inference_ids(processor: Any) -> None:
    """What precedes an answer in training is what generation starts from, images and all."""
    encoded = encode(SAMPLE, SAMPLE.turns, processor)
    images = [Image.open(io.BytesIO(image)) for image in SAMPLE.images]
    asked = processor.apply_chat_template(
        SAMPLE.turns[:3],
        images=images,
        add_generation_prompt=True,
        tokenize=True,
        return_tensors="pt",
    )
    prompt = asked["input_ids"][0].tolist()
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[len(prompt) :] == encoded.input_ids[len(prompt) :]
    assert processor.decode(encoded.input_ids[len(prompt) :]) == "yes<|end|>"
    assert torch.equal(asked["pixel_values"], encoded.pixels)
    assert encoded.input_ids.count(processor.image_token_id) == 2 * processor.visual_tokens


def test_only_answers_and_their_end_are_learned(processor: Any) -> None:
    encoded = encode(SAMPLE, SAMPLE.turns, processor)
    learned = [label for label in encoded.labels if label != IGNORE_INDEX]
    assert processor.decode(learned) == "red<|end|>yes<|end|>"


def test_first_token_of_a_packed_sample_is_never_a_target(processor: Any) -> None:
    """Even when a template lets the answer come first: its prediction would read the sample before
    it.
    """
    answer_first = replace(encode(SAMPLE, SAMPLE.turns, processor), labels=None)
    answer_first = replace(answer_first, labels=list(answer_first.input_ids))
    batch = pack([answer_first, answer_first], processor.image_size)
    starts = batch.cu_seqlens[:-1].long()
    assert (batch.labels[0, starts] == IGNORE_INDEX).all()
    assert (batch.labels[0, starts + 1] != IGNORE_INDEX).all()


def test_text_only_sample_has_no_pixels(processor: Any) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    encoded = encode(Sample(id="a", turns=turns), turns, processor)
    assert encoded.pixels.shape == (0, 3, processor.image_size, processor.image_size)
    assert encoded.pixels.dtype == torch.uint8


@pytest.mark.parametrize(
    "turns, reason",
    [
        (
            [
                {"role": "user", "content": "<image><image><image>?"},
                {"role": "assistant", "content": "a"},
            ],
            "3 image placeholders but 2 images; each placeholder needs one image",
        ),
        (
            [{"role": "user", "content": "<image><image>"}, {"role": "assistant", "content": " "}],
            "turn 1 \\(assistant\\) has no text",
        ),
        ([{"role": "user", "content": "<image><image>?"}], "no answer token to train on"),
        (
            [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "<image>"}],
            "images belong to user turns",
        ),
    ],
)
def test_malformed_conversations_name_sample_and_reason(
    processor: Any, turns: list, reason: str
) -> None:
    with pytest.raises(SampleError, match=f"sample 00017 in FOLDER: .*{reason}"):
        encode(SAMPLE, turns, processor, where="FOLDER")


def test_unreadable_image_names_sample_and_reason(processor: Any) -> None:
    broken = replace(SAMPLE, images=[SAMPLE.images[0], SAMPLE.images[1][:-30]])
    with pytest.raises(SampleError, match="sample 00017 in FOLDER: image 1 cannot be decoded"):
        encode(broken, SAMPLE.turns, processor, where="FOLDER")
