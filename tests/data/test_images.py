"""Promises of image reading: every broken file is an error with a reason, nothing huge is decoded."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pargo_ds.data.images import FORMATS, read_fast, read_image
from pargo_ds.data.sources.images import prepared
from pargo_ds.model.images import to_rgb


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


GRADIENT = Image.fromarray(np.arange(30 * 20 * 3, dtype=np.uint8).reshape(20, 30, 3))
JPEG = encoded(GRADIENT, "JPEG")


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_read(kind: str) -> None:
    assert read_image(encoded(GRADIENT, kind)).size == (30, 20)


def test_lossless_pixels_are_kept() -> None:
    assert np.array_equal(read_image(encoded(GRADIENT, "PNG")), GRADIENT)


def test_exif_rotation_reaches_the_processor(processor: Any) -> None:
    """The processor turns the image upright; reading must not lose the tag."""
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees
    turned = read_image(encoded(GRADIENT, "PNG", exif=exif))
    upright = processor.pixels(GRADIENT.transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(processor.pixels(turned), upright)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_mode_becomes_three_channels(processor: Any, mode: str) -> None:
    image = Image.new("I;16", (9, 9), 40_000) if mode == "I;16" else GRADIENT.convert(mode)
    pixels = processor.pixels(read_image(encoded(image, "TIFF" if mode == "CMYK" else "PNG")))
    assert pixels.shape == (3, processor.image_size, processor.image_size)


WIDE = {  # mode -> the same slope of grey from black to white, and that of the smallest and largest 8-bit values
    "I;16": np.linspace(0, 65535, 64 * 48, dtype=np.uint16),
    "I;16B": np.linspace(0, 65535, 64 * 48, dtype=np.dtype(">u2")),
    "I": np.linspace(0, 2**31 - 1, 64 * 48).astype(np.int32),
    "F": np.linspace(0, 1, 64 * 48, dtype=np.float32),
    "F, to 255": np.linspace(0, 255, 64 * 48, dtype=np.float32),
    "F, with NaN": np.where(np.arange(64 * 48) == 5, np.nan, np.linspace(0, 3e5, 64 * 48)).astype(
        np.float32
    ),
}


@pytest.mark.parametrize("mode", WIDE)
def test_wide_grey_is_the_same_image_whole_and_smaller(processor: Any, mode: str) -> None:
    slope = np.linspace(0, 255, 64 * 48).reshape(48, 64)
    data = encoded(Image.fromarray(WIDE[mode].reshape(48, 64)), "TIFF")
    assert read_image(data).mode == mode.partition(",")[0]
    whole = to_rgb(read_image(data))
    smaller = to_rgb(read_image(prepared(data, 0, 32)))
    assert (whole.size, smaller.size) == ((64, 48), (32, 24))
    assert np.abs(np.asarray(whole)[..., 0] - slope).max() <= (6 if "NaN" in mode else 1)
    expected = Image.fromarray(slope.astype(np.float32)).resize((32, 24), Image.Resampling.LANCZOS)
    inner = np.s_[1:-1, 1:-1]  # where the slope's ends do not swing over
    assert np.abs(np.asarray(smaller)[..., 0] - np.asarray(expected))[inner].max() <= 2


def test_a_png_with_a_large_profile_is_read_and_a_larger_one_told_truly() -> None:
    profile = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
    assert read_image(encoded(GRADIENT, "PNG", icc_profile=profile)).size == (30, 20)
    with pytest.raises(
        ValueError, match="colour profile or texts of more than 16,777,216 bytes; save it without"
    ):
        read_image(encoded(GRADIENT, "PNG", icc_profile=b"\0" * 17_000_000))


def test_a_mode_that_training_could_not_read_is_told_when_the_file_is() -> None:
    for read in (read_image, read_fast):
        with pytest.raises(
            ValueError, match="has the colour mode LAB, of which no RGB can be made"
        ):
            read(encoded(Image.new("LAB", (8, 8)), "TIFF"))


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height)).convert(mode)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize(
    "options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}, {"quality": 30}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_fast_jpegs_are_pillows_bit_by_bit(mode: str, options: dict[str, Any]) -> None:
    """Also measured on 70 photographs: no difference. Both are libjpeg-turbo with the same
    settings.
    """
    data = encoded(noise(75, 53, mode), "JPEG", **options)
    pixels = read_fast(data)
    assert isinstance(pixels, torch.Tensor)
    assert torch.equal(pixels, as_tensor(read_image(data).convert("RGB")))


@pytest.mark.parametrize("orientation", range(10))
def test_fast_jpegs_stand_upright(processor: Any, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(40, 24), "JPEG", exif=exif)
    expected = ImageOps.exif_transpose(read_image(data))
    pixels = read_fast(data)
    assert torch.equal(pixels, as_tensor(expected))
    assert torch.equal(processor.pixels(pixels), processor.pixels(read_image(data)))


@pytest.mark.parametrize(
    "mode, kind", [("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "GIF"), ("I;16", "PNG"), ("L", "WEBP")]
)
def test_other_images_are_left_to_pillow(processor: Any, mode: str, kind: str) -> None:
    image = Image.new("I;16", (9, 9), 40_000) if mode == "I;16" else noise(30, 20).convert(mode)
    data = encoded(image, kind)
    assert isinstance(read_fast(data), Image.Image)
    assert torch.equal(processor.pixels(read_fast(data)), processor.pixels(read_image(data)))


def test_a_jpeg_with_faults_that_pillow_reads_is_read_too() -> None:
    """Stray bytes before the end marker: simplejpeg refuses them, Pillow skips them."""
    data = JPEG[:-2] + b"\0" * 50 + JPEG[-2:]
    assert np.array_equal(np.asarray(read_fast(data)), np.asarray(read_image(data)))


def test_a_jpeg_is_decoded_in_the_size_of_its_header_only() -> None:
    """Its frame says 5 x 5 to Pillow, which takes the last one, and more to libjpeg: nothing larger
    is decoded.
    """
    frame = JPEG.index(b"\xff\xc0")
    length = struct.unpack(">H", JPEG[frame + 2 : frame + 4])[0] + 2
    second = bytearray(JPEG[frame : frame + length])
    second[5:9] = struct.pack(">HH", 5, 5)
    data = JPEG[: frame + length] + bytes(second) + JPEG[frame + length :]
    with contextlib.suppress(ValueError):
        assert np.asarray(read_fast(data)).size <= 5 * 5 * 3


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "is not an image in a known format"),
        (b"<svg/>", "is not an image in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image in a known format"),
        (JPEG[: len(JPEG) // 2], "cannot be decoded"),
        (JPEG[:-2], "cannot be decoded"),
        (encoded(GRADIENT, "PNG")[:-40], "cannot be decoded"),
    ],
)
def test_broken_files_are_errors(data: bytes, reason: str) -> None:
    for read in (read_image, read_fast):
        with pytest.raises(ValueError, match=reason):
            read(data)


@pytest.mark.parametrize("side", [11_000, 60_000])
def test_a_file_that_claims_too_many_pixels_is_refused_unread(side: int) -> None:
    """A valid PNG header of side x side pixels and nothing behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, data)
    )
    for read in (read_image, read_fast):
        with pytest.raises(ValueError, match="is too large"):
            read(bomb)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_a_damaged_file_is_read_or_refused_with_a_reason(kind: str, data: st.DataObject) -> None:
    """Never any other exception, so that a run ends with the sample's name; and both ways of
    reading agree.
    """
    damaged = bytearray(encoded(GRADIENT, kind))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        expected = read_image(bytes(damaged))
    except ValueError as error:
        # the first words say what is wrong; Pillow's own behind them may hold an address in memory
        with pytest.raises(ValueError, match=str(error).split(" (")[0]):
            read_fast(bytes(damaged))
        return
    found = read_fast(bytes(damaged))
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, as_tensor(ImageOps.exif_transpose(expected).convert("RGB")))
