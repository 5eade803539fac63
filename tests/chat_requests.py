"""Bodies of chat requests for the tests of serving."""

from __future__ import annotations

import base64
from typing import Any

from tiny import draw


def data_url(colour: str = "red", place: int = 0) -> str:
    """A drawn square as a data: URL."""
    return f"data:image/png;base64,{base64.b64encode(draw(colour, place)).decode()}"


def asked(text: str = "What colour is it?", image: str | None = None, **settings: Any) -> dict:
    """The body of a request for at most 8 tokens."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": image}})
    messages = [{"role": "user", "content": parts}]
    return {"model": "tiny", "messages": messages, "max_tokens": 8, **settings}
