"""Convert any image to a square of RGB pixels, and assign images to texts.

Axes: an image is `(3, height, width)` uint8 RGB, or a PIL image that becomes one.
"""

import base64
import binascii
import io
import urllib.request
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional

from .configuration_pargo import IMAGE_PLACEHOLDER

RESIZES = ("stretch", "crop", "pad")
PAD_GREY = 127
PIXEL_VERSION = "torch uint8 bicubic antialias, wide grey scaled"
"""Version of the code that makes the pixels, for fingerprints; it changes when the pixels
change.
"""
CHANNELS = (1, 3, 4)
DOWNLOAD_TIMEOUT_S = 30


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any PIL image to RGB. Its EXIF rotation is applied, alpha is laid onto white, and grey
    of more than 8 bits is scaled.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):  # PIL would clip values at 255
        return Image.fromarray(_scaled_grey(np.asarray(image), image.mode)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _scaled_grey(numbers: np.ndarray, mode: str) -> np.ndarray:
    """(height, width) wide grey -> uint8. White is 65535; 1 or 255 for floats that stay below; the
    largest value, where that is above 65535, since nothing says how many of 32 bits are used.
    """
    if mode != "F" and numbers.max() <= 65535:
        return (numbers.clip(0, 65535) // 256).astype(np.uint8)
    numbers = np.nan_to_num(numbers.astype(np.float64))
    top = numbers.max()
    white = max(top, 65535)
    if mode == "F" and top <= 255:
        white = 1 if top <= 1 else 255
    return (numbers.clip(0) / white * 65535 // 256).astype(np.uint8)


def to_pixels(image: Image.Image | torch.Tensor) -> torch.Tensor:
    """Return the pixels of a PIL image of any mode, or pixels as they are: uint8 `(3, height,
    width)`.

    Raises:
        ValueError: a tensor of another type or shape, or without pixels.
    """
    if isinstance(image, Image.Image):
        return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)  # (3, height, width)
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(
            f"pixels of type {image.dtype} and shape {tuple(image.shape)}; expected torch.uint8, (3, height, width)"
        )
    return image


def to_square(pixels: torch.Tensor, size: int, resize: str) -> torch.Tensor:
    """Make a square, uint8 `(3, size, size)`, of uint8 `(3, height, width)`, which is stretched,
    cropped to its middle, or padded with grey.

    Bicubic with antialiasing in whole numbers, as Pillow does it and in a quarter of its time. A
    crop starts at a whole pixel.

    Raises:
        ValueError: unknown resize.
    """
    height, width = pixels.shape[1:]
    if resize == "stretch":
        return _resized(pixels, size, size)
    if resize == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return _resized(pixels[:, top : top + side, left : left + side], size, size)
    if resize == "pad":
        longest = max(height, width)
        inside = [max(1, round(side / longest * size)) for side in (height, width)]
        top, left = (round((size - side) / 2) for side in inside)
        square = torch.full((3, size, size), PAD_GREY, dtype=torch.uint8)
        square[:, top : top + inside[0], left : left + inside[1]] = _resized(pixels, *inside)
        return square
    raise ValueError(f"unknown resize '{resize}': choose one of {', '.join(RESIZES)}")


def _resized(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    size = (height, width)
    return functional.interpolate(pixels[None], size, mode="bicubic", antialias=True)[
        0
    ].contiguous()


# What a caller may hand over as an image


def open_image(image: Any, channels: str | None = None) -> Image.Image | torch.Tensor:
    """Turn whatever stands for an image into what `to_pixels` takes.

    Args:
        image: a PIL image, a path, an http(s) address, base64 text (also
            `data:image/...;base64,...`), or uint8 numbers of numpy or torch, `(height, width)` or
            with 1, 3 or 4 channels, first or last.
        channels: "channels_first" or "channels_last", for numbers whose shape leaves it open.

    transformers' `load_image` reads most of these too, but lays transparency onto black.

    Raises:
        ValueError: numbers that are not uint8 or have another shape, text that names no image.
        OSError: a file or an address that cannot be read.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return _from_numbers(torch.as_tensor(image), channels)
    if isinstance(image, Path):
        return Image.open(image)
    if isinstance(image, str):
        return _from_text(image)
    raise ValueError(
        f"an image of type {type(image).__name__}: expected a PIL image, a path, an address or uint8"
    )


def _from_text(text: str) -> Image.Image:
    if text.startswith(("http://", "https://")):
        request = urllib.request.Request(
            text, headers={"User-Agent": "ParGo"}
        )  # some hosts refuse Python's own
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_S) as answer:
            return Image.open(io.BytesIO(answer.read()))
    inline = text.startswith("data:image/")
    # Asking the file system for a name of megabytes is an error of its own.
    if not inline and len(text) < 4096 and Path(text).is_file():
        return Image.open(text)
    encoded = text
    if inline:
        encoded = text.partition(",")[2]
    try:
        return Image.open(io.BytesIO(base64.b64decode(encoded, validate=not inline)))
    except (binascii.Error, OSError) as error:
        raise ValueError(
            f"'{text[:80]}' is no image: expected the path of a file, an http(s) address or base64 ({error})"
        ) from error


def _from_numbers(numbers: torch.Tensor, channels: str | None) -> Image.Image | torch.Tensor:
    shape = tuple(numbers.shape)
    if numbers.dtype != torch.uint8 or numbers.ndim not in (2, 3) or 0 in shape:
        raise ValueError(
            f"an image of type {numbers.dtype} and shape {shape}: expected torch.uint8 or numpy.uint8, 0 to 255, "
            "(height, width), (channels, height, width) or (height, width, channels); numbers from 0 to 1 become "
            "such ones by (255 * image).round().astype('uint8')"
        )
    if numbers.ndim == 2:
        return Image.fromarray(numbers.cpu().numpy())
    if channels is None and shape[0] in CHANNELS and shape[-1] in CHANNELS:
        raise ValueError(
            f"an image of shape {shape} may have its channels first or last: say which, by "
            "images_kwargs={'input_data_format': 'channels_first'} or 'channels_last'"
        )
    channels_first = shape[0] in CHANNELS
    if channels:
        channels_first = channels == "channels_first"
    rows = numbers  # (height, width, channels)
    if channels_first:
        rows = numbers.permute(1, 2, 0)
    if rows.shape[2] not in CHANNELS:
        raise ValueError(f"an image of shape {shape}: expected 1, 3 or 4 channels, first or last")
    if rows.shape[2] == 3:
        return rows.permute(2, 0, 1).cpu()  # (3, height, width)
    return Image.fromarray(rows.squeeze(2).contiguous().cpu().numpy())


def _is_image(value: Any) -> bool:
    numbers = isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim in (2, 3)
    return numbers or isinstance(value, (Image.Image, str, Path))


def flat_images(images: Any) -> list[Any]:
    """Return a flat list, in order, of one image, a list, a list of lists, or numbers with an axis
    for images.
    """
    if images is None:
        return []
    if _is_image(images) or not isinstance(images, (list, tuple, np.ndarray, torch.Tensor)):
        return [images]
    return list(chain.from_iterable(flat_images(entry) for entry in images))


def match_images(images: Any, placeholders: list[int]) -> list[Any]:
    """Return a flat list of the images in order of appearance.

    Raises:
        ValueError: naming the text whose count of images is wrong.
    """
    if images is None:
        images = []
    if _is_image(images):
        images = [images]
    images = list(images)
    nested = [not _is_image(entry) for entry in images]
    if any(nested):
        if not all(nested) or len(images) != len(placeholders):
            raise ValueError(
                f"{len(images)} lists of images for {len(placeholders)} texts: give one list per text"
            )
        for i, (entry, wanted) in enumerate(zip(images, placeholders, strict=True)):
            if len(entry) != wanted:
                raise ValueError(_count_message(f"text {i}", wanted, len(entry)))
        return list(chain.from_iterable(images))
    if len(images) != sum(placeholders):
        raise ValueError(
            _count_message(f"{len(placeholders)} text(s)", sum(placeholders), len(images))
        )
    return images


def _count_message(where: str, placeholders: int, images: int) -> str:
    return (
        f"{where}: {placeholders} {IMAGE_PLACEHOLDER} placeholders but {images} images; "
        "each placeholder needs one image"
    )
