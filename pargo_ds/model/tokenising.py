"""Text -> token ids, and the tokens at which given places of the text begin."""

import re
from collections.abc import Sequence
from itertools import pairwise

from .literals import Encoder, Spans


def ids_and_places(
    encode: Encoder, text: str, marker: str, places: Sequence[int] = (), literals: Spans = ()
) -> tuple[list[int], dict[int, int]]:
    """(ids of the text, place -> number of the first token from there on).

    The text is tokenised as a whole. Only where a token would reach across one of the places, or across the end of
    `marker`, where answers begin, the text is cut there: generation starts with the tokens before that place, so
    training must have seen them too. Hence the ids of a text's beginning, up to such a place, are the beginning of its
    ids, whoever asks for them. In `literals` control tokens are words, and so is a marker that holds one.

    Example, a token " a": marker "A:", text "A: a" -> one piece, [A:] [ a]; marker "A: " -> two, [A:] [ ] and [a].
    """
    marks = re.finditer(re.escape(marker), text) if marker else ()
    ends = [
        mark.end() for mark in marks if not any(start < mark.end() and mark.start() < end for start, end in literals)
    ]
    wanted = sorted({*ends, *places})
    # A beginning must be tokenised by itself: tokenizers' offsets may leave out the blanks around a word.
    beginnings = [(text[:place], [span for span in literals if span[1] <= place]) for place in wanted]
    whole, *heads = encode([(text, literals), *beginnings])
    cuts = [place for place, head in zip(wanted, heads, strict=True) if whole[: len(head)] != head]
    if not cuts:
        return whole, {place: len(head) for place, head in zip(wanted, heads, strict=True)}
    ids: list[int] = []
    found: dict[int, int] = {}
    for start, end in pairwise([0, *cuts, len(text)]):
        inside = [place - start for place in places if start <= place <= end]
        words = [(one - start, other - start) for one, other in literals if start <= one and other <= end]
        piece, of_piece = ids_and_places(encode, text[start:end], marker, inside, words)
        found |= {start + place: len(ids) + number for place, number in of_piece.items()}
        ids += piece
    return ids, found


def expanded(ids: Sequence[int], values: Sequence[int], image_token: int, visual_tokens: int) -> list[int]:
    """`values`, one for each id, with that of an image token repeated for each visual token."""
    result: list[int] = []
    for token, value in zip(ids, values, strict=True):
        result += [value] * (visual_tokens if token == image_token else 1)
    return result
