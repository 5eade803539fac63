"""Try a vision encoder on images of the wanted size, before any weights are loaded."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

TINY_ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
"""Sizes of a small copy of an encoder of transformers."""


class EncoderError(ValueError):
    """A vision encoder does not run on images of the wanted size."""


def try_out(
    name: str,
    image_size: int,
    device: str,
    build: Callable[[], tuple[nn.Module, Callable]],
    own_size: object = None,
) -> torch.Tensor:
    """Return the features of two images by an encoder with random weights. `build` returns the
    encoder and its function from pixels to features.

    At `own_size`, the size for which it was published, an encoder may ignore pixels at the edges,
    with a warning: SigLIP so400m uses 378 of its 384 pixels.

    Raises:
        EncoderError: it cannot be built, or takes no plain images of this size.
        ValueError: it would leave pixels at their edges unseen at another size.
    """
    what = f"vision encoder {name} at image_size {image_size}"
    try:
        with torch.device(device), torch.random.fork_rng(devices=[]), torch.no_grad():
            backbone, features_of = build()
            with _strides_that_do_not_fit(backbone.eval()) as strides:
                features = features_of(torch.zeros(2, 3, image_size, image_size))
    except Exception as error:  # encoders check their input in their own ways, or not at all
        said = " ".join(str(error).split())[:200]
        raise EncoderError(
            f"{what} does not work here ({type(error).__name__}: {said}); it must take images of this size, as pixels "
            "alone, and give one feature for each patch"
        ) from error
    if strides:
        patch = max(stride * (image_size // size) for stride, size in strides)
        fits = image_size // patch * patch
        fault = (
            f"{what}: {image_size} is no multiple of {patch}, the size of its patches, and the last "
            f"{image_size - fits} rows and columns of pixels would never be seen"
        )
        if image_size != own_size:
            raise ValueError(f"{fault}; set image_size to {fits} or {fits + patch}")
        warnings.warn(f"{fault}, as in its own training", stacklevel=2)
    return features


@contextmanager
def _strides_that_do_not_fit(backbone: nn.Module) -> Iterator[list[tuple[int, int]]]:
    """Yields a list that receives (stride, rows that it gets) of each convolution which passes by
    the last rows.
    """
    found: list[tuple[int, int]] = []

    def note(convolution: nn.Conv2d, inputs: tuple[torch.Tensor, ...]) -> None:
        stride, kernel, padding = (
            convolution.stride[0],
            convolution.kernel_size[0],
            convolution.padding,
        )
        size = inputs[0].shape[-2]
        padded = 0 if isinstance(padding, str) else padding[0]
        # A kernel smaller than its stride is a shortcut beside the convolution that uses all rows.
        if kernel >= stride > 1 and (size + 2 * padded - kernel) % stride > padded:
            found.append((stride, size))

    # Subclasses of timm's pad their input themselves.
    convolutions = [module for module in backbone.modules() if type(module) is nn.Conv2d]
    handles = [convolution.register_forward_pre_hook(note) for convolution in convolutions]
    yield found
    for handle in handles:
        handle.remove()


def tiny_encoder(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of an encoder of transformers, with TINY_ENCODER's sizes."""
    sizes = {key: value for key, value in TINY_ENCODER.items() if isinstance(body.get(key), int)}
    tiny = dict(body) | sizes
    for key in ("out_features", "out_indices", "stage_names"):
        tiny.pop(key, None)
    return tiny
