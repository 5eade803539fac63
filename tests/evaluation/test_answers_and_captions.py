"""Answers in batches, caption losses with right and wrong images, on a tiny random model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from pargo_ds.demo.evaluate import compare_with_blind
from pargo_ds.evaluation.answers import answer_questions, generate_answers, read_first_image
from pargo_ds.evaluation.captions import (
    SceneLoss,
    caption_summary,
    derangement,
    scene_losses,
    summed_loss,
)
from pargo_ds.evaluation.scoring import questions_of, whole_scenes

PROMPTS = {"detailed": "Describe the picture."}


def test_batched_answers_equal_single_ones(model, processor, samples) -> None:
    asked = questions_of(samples)
    done: list[int] = []
    batched = answer_questions(
        model, processor, samples, asked, batch_size=3, max_new_tokens=5, progress=done.append
    )
    single = answer_questions(model, processor, samples, asked, batch_size=1, max_new_tokens=5)
    assert batched == single
    assert len(batched) == len(asked) == sum(done)


def test_answers_depend_on_the_image(model, processor, samples) -> None:
    """Otherwise the test above could pass with the images mixed up."""
    turns = [{"role": "user", "content": "<image>\nDescribe the picture."}]
    images = [[read_first_image(sample)] for sample in samples]
    answers = generate_answers(model, processor, [turns] * len(samples), images, max_new_tokens=8)
    assert len(set(answers)) > 1


def test_missing_image_is_an_error(model, processor) -> None:
    with pytest.raises(ValueError, match="placeholder"):
        generate_answers(model, processor, [[{"role": "user", "content": "<image>\nA"}]], [[]])


def test_unreadable_image_is_named(samples) -> None:
    with pytest.raises(ValueError, match="sample scene-0: image 0 is not an image"):
        read_first_image(dataclasses.replace(samples[0], images=[b"nonsense"]))
    with pytest.raises(ValueError, match="sample scene-0: it has no image"):
        read_first_image(dataclasses.replace(samples[0], images=[]))


def test_summed_loss_equals_cross_entropy_of_the_logits(model, processor, samples) -> None:
    turns = [
        {"role": "user", "content": "<image>\nDescribe the picture."},
        {"role": "assistant", "content": "A red square."},
    ]
    pixels = processor.pixels(read_first_image(samples[0])).unsqueeze(0)
    ids, labels = processor.encode_conversation(turns)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels, use_cache=False).logits[
            0, :-1
        ]
    expected = F.cross_entropy(
        logits.float(), torch.tensor(labels[1:]), ignore_index=-100, reduction="sum"
    )
    loss, tokens = summed_loss(model, processor, turns, pixels)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert tokens == sum(label != -100 for label in labels[1:])


@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_derangement_leaves_nothing_in_its_place(count: int) -> None:
    order = derangement(count, seed=count)
    assert sorted(order) == list(range(count))
    assert all(place != other for place, other in enumerate(order))
    assert order == derangement(count, seed=count)


def test_one_scene_has_no_wrong_image() -> None:
    with pytest.raises(ValueError, match="at least two"):
        derangement(1, seed=0)


def test_caption_gap_is_zero_when_all_images_are_the_same(model, processor, samples) -> None:
    same = [dataclasses.replace(sample, images=samples[0].images) for sample in samples]
    losses = scene_losses(model, processor, same, PROMPTS)
    assert all(loss.right == loss.wrong for loss in losses)
    assert caption_summary(losses)["wrong_minus_right"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_caption_loss_uses_the_right_and_the_wrong_image(model, processor, samples) -> None:
    losses = scene_losses(model, processor, samples, PROMPTS, seed=5)
    other = derangement(len(samples), 5)
    turns = [
        {"role": "user", "content": "<image>\nDescribe the picture."},
        {"role": "assistant", "content": samples[1].captions["detailed"]},
    ]
    pixels = [processor.pixels(read_first_image(sample)).unsqueeze(0) for sample in samples]
    assert losses[1].right == summed_loss(model, processor, turns, pixels[1])[0]
    assert losses[1].wrong == summed_loss(model, processor, turns, pixels[other[1]])[0]


def test_scene_without_the_caption_is_named(model, processor, samples) -> None:
    bare = dataclasses.replace(samples[2], captions={"coarse": "A square."})
    with pytest.raises(ValueError, match="sample scene-2: none of the captions detailed; it has"):
        scene_losses(model, processor, [samples[0], samples[1], bare], PROMPTS)


def test_caption_summary_weighs_tokens_and_scenes() -> None:
    summary = caption_summary([SceneLoss(10.0, 20.0, 10), SceneLoss(30.0, 60.0, 10)])
    assert (summary["right"], summary["wrong"]) == (2.0, 4.0)
    assert summary["wrong_minus_right"]["mean"] == 2.0
    assert summary["wrong_minus_right"]["low"] == pytest.approx(1.0)
    assert summary["per_scene"]["wrong_minus_right"]["mean"] == 20.0
    assert (summary["scenes"], summary["tokens"]) == (2, 20)


def test_whole_scenes_are_asked(samples) -> None:
    questions = questions_of(samples)
    assert [item.scene for item in whole_scenes(questions, 5)] == [0, 0, 1, 1]
    assert [item.scene for item in whole_scenes(questions, 1)] == [0, 0]
    assert whole_scenes(questions, 100) == questions


def test_gain_over_blind_is_a_mean_over_questions(samples) -> None:
    questions = questions_of(samples)
    gain = compare_with_blind(
        questions, [item.answer for item in questions], ["red"] * len(questions), seed=0
    )
    assert gain["mean"] == 0.5
