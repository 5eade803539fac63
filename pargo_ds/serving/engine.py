"""The model behind the endpoint: requests -> rows of ids and pixels -> answers, a batch at a time.

Axis legend: ids and attention_mask are `(rows, tokens)`, left-padded; pixels `(images, 3, height,
width)`, those of all rows in order of appearance.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from pargo_ds.data.images import image_header, read_image
from pargo_ds.evaluation.answers import end_ids
from pargo_ds.serving.chat import Chat, Settings
from pargo_ds.serving.drawing import RowDrawing
from pargo_ds.serving.refusals import RequestError
from pargo_ds.serving.writing import Writing

MOST_PIXELS = 40_000_000
"""Of one image; a decoded one takes three bytes for each while it is made smaller."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """An answer so far; `reason` (stop, length) is None while it goes on."""

    text: str
    tokens: int
    reason: str | None


@dataclass
class Row:
    """One request on its way through the model.

    `tell` hears of its progress, from the model's thread; `gone` is set when nobody waits for the
    answer any more.
    """

    ids: list[int]
    pixels: list[torch.Tensor]
    settings: Settings
    stream: bool
    tell: Callable[[Progress | RequestError], None]
    gone: bool = False
    told: bool = False
    """It was told the end."""

    @property
    def longest(self) -> int:
        """Tokens that it may come to, answer included."""
        return len(self.ids) + self.settings.max_tokens

    def fail(self, error: RequestError) -> None:
        """Tell that there will be no answer."""
        self.told = True
        self.tell(error)


class _Listening(StoppingCriteria):
    """Hands each row its new token; a row is done when it has ended or nobody waits for it."""

    def __init__(self, rows: Sequence[Row], writings: Sequence[Writing]) -> None:
        self.rows, self.writings = rows, writings

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        newest = input_ids[:, -1].tolist()
        done = []
        for row, writing, token in zip(self.rows, self.writings, newest, strict=True):
            if not (row.told or row.gone):
                writing.add(token)
                row.told = writing.reason is not None
                if row.told or row.stream:
                    row.tell(Progress(writing.text, len(writing.tokens), writing.reason))
            done.append(row.told or row.gone)
        return torch.tensor(done, device=input_ids.device)


class Engine:
    """A model and its processor, for one thread that generates and others that prepare."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.ends = end_ids(model)
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._pad: int = processor.tokenizer.pad_token_id or 0  # never looked at
        # A tokenizer of Rust refuses to be used by two threads at some moments.
        self._tokenizer = threading.Lock()

    def pixels(self, data: bytes) -> torch.Tensor:
        """Decode the bytes of an image file to uint8 `(3, size, size)`. Raises RequestError, 400."""
        try:
            _, _, width, height = image_header(data)
            if width * height > MOST_PIXELS:
                raise ValueError(f"has {width} x {height} pixels; at most {MOST_PIXELS:,} are read")
            return self.processor.pixels(read_image(data))
        except ValueError as error:
            raise RequestError(
                400, f"an image {error}", param="messages", code="invalid_image"
            ) from error

    def ids(self, chat: Chat) -> list[int]:
        """Return the prompt's ids, visual tokens included. Raises RequestError, 400, when the chat
        template refuses the turns, or prompt and answer do not fit into the model's context.
        """
        try:
            with self._tokenizer:
                ids, _ = self.processor.encode_conversation(chat.turns, add_generation_prompt=True)
        except ValueError as error:
            raise RequestError(400, f"messages: {error}", param="messages") from error
        asked = len(ids) + chat.settings.max_tokens
        if self.context is not None and asked > self.context:
            raise RequestError(
                400,
                f"the prompt has {len(ids)} tokens and the answer may have "
                f"{chat.settings.max_tokens}: more than the {self.context} of this model",
                param="messages",
                code="context_length_exceeded",
            )
        return ids

    def run(self, rows: Sequence[Row]) -> None:
        """Answer a batch; every row is told its end, or is gone. Raises nothing.

        A batch that does not fit into memory is halved. Text that was shown by then is generated
        again, and not shown again.
        """
        rows = [row for row in rows if not (row.told or row.gone)]
        if not rows:
            return
        try:
            self._generate(rows)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                rows[0].fail(RequestError(503, "the request does not fit into memory"))
        except Exception:
            logger.exception("a batch of %d requests failed", len(rows))
            for row in rows:
                if not row.told:
                    row.fail(RequestError(500, "the model failed; the server's log says how"))
        # Outside of the handler, whose traceback would keep the batch's tensors alive.
        if all(row.told or row.gone for row in rows):
            return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("a batch of %d requests did not fit into memory: halved", len(rows))
        half = len(rows) // 2
        self.run(rows[:half])
        self.run(rows[half:])

    def _decode(self, tokens: list[int]) -> str:
        with self._tokenizer:
            return self.processor.decode(
                tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )

    @torch.no_grad()
    def _generate(self, rows: Sequence[Row]) -> None:
        writings = [self._writing_of(row) for row in rows]
        inputs = {name: tensor.to(self.model.device) for name, tensor in self._inputs(rows).items()}
        self.model.generate(
            **inputs,
            max_new_tokens=max(row.settings.max_tokens for row in rows),
            do_sample=False,
            pad_token_id=self._pad,
            logits_processor=LogitsProcessorList([RowDrawing([row.settings for row in rows])]),
            stopping_criteria=StoppingCriteriaList([_Listening(rows, writings)]),
        )
        if not all(row.told or row.gone for row in rows):
            raise RuntimeError("generation stopped before every answer had its end")

    def _writing_of(self, row: Row) -> Writing:
        own = row.settings
        return Writing(self._decode, self.ends, own.max_tokens, own.stop, row.stream)

    def _inputs(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        longest = max(len(row.ids) for row in rows)
        gaps = [longest - len(row.ids) for row in rows]
        pad = self._pad
        ids = [[pad] * gap + row.ids for gap, row in zip(gaps, rows, strict=True)]
        seen = [[0] * gap + [1] * (longest - gap) for gap in gaps]
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(seen)}
        pixels = list(chain.from_iterable(row.pixels for row in rows))
        if pixels:
            inputs["pixel_values"] = torch.stack(pixels)
        return inputs
