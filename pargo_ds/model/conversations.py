"""Read turns as Hugging Face writes them: their content is a text or a list of parts, and images
are given in the parts or separately.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from .configuration_pargo import IMAGE_PLACEHOLDER

Turn = dict[str, Any]
ROLES = ("system", "user", "assistant")
SOURCES = ("image", "url", "path", "base64")


def checked_turns(turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns with their content as text. Other keys of a turn are kept for the template.

    Raises:
        ValueError: no turns, an unknown role or kind of part, an image inside an answer.
    """
    if not turns:
        raise ValueError("the conversation has no turns")
    checked = []
    for i, turn in enumerate(turns):
        role = turn.get("role")
        if role not in ROLES:
            raise ValueError(
                f"turn {i} has role {role!r}: expected 'system', 'user' or 'assistant'"
            )
        try:
            content = as_text(turn.get("content"))
        except ValueError as error:
            raise ValueError(f"turn {i} ({role}): {error}") from error
        if role == "assistant" and IMAGE_PLACEHOLDER in content:
            raise ValueError(
                f"turn {i} is an answer with {IMAGE_PLACEHOLDER} in it: images belong to user turns"
            )
        checked.append({**turn, "content": content})
    return checked


def as_text(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    """Return the content as text, with each image written `<image>`.

    Raises ValueError for a part that is neither text nor image.
    """
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(_part_as_text(part) for part in content)


def image_sources(conversations: Sequence[Sequence[Turn]], images: Any) -> Any:
    """Return the images: `images`, or the images that the parts of the turns name, in order of
    appearance.

    Raises:
        ValueError: images in both places.
    """
    inside = list(_named_in(conversations))
    if images is None:
        return inside
    if inside:
        raise ValueError(
            f"{len(inside)} images stand in the conversation, and images are given too: use one way"
        )
    return images


def _named_in(conversations: Sequence[Sequence[Turn]]) -> Iterator[Any]:
    """Yield what the parts of the turns name as images."""
    for turn in chain.from_iterable(conversations):
        content = turn.get("content") or ""
        if isinstance(content, str):
            continue
        for part in content:
            source = _source(part)
            if source is not None:
                yield source


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
        if isinstance(address, Mapping):
            return address.get("url")
        return address
    if part.get("type") != "image":
        return None
    return next((part[name] for name in SOURCES if part.get(name) is not None), None)


def plain_turn(role: str, content: str) -> Turn:
    """Return a turn of a conversation."""
    return {"role": role, "content": content}
