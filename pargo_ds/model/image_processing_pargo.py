"""Convert images to pixel_values, with the interface of Hugging Face's image processors. Training
and inference both use this class.
"""

from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .images import RESIZES, flat_images, open_image, to_pixels, to_square

# The properties of the pixels in the option names of Hugging Face's image processors; other values
# are refused.
FIXED = {
    "do_resize": True,
    "do_convert_rgb": True,
    "do_rescale": False,
    "do_normalize": False,
    "data_format": "channels_first",
}
PER_CALL = ("input_data_format", "return_tensors")


class ParGoImageProcessor(BaseImageProcessor):
    """Square images of raw uint8 pixels; the model itself normalises them.

    Args:
        image_size: side of the square that the encoder takes, pixels.
        resize: stretch the image to the square, crop its middle, or pad it with grey.

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
        """The size of the square, in the form that Hugging Face uses."""
        return {"height": self.image_size, "width": self.image_size}

    def pixels(self, image: Image.Image | torch.Tensor) -> torch.Tensor:
        """Make pixels, uint8 `(3, image_size, image_size)`, of a PIL image of any mode, or of uint8
        RGB `(3, height, width)`.

        Of a PIL image the EXIF rotation is applied, transparent pixels are laid onto white, grey
        and palettes become RGB. Both are resized by the same code: bicubic, antialiased.

        Raises:
            ValueError: a tensor of another type or shape.
        """
        return to_square(to_pixels(image), self.image_size, self.resize)

    def preprocess(  # type: ignore[override]  # transformers has two of that name
        self, images: Any, **kwargs: Any
    ) -> BatchFeature:
        """Make pixel_values of images: uint8 `(images, 3, image_size, image_size)`, a list of them
        without return_tensors.

        Args:
            images: an image as `open_image` takes it, or lists of images, which become one flat
                list.
            kwargs: return_tensors; input_data_format ("channels_first" or "channels_last") of
                numbers; the words of FIXED, with the values that they have.

        Raises:
            ValueError: no image, another word or value: pixels stay what training sees.
        """
        self._check(kwargs)
        flat = flat_images(images)
        if not flat:
            raise ValueError("no image was given")
        channels = getattr(
            kwargs.get("input_data_format"), "value", kwargs.get("input_data_format")
        )
        squares = [self.pixels(open_image(image, channels)) for image in flat]
        return BatchFeature(
            {"pixel_values": torch.stack(squares)}, tensor_type=kwargs.get("return_tensors")
        )

    def _check(self, kwargs: dict[str, Any]) -> None:
        settings = {name: getattr(self, name) for name in FIXED}
        given = {k: v for k, v in kwargs.items() if v is not None and k not in PER_CALL}
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
