"""Which option does the model find likeliest? Losses of options as answers to a question.

For benchmarks whose official rule ranks the options' contents (SEED, V*). The end of the answer
counts as a token of it, as in both official programs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from pargo_ds.batch import IGNORE_INDEX
from pargo_ds.evaluation.answers import images_of_each, read_reference
from pargo_ds.evaluation.benchmark import Answer, ImageRef, Item


@torch.no_grad()
def option_losses(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    images: Sequence[Sequence[Image.Image]],
) -> list[list[tuple[float, int]]]:
    """Return for each item (summed loss in nats, target tokens) of each option.

    One right-padded batch `(options of all items, tokens)`; `images[i]` are those of item i.
    Padding stands behind everything that counts, and causal attention never looks there.
    """
    encoded, pixels = [], []
    for item, shown in zip(items, images, strict=True):
        for option in item.options:
            turns = [
                {"role": "user", "content": item.prompt},
                {"role": "assistant", "content": option},
            ]
            encoded.append(processor.encode_conversation(turns))
            pixels += [processor.pixels(image) for image in shown]
    longest = max(len(ids) for ids, _ in encoded)
    rows, targets, seen = [], [], []
    for ids, labels in encoded:
        missing = longest - len(ids)
        rows.append(ids + [ids[-1]] * missing)
        targets.append([*labels[1:], IGNORE_INDEX] + [IGNORE_INDEX] * missing)
        seen.append([1] * len(ids) + [0] * missing)
    pixel_values = None
    if pixels:
        pixel_values = torch.stack(pixels).to(model.device)
    logits = model(
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(seen, device=model.device),
        pixel_values=pixel_values,
        use_cache=False,
        # Answers stand at the end of their rows: all before the first target is not needed.
        logits_to_keep=longest - min(_first(row) for row in targets),
    ).logits
    kept = torch.tensor(targets, device=logits.device)[:, -logits.shape[1] :]
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), kept.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    sums = losses.view(kept.shape).sum(1).tolist()
    numbers = (kept != IGNORE_INDEX).sum(1).tolist()
    pairs = ((round(total, 6), count) for total, count in zip(sums, numbers, strict=True))
    return [list(islice(pairs, len(item.options))) for item in items]


def _first(targets: Sequence[int]) -> int:
    return next(place for place, target in enumerate(targets) if target != IGNORE_INDEX)


def rank_options(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    *,
    load: Callable[[ImageRef], Image.Image] = read_reference,
) -> list[Answer]:
    """Return the options' losses for each question, all questions in one batch; each image is read
    once.
    """
    losses = option_losses(model, processor, items, images_of_each(items, load))
    pairs = zip(items, losses, strict=True)
    return [Answer(id=item.id, losses=tuple(found)) for item, found in pairs]
