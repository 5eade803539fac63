"""Turns as Hugging Face writes them: content as text or as a list of parts, pictures inside or beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

from .configuration_pargo import IMAGE_PLACEHOLDER

Turn = dict[str, Any]
ROLES = ("system", "user", "assistant")
SOURCES = ("image", "url", "path", "base64")


def checked_turns(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with their content as text; what else they carry is left to the template.

    Raises:
        ValueError: no turns, an unknown role or kind of part, a picture inside an answer.
    """
    if not turns:
        raise ValueError("the conversation has no turns")
    checked = []
    for i, turn in enumerate(turns):
        role = turn.get("role")
        if role not in ROLES:
            raise ValueError(f"turn {i} has role {role!r}: expected 'system', 'user' or 'assistant'")
        try:
            content = as_text(turn.get("content"))
        except ValueError as error:
            raise ValueError(f"turn {i} ({role}): {error}") from error
        if role == "assistant" and IMAGE_PLACEHOLDER in content:
            raise ValueError(f"turn {i} is an answer with {IMAGE_PLACEHOLDER} in it: pictures belong to user turns")
        checked.append({**turn, "content": content})
    return checked


def as_text(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    """Content -> text, each picture written `<image>`. Raises ValueError for a part that is neither text nor image."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(_part_as_text(part) for part in content)


def image_sources(conversations: Sequence[Sequence[Turn]], images: Any) -> Any:
    """What stands for the pictures: `images`, or what the parts of the turns name, in order of appearance.

    Raises:
        ValueError: pictures in both places.
    """
    inside = [
        source
        for turns in conversations
        for turn in turns
        if not isinstance(turn.get("content") or "", str)
        for part in turn["content"]
        if (source := _source(part)) is not None
    ]
    if inside and images is not None:
        raise ValueError(f"{len(inside)} pictures stand in the conversation, and images are given too: use one way")
    return inside if images is None else images


def _part_as_text(part: Mapping[str, Any] | str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type")
    if kind == "text":
        return part.get("text") or ""
    if kind in ("image", "image_url"):
        return IMAGE_PLACEHOLDER
    raise ValueError(f"a part of type {kind!r}: expected 'text', 'image' or 'image_url'")


def _source(part: Mapping[str, Any] | str) -> Any:
    if isinstance(part, str):
        return None
    if part.get("type") == "image_url":  # OpenAI's way
        address = part.get("image_url")
        return address.get("url") if isinstance(address, Mapping) else address
    if part.get("type") != "image":
        return None
    return next((part[name] for name in SOURCES if part.get(name) is not None), None)
