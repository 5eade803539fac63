"""The image files of a source. They are read only from below their folder, decoded to verify them,
and encoded again if they are too large.
"""

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

from pargo_ds.data.images import read_fast, read_image
from pargo_ds.data.sources.rejects import Reject, reject_unreadable, shortened

MAX_FILE = 1 << 28
"""Upper bound of the bytes of one image file."""
MAX_IMAGES = 1000
"""Upper bound of the images of one sample."""
QUALITY = 92
ENDINGS = (
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "png",
    "webp",
    "gif",
    "bmp",
    "tif",
    "tiff",
    "ppm",
    "avif",
    "jp2",
)


def check_name(name: object, folder: str | Path = "") -> str:
    """Return the path of an image relative to `folder`. An input may also give an absolute path or
    a file:// address below the folder.

    Raises Reject when `name` is no path or leads out of the folder.
    """
    if not isinstance(name, str) or not name.strip():
        raise Reject("image missing", f"the image's path is {shortened(name)}; expected text")
    if "\0" in name:
        raise Reject(
            "path leaves its folder", f"the path {shortened(name)!r} holds a zero character"
        )
    if name.startswith(("http://", "https://")):
        reason = f"{shortened(name)} is an address; images from the web are read from tables, with --images-are url"
        raise Reject("not fetched", reason)
    path = PurePosixPath(name)
    if name.startswith("file://"):
        path = PurePosixPath(unquote(name.removeprefix("file://")))
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
    """Return the bytes of an image that a record gives as a path below `folder`, as bytes, as a
    `data:` text, or as {bytes, path}.

    Raises Reject as `read_file` and `image_bytes`.
    """
    if isinstance(item, dict) and item.get("bytes") is None:
        item = item.get("path") or item.get("url")
    if isinstance(item, (dict, bytes)) or (isinstance(item, str) and item.startswith("data:")):
        data = image_bytes(item)
        check_size("the image", len(data))
        return data
    if folder is None:
        raise Reject(
            "image missing", f"it names {shortened(item)}, but no --image-folder folder was given"
        )
    return read_file(folder, item, follow_links)


def image_bytes(value: Any) -> bytes:
    """Return the bytes of an image that is given as bytes, as base64 text (also
    `data:image/...;base64,...`), or as Hugging Face's {bytes, path}.

    Raises Reject for any other value.
    """
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise Reject("image missing", f"the image is {shortened(value)}; expected bytes or base64")
    if value.startswith("data:"):
        value = value.partition(";base64,")[2]
    try:
        return base64.b64decode(re.sub(r"\s+", "", value), validate=True)
    except ValueError as error:
        raise Reject("image broken", f"the image is not base64 ({error})") from error


def read_file(folder: str | Path, name: object, follow_links: bool = False) -> bytes:
    """Return the bytes of an image file below `folder`.

    Raises Reject when there is no such file, when its path or (without `follow_links`) a link leads
    out of the folder, or when it is no regular file of 1 ... MAX_FILE bytes.
    """
    relative = check_name(name, folder)
    path = os.path.join(folder, relative)
    try:
        if not follow_links:
            home = os.path.realpath(folder)
            if os.path.commonpath([home, os.path.realpath(path)]) != home:
                reason = (
                    f"{shortened(relative)} is a link out of {folder}; --follow-links allows it"
                )
                raise Reject("path leaves its folder", reason)
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise Reject("image unreadable", f"{shortened(relative)} is no regular file")
        check_size(relative, found.st_size)
        return Path(path).read_bytes()
    except UnicodeEncodeError as error:
        raise Reject(
            "image missing", f"the path {relative[:200]!r} holds half a character"
        ) from error
    except OSError as error:
        raise reject_unreadable(relative, error) from error


def check_size(name: str, size: int) -> None:
    """Raise Reject unless an image file has 1 ... MAX_FILE bytes."""
    if size == 0:
        raise Reject("image broken", f"{shortened(name)} is empty (0 bytes)")
    if size > MAX_FILE:
        raise Reject(
            "too large", f"{shortened(name)} has {size:,} bytes; expected at most {MAX_FILE:,}"
        )


def check_count(images: int) -> None:
    """Raise Reject when a sample has more than MAX_IMAGES images; call it before any is read."""
    if images > MAX_IMAGES:
        raise Reject("too large", f"it has {images:,} images; expected at most {MAX_IMAGES:,}")


def prepared(data: bytes, number: int, longest_side: int | None) -> bytes:
    """Verify an image file by decoding it, and return the bytes to store.

    These are the same bytes, unless a side exceeds `longest_side`. A larger image is turned
    upright, made smaller and encoded as JPEG, or as PNG if it has transparency or more than 8 bits.
    Raises Reject naming image `number`.
    """
    try:
        if longest_side is None:
            read_fast(data)
            return data
        image = read_image(data)
        if max(image.size) <= longest_side:
            return data
        return _smaller(image, longest_side)
    except (ValueError, OSError) as error:
        raise Reject("image broken", f"image {number} {error}") from error


def _smaller(image: Image.Image, longest_side: int) -> bytes:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _smaller_wide(image, longest_side)
    transparent = image.has_transparency_data
    if transparent:
        image = image.convert("RGBA")
    elif image.mode != "L":
        image = image.convert("RGB")
    image = image.resize(
        _size_within(image, longest_side), Image.Resampling.LANCZOS, reducing_gap=3.0
    )
    image.info.clear()  # rotation, profiles and thumbnails belong to the old pixels
    buffer = io.BytesIO()
    if transparent:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _size_within(image: Image.Image, longest_side: int) -> tuple[int, int]:
    scale = longest_side / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _smaller_wide(image: Image.Image, longest_side: int) -> bytes:
    """Make a grey image with more than 8 bits smaller, and encode it as a PNG of 16 bits. Its white
    is the number that the processor takes for white (`images.to_rgb`).
    """
    numbers = np.nan_to_num(np.asarray(image, np.float32))
    top = float(numbers.max())
    white = max(top, 65535.0)
    if image.mode == "F" and top <= 255.0:
        white = 1.0 if top <= 1.0 else 255.0
    # Resized in mode F, because the modes of 16 bits have byte orders.
    scaled = Image.fromarray(numbers.clip(0) * np.float32(65535 / white))
    scaled = scaled.resize(_size_within(image, longest_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(scaled).round().clip(0, 65535).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()
