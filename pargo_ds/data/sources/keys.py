"""The meaning of the keys of a record: keys that are read, keys that say what may be learned, and
keys that are refused.

A key that is not read is ignored only if the conversation does not depend on it. If a record named
an image, a sound or a tool and it were ignored, the model would learn to answer about something
that it never sees.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pargo_ds.data.sources.rejects import Reject, shortened

IMAGE_KEYS = (
    "image",
    "images",
    "image_path",
    "image_paths",
    "image_file",
    "image_files",
    "img",
    "img_path",
    "picture",
)
SPEAKER_KEYS, TEXT_KEYS = ("from", "role", "speaker"), ("value", "content", "text")
CONVERSATION_KEYS = ("conversations", "conversation", "messages", "texts")
SYSTEM_KEYS = ("system", "system_prompt")
WEIGHT_KEYS = (
    "weight",
    "loss",
    "loss_mask",
    "loss_weight",
    "sample_weight",
    "train",
    "trainable",
    "train_on_turn",
)
"""Keys that say whether, and with which weight, a turn is learned (ms-swift, Axolotl, OpenAI)."""
LIKED_KEYS = ("label", "kto_tag")
"""Keys that are false for an answer that the model should avoid (KTO of TRL, ms-swift,
LLaMA-Factory).
"""
OTHER_MEDIA = {"video": "video", "videos": "video", "video_path": "video", "audio": "audio", "audios": "audio",
               "audio_path": "audio", "speech": "audio"}  # fmt: skip
"""Keys for other media than images, and the kind of reject for each."""
NOT_READ = ("tools", "functions", "tool_calls", "function_call", "reasoning_content", "thinking", "history", "rejected",
            "rejected_response", "rejected_messages", "rejected_images", "chosen")  # fmt: skip
"""Keys that change what is said or learned, but have no place in a sample."""
MEDIA_FILE = re.compile(
    r"[.](jpe?g|jpe|jfif|png|webp|gif|bmp|tiff?|ppm|avif|jp2|heic|svg|mp4|avi|mkv|mov|webm|wav|mp3|flac|ogg|m4a|npy)$",
    re.IGNORECASE,
)

SPEAKS_OF_AN_IMAGE = re.compile(r"image|img|picture|photo|pixel")


def normal(key: object) -> str:
    """Return a key in the form in which keys are compared: lower case, with _ for - and blanks."""
    return re.sub(r"[\s-]", "_", str(key).strip().lower())


def is_empty(value: Any) -> bool:
    """Whether a value is None, NaN (which pandas writes), or an empty text, list or object."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, (str, list, dict, tuple, bytes)) and len(value) == 0)


def given(record: Mapping[str, Any], names: tuple[str, ...], what: str) -> Any:
    """Return the value that a record has under any of `names`, or None.

    Raises Reject naming the keys when two of them have different values.
    """
    found = filled(record, names)
    values = [as_list(value) for value in found.values()]
    if any(value != values[0] for value in values[1:]):
        raise Reject(
            "two values",
            f"{' and '.join(map(str, found))} give two different {what}; expected one of them",
        )
    return next(iter(found.values()), None)


def filled(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the keys of a record that are one of `names` in any spelling and have a value."""
    found = {}
    for key, value in record.items():
        if normal(key) in names and not is_empty(value):
            found[key] = value
    return found


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, and any other value as a list of one."""
    if isinstance(value, list):
        return value
    return [value]


def check_keys(record: Mapping[str, Any], images: Sequence[Any]) -> None:
    """Raise Reject for a key of a record that is not read although the conversation may depend on
    it.
    """
    known = (*IMAGE_KEYS, *CONVERSATION_KEYS, *SYSTEM_KEYS, "id")
    for key, value in record.items():
        name = normal(key)
        if is_empty(value) or name in known:
            continue
        if name in OTHER_MEDIA:
            raise Reject(
                OTHER_MEDIA[name], f"it has {key}: {shortened(value, 80)}; only images are read"
            )
        if name in NOT_READ:
            raise Reject(
                "key not read", f"its {key} ({shortened(value, 80)}) cannot be part of a sample"
            )
        if name in WEIGHT_KEYS and (
            value in (0, False) or ("weight" in name and value not in (1, True))
        ):
            raise Reject(
                "not to be learned",
                f"its {key} is {shortened(value, 80)}, but every entry is learned, with weight 1",
            )
        if name in LIKED_KEYS and value is False:
            raise Reject(
                "not to be learned",
                f"its {key} is False, but every answer is learned as one to give",
            )
    check_images(record, known, images, "its")


def check_images(
    record: Mapping[str, Any], known: Sequence[str], images: Sequence[Any], whose: str
) -> None:
    """Raise Reject for a key that is not in `known` and names an image, a sound or a film that is
    not in `images`.
    """
    names = {PurePosixPath(item).name for item in images if isinstance(item, str)}
    for key, value in record.items():
        name = normal(key)
        if (
            name not in known
            and not is_empty(value)
            and _names_an_image(name, value, names, bool(images))
        ):
            raise Reject(
                "key not read",
                f"{whose} {key} is {shortened(value, 80)}, an image or file that is not read; images are read from "
                f"{', '.join(IMAGE_KEYS)}",
            )


def _names_an_image(name: str, value: Any, read: set[str], has_images: bool) -> bool:
    """Whether a value that is not read names or holds an image, a sound or a film that is not read
    either.

    If the record has images that are read, only keys count whose name speaks of an image, such as
    image2 or right_image; other keys, such as mask or source_file, describe the images. If it has
    none, every value of such a key counts: bytes, an address, an image_id.
    """
    speaks_of_one = SPEAKS_OF_AN_IMAGE.search(name) is not None
    if not has_images and speaks_of_one and value not in (0, False):
        return True
    values = as_list(value)
    if any(map(_holds_an_image, values)):
        return not has_images or speaks_of_one
    files = [text for text in map(_address_in, values) if _is_media(text)]
    unread = [text for text in files if PurePosixPath(urlsplit(text).path).name not in read]
    if not unread:
        return False
    address = all("://" in text for text in unread)
    return not has_images or (speaks_of_one and not address)


def _holds_an_image(value: Any) -> bool:
    if isinstance(value, dict):
        return not is_empty(value.get("bytes"))
    return isinstance(value, bytes) or (isinstance(value, str) and value.startswith("data:image/"))


def _address_in(value: Any) -> Any:
    """The path or URL in an object such as {"path", "url"}; any other value itself."""
    if isinstance(value, dict):
        return value.get("path") or value.get("url")
    return value


def _is_media(text: Any) -> bool:
    if not isinstance(text, str) or len(text) >= 4096:
        return False
    try:
        return MEDIA_FILE.search(urlsplit(text).path) is not None and "\n" not in text
    except ValueError:  # for example an address with one bracket only
        return False


def check_turn_keys(number: int, turn: Mapping[str, Any], answer: bool) -> None:
    """Raise Reject for a turn that has more than its text, and for an answer that should not be
    learned; the message names the key.
    """
    for key, value in turn.items():
        name = normal(key)
        if is_empty(value):
            continue
        if name in WEIGHT_KEYS and answer and value not in (1, True):
            reason = f"turn {number} has {key}: {shortened(value, 80)}, but every answer is learned, with weight 1"
            raise Reject("not to be learned", reason)
        if name in OTHER_MEDIA:
            raise Reject(
                OTHER_MEDIA[name],
                f"turn {number} has {key}: {shortened(value, 80)}; only images are read",
            )
        if name in (*NOT_READ, *SYSTEM_KEYS):
            raise Reject(
                "key not read",
                f"turn {number} has {key} ({shortened(value, 80)}), which cannot be part of it",
            )
