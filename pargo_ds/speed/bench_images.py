"""Distinct photographs for timing: random cuts of real ones, encoded anew as JPEG at one size."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pargo_ds.data.images import read_image

SUFFIXES = (".jpg", ".jpeg")
SMALLEST_FILE = 15_000
"""Bytes; smaller files are buttons and thumbnails."""
QUALITY = 88
SMALLEST_CUT = 0.5
"""Share of the largest possible rectangle that a cut takes at least, in height and width."""
INSTALLED = (
    ("matplotlib", "mpl-data/sample_data"),
    ("sklearn", "datasets/images"),
    ("skimage", "data"),
)
"""Packages that bring photographs, and where."""
SYSTEM_FOLDERS = ("/usr/share/backgrounds", "/usr/share/wallpapers")


def _is_photograph(path: Path) -> bool:
    if path.suffix.lower() not in SUFFIXES:
        return False
    return path.is_file() and path.stat().st_size >= SMALLEST_FILE


def find_photographs(folders: Sequence[Path] = ()) -> list[Path]:
    """Return the JPEG files below these folders, or without any those that packages and the
    system's wallpapers bring.

    Raises ValueError when there is none.
    """
    places = list(folders)
    if not places:
        for package, folder in INSTALLED:
            spec = importlib.util.find_spec(package)
            if spec is not None:
                found_in = spec.submodule_search_locations or ()
                places += [Path(place) / folder for place in found_in]
        places += [Path(folder) for folder in SYSTEM_FOLDERS]
    found: set[Path] = set()
    for place in places:
        found |= {path.resolve() for path in place.rglob("*") if _is_photograph(path)}
    if not found:
        raise ValueError(
            f"no JPEG photographs of {SMALLEST_FILE // 1000} kB or more in {', '.join(map(str, places)) or 'nowhere'}; "
            "name a folder of some with --photographs (matplotlib brings one: pip install -e .[dev])"
        )
    return sorted(found)


def cut_images(
    photographs: Sequence[Path], count: int, size: tuple[int, int], seed: int = 0
) -> list[bytes]:
    """Return `count` different JPEG files of `size` (width, height), from all photographs in turn.

    Each is a cut at a random place, of random size, mirrored or not, resized. Photographs smaller
    than half of `size` are left out, because enlarged ones decode faster than real ones.

    Raises ValueError when none is large enough, or one cannot be read.
    """
    sources = []
    for path in photographs:
        try:
            image = read_image(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} {error}") from error
        if image.width * 2 >= size[0] and image.height * 2 >= size[1]:
            image.thumbnail((size[0] * 3, size[1] * 3))  # bounds the memory of many large ones
            sources.append(image.convert("RGB"))
    if not sources:
        raise ValueError(
            f"none of {len(photographs)} photographs is half as large as {size[0]} x {size[1]} or larger"
        )
    draw = np.random.default_rng(seed)
    return [_cut(sources[number % len(sources)], size, draw) for number in range(count)]


def _cut(source: Image.Image, size: tuple[int, int], draw: np.random.Generator) -> bytes:
    scale = min(source.width / size[0], source.height / size[1]) * draw.uniform(SMALLEST_CUT, 1)
    width, height = size[0] * scale, size[1] * scale
    left, top = draw.uniform(0, source.width - width), draw.uniform(0, source.height - height)
    image = source.resize(size, Image.Resampling.LANCZOS, (left, top, left + width, top + height))
    if draw.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
