"""The conversations that people write -> the turns of a sample and its pictures, in the order of their placeholders.

Read are LLaVA's {from, value}, OpenAI's and ms-swift's {role, content} with text or parts, MiniCPM's named pictures,
the Cauldron's {user, assistant} and Qwen-VL's <img>PATH</img>.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from pargo_ds.data.schema import IMAGE_PLACEHOLDER, placeholder_problem
from pargo_ds.data.sources.cells import conversation_in
from pargo_ds.data.sources.json_files import check_each_once
from pargo_ds.data.sources.keys import (
    CONVERSATION_KEYS,
    PICTURE_KEYS,
    SPEAKER_KEYS,
    SYSTEM_KEYS,
    TEXT_KEYS,
    check_keys,
    check_pictures,
    check_turn_keys,
    given,
    is_empty,
    normal,
)
from pargo_ds.data.sources.markers import inline_pictures, placed
from pargo_ds.data.sources.pictures import MAX_PICTURES
from pargo_ds.data.sources.rejects import Reject, shortened

SPEAKERS = {
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "model": "assistant", "chatgpt": "assistant", "bard": "assistant",
    "bing": "assistant",
    "system": "system",
}  # fmt: skip
LEADING, UNANSWERED = "leading answer dropped", "unanswered last question dropped"
"""What is taken from a conversation, as LLaVA's trainer does; counted, and kept in the sample's meta.changed."""
PART_KEYS = ("image", "image_url", "url", "path", "base64")
"""Where a part of a turn names its picture."""
TURN_KEYS = (*SPEAKER_KEYS, *TEXT_KEYS, *PICTURE_KEYS, "user", "assistant")
STRUCT_KEYS = {"bytes", "path", "url"}
"""Hugging Face's picture: {bytes, path}."""


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """Turns of a sample, its pictures as they were named (path, bytes, data: text or {bytes, path}), what changed."""

    turns: list[dict[str, str]]
    images: list[Any]
    changed: tuple[str, ...] = ()

    @property
    def meta(self) -> dict[str, Any]:
        """The part of the sample's meta that says what was changed; empty when nothing was."""
        return {"changed": list(self.changed)} if self.changed else {}


@dataclasses.dataclass(frozen=True)
class _Turn:
    role: str
    content: str
    images: list[Any]
    """Pictures that stand in the turn itself, in the order of its placeholders."""


def dialogue_of(record: Mapping[str, Any], pictures: list[Any] | None = None) -> Dialogue:
    """The conversation of one record, whatever project's keys it uses; `pictures` replaces those of its own keys.

    Raises Reject, naming the key where one is to blame, for all that would be lost or misread.
    """
    check_each_once(record)
    own = given(record, PICTURE_KEYS, "pictures") if pictures is None else pictures
    conversation = given(record, CONVERSATION_KEYS, "conversations")
    if conversation is None:
        keys = shortened(", ".join(map(str, record))) or "none"
        raise Reject("text empty", f"it has no turns under {', '.join(CONVERSATION_KEYS)}; its keys are {keys}")
    conversation = conversation_in(conversation)  # some tables were saved as JSON with JSON in it
    dialogue = turns_of(conversation, own, given(record, SYSTEM_KEYS, "texts"))
    check_keys(record, dialogue.images)
    return dialogue


def turns_of(conversation: Any, pictures: Any, system: Any = None) -> Dialogue:
    """Turns in any of the formats above and their pictures (nothing, one, a list, an object of names) -> Dialogue.

    Placeholders stay where they are. Where there is none at all, one for each picture goes in front of the first human
    turn, each followed by a line break, as LLaVA's trainer writes them. Raises Reject.
    """
    if not isinstance(conversation, list) or not conversation:
        raise Reject("text empty", f"conversations is {shortened(conversation)}; expected a list of {{from, value}}")
    turns = [turn for number, entry in enumerate(conversation) for turn in _turns(number, entry)]
    turns, changed = _trimmed(_with_system(turns, system))
    images, names = _named(pictures)
    inline = [image for turn in turns for image in turn.images]
    if inline and images and inline != images:
        raise Reject(
            "two values",
            f"{len(inline)} pictures stand in the conversation and {len(images)} beside it; expected one way",
        )
    texts = [{"role": turn.role, "content": turn.content} for turn in turns]
    texts, images = placed(texts, inline or images, names)
    problem = placeholder_problem(texts, len(images))
    if problem is not None:
        raise Reject("placeholders", problem)
    for number, entry in enumerate(conversation):
        check_pictures(entry, TURN_KEYS, images, f"turn {number}: its")
    return Dialogue(texts, images, changed)


def _trimmed(turns: list[_Turn]) -> tuple[list[_Turn], tuple[str, ...]]:
    """The turns from the first question to the last answer, and what was left out for that."""
    head = [turn for turn in turns[:1] if turn.role == "system"]
    spoken, changed = turns[len(head) :], []
    if spoken and spoken[0].role == "assistant":
        spoken, changed = spoken[1:], [LEADING]
    if len(spoken) > 1 and spoken[-1].role == "user" and spoken[-2].role == "assistant":
        spoken, changed = spoken[:-1], [*changed, UNANSWERED]
    if not spoken or spoken[0].role != "user":
        raise Reject("turns out of order", "no human turn stands before its answers; expected human and gpt in turns")
    if len(spoken) == 1:
        raise Reject("turns out of order", "the human turn has no answer; expected human and gpt in turns")
    return [*head, *spoken], tuple(changed)


def _with_system(turns: list[_Turn], system: Any) -> list[_Turn]:
    """The turns with the system text that a record gives beside them."""
    if is_empty(system):
        return turns
    if not isinstance(system, str):
        raise Reject("does not fit", f"its system text is {shortened(system)}; expected text")
    if not system.strip():
        return turns
    if turns and turns[0].role == "system":
        if turns[0].content.strip() == system.strip():
            return turns
        raise Reject("two values", "it has a system text and a system turn that differ; expected one of them")
    return [_Turn("system", system, []), *turns]


def _turns(number: int, entry: Any) -> list[_Turn]:
    if not isinstance(entry, dict):
        raise Reject("does not fit", f"turn {number} is {shortened(entry)}; expected {{from, value}}")
    if "user" in entry and "assistant" in entry and not any(key in entry for key in SPEAKER_KEYS):
        shared = {key: value for key, value in entry.items() if key not in ("user", "assistant")}
        answers = {key: value for key, value in shared.items() if normal(key) not in PICTURE_KEYS}
        return [
            _turn(number, {**shared, "role": "user", "content": entry["user"]}),
            _turn(number, {**answers, "role": "assistant", "content": entry["assistant"]}),
        ]
    return [_turn(number, entry)]


def _turn(number: int, entry: dict[str, Any]) -> _Turn:
    speakers = [value for key, value in entry.items() if normal(key) in SPEAKER_KEYS and not is_empty(value)]
    roles = {SPEAKERS.get(value.strip().lower()) if isinstance(value, str) else None for value in speakers}
    if len(roles) > 1:
        raise Reject("two values", f"turn {number} is from {shortened(speakers)}, which differ; expected one of them")
    speaker, role = next(iter(speakers), None), next(iter(roles), None)
    text = given(entry, TEXT_KEYS, "texts")
    if role is None:
        known = ", ".join(SPEAKERS)
        raise Reject("unknown speaker", f"turn {number} is from {shortened(speaker)}; expected one of {known}")
    check_turn_keys(number, entry, role == "assistant")
    content, images = _content(number, text)
    beside, _ = _named(given(entry, PICTURE_KEYS, "pictures"))
    if beside and images:
        raise Reject("two values", f"turn {number} has pictures in its text and beside it; expected one way")
    if beside and IMAGE_PLACEHOLDER not in content:
        content = f"{IMAGE_PLACEHOLDER}\n" * len(beside) + content
    if not content.strip():
        raise Reject("text empty", f"turn {number} ({speaker}) has no text: {shortened(text)}")
    return _Turn(role, content, images or beside)


def _content(number: int, value: Any) -> tuple[str, list[Any]]:
    """Text of a turn with its placeholders, and the pictures that stand in it."""
    if isinstance(value, str):
        return inline_pictures(value)
    if value is None:
        return "", []
    if not isinstance(value, list):
        raise Reject("text empty", f"turn {number} has no text: {shortened(value)}; expected text or a list of parts")
    texts: list[str] = []
    images: list[Any] = []
    for part in value:
        text, image = _part(number, part)
        texts.append(text)
        if image is not None:
            images.append(image)
    return "".join(texts), images


def _part(number: int, part: Any) -> tuple[str, Any]:
    """(text, picture or None) of one part of OpenAI's kind; a picture without a source is one of the record's own, in
    their order or (Hugging Face's) at its index."""
    if isinstance(part, str):
        return part, None
    if not isinstance(part, dict):
        raise Reject("does not fit", f"turn {number} has a part {shortened(part)}; expected {{type, text}}")
    source, text, index = given(part, PART_KEYS, f"pictures of turn {number}"), part.get("text"), part.get("index")
    kind = part.get("type") or next((name for name in ("image", "image_url") if not is_empty(part.get(name))), None)
    kind = kind or next((name for name in ("text", "image", "image_url") if name in part), None)
    if source is not None and not is_empty(text):
        raise Reject("two values", f"turn {number} has text and a picture in one part; expected a part for each")
    if kind in ("text", "input_text", "output_text") and isinstance(text, str):
        return text, None
    if kind not in ("image", "image_url", "input_image"):
        raise Reject("key not read", f"turn {number} has a part of type {shortened(kind)}; expected text or image")
    if source is None and isinstance(index, (int, float)) and not is_empty(index):
        return f"<image {index:g}>", None
    if isinstance(source, dict) and "url" in source:
        source = source["url"]
    return IMAGE_PLACEHOLDER, source


def _named(pictures: Any) -> tuple[list[Any], list[str]]:
    """Pictures as a list, and their names in the text where the record gives them (MiniCPM: {"<image_00>": PATH})."""
    if is_empty(pictures):
        return [], []
    if isinstance(pictures, dict) and not set(pictures) <= STRUCT_KEYS:
        if not all(re.fullmatch(r"<[^<>]+>", str(name)) for name in pictures):
            raise Reject("picture missing", f"image is {shortened(pictures)}; expected a path or a list of paths")
        return list(pictures.values()), list(pictures)
    if isinstance(pictures, (str, bytes, dict)):
        return [pictures], []
    if not isinstance(pictures, list):
        raise Reject("picture missing", f"image is {shortened(pictures)}; expected a path or a list of paths")
    if len(pictures) > MAX_PICTURES:
        raise Reject("too large", f"it has {len(pictures):,} pictures; expected at most {MAX_PICTURES:,}")
    found = [picture for picture in pictures if not is_empty(picture)]
    if found and len(found) < len(pictures):
        raise Reject("picture missing", f"{len(pictures) - len(found)} of its {len(pictures)} pictures are empty")
    return found, []
