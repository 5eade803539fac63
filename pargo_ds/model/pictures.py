"""Pictures on their way to the encoder: any PIL mode to a square of RGB, and which picture belongs to which text."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .configuration_pargo import IMAGE_PLACEHOLDER

RESIZES = ("stretch", "crop", "pad")
PAD_COLOUR = (127, 127, 127)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any PIL picture -> RGB: EXIF rotation applied, alpha laid onto white, 16-bit grey scaled."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # PIL would clip 16-bit values at 255
        return Image.fromarray((np.asarray(picture).clip(0, 65535) // 256).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def to_square(picture: Image.Image, size: int, resize: str) -> Image.Image:
    """RGB picture -> `size` x `size` pixels, bicubic: stretched, its middle cropped, or padded with grey.

    Raises:
        ValueError: unknown resize.
    """
    square = (size, size)
    if resize == "stretch":
        return picture.resize(square, Image.Resampling.BICUBIC)
    if resize == "crop":
        return ImageOps.fit(picture, square, Image.Resampling.BICUBIC)
    if resize == "pad":
        return ImageOps.pad(picture, square, Image.Resampling.BICUBIC, color=PAD_COLOUR)
    raise ValueError(f"unknown resize '{resize}': choose one of {', '.join(RESIZES)}")


def _is_picture(value: Any) -> bool:
    return isinstance(value, (Image.Image, str, Path))


def open_picture(picture: Image.Image | str | Path) -> Image.Image:
    """The picture itself, or the file that a path names."""
    return picture if isinstance(picture, Image.Image) else Image.open(picture)


def match_pictures(images: Any, placeholders: list[int]) -> list[Any]:
    """Flat list of pictures in order of appearance.

    Raises:
        ValueError: naming the text whose count of pictures is wrong.
    """
    images = [] if images is None else [images] if _is_picture(images) else list(images)
    nested = [not _is_picture(entry) for entry in images]
    if any(nested):
        if not all(nested) or len(images) != len(placeholders):
            raise ValueError(f"{len(images)} lists of pictures for {len(placeholders)} texts: give one list per text")
        for i, (entry, wanted) in enumerate(zip(images, placeholders, strict=True)):
            if len(entry) != wanted:
                raise ValueError(_count_message(f"text {i}", wanted, len(entry)))
        return [picture for entry in images for picture in entry]
    if len(images) != sum(placeholders):
        raise ValueError(_count_message(f"{len(placeholders)} text(s)", sum(placeholders), len(images)))
    return images


def _count_message(where: str, placeholders: int, pictures: int) -> str:
    return (
        f"{where}: {placeholders} {IMAGE_PLACEHOLDER} placeholders but {pictures} pictures; "
        "each placeholder needs one picture"
    )
