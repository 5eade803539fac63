"""LLaVA's `conversations` -> the turns of a sample."""

from __future__ import annotations

from typing import Any

from pargo_ds.data.schema import IMAGE_PLACEHOLDER
from pargo_ds.data.sources.rejects import Reject, shortened

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def turns_of(conversations: Any, pictures: int) -> list[dict[str, str]]:
    """[{from, value}] -> [{role, content}], for a sample of `pictures` pictures.

    Placeholders stay where they are. When there is none at all, one for each picture goes in front of the first human
    turn, each followed by a line break, as LLaVA's trainer writes them. Raises Reject.
    """
    if not isinstance(conversations, list) or not conversations:
        raise Reject("text empty", f"conversations is {shortened(conversations)}; expected a list of {{from, value}}")
    turns = [_turn(number, turn) for number, turn in enumerate(conversations)]
    spoken = [turn["role"] for turn in turns if turn["role"] != "system"]
    if not spoken or spoken[0] != "user":
        raise Reject("turns out of order", "it does not begin with a human turn; expected human and gpt in turns")
    found = sum(turn["content"].count(IMAGE_PLACEHOLDER) for turn in turns)
    if found == 0 and pictures:
        first = next(turn for turn in turns if turn["role"] == "user")
        first["content"] = f"{IMAGE_PLACEHOLDER}\n" * pictures + first["content"]
    elif found != pictures:
        raise Reject("placeholders", f"{found} {IMAGE_PLACEHOLDER} in the text but {pictures} pictures")
    return turns


def _turn(number: int, turn: Any) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise Reject("does not fit", f"turn {number} is {shortened(turn)}; expected {{from, value}}")
    speaker, text = turn.get("from"), turn.get("value")
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise Reject(
            "unknown speaker", f"turn {number} is from {shortened(speaker)}; expected one of {', '.join(SPEAKERS)}"
        )
    if not isinstance(text, str) or not text.strip():
        raise Reject("text empty", f"turn {number} ({speaker}) has no text: {shortened(text)}")
    return {"role": SPEAKERS[speaker], "content": text}
