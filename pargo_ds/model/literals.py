"""Control tokens that stand in what people wrote: words, never the tokens that a prompt puts between turns.

A prompt is rendered with a stand-in for each such word, so that its place in the text is known whatever the template
does; then the text is tokenised with those places read as plain text.
"""

import json
import re
from collections.abc import Collection, Sequence
from itertools import count
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from .configuration_pargo import IMAGE_PLACEHOLDER
from .conversations import Turn
from .prompts import Rendered

Spans = Sequence[tuple[int, int]]
FIRST_STAND_IN = 0x100000
"""Private characters from here on stand for control tokens while a template is at work."""


def guard(turns: Sequence[Turn], control: Collection[str]) -> tuple[list[Turn], dict[str, str]]:
    """The turns with one private character for each control token in their texts, and which token it stands for."""
    texts = [turn["content"] for turn in turns]
    found = [token for token in sorted(control) if any(token in text for text in texts)]
    if not found:
        return list(turns), {}
    used = set("".join(texts))
    free = (chr(code) for code in count(FIRST_STAND_IN) if chr(code) not in used)
    stand_ins = {token: next(free) for token in found}
    pattern = _any_of(found)
    guarded = [
        {**turn, "content": pattern.sub(lambda word: stand_ins[word.group()], turn["content"])} for turn in turns
    ]
    return guarded, {character: token for token, character in stand_ins.items()}


def restore(rendered: Rendered, stand_ins: dict[str, str]) -> Rendered:
    """The text as it was meant, every place moved along, and `literals`: where the control tokens are mere words."""
    if not stand_ins:
        return rendered
    pieces: list[str] = []
    moved = [0]  # new place of each old one
    literals = []
    for character in rendered.text:
        piece = stand_ins.get(character, character)
        if character in stand_ins:
            literals.append((moved[-1], moved[-1] + len(piece)))
        pieces.append(piece)
        moved.append(moved[-1] + len(piece))

    def at_new_places(spans: Spans) -> tuple[tuple[int, int], ...]:
        return tuple((moved[start], moved[end]) for start, end in spans)

    return Rendered("".join(pieces), at_new_places(rendered.answers), at_new_places(rendered.contents), tuple(literals))


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))


class Encoder:
    """Texts -> ids, with chosen places (`literals`) read as plain text even where control tokens are written there."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: Sequence[str]) -> None:
        self._tokenizer, self._control = tokenizer, tuple(control)
        self._plain: Tokenizer | None = None

    def __call__(self, texts: Sequence[tuple[str, Spans]]) -> list[list[int]]:
        """Ids of each (text, literals). Raises ValueError where the tokenizer cannot write a literal as plain text."""
        if not any(literals for _, literals in texts):
            return self._tokenizer([text for text, _ in texts], add_special_tokens=False)["input_ids"]
        return [self._ids(text, literals) for text, literals in texts]

    def _ids(self, text: str, literals: Spans) -> list[int]:
        ids: list[int] = []
        done = 0
        for start, end in self._stretches(text, literals):
            ids += self._ordinary(text[done:start]) + self._words(text[start:end])
            done = end
        return ids + self._ordinary(text[done:])

    def _ordinary(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _stretches(self, text: str, literals: Spans) -> list[tuple[int, int]]:
        """Where plain text with literals in it lies between tokens that are meant: tokenizers cut there anyway."""
        bounds = [0]
        for found in self._boundaries().finditer(text):
            if not any(start < found.end() and found.start() < end for start, end in literals):
                bounds += [found.start(), found.end()]
        bounds.append(len(text))
        pairs = zip(bounds[::2], bounds[1::2], strict=True)
        return [(one, other) for one, other in pairs if any(one <= start < other for start, _ in literals)]

    def _boundaries(self) -> re.Pattern[str]:
        """The tokens that are meant, with the blanks that some take along."""
        added = {str(token): token for token in self._tokenizer.added_tokens_decoder.values()}
        patterns = []
        for name in sorted({*self._control, IMAGE_PLACEHOLDER}, key=len, reverse=True):
            token = added.get(name)
            before = r"\s*" if getattr(token, "lstrip", False) else ""
            patterns.append(before + re.escape(name) + (r"\s*" if getattr(token, "rstrip", False) else ""))
        return re.compile("|".join(patterns))

    def _words(self, text: str) -> list[int]:
        if self._plain is None:
            self._plain = self._without_control()
        # By name: the twin may number what else was added to the vocabulary in another way.
        pieces = self._plain.encode(text, add_special_tokens=False).tokens
        ids = self._tokenizer.convert_tokens_to_ids(pieces)
        forbidden = {*self._tokenizer.convert_tokens_to_ids(list(self._control))} & {*ids}
        if forbidden:
            names = ", ".join(self._tokenizer.convert_ids_to_tokens(sorted(forbidden)))
            raise ValueError(
                f"the text holds {names}, which this tokenizer cannot write as plain text; change the text"
            )
        return ids

    def _without_control(self) -> Tokenizer:
        """The same tokenizer, to which control tokens are words like others."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                f"the text holds control tokens ({', '.join(self._control[:3])}, ...), and only fast tokenizers can "
                "write these as plain text; change the text, or use the fast version of this tokenizer"
            )
        body: dict[str, Any] = json.loads(backend.to_str())
        names = {*self._control, IMAGE_PLACEHOLDER}
        body["added_tokens"] = [token for token in body["added_tokens"] if token["content"] not in names]
        body["post_processor"] = body["truncation"] = body["padding"] = None  # they may name such tokens
        return Tokenizer.from_str(json.dumps(body))
