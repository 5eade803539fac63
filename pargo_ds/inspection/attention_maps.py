"""What the visual tokens look at: the attention of a trained projector over the patches of an image,
computed and drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from pargo_ds.inspection.mask_figure import square_grid
from pargo_ds.model.head_projections import HeadProjections
from pargo_ds.model.projectors import Projector

SHOWN_TOKENS = 4
"""Number of tokens that are drawn of each kind, partial and global."""


@torch.no_grad()
def attention_over_patches(model: Any, pixel_values: torch.Tensor) -> torch.Tensor | None:
    """Return the attention of each visual token in the projector's last cross-attention, `(images,
    tokens, patches)`.

    A row holds softmax weights, the mean over heads, and sums to 1. A partial token has weight on
    its own patches only. None for a projector whose tokens do not attend to patches.

    Args:
        model: ParGoForConditionalGeneration.
        pixel_values: `(images, 3, height, width)`.
    """
    watched = Watched(model.projector)
    try:
        model.get_image_features(pixel_values)
    finally:
        watched.end()
    if watched.last is None:
        return None
    query, key = watched.last.split(watched.queries), watched.last.split(watched.keys)
    scores = query.float() @ key.float().transpose(-1, -2) / watched.last.head_dim**0.5
    mask = _mask_over_patches(model, scores.shape[-2:])
    return scores.masked_fill(~mask.to(scores.device), float("-inf")).softmax(-1).mean(1)


class Watched:
    """Keeps the queries and keys of the last attention whose source is the patches."""

    last: HeadProjections | None = None
    queries: torch.Tensor
    keys: torch.Tensor

    def __init__(self, projector: Projector) -> None:
        self._patches: torch.Tensor | None = None
        self._query: torch.Tensor | None = None
        self._hooks = [projector.patch_norm.register_forward_hook(self._see_patches)]
        for module in projector.modules():
            if isinstance(module, HeadProjections):
                self._hooks.append(module.query.register_forward_hook(self._see_query))
                self._hooks.append(module.key.register_forward_hook(partial(self._see_key, module)))

    def end(self) -> None:
        """Watch no longer."""
        for hook in self._hooks:
            hook.remove()

    def _see_patches(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self._patches = output

    def _see_query(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self._query = output

    def _see_key(
        self, owner: HeadProjections, module: nn.Module, inputs: Any, output: torch.Tensor
    ) -> None:
        # Every projector computes its queries before its keys.
        if inputs[0] is self._patches and self._query is not None:
            self.last, self.queries, self.keys = owner, self._query, output


def _mask_over_patches(model: Any, shape: Sequence[int]) -> torch.Tensor:
    """Which patches each token may see, boolean `(tokens, patches)`."""
    masks = model.config.projector_config.masks(model.projector.num_patches)
    for _, mask, _ in reversed(masks):  # that over the patches is the last one
        if tuple(mask.shape) == tuple(shape):
            return mask
    return torch.ones(*shape, dtype=torch.bool)


def chosen_tokens(tokens: int, num_partial: int) -> list[int]:
    """Return the tokens to draw: some partial ones, evenly spaced, then some global ones."""
    chosen: list[int] = []
    for first, end in ((0, num_partial), (num_partial, tokens)):
        count = min(SHOWN_TOKENS, end - first)
        middles = (np.arange(count) + 0.5) * (end - first) / max(1, count)
        chosen += [first + int(place) for place in middles]
    return chosen


def attention_figure(
    images: Sequence[Image.Image], weights: np.ndarray, num_partial: int, title: str
) -> Figure:
    """Draw a row for each square image: the image, then the attention of `chosen_tokens` over it.

    Args:
        weights: `(images, tokens, patches)`; each token's are drawn relative to its highest.
        num_partial: number of partial tokens, which come first.

    Raises:
        ValueError: the patches fill no square.
    """
    side = square_grid(weights.shape[2])
    tokens = chosen_tokens(weights.shape[1], num_partial)
    size = (1.5 * (len(tokens) + 1), 1.65 * len(images) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(len(images), len(tokens) + 1, squeeze=False)
    extent = (0, side, side, 0)
    for row, image, own in zip(panels, images, weights, strict=True):
        row[0].imshow(np.asarray(image), extent=extent)
        for axes, token in zip(row[1:], tokens, strict=True):
            grid = own[token].reshape(side, side)
            grey = np.asarray(image.convert("L"))
            axes.imshow(grey, extent=extent, cmap="gray")
            axes.imshow(grid / grid.max(), extent=extent, cmap="inferno", alpha=0.65, vmin=0)
            axes.set_title(_name(token, num_partial), fontsize=8)
        for axes in row:
            axes.set(xticks=[], yticks=[])
    return figure


def _name(token: int, num_partial: int) -> str:
    if token < num_partial:
        return f"partial {token}"
    return f"global {token - num_partial}"
