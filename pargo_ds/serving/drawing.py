"""Sampling in a batch whose rows have settings of their own.

`generate` samples all rows alike and from one stream of random numbers, so that an answer would
depend on its neighbours. Here each row draws by itself: Gumbel noise on its scaled logits, whose
largest one `generate` then takes as it does in greedy search.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from pargo_ds.serving.chat import Settings


class RowDrawing(LogitsProcessor):
    """Noise for the rows of temperature above 0; the others stay as they are.

    Equal seeds draw equal tokens from equal logits, in any batch and on any device.
    """

    def __init__(self, settings: Sequence[Settings]) -> None:
        self.settings = settings
        self.streams = [_stream(own) for own in settings]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores `(rows, vocabulary)` -> the same, with noise where a row samples."""
        if not any(self.streams):
            return scores
        drawn = scores.float().clone()
        for row, (settings, stream) in enumerate(zip(self.settings, self.streams, strict=True)):
            if stream is not None:
                scaled = drawn[row] / settings.temperature
                noise = torch.empty(scaled.shape).exponential_(generator=stream).log().neg()
                drawn[row] = nucleus(scaled, settings.top_p) + noise.to(scaled.device)
        return drawn


def _stream(settings: Settings) -> torch.Generator | None:
    """The random numbers of one row; None where it takes the likeliest tokens."""
    if not settings.temperature > 0:
        return None
    stream = torch.Generator()
    if settings.seed is None:
        stream.seed()
    else:
        stream.manual_seed(settings.seed)
    return stream


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return logits `(vocabulary,)` -> the same with -inf outside of the likeliest tokens that
    together have `top_p`; the likeliest one always stays.
    """
    if top_p >= 1:
        return logits
    ordered, places = logits.sort(descending=True)
    before = ordered.softmax(0).cumsum(0) - ordered.softmax(0)
    return logits.masked_fill(torch.zeros_like(logits, dtype=torch.bool).scatter(
        0, places, before >= top_p), -torch.inf
    )  # fmt: skip
