"""Decode the bytes of an image file, or raise an error that says what is wrong with them.

The processor resizes images and converts colours (`processor.pixels`), so that training and
inference see the same pixels. `read_fast` decodes JPEG files faster than Pillow to exactly the same
pixels, and leaves all other files to Pillow.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, PngImagePlugin

if TYPE_CHECKING:
    import torch

Image.init()  # loads all readers, so that Image.OPEN has those of this build of Pillow
_WANTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
"""The formats that are read: raster formats only, because Pillow passes PostScript to an
interpreter.
"""

MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV",
         "I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # fmt: skip
"""Pillow's modes that the processor can convert to RGB."""

PngImagePlugin.MAX_TEXT_CHUNK = 1 << 24
"""Upper bound of the bytes of one unpacked profile or text in a PNG. Pillow's own bound of 1 MiB is
too small for the profiles of printers.
"""

MAX_PIXELS = 100_000_000
"""Larger images are refused before a pixel is decoded, because a file of a few kB may claim to hold
gigabytes.
"""


def read_image(data: bytes) -> Image.Image:
    """Decode an image file completely.

    Raises ValueError for an unknown format, a file that was cut or is broken, and more than
    MAX_PIXELS pixels. Its message is the end of a sentence that begins with "image 0".
    """
    with _reasons(data):
        image = _opened(data)
        return _loaded(image)


def read_fast(data: bytes) -> torch.Tensor | Image.Image:
    """Decode an image file for `processor.pixels`, which accepts both types of result and makes the
    same pixels of them.

    Grey and RGB JPEGs become an upright uint8 RGB tensor `(3, height, width)`. For all other files,
    and for damaged JPEGs, the result is that of `read_image`. Raises ValueError as `read_image`.
    """
    with _reasons(data):
        image = _opened(data)
        if image.format == "JPEG" and image.mode in ("L", "RGB"):
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            decoded = _decoded_jpeg(data, image.width, image.height)
            if decoded is not None:
                import torch  # here, because tools that only check images should not wait for it

                upright = np.ascontiguousarray(_upright(decoded, orientation))
                return torch.from_numpy(upright).permute(2, 0, 1)
        return _loaded(image)


def image_header(data: bytes) -> tuple[str, str, int, int]:
    """Return (format, Pillow's mode, width, height) of an image file without decoding it.

    Raises ValueError as `read_image` for faults that are visible in the header.
    """
    with _reasons(data):
        image = _opened(data)
        return str(image.format), image.mode, image.width, image.height


class _Unfit(ValueError):
    """An image is whole, but its kind is not supported; the message is the reason."""


@contextlib.contextmanager
def _reasons(data: bytes) -> Iterator[None]:
    """Replace every exception of Pillow for a file by a ValueError with the reason."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"is too large ({error}; at most {MAX_PIXELS:,} pixels); store it smaller"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(
            f"is not an image in a known format ({len(data)} bytes; expected one of {', '.join(FORMATS)})"
        ) from error
    except _Unfit:
        raise
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        RuntimeError,
        struct.error,
        zlib.error,
    ) as error:
        if "MAX_TEXT_CHUNK" in str(error) or "MAX_TEXT_MEMORY" in str(error):
            limit = PngImagePlugin.MAX_TEXT_CHUNK
            reason = f"holds a colour profile or texts of more than {limit:,} bytes; save it without them"
            raise ValueError(reason) from error
        raise ValueError(
            f"cannot be decoded ({type(error).__name__}: {error}); the file was cut or is broken"
        ) from error


def _opened(data: bytes) -> Image.Image:
    """Return the image with its header read and no pixel decoded."""
    with warnings.catch_warnings():
        # our own limit is lower than Pillow's error
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels")
    if image.mode not in MODES:
        raise _Unfit(
            f"has the colour mode {image.mode}, of which no RGB can be made; save it as RGB"
        )
    return image


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    image.getexif()  # raises here, not in the processor, when it is broken
    return image


def _decoded_jpeg(data: bytes, width: int, height: int) -> np.ndarray | None:
    """Decode a JPEG to uint8 (height, width, 3). Return None for a file with a fault; the caller
    then asks Pillow, which can read some of them.

    The buffer has the size that Pillow read from the header, so that no other size is ever decoded.
    """
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=np.empty((height, width, 3), np.uint8))
    except ValueError:
        return None
    if pixels.shape != (height, width, 3):
        return None
    return pixels


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels (height, width, 3) upright, as EXIF's orientation (1 to 8) says. Other numbers
    change nothing.
    """
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
