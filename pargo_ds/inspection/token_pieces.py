"""Turn token ids and labels into pieces of text, each of which says whether it is trained, only
read, special, or an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pargo_ds.batch import IGNORE_INDEX

UNFINISHED = "\ufffd"
"""The character that a tokenizer decodes from a part of a letter."""
MOST_TOKENS_A_LETTER = 8


@dataclass(frozen=True)
class Piece:
    """One token, the tokens of one letter, or all tokens of one image."""

    text: str
    """The text of the tokens; empty for an image."""
    ids: tuple[int, ...]
    trained: bool
    """Whether the model learns to say it."""
    special: bool = False
    """Whether it is a special token, such as an end of turn."""
    image: bool = False


def pieces(ids: Sequence[int], labels: Sequence[int], processor: Any) -> list[Piece]:
    """Divide the ids of a conversation into pieces. `labels` are those of
    `processor.encode_conversation`.

    Example, 2 visual tokens: ids [I I what ? a cat END] -> an image of 2 tokens, "what", "?" read
    only, "a", " cat" trained, and "END" trained and special.
    """
    tokenizer, image = processor.tokenizer, processor.image_token_id
    special = {*special_ids(tokenizer), image}
    found, start = [], 0
    while start < len(ids):
        trained = labels[start] != IGNORE_INDEX
        end = start + 1
        if ids[start] == image:
            limit = start + processor.visual_tokens  # two images may follow each other
            while end < min(limit, len(ids)) and ids[end] == image:
                end += 1
            found.append(Piece("", tuple(ids[start:end]), trained, image=True))
        elif ids[start] in special:
            found.append(
                Piece(
                    tokenizer.convert_ids_to_tokens(ids[start]),
                    (ids[start],),
                    trained,
                    special=True,
                )
            )
        else:
            while UNFINISHED in _text(tokenizer, ids[start:end]) and _goes_on(
                ids, labels, start, end, special
            ):
                end += 1
            found.append(Piece(_text(tokenizer, ids[start:end]), tuple(ids[start:end]), trained))
        start = end
    return found


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids that are no ordinary text: tokens with a role, such as eos, and tokens that
    were added to the vocabulary.
    """
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def answer_ends(ids: Sequence[int], labels: Sequence[int]) -> Iterator[int]:
    """Yield the last token of each run of trained tokens."""
    for place, label in enumerate(labels):
        if label != IGNORE_INDEX and (
            place + 1 == len(labels) or labels[place + 1] == IGNORE_INDEX
        ):
            yield ids[place]


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    # sentencepiece marks a word's beginning, and decodes it without the blank when it stands first
    first = tokenizer.convert_ids_to_tokens(ids[0])
    if str(first).startswith("▁") and not text.startswith(" "):
        return f" {text}"
    return text


def _goes_on(
    ids: Sequence[int], labels: Sequence[int], start: int, end: int, apart: set[int]
) -> bool:
    """Whether the next token may belong to the same letter."""
    if end >= len(ids) or end - start >= MOST_TOKENS_A_LETTER or ids[end] in apart:
        return False
    return (labels[end] == IGNORE_INDEX) == (labels[start] == IGNORE_INDEX)
