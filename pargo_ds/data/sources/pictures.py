"""Picture files of a source: read from below their folder only, decoded to verify them, re-encoded when too large."""

from __future__ import annotations

import base64
import io
import os
import re
import stat
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageOps

from pargo_ds.data.images import read_fast, read_picture
from pargo_ds.data.sources.rejects import Reject, reject_unreadable, shortened

MAX_FILE = 1 << 28
"""Bytes of one picture file."""
MAX_PICTURES = 1000
"""Pictures of one sample."""
QUALITY = 92
ENDINGS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "jp2")


def check_name(name: object, folder: str | Path = "") -> str:
    """The path below `folder` that an input gives; an absolute one and a file:// address may name the folder itself.

    Raises Reject when it is none, or would leave its folder.
    """
    if not isinstance(name, str) or not name.strip():
        raise Reject("picture missing", f"the picture's path is {shortened(name)}; expected text")
    if "\0" in name:
        raise Reject("path leaves its folder", f"the path {shortened(name)!r} holds a zero character")
    if name.startswith(("http://", "https://")):
        reason = f"{shortened(name)} is an address; pictures from the web are read from tables, with --images-are url"
        raise Reject("not fetched", reason)
    path = PurePosixPath(unquote(name.removeprefix("file://")) if name.startswith("file://") else name)
    if name != name.strip() and not os.path.lexists(os.path.join(folder, path)):
        path = PurePosixPath(name.strip())  # "a.csv, b.png"
    if "\\" in name and not os.path.lexists(os.path.join(folder, path)):
        path = PurePosixPath(str(path).replace("\\", "/"))  # written on Windows
    if path.is_absolute() and str(folder):
        homes = map(PurePosixPath, (os.path.abspath(folder), os.path.realpath(folder)))
        path = next((path.relative_to(home) for home in homes if path.is_relative_to(home)), path)
    if path.is_absolute() or ".." in path.parts:
        reason = f"{shortened(name)} is absolute or holds ..; expected a path below {folder or 'the folder'}"
        raise Reject("path leaves its folder", reason)
    return str(path)


def read_item(item: Any, folder: str | Path | None, follow_links: bool = False) -> bytes:
    """The bytes of a picture that a record gives: a path below `folder`, bytes, `data:` text, or {bytes, path}.

    Raises Reject as `read_file` and `picture_bytes`.
    """
    if isinstance(item, dict) and item.get("bytes") is None:
        item = item.get("path") or item.get("url")
    if isinstance(item, (dict, bytes)) or (isinstance(item, str) and item.startswith("data:")):
        data = picture_bytes(item)
        check_size("the picture", len(data))
        return data
    if folder is None:
        raise Reject("picture missing", f"it names {shortened(item)}, but no --pictures folder was given")
    return read_file(folder, item, follow_links)


def picture_bytes(value: Any) -> bytes:
    """Bytes as they are, of base64 text (also `data:image/...;base64,...`), or of Hugging Face's {bytes, path}.

    Raises Reject.
    """
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise Reject("picture missing", f"the picture is {shortened(value)}; expected bytes or base64")
    text = value.partition(";base64,")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode(re.sub(r"\s+", "", text), validate=True)
    except ValueError as error:
        raise Reject("picture broken", f"the picture is not base64 ({error})") from error


def read_file(folder: str | Path, name: object, follow_links: bool = False) -> bytes:
    """The bytes of a picture file below `folder`.

    Raises Reject when there is none, its path or (without `follow_links`) a link leads out of the folder, or it is no
    regular file of 1 ... MAX_FILE bytes.
    """
    relative = check_name(name, folder)
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
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _smaller_wide(picture, longest_side)
    transparent = picture.has_transparency_data
    if transparent:
        picture = picture.convert("RGBA")
    elif picture.mode != "L":
        picture = picture.convert("RGB")
    picture = picture.resize(_size_within(picture, longest_side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    picture.info.clear()  # rotation, profiles and thumbnails belong to the old pixels
    buffer = io.BytesIO()
    if transparent:
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _size_within(picture: Image.Image, longest_side: int) -> tuple[int, int]:
    scale = longest_side / max(picture.size)
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def _smaller_wide(picture: Image.Image, longest_side: int) -> bytes:
    """Grey with more than 8 bits as a PNG of 16, white being what the processor takes for white (`pictures.to_rgb`)."""
    numbers = np.nan_to_num(np.asarray(picture, np.float32))
    top = float(numbers.max())
    white = next((limit for limit in ((1.0, 255.0) if picture.mode == "F" else ()) if top <= limit), max(top, 65535.0))
    scaled = Image.fromarray(numbers.clip(0) * np.float32(65535 / white))
    scaled = scaled.resize(_size_within(picture, longest_side), Image.Resampling.LANCZOS)  # mode F has no byte order
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(scaled).round().clip(0, 65535).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()
