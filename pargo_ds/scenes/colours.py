"""Find the colour of a drawn thing from its pixels. It has a colour only if one clearly
dominates.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageFilter

# Several shades have the same name, because "blue" means navy as well as sky blue. The shades are
# primary colours and those of the OpenMoji palette (openmoji.org); the colours of the other two
# styles are similar.
PALETTE: dict[str, tuple[str, ...]] = {
    "red": ("ff0000", "d22f27", "ea5a47", "b00000"),
    "orange": ("ff8c00", "e27022", "f08030"),
    "yellow": ("ffff00", "fcea2b", "ffca28", "ffe070"),
    "green": ("00a000", "5c9e31", "b1cc33", "186648", "90d060", "40b080"),
    "blue": ("0000ff", "1e50a0", "61b2e4", "92d3f5", "2a70d0"),
    "purple": ("800080", "8967aa", "b399c8", "6030a0"),
    "pink": ("ff69b4", "e67a94", "ffa7c0", "f0b0c8"),
    "brown": ("8b4513", "a57939", "6a462f", "5a3010"),
    "black": ("000000", "303030"),
    "white": ("ffffff", "f2f2f2"),
    "grey": ("808080", "9b9b9a", "c0c0c0", "5a5a5a", "8a9098"),
}
# Shades for which people use different names: amber, tan, coral, crimson, pale grey. They have no
# name here.
_UNDECIDED = (
    "f1b31c",
    "e8a030",
    "d0a070",
    "f0c8a0",
    "f08070",
    "e02060",
    "dddddd",
    "3c6070",
    "b0c4d0",
    "484848",
)

SMALLEST_REGION = 0.15
"""A colour that covers less than this share of a thing is a detail."""
DOMINANT_SHARE = 0.65
"""A colour is the colour of a thing if it covers at least this share and all others are details."""
SMALLEST_INSIDE = 0.4
"""If less than this share of a thing is left without its outlines, it is a line drawing and has no
colour.
"""
_ANALYSIS_SIZE = 128  # pixels on the longer side
_OUTLINE_WIDTH = (
    7  # of 128 pixels: OpenMoji's outline is 2 of 72 units, 3.6 pixels, and more where lines meet
)


@functools.cache
def _palette_in_lab() -> tuple[list[str], np.ndarray]:
    """Return the names (empty for undecided) and the (shades, 3) L*a*b* values of all shades."""
    names: list[str] = []
    shades: list[str] = []
    for name, own in (*PALETTE.items(), ("", _UNDECIDED)):
        names += [name] * len(own)
        shades += own
    rgb = np.array([list(bytes.fromhex(shade)) for shade in shades], dtype=np.float64)
    return names, _to_lab(rgb)


def _to_lab(rgb: np.ndarray) -> np.ndarray:
    """Convert (colours, 3) sRGB values of 0-255 to CIE L*a*b* (D65), where distance is close to
    what people see.
    """
    linear = np.where(rgb <= 0.04045 * 255, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1
    )


def _without_outline(pixels: np.ndarray) -> np.ndarray:
    """Return the (pixels, 3) colours of the opaque part of an (height, width, 4) image without its
    thin black lines.

    Black that an opening (erosion, then dilation) removes is a line; its blurred rim is removed,
    too. Wider black areas are kept.
    """
    opaque = pixels[..., 3] > 200
    dark = opaque & (pixels[..., :3].max(axis=-1) < 90)
    padded = Image.fromarray(np.pad(np.where(dark, 255, 0).astype(np.uint8), _OUTLINE_WIDTH))
    opened = padded.filter(ImageFilter.MinFilter(_OUTLINE_WIDTH)).filter(
        ImageFilter.MaxFilter(_OUTLINE_WIDTH)
    )
    wide = np.asarray(opened)[_OUTLINE_WIDTH:-_OUTLINE_WIDTH, _OUTLINE_WIDTH:-_OUTLINE_WIDTH] > 0
    rim = Image.fromarray(np.where(dark & ~wide, 255, 0).astype(np.uint8)).filter(
        ImageFilter.MaxFilter(3)
    )
    inside = opaque & ~(np.asarray(rim) > 0)
    if inside.sum() < SMALLEST_INSIDE * opaque.sum():
        return pixels[:0, 0, :3]
    return pixels[inside][:, :3]


def colour_shares(image: Image.Image) -> dict[str, float]:
    """Return the share of the visible area of an RGBA image, without outlines, for each colour
    name.

    The sum is below 1 if some shades have no name. The result of an outline drawing is empty.
    """
    scale = _ANALYSIS_SIZE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    colours = _without_outline(
        np.asarray(image.convert("RGBA").resize(size, Image.Resampling.BOX))
    )  # (pixels, 3)
    if len(colours) == 0:
        return {}
    # Five bits a channel: some hundred colours instead of thousands, and no visible difference.
    coarse = (colours.astype(np.int64) >> 3) @ np.array([1024, 32, 1])
    codes, counts = np.unique(coarse, return_counts=True)
    rgb = np.stack([codes // 1024, codes // 32 % 32, codes % 32], axis=-1) * 8.0 + 4
    names, shades = _palette_in_lab()
    nearest = np.linalg.norm(_to_lab(rgb)[:, None] - shades[None], axis=-1).argmin(axis=1)
    shares = dict.fromkeys(PALETTE, 0.0) | {"": 0.0}
    for shade, count in zip(nearest, counts, strict=True):
        shares[names[shade]] += float(count) / len(colours)
    return {name: share for name, share in shares.items() if name and share > 0}


def dominant_colour(image: Image.Image) -> str | None:
    """Return the one colour name of an RGBA image, or None when no colour clearly dominates."""
    shares = colour_shares(image)
    regions = [name for name, share in shares.items() if share >= SMALLEST_REGION]
    if len(regions) != 1 or shares[regions[0]] < DOMINANT_SHARE:
        return None
    return regions[0]
