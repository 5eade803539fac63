"""Control tokens in what people wrote. They are tokenised as plain text, and never become the
tokens that a prompt puts between turns.

A prompt is rendered with a stand-in character for each of these words, so that their places are
known for any template. Then the text is tokenised, and these places are read as plain text.
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
from .prompt_layout import Rendered

Spans = Sequence[tuple[int, int]]
FIRST_STAND_IN = 0x100000
"""First of the private characters that replace control tokens while a template is rendered."""


def guard(turns: Sequence[Turn], control: Collection[str]) -> tuple[list[Turn], dict[str, str]]:
    """Replace each control token in the texts of the turns by a private character. Return the turns
    and the token of each character.
    """
    texts = [turn["content"] for turn in turns]
    present: set[str] = set()
    for text in texts:
        present.update(token for token in control if token in text)
    if not present:
        return list(turns), {}
    found = sorted(present)
    used = set("".join(texts))
    free = (chr(code) for code in count(FIRST_STAND_IN) if chr(code) not in used)
    stand_ins = {token: next(free) for token in found}
    pattern = _any_of(found)

    def without_tokens(text: str) -> str:
        return pattern.sub(lambda word: stand_ins[word.group()], text)

    guarded = [{**turn, "content": without_tokens(turn["content"])} for turn in turns]
    return guarded, {character: token for token, character in stand_ins.items()}


def restore(rendered: Rendered, stand_ins: dict[str, str]) -> Rendered:
    """Put the control tokens back into the text, adjust all positions, and set `literals`, the
    places where control tokens are plain text.
    """
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

    return Rendered(
        "".join(pieces),
        at_new_places(rendered.answers),
        at_new_places(rendered.contents),
        tuple(literals),
    )


def touches(found: re.Match[str], spans: Spans) -> bool:
    """Whether a match shares a character with one of the spans."""
    return any(start < found.end() and found.start() < end for start, end in spans)


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))


class Encoder:
    """Converts texts to ids. Chosen places (`literals`) are read as plain text, even if control
    tokens are written there.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: Sequence[str]) -> None:
        self._tokenizer, self._control = tokenizer, tuple(control)
        self._plain: Tokenizer | None = None

    def __call__(self, texts: Sequence[tuple[str, Spans]]) -> list[list[int]]:
        """Ids of each (text, literals).

        Raises ValueError where the tokenizer cannot write a literal as plain text.
        """
        if not any(literals for _, literals in texts):
            return self._tokenizer([text for text, _ in texts], add_special_tokens=False)[
                "input_ids"
            ]
        return [self._ids(text, literals) for text, literals in texts]

    def _ids(self, text: str, literals: Spans) -> list[int]:
        ids: list[int] = []
        done = 0
        for start, end in self._stretches(text, literals):
            ids += self._ordinary(text[done:start]) + self._words(text[start:end])
            done = end
        return ids + self._ordinary(text[done:])

    def _ordinary(self, text: str) -> list[int]:
        if not text:
            return []
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _stretches(self, text: str, literals: Spans) -> list[tuple[int, int]]:
        """Return the parts of the text that contain literals and are bounded by real control
        tokens, at which tokenizers cut anyway.
        """
        bounds = [0]
        for found in self._boundaries().finditer(text):
            if not touches(found, literals):
                bounds += [found.start(), found.end()]
        bounds.append(len(text))
        stretches = []
        for one, other in zip(bounds[::2], bounds[1::2], strict=True):
            if any(one <= start < other for start, _ in literals):
                stretches.append((one, other))
        return stretches

    def _boundaries(self) -> re.Pattern[str]:
        """A pattern for real control tokens, with the blanks that some of them include."""
        added = {str(token): token for token in self._tokenizer.added_tokens_decoder.values()}
        patterns = []
        for name in sorted({*self._control, IMAGE_PLACEHOLDER}, key=len, reverse=True):
            token = added.get(name)
            pattern = re.escape(name)
            if getattr(token, "lstrip", False):
                pattern = r"\s*" + pattern
            if getattr(token, "rstrip", False):
                pattern += r"\s*"
            patterns.append(pattern)
        return re.compile("|".join(patterns))

    def _words(self, text: str) -> list[int]:
        if self._plain is None:
            self._plain = self._without_control()
        # By name, because the copy may have other ids for other added tokens.
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
        """A copy of the tokenizer that reads control tokens as plain text."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                f"the text holds control tokens ({', '.join(self._control[:3])}, ...), and only fast tokenizers can "
                "write these as plain text; change the text, or use the fast version of this tokenizer"
            )
        body: dict[str, Any] = json.loads(backend.to_str())
        names = {*self._control, IMAGE_PLACEHOLDER}
        kept = [token for token in body["added_tokens"] if token["content"] not in names]
        body["added_tokens"] = kept
        body["post_processor"] = body["truncation"] = body["padding"] = (
            None  # they may name such tokens
        )
        return Tokenizer.from_str(json.dumps(body))
