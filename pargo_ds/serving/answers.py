"""An answer in the forms of OpenAI's chat completions, whole and in pieces. Pure."""

from __future__ import annotations

import time
import uuid
from typing import Any

from pargo_ds.serving.engine import Progress


class Completion:
    """One answer by `model` to a prompt of `prompt_tokens`, visual tokens included."""

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, progress: Progress) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        message = {"role": "assistant", "content": progress.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": progress.reason,
        }
        return {
            **self.head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": self.usage(progress),
        }

    def usage(self, progress: Progress) -> dict[str, int]:
        """Return the numbers of tokens; the one that ends an answer is not counted."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": progress.tokens,
            "total_tokens": self.prompt_tokens + progress.tokens,
        }

    def opening(self) -> dict[str, Any]:
        """Return the first event of a stream."""
        return self._chunk([_choice({"role": "assistant", "content": ""}, None)])

    def piece(self, progress: Progress, shown: int) -> dict[str, Any]:
        """Return the event that adds the text after the first `shown` letters, and tells the end."""
        delta = {}
        if progress.text[shown:]:
            delta["content"] = progress.text[shown:]
        return self._chunk([_choice(delta, progress.reason)])

    def usage_only(self, progress: Progress) -> dict[str, Any]:
        """Return the event that `stream_options.include_usage` asks for."""
        return self._chunk([]) | {"usage": self.usage(progress)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk", "choices": choices}


def _choice(delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
