"""Bytes of a picture file -> a loaded picture, or an error that says what is wrong with it.

Resizing and colour are the processor's work (`processor.pixels`), so that training and inference see the same pixels.
`read_fast` decodes JPEG to the very pixels that Pillow decodes, sooner; the rest it leaves to Pillow.
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

Image.init()  # all of Pillow's readers, to know which of them this build of it has
FORMATS = tuple(
    name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000") if name in Image.OPEN
)
"""Raster formats only: Pillow would hand PostScript to an interpreter."""

MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV",
         "I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # fmt: skip
"""Pillow's modes that the processor can make RGB of."""

PngImagePlugin.MAX_TEXT_CHUNK = 1 << 24
"""Bytes of one unpacked profile or text of a PNG: printers' profiles have more than Pillow's 1 MiB."""

MAX_PIXELS = 100_000_000
"""Larger pictures are refused before a pixel is decoded: a file of a few kB can claim gigabytes."""


def read_picture(data: bytes) -> Image.Image:
    """Decode a picture file completely.

    Raises ValueError with the reason, worded to follow "picture 0": an unknown format, a file that was cut or
    is broken, more than MAX_PIXELS pixels.
    """
    with _reasons(data):
        picture = _opened(data)
        return _loaded(picture)


def read_fast(data: bytes) -> torch.Tensor | Image.Image:
    """Decode a picture file for `processor.pixels`, which takes both kinds and makes the same pixels of them.

    Grey and RGB JPEGs become uint8 `(3, height, width)` RGB, turned upright; everything else, also a JPEG with faults,
    what `read_picture` returns. Raises ValueError exactly as `read_picture`.
    """
    with _reasons(data):
        picture = _opened(data)
        if picture.format == "JPEG" and picture.mode in ("L", "RGB"):
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
            decoded = _decoded_jpeg(data, picture.width, picture.height)
            if decoded is not None:
                import torch  # here, because tools that only check pictures should not wait for it

                return torch.from_numpy(np.ascontiguousarray(_upright(decoded, orientation))).permute(2, 0, 1)
        return _loaded(picture)


def picture_header(data: bytes) -> tuple[str, str, int, int]:
    """(format, Pillow's mode, width, height) of a picture file, nothing decoded. Raises ValueError as `read_picture`
    does for what shows in the header."""
    with _reasons(data):
        picture = _opened(data)
        return str(picture.format), picture.mode, picture.width, picture.height


class _Unfit(ValueError):
    """A picture that is whole, but of a kind that is not read; the message is the reason."""


@contextlib.contextmanager
def _reasons(data: bytes) -> Iterator[None]:
    """Turn whatever Pillow raises on a file into ValueError with the reason."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(f"is too large ({error}; at most {MAX_PIXELS:,} pixels); store it smaller") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(
            f"is not a picture in a known format ({len(data)} bytes; expected one of {', '.join(FORMATS)})"
        ) from error
    except _Unfit:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, RuntimeError, struct.error, zlib.error) as error:
        if "MAX_TEXT_CHUNK" in str(error) or "MAX_TEXT_MEMORY" in str(error):
            limit = PngImagePlugin.MAX_TEXT_CHUNK
            reason = f"holds a colour profile or texts of more than {limit:,} bytes; save it without them"
            raise ValueError(reason) from error
        raise ValueError(
            f"cannot be decoded ({type(error).__name__}: {error}); the file was cut or is broken"
        ) from error


def _opened(data: bytes) -> Image.Image:
    """The picture with its header read and nothing decoded."""
    with warnings.catch_warnings():
        # our own limit is lower than Pillow's error
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels")
    if picture.mode not in MODES:
        raise _Unfit(f"has the colour mode {picture.mode}, of which no RGB can be made; save it as RGB")
    return picture


def _loaded(picture: Image.Image) -> Image.Image:
    picture.load()
    picture.getexif()  # raises here, not in the processor, when it is broken
    return picture


def _decoded_jpeg(data: bytes, width: int, height: int) -> np.ndarray | None:
    """(height, width, 3) uint8, or None for a file with any fault: Pillow decides whether it can be read all the same.

    The buffer has the size that Pillow read from the header, so that no other size is ever decoded.
    """
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=np.empty((height, width, 3), np.uint8))
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(height, width, 3) pixels turned as EXIF's orientation 1 ... 8 says; others leave them as they are."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
