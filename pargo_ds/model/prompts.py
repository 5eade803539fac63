"""Render conversations as text, with the tokenizer's chat template or the paper's prompt.

A turn is `{"role": ..., "content": text}`, images written `<image>`.
"""

import re
from collections.abc import Sequence
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from .configuration_pargo import IMAGE_PLACEHOLDER
from .conversations import Turn, plain_turn

PROMPT_VERSION = (
    "one text, cut where a token would reach into an answer; control tokens in texts are words"
)
"""Version of the code that makes ids of turns, for fingerprints; it changes when the ids change."""

PAPER_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# Texts that no template contains.
QUESTION, ANSWER, LATER = "Wherefore zyx one", "Thus zyx two", "Whereto zyx three"


class PaperPrompt:
    """The prompt of bytedance/ParGo, Vicuna style: each answer ends with the eos token."""

    name = "prompt 'paper'"

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._eos, self._opening = tokenizer.eos_token, _opening_token(tokenizer)

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        """Write turns as text. Raises ValueError for a system turn that is not the first one."""
        system = PAPER_SYSTEM_PROMPT
        if turns and turns[0]["role"] == "system":
            system, turns = turns[0]["content"], turns[1:]
        text = self._opening + system
        for turn in turns:
            if turn["role"] == "user":
                text += " USER: " + _paper_images(turn["content"])
            elif turn["role"] == "assistant":
                text += f" ASSISTANT: {turn['content']}{self._eos}"
            else:
                raise ValueError("prompt 'paper' takes a system turn only as the first turn")
        if add_generation_prompt:
            text += " ASSISTANT: "
        return text


class ChatTemplate:
    """A Jinja template of Hugging Face's kind.

    `parts`: it reads lists of parts, as those of vision models do, and loses plain text. `options`:
    its own variables, such as enable_thinking.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        parts: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._tokenizer, self._template, self._parts, self._options = (
            tokenizer,
            template,
            parts,
            options or {},
        )
        self.name = f"the chat template (it begins {template[:40]!r})"

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        """Write turns as text. Raises ValueError when the template raises, whatever it raises."""
        try:
            text = self._tokenizer.apply_chat_template(
                self._as_read(turns),
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **self._options,
            )
            return cast("str", text)
        except (
            TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ValueError(
                f"{self.name} refuses the turns ({roles}): {type(error).__name__}: {error}"
            ) from error

    def generation_spans(self, turns: Sequence[Turn]) -> list[tuple[int, int]]:
        """Find where the template's {% generation %} blocks lie in the text, in characters; none
        where it has none.
        """
        if "generation %}" not in self._template and "generation -%}" not in self._template:
            return []
        rendered: Any = render_jinja_template(
            conversations=[self._as_read(turns)],
            chat_template=self._template,
            return_assistant_tokens_mask=True,
            **{**self._tokenizer.special_tokens_map, **self._options},
        )
        _, (spans,) = rendered
        return [(start, end) for start, end in spans]

    def _as_read(self, turns: Sequence[Turn]) -> list[Turn]:
        if not self._parts:
            return list(turns)
        return [{**turn, "content": _as_parts(turn["content"])} for turn in turns]


def wants_parts(
    tokenizer: PreTrainedTokenizerBase, template: str, options: dict[str, Any] | None = None
) -> bool:
    """Whether a template reads lists of parts only."""

    def shows(parts: bool) -> bool:
        try:
            return QUESTION in ChatTemplate(tokenizer, template, parts, options).render(
                [plain_turn("user", QUESTION)]
            )
        except ValueError:
            return False

    return not shows(parts=False) and shows(parts=True)


def _as_parts(content: str) -> list[dict[str, str]]:
    parts = []
    for piece in re.split(f"({re.escape(IMAGE_PLACEHOLDER)})", content):
        if piece == IMAGE_PLACEHOLDER:
            parts.append({"type": "image"})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _paper_images(content: str) -> str:
    head, *rest = content.split(IMAGE_PLACEHOLDER)
    return head + "".join(f"<Img>{IMAGE_PLACEHOLDER}</Img> {part.lstrip()}" for part in rest)


def _opening_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """The beginning-of-sequence token, if this tokenizer puts one before a text by itself."""
    ids = tokenizer("a")["input_ids"]
    if tokenizer.bos_token_id is None or ids[0] != tokenizer.bos_token_id:
        return ""
    return tokenizer.bos_token
