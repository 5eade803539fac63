"""What the keys of a record mean: those that are read, those that change what may be learned, those that are refused.

A key that nobody reads is left alone only when nothing hangs on it: a picture, a sound or a tool that a record names
and we ignore would leave a question about something the model never sees.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pargo_ds.data.sources.rejects import Reject, shortened

PICTURE_KEYS = (
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
WEIGHT_KEYS = ("weight", "loss", "loss_mask", "loss_weight", "sample_weight", "train", "trainable", "train_on_turn")
"""Of a turn: whether, and how much, it is learned (ms-swift, Axolotl, OpenAI)."""
LIKED_KEYS = ("label", "kto_tag")
"""Of an entry: false for an answer that is to be avoided (KTO of TRL, ms-swift, LLaMA-Factory)."""
OTHER_MEDIA = {"video": "video", "videos": "video", "video_path": "video", "audio": "audio", "audios": "audio",
               "audio_path": "audio", "speech": "audio"}  # fmt: skip
"""Key -> kind of the reject."""
NOT_READ = ("tools", "functions", "tool_calls", "function_call", "reasoning_content", "thinking", "history", "rejected",
            "rejected_response", "rejected_messages", "rejected_images", "chosen")  # fmt: skip
"""Keys that belong to what is said or learned and have no place in a sample."""
MEDIA_FILE = re.compile(
    r"[.](jpe?g|jpe|jfif|png|webp|gif|bmp|tiff?|ppm|avif|jp2|heic|svg|mp4|avi|mkv|mov|webm|wav|mp3|flac|ogg|m4a|npy)$",
    re.IGNORECASE,
)

SPEAKS_OF_A_PICTURE = re.compile(r"image|img|picture|photo|pixel")


def normal(key: object) -> str:
    """A key as it is compared: small letters, _ for - and blanks."""
    return re.sub(r"[\s-]", "_", str(key).strip().lower())


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: none, an empty text, list or object, or the NaN that pandas puts there."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, (str, list, dict, tuple, bytes)) and len(value) == 0)


def given(record: Mapping[str, Any], names: tuple[str, ...], what: str) -> Any:
    """The one value that a record has under any of `names`, else None.

    Raises Reject naming the keys when two of them say different things.
    """
    found = {key: value for key, value in record.items() if normal(key) in names and not is_empty(value)}
    values = list(found.values())
    if any(not _same(values[0], value) for value in values[1:]):
        raise Reject("two values", f"{' and '.join(map(str, found))} give two different {what}; expected one of them")
    return values[0] if values else None


def _same(one: Any, other: Any) -> bool:
    return (one if isinstance(one, list) else [one]) == (other if isinstance(other, list) else [other])


def check_keys(record: Mapping[str, Any], pictures: Sequence[Any]) -> None:
    """Raise Reject, naming the key, for what a record holds beside the pictures and turns that are read of it."""
    known = (*PICTURE_KEYS, *CONVERSATION_KEYS, *SYSTEM_KEYS, "id")
    for key, value in record.items():
        name = normal(key)
        if is_empty(value) or name in known:
            continue
        if name in OTHER_MEDIA:
            raise Reject(OTHER_MEDIA[name], f"it has {key}: {shortened(value, 80)}; only pictures are read")
        if name in NOT_READ:
            raise Reject("key not read", f"its {key} ({shortened(value, 80)}) cannot be part of a sample")
        if name in WEIGHT_KEYS and (value in (0, False) or ("weight" in name and value not in (1, True))):
            raise Reject(
                "not to be learned", f"its {key} is {shortened(value, 80)}, but every entry is learned, with weight 1"
            )
        if name in LIKED_KEYS and value is False:
            raise Reject("not to be learned", f"its {key} is False, but every answer is learned as one to give")
    check_pictures(record, known, pictures, "its")


def check_pictures(record: Mapping[str, Any], known: Sequence[str], pictures: Sequence[Any], whose: str) -> None:
    """Raise Reject for a key, none of `known`, that names a picture (a sound, a film) which is none of `pictures`."""
    names = {PurePosixPath(item).name for item in pictures if isinstance(item, str)}
    for key, value in record.items():
        name = normal(key)
        if name not in known and not is_empty(value) and _names_a_picture(name, value, names, bool(pictures)):
            raise Reject(
                "key not read",
                f"{whose} {key} is {shortened(value, 80)}, a picture or file that is not read; pictures are read from "
                f"{', '.join(PICTURE_KEYS)}",
            )


def _names_a_picture(name: str, value: Any, read: set[str], has_pictures: bool) -> bool:
    """Whether an unread value names or holds a picture, a sound or a film that is none of those that are read.

    Beside pictures that are read, only keys that speak of a picture count (image2, right_image): others, such as
    mask or source_file, describe it. Without any, whatever such a key says counts: bytes, an address, image_id.
    """
    speaks_of_one = SPEAKS_OF_A_PICTURE.search(name) is not None
    if not has_pictures and speaks_of_one and value not in (0, False):
        return True
    values = value if isinstance(value, list) else [value]
    if any(map(_holds_a_picture, values)):
        return not has_pictures or speaks_of_one
    texts = [one.get("path") or one.get("url") if isinstance(one, dict) else one for one in values]
    files = [text for text in texts if isinstance(text, str) and len(text) < 4096 and _is_media(text)]
    unread = [text for text in files if PurePosixPath(urlsplit(text).path).name not in read]
    if not unread:
        return False
    address = all("://" in text for text in unread)
    return not has_pictures or (speaks_of_one and not address)


def _holds_a_picture(value: Any) -> bool:
    if isinstance(value, dict):
        return not is_empty(value.get("bytes"))
    return isinstance(value, bytes) or (isinstance(value, str) and value.startswith("data:image/"))


def _is_media(text: str) -> bool:
    try:
        return MEDIA_FILE.search(urlsplit(text).path) is not None and "\n" not in text
    except ValueError:  # something like an address with half a bracket
        return False


def check_turn_keys(number: int, turn: Mapping[str, Any], answer: bool) -> None:
    """Raise Reject, naming the key, for a turn with more than its text, or an answer that is not to be learned."""
    for key, value in turn.items():
        name = normal(key)
        if is_empty(value):
            continue
        if name in WEIGHT_KEYS and answer and value not in (1, True):
            reason = f"turn {number} has {key}: {shortened(value, 80)}, but every answer is learned, with weight 1"
            raise Reject("not to be learned", reason)
        if name in OTHER_MEDIA:
            raise Reject(OTHER_MEDIA[name], f"turn {number} has {key}: {shortened(value, 80)}; only pictures are read")
        if name in (*NOT_READ, *SYSTEM_KEYS):
            raise Reject(
                "key not read", f"turn {number} has {key} ({shortened(value, 80)}), which cannot be part of it"
            )
