"""Convert conversations in the formats of several projects to the turns of a sample, and its images
in the order of their placeholders.

The formats are LLaVA's {from, value}, OpenAI's and ms-swift's {role, content} with text or parts,
MiniCPM's named images, the Cauldron's {user, assistant} and Qwen-VL's <img>PATH</img>.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

from pargo_ds.data.shards.schema import IMAGE_PLACEHOLDER, placeholder_problem
from pargo_ds.data.sources.cells import conversation_in
from pargo_ds.data.sources.images import MAX_IMAGES
from pargo_ds.data.sources.json_files import check_each_once
from pargo_ds.data.sources.keys import (
    CONVERSATION_KEYS,
    IMAGE_KEYS,
    SPEAKER_KEYS,
    SYSTEM_KEYS,
    TEXT_KEYS,
    check_images,
    check_keys,
    check_turn_keys,
    filled,
    given,
    is_empty,
    normal,
)
from pargo_ds.data.sources.markers import inline_images, placed
from pargo_ds.data.sources.rejects import Reject, shortened

SPEAKERS = {
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "model": "assistant", "chatgpt": "assistant", "bard": "assistant",
    "bing": "assistant",
    "system": "system",
}  # fmt: skip
LEADING, UNANSWERED = "leading answer dropped", "unanswered last question dropped"
"""Turns that are removed from a conversation, as LLaVA's trainer does. The removal is counted and
noted in the sample's meta.changed.
"""
PART_KEYS = ("image", "image_url", "url", "path", "base64")
"""Keys by which a part of a turn names its image."""
TURN_KEYS = (*SPEAKER_KEYS, *TEXT_KEYS, *IMAGE_KEYS, "user", "assistant")
STRUCT_KEYS = {"bytes", "path", "url"}
"""Keys of an image as Hugging Face stores it."""


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """The turns of a sample; its images as the record names them (a path, bytes, a `data:` text or
    {bytes, path}); and what was changed.
    """

    turns: list[dict[str, str]]
    images: list[Any]
    changed: tuple[str, ...] = ()

    @property
    def meta(self) -> dict[str, Any]:
        """The entry of the sample's meta that says what was changed; {} if nothing was."""
        if not self.changed:
            return {}
        return {"changed": list(self.changed)}


@dataclasses.dataclass(frozen=True)
class _Turn:
    role: str
    content: str
    images: list[Any]
    """Images that the turn itself contains, in the order of its placeholders."""


def dialogue_of(record: Mapping[str, Any], images: list[Any] | None = None) -> Dialogue:
    """Return the conversation of one record with the keys of any known project. `images`, if given,
    replaces the images that the record names.

    Raises Reject for everything that would be lost or misread; the message names the key at fault.
    """
    check_each_once(record)
    own: Any = images
    if own is None:
        own = given(record, IMAGE_KEYS, "images")
    conversation = given(record, CONVERSATION_KEYS, "conversations")
    if conversation is None:
        keys = shortened(", ".join(map(str, record))) or "none"
        raise Reject(
            "text empty",
            f"it has no turns under {', '.join(CONVERSATION_KEYS)}; its keys are {keys}",
        )
    conversation = conversation_in(conversation)  # some tables were saved as JSON with JSON in it
    dialogue = turns_of(conversation, own, given(record, SYSTEM_KEYS, "texts"))
    check_keys(record, dialogue.images)
    return dialogue


def turns_of(conversation: Any, beside: Any, system: Any = None) -> Dialogue:
    """Convert turns in any of the formats above to a Dialogue.

    Placeholders keep their places. A conversation without placeholders gets one for each image at
    the start of the first human turn, each followed by a line break, as LLaVA's trainer writes
    them.

    Args:
        beside: images that the record names outside its turns: None, one image, a list of images,
            or an object that maps names to images.
        system: a system text that the record gives outside its turns.

    Raises Reject for turns and images that do not fit together.
    """
    if not isinstance(conversation, list) or not conversation:
        raise Reject(
            "text empty",
            f"conversations is {shortened(conversation)}; expected a list of {{from, value}}",
        )
    turns: list[_Turn] = []
    for number, entry in enumerate(conversation):
        turns += _turns(number, entry)
    turns, changed = _trimmed(_with_system(turns, system))
    images, names = _named(beside)
    inline = list(chain.from_iterable(turn.images for turn in turns))
    if inline and images and inline != images:
        raise Reject(
            "two values",
            f"{len(inline)} images stand in the conversation and {len(images)} beside it; expected one way",
        )
    texts = [{"role": turn.role, "content": turn.content} for turn in turns]
    texts, images = placed(texts, inline or images, names)
    problem = placeholder_problem(texts, len(images))
    if problem is not None:
        raise Reject("placeholders", problem)
    for number, entry in enumerate(conversation):
        check_images(entry, TURN_KEYS, images, f"turn {number}: its")
    return Dialogue(texts, images, changed)


def _trimmed(turns: list[_Turn]) -> tuple[list[_Turn], tuple[str, ...]]:
    """Return the turns from the first question to the last answer, and names for what was
    removed.
    """
    head = [turn for turn in turns[:1] if turn.role == "system"]
    spoken, changed = turns[len(head) :], []
    if spoken and spoken[0].role == "assistant":
        spoken, changed = spoken[1:], [LEADING]
    if len(spoken) > 1 and spoken[-1].role == "user" and spoken[-2].role == "assistant":
        spoken, changed = spoken[:-1], [*changed, UNANSWERED]
    if not spoken or spoken[0].role != "user":
        raise Reject(
            "turns out of order",
            "no human turn stands before its answers; expected human and gpt in turns",
        )
    if len(spoken) == 1:
        raise Reject(
            "turns out of order", "the human turn has no answer; expected human and gpt in turns"
        )
    return [*head, *spoken], tuple(changed)


def _with_system(turns: list[_Turn], system: Any) -> list[_Turn]:
    """Return the turns, preceded by the system text that the record gives outside them."""
    if is_empty(system):
        return turns
    if not isinstance(system, str):
        raise Reject("does not fit", f"its system text is {shortened(system)}; expected text")
    if not system.strip():
        return turns
    if turns and turns[0].role == "system":
        if turns[0].content.strip() == system.strip():
            return turns
        raise Reject(
            "two values", "it has a system text and a system turn that differ; expected one of them"
        )
    return [_Turn("system", system, []), *turns]


def _turns(number: int, entry: Any) -> list[_Turn]:
    if not isinstance(entry, dict):
        raise Reject(
            "does not fit", f"turn {number} is {shortened(entry)}; expected {{from, value}}"
        )
    if "user" in entry and "assistant" in entry and not any(key in entry for key in SPEAKER_KEYS):
        shared = {key: value for key, value in entry.items() if key not in ("user", "assistant")}
        answers = {key: value for key, value in shared.items() if normal(key) not in IMAGE_KEYS}
        return [
            _turn(number, {**shared, "role": "user", "content": entry["user"]}),
            _turn(number, {**answers, "role": "assistant", "content": entry["assistant"]}),
        ]
    return [_turn(number, entry)]


def _turn(number: int, entry: dict[str, Any]) -> _Turn:
    speakers = list(filled(entry, SPEAKER_KEYS).values())
    roles = set(map(_role, speakers))
    if len(roles) > 1:
        raise Reject(
            "two values",
            f"turn {number} is from {shortened(speakers)}, which differ; expected one of them",
        )
    speaker, role = next(iter(speakers), None), next(iter(roles), None)
    text = given(entry, TEXT_KEYS, "texts")
    if role is None:
        known = ", ".join(SPEAKERS)
        raise Reject(
            "unknown speaker",
            f"turn {number} is from {shortened(speaker)}; expected one of {known}",
        )
    check_turn_keys(number, entry, role == "assistant")
    content, images = _content(number, text)
    beside, _ = _named(given(entry, IMAGE_KEYS, "images"))
    if beside and images:
        raise Reject(
            "two values", f"turn {number} has images in its text and beside it; expected one way"
        )
    if beside and IMAGE_PLACEHOLDER not in content:
        content = f"{IMAGE_PLACEHOLDER}\n" * len(beside) + content
    if not content.strip():
        raise Reject("text empty", f"turn {number} ({speaker}) has no text: {shortened(text)}")
    return _Turn(role, content, images or beside)


def _role(speaker: Any) -> str | None:
    """Return the role of a speaker; None if the speaker is unknown."""
    if not isinstance(speaker, str):
        return None
    return SPEAKERS.get(speaker.strip().lower())


def _content(number: int, value: Any) -> tuple[str, list[Any]]:
    """Return the text of a turn with its placeholders, and the images that the turn contains."""
    if isinstance(value, str):
        return inline_images(value)
    if value is None:
        return "", []
    if not isinstance(value, list):
        raise Reject(
            "text empty",
            f"turn {number} has no text: {shortened(value)}; expected text or a list of parts",
        )
    texts: list[str] = []
    images: list[Any] = []
    for part in value:
        text, image = _part(number, part)
        texts.append(text)
        if image is not None:
            images.append(image)
    return "".join(texts), images


def _part(number: int, part: Any) -> tuple[str, Any]:
    """Return (text, image or None) of one part as OpenAI writes it. A part for an image that names
    no source means the next image of the record, or, in Hugging Face's form, the one at its index.
    """
    if isinstance(part, str):
        return part, None
    if not isinstance(part, dict):
        raise Reject(
            "does not fit", f"turn {number} has a part {shortened(part)}; expected {{type, text}}"
        )
    source = given(part, PART_KEYS, f"images of turn {number}")
    text, index, kind = part.get("text"), part.get("index"), _kind_of(part)
    if source is not None and not is_empty(text):
        raise Reject(
            "two values",
            f"turn {number} has text and an image in one part; expected a part for each",
        )
    if kind in ("text", "input_text", "output_text") and isinstance(text, str):
        return text, None
    if kind not in ("image", "image_url", "input_image"):
        raise Reject(
            "key not read",
            f"turn {number} has a part of type {shortened(kind)}; expected text or image",
        )
    if source is None and isinstance(index, (int, float)) and not is_empty(index):
        return f"<image {index:g}>", None
    if isinstance(source, dict) and "url" in source:
        source = source["url"]
    return IMAGE_PLACEHOLDER, source


def _kind_of(part: dict[str, Any]) -> Any:
    """The type of a part; without the key `type` its other keys tell."""
    if part.get("type"):
        return part["type"]
    for name in ("image", "image_url"):
        if not is_empty(part.get(name)):
            return name
    return next((name for name in ("text", "image", "image_url") if name in part), None)


def _named(images: Any) -> tuple[list[Any], list[str]]:
    """Return the images as a list, and the names by which the text refers to them, if the record
    gives names (MiniCPM: {"<image_00>": PATH}).
    """
    if is_empty(images):
        return [], []
    if isinstance(images, dict) and not set(images) <= STRUCT_KEYS:
        if not all(re.fullmatch(r"<[^<>]+>", str(name)) for name in images):
            raise Reject(
                "image missing", f"image is {shortened(images)}; expected a path or a list of paths"
            )
        return list(images.values()), list(images)
    if isinstance(images, (str, bytes, dict)):
        return [images], []
    if not isinstance(images, list):
        raise Reject(
            "image missing", f"image is {shortened(images)}; expected a path or a list of paths"
        )
    if len(images) > MAX_IMAGES:
        raise Reject("too large", f"it has {len(images):,} images; expected at most {MAX_IMAGES:,}")
    found = [image for image in images if not is_empty(image)]
    if found and len(found) < len(images):
        raise Reject(
            "image missing", f"{len(images) - len(found)} of its {len(images)} images are empty"
        )
    return found, []
