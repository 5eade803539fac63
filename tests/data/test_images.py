"""Promises of picture reading: every broken file is an error with a reason, nothing huge is decoded."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pargo_ds.data.images import FORMATS, read_picture


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


GRADIENT = Image.fromarray(np.arange(30 * 20 * 3, dtype=np.uint8).reshape(20, 30, 3))
JPEG = encoded(GRADIENT, "JPEG")


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_read(kind: str) -> None:
    assert read_picture(encoded(GRADIENT, kind)).size == (30, 20)


def test_lossless_pixels_are_kept() -> None:
    assert np.array_equal(read_picture(encoded(GRADIENT, "PNG")), GRADIENT)


def test_exif_rotation_reaches_the_processor(processor: Any) -> None:
    """The processor turns the picture upright; reading must not lose the tag."""
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees
    turned = read_picture(encoded(GRADIENT, "PNG", exif=exif))
    upright = processor.pixels(GRADIENT.transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(processor.pixels(turned), upright)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_mode_becomes_three_channels(processor: Any, mode: str) -> None:
    picture = Image.new("I;16", (9, 9), 40_000) if mode == "I;16" else GRADIENT.convert(mode)
    pixels = processor.pixels(read_picture(encoded(picture, "TIFF" if mode == "CMYK" else "PNG")))
    assert pixels.shape == (3, processor.image_size, processor.image_size)


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "is not a picture in a known format"),
        (b"<svg/>", "is not a picture in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture in a known format"),
        (JPEG[: len(JPEG) // 2], "cannot be decoded"),
        (encoded(GRADIENT, "PNG")[:-40], "cannot be decoded"),
    ],
)
def test_broken_files_are_errors(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_picture(data)


@pytest.mark.parametrize("side", [11_000, 60_000])
def test_a_file_that_claims_too_many_pixels_is_refused_unread(side: int) -> None:
    """A valid PNG header of side x side pixels and nothing behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, data)
    )
    with pytest.raises(ValueError, match="is too large"):
        read_picture(bomb)


@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF data", "ignore:Metadata Warning")
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_a_damaged_file_is_read_or_refused_with_a_reason(kind: str, data: st.DataObject) -> None:
    """Never any other exception, so that a run ends with the sample's name."""
    damaged = bytearray(encoded(GRADIENT, kind))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        read_picture(bytes(damaged))
