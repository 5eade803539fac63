"""Pictures -> pixel_values, as Hugging Face's image processors are called; training and inference come through here."""

from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .configuration_pargo import IMAGE_PLACEHOLDER  # noqa: F401  (the files that pictures needs, for transformers 4.57)
from .masks import CASCADES  # noqa: F401
from .pictures import RESIZES, flat_pictures, open_picture, to_pixels, to_square

# What the pixels are, in words of Hugging Face's image processors; another value is refused.
FIXED = {
    "do_resize": True,
    "do_convert_rgb": True,
    "do_rescale": False,
    "do_normalize": False,
    "data_format": "channels_first",
}
PER_CALL = ("input_data_format", "return_tensors")


class ParGoImageProcessor(BaseImageProcessor):
    """Square pictures of raw uint8 pixels; the model itself normalises them.

    Args:
        image_size: side of the square that the encoder takes, pixels.
        resize: stretch the picture to the square, crop its middle, or pad it with grey.

    Raises:
        ValueError: an unknown resize, a size below 1.
    """

    model_input_names = ["pixel_values"]
    do_resize, do_convert_rgb, do_rescale, do_normalize = True, True, False, False
    data_format = "channels_first"

    def __init__(self, image_size: int = 336, resize: str = "stretch", **kwargs: Any) -> None:
        if resize not in RESIZES:
            raise ValueError(f"resize '{resize}': expected one of {', '.join(RESIZES)}")
        if image_size < 1:
            raise ValueError(f"image_size {image_size}: must be at least 1")
        super().__init__(**kwargs)
        self.image_size = image_size
        self.resize = resize

    @property
    def size(self) -> dict[str, int]:
        """The square, in Hugging Face's words."""
        return {"height": self.image_size, "width": self.image_size}

    def pixels(self, picture: Image.Image | torch.Tensor) -> torch.Tensor:
        """PIL picture of any mode, or uint8 RGB `(3, height, width)` -> uint8 `(3, image_size, image_size)`.

        Of a PIL picture the EXIF rotation is applied, transparent pixels are laid onto white, grey and palettes become
        RGB. Both are resized by the same code: bicubic, antialiased.

        Raises:
            ValueError: a tensor of another type or shape.
        """
        return to_square(to_pixels(picture), self.image_size, self.resize)

    def preprocess(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Pictures -> pixel_values, uint8 `(images, 3, image_size, image_size)`, a list of them without return_tensors.

        Args:
            images: a picture as `open_picture` takes it, or lists of pictures, which become one flat list.
            kwargs: return_tensors; input_data_format ("channels_first" or "channels_last") of numbers; the words of
                FIXED, with the values that they have.

        Raises:
            ValueError: no picture, another word or value: pixels stay what training sees.
        """
        self._check(kwargs)
        pictures = flat_pictures(images)
        if not pictures:
            raise ValueError("no picture was given")
        channels = getattr(kwargs.get("input_data_format"), "value", kwargs.get("input_data_format"))
        squares = [self.pixels(open_picture(picture, channels)) for picture in pictures]
        return BatchFeature({"pixel_values": torch.stack(squares)}, tensor_type=kwargs.get("return_tensors"))

    def _check(self, kwargs: dict[str, Any]) -> None:
        settings = {name: getattr(self, name) for name in FIXED}
        given = {name: value for name, value in kwargs.items() if value is not None and name not in PER_CALL}
        for name, value in (settings | given).items():
            if name not in FIXED:
                raise ValueError(
                    f"images_kwargs: {name} is not known; expected one of {', '.join([*PER_CALL, *FIXED])}. image_size "
                    "and resize belong to the processor: the model was trained with them"
                )
            if getattr(value, "value", value) != FIXED[name]:
                raise ValueError(
                    f"{name} is {value!r}, but ParGo's pixel_values are raw uint8 squares with {name} {FIXED[name]!r}: "
                    "the model rescales and normalises them itself"
                )
