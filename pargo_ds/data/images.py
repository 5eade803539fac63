"""Bytes of a picture file -> a loaded picture, or an error that says what is wrong with it.

Resizing, orientation and colour are the processor's work (`processor.pixels`), so that training and inference
see the same pixels.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Raster formats only: Pillow would hand PostScript to an interpreter."""

MAX_PIXELS = 100_000_000
"""Larger pictures are refused before a pixel is decoded: a file of a few kB can claim gigabytes."""


def read_picture(data: bytes) -> Image.Image:
    """Decode a picture file completely.

    Raises ValueError with the reason, worded to follow "picture 0": an unknown format, a file that was cut or
    is broken, more than MAX_PIXELS pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # our own limit is lower than Pillow's error
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{width} x {height} pixels")
        picture.load()
        picture.getexif()  # raises here, not in the processor, when it is broken
    except Image.DecompressionBombError as error:
        raise ValueError(f"is too large ({error}; at most {MAX_PIXELS:,} pixels); store it smaller") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(
            f"is not a picture in a known format ({len(data)} bytes; expected one of {', '.join(FORMATS)})"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error) as error:
        raise ValueError(
            f"cannot be decoded ({type(error).__name__}: {error}); the file was cut or is broken"
        ) from error
    return picture
