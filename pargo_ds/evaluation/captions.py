"""Does the image help? Held-out caption loss with the right image against another scene's image."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pargo_ds.batch import IGNORE_INDEX
from pargo_ds.data.shards.schema import IMAGE_PLACEHOLDER, Sample
from pargo_ds.evaluation.answers import read_first_image
from pargo_ds.evaluation.bootstrap import bootstrap_ratio

PROMPTS = {"coarse": "What is this?", "detailed": "Describe the picture."}
"""Caption kind -> question, where a run file says nothing else."""


@dataclass(frozen=True)
class SceneLoss:
    """Summed cross-entropy (nats) of one scene's captions under both images, and their target
    tokens.
    """

    right: float
    wrong: float
    tokens: int


def derangement(count: int, seed: int) -> list[int]:
    """Return a permutation of `count` positions that leaves none in its place (Sattolo: one single
    cycle).

    Raises ValueError for fewer than two.
    """
    if count < 2:
        raise ValueError(f"{count} scenes; a wrong image needs at least two")
    order = list(range(count))
    rng = random.Random(seed)
    for last in range(count - 1, 0, -1):
        other = rng.randrange(last)
        order[last], order[other] = order[other], order[last]
    return order


@torch.no_grad()
def summed_loss(
    model: Any, processor: Any, turns: list[dict[str, str]], pixels: torch.Tensor
) -> tuple[float, int]:
    """Return the summed cross-entropy (nats) of the answers of one conversation, and the number of
    target tokens.

    pixels: uint8 (images, 3, height, width). One conversation a call: no padding, so nothing can
    leak in.
    """
    ids, labels = processor.encode_conversation(turns)
    # The first label has no position before it that could predict it.
    tokens = sum(label != IGNORE_INDEX for label in labels[1:])
    output = model(
        input_ids=torch.tensor([ids], device=model.device),
        labels=torch.tensor([labels], device=model.device),
        pixel_values=pixels.to(model.device),
        num_items_in_batch=1,
        use_cache=False,
        return_logits=False,
    )
    return float(output.loss), tokens


def scene_losses(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    prompts: dict[str, str],
    *,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> list[SceneLoss]:
    """Return the caption losses of each scene with its own and with another scene's image.

    `prompts` maps a caption kind to its question, as in training: {"detailed": "Describe the
    picture."}. A scene's losses are summed over the kinds it has. Raises ValueError for a scene
    without any of these captions.
    """
    images = [processor.pixels(read_first_image(sample)) for sample in samples]
    losses = []
    for sample, own, other in zip(
        samples, range(len(samples)), derangement(len(samples), seed), strict=True
    ):
        kinds = [kind for kind in prompts if kind in sample.captions]
        if not kinds:
            raise ValueError(
                f"sample {sample.id}: none of the captions {', '.join(prompts)}; it has {list(sample.captions)}"
            )
        right = wrong = 0.0
        tokens = 0
        for kind in kinds:
            turns = [
                {"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n{prompts[kind]}"},
                {"role": "assistant", "content": sample.captions[kind]},
            ]
            found, count = summed_loss(model, processor, turns, images[own].unsqueeze(0))
            right, tokens = right + found, tokens + count
            wrong += summed_loss(model, processor, turns, images[other].unsqueeze(0))[0]
        losses.append(SceneLoss(right, wrong, tokens))
        progress(1)
    return losses


def caption_summary(losses: Sequence[SceneLoss], *, seed: int = 0) -> dict[str, Any]:
    """Return the mean losses per target token, their difference with a 95 % bootstrap interval over
    scenes, and the same per scene.

    {"right", "wrong", "wrong_minus_right": {"mean", "low", "high"}, "per_scene": {...the same
    keys...}, "scenes", "tokens"}
    """
    tokens = [loss.tokens for loss in losses]
    return {
        **_summary(losses, tokens, seed),
        "per_scene": _summary(losses, [1] * len(losses), seed),
        "scenes": len(losses),
        "tokens": sum(tokens),
    }


def _summary(losses: Sequence[SceneLoss], weights: Sequence[int], seed: int) -> dict[str, Any]:
    total = sum(weights)
    return {
        "right": sum(loss.right for loss in losses) / total,
        "wrong": sum(loss.wrong for loss in losses) / total,
        "wrong_minus_right": bootstrap_ratio(
            [loss.wrong - loss.right for loss in losses], weights, seed=seed
        ).as_dict(),
    }
