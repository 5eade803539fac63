"""Picture files of a source: read from below their folder only, decoded to verify them, re-encoded when too large."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps

from pargo_ds.data.images import read_fast, read_picture
from pargo_ds.data.sources.rejects import Reject, reject_unreadable, shortened

MAX_FILE = 1 << 28
"""Bytes of one picture file."""
MAX_PICTURES = 1000
"""Pictures of one sample."""
QUALITY = 92
ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")


def check_name(name: object) -> str:
    """The relative path that an input gives. Raises Reject when it is none, or would leave its folder."""
    if not isinstance(name, str) or not name.strip():
        raise Reject("picture missing", f"the picture's path is {shortened(name)}; expected text")
    if "\0" in name:
        raise Reject("path leaves its folder", f"the path {shortened(name)!r} holds a zero character")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise Reject("path leaves its folder", f"{shortened(name)} is absolute or holds ..; expected a path below it")
    return name


def read_file(folder: str | Path, name: object, follow_links: bool = False) -> bytes:
    """The bytes of a picture file below `folder`.

    Raises Reject when there is none, its path or (without `follow_links`) a link leads out of the folder, or it is no
    regular file of 1 ... MAX_FILE bytes.
    """
    relative = check_name(name)
    path = os.path.join(folder, relative)
    try:
        if not follow_links:
            home = os.path.realpath(folder)
            if os.path.commonpath([home, os.path.realpath(path)]) != home:
                reason = f"{shortened(relative)} is a link out of {folder}; --follow-links allows it"
                raise Reject("path leaves its folder", reason)
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise Reject("picture unreadable", f"{shortened(relative)} is no regular file")
        check_size(relative, found.st_size)
        return Path(path).read_bytes()
    except UnicodeEncodeError as error:
        raise Reject("picture missing", f"the path {relative[:200]!r} holds half a character") from error
    except OSError as error:
        raise reject_unreadable(relative, error) from error


def check_size(name: str, size: int) -> None:
    """Raise Reject unless a picture file has 1 ... MAX_FILE bytes."""
    if size == 0:
        raise Reject("picture broken", f"{shortened(name)} is empty (0 bytes)")
    if size > MAX_FILE:
        raise Reject("too large", f"{shortened(name)} has {size:,} bytes; expected at most {MAX_FILE:,}")


def check_count(pictures: int) -> None:
    """Raise Reject for more than MAX_PICTURES pictures, before any is read."""
    if pictures > MAX_PICTURES:
        raise Reject("too large", f"it has {pictures:,} pictures; expected at most {MAX_PICTURES:,}")


def prepared(data: bytes, number: int, longest_side: int | None) -> bytes:
    """A picture file as it is stored: decoded to verify it; the same bytes unless a side exceeds `longest_side`.

    Larger ones are turned upright, made smaller and stored as JPEG (as PNG with transparency or 16 bits).
    Raises Reject naming picture `number`.
    """
    try:
        if longest_side is None:
            read_fast(data)
            return data
        picture = read_picture(data)
        if max(picture.size) <= longest_side:
            return data
        return _smaller(picture, longest_side)
    except (ValueError, OSError) as error:
        raise Reject("picture broken", f"picture {number} {error}") from error


def _smaller(picture: Image.Image, longest_side: int) -> bytes:
    picture = ImageOps.exif_transpose(picture)
    transparent = picture.has_transparency_data
    if transparent:
        picture = picture.convert("RGBA")
    elif not picture.mode.startswith("I") and picture.mode != "L":
        picture = picture.convert("RGB")
    scale = longest_side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=None if picture.mode.startswith("I") else 3.0)
    picture.info.clear()  # rotation, profiles and thumbnails belong to the old pixels
    buffer = io.BytesIO()
    if transparent or picture.mode.startswith("I"):
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
