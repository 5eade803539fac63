"""The text of one answer while its tokens come. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

HALF = "\ufffd"
"""What a tokenizer writes for bytes that are no whole character yet."""


@dataclass
class Writing:
    """Tokens -> text that never takes back what it has shown.

    `decode` makes text of the tokens from the first one on; `ends` are the ids that end an answer.
    `reason` is None while it is written, then "stop" (an end, or a stop string, which is left out)
    or "length" (`limit` tokens).
    """

    decode: Callable[[list[int]], str]
    ends: Collection[int]
    limit: int
    stop: Sequence[str] = ()
    shown: bool = True
    """Somebody reads along; else the text is made at the end only, unless `stop` asks for it."""
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    """What stands so far: without blanks at its ends, which may yet turn out to be last."""
    reason: str | None = None

    def add(self, token: int) -> None:
        """Add the next token."""
        if token in self.ends:
            self.reason = "stop"
        else:
            self.tokens.append(token)
            if len(self.tokens) >= self.limit:
                self.reason = "length"
        if not (self.reason or self.shown or self.stop):
            return
        raw = self.decode(self.tokens)
        cut = min((place for word in self.stop if (place := raw.find(word)) >= 0), default=-1)
        if cut >= 0:
            self.reason, self.text = "stop", raw[:cut].strip()
        elif self.reason:
            self.text = raw.strip()
        else:
            self.text = certain(raw, self.stop)


def certain(raw: str, stop: Sequence[str]) -> str:
    """Return what will stay of a text that goes on: without half a character, what may become a
    stop string, and blanks.

    Example: "a dog En", stop ["END"] -> "a dog En"; "a dog EN" -> "a dog"
    """
    raw = raw.rstrip(HALF)
    held = max((_begun(raw, word) for word in stop), default=0)
    return raw[: len(raw) - held].strip()


def _begun(raw: str, word: str) -> int:
    """Letters at the end of `raw` with which `word` begins."""
    return next(
        (length for length in range(len(word) - 1, 0, -1) if raw.endswith(word[:length])), 0
    )
