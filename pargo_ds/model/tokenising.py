"""Convert text to token ids, and find the tokens at which given places of the text begin."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .literals import Encoder, Spans, touches


def ids_and_places(
    encode: Encoder, text: str, marker: str, places: Sequence[int] = (), literals: Spans = ()
) -> tuple[list[int], dict[int, int]]:
    """Return (ids of the text, place -> number of the first token from there on).

    The text is tokenised as a whole. Only where a token would reach across one of the places, or
    across the end of `marker`, where answers begin, the text is cut there: generation starts with
    the tokens before that place, so training must have seen them too. Hence the ids of a text's
    beginning, up to such a place, are the beginning of its ids, whoever asks for them. In
    `literals` control tokens are words, and so is a marker that holds one.

    Example, a token " a": marker "A:", text "A: a" -> one piece, [A:] [ a]; marker "A: " -> two,
    [A:] [ ] and [a].
    """
    wanted = sorted({*_ends_of(marker, text, literals), *places})
    # A beginning must be tokenised by itself: tokenizers' offsets may leave out the blanks around a
    # word.
    beginnings = []
    for place in wanted:
        before = [span for span in literals if span[1] <= place]
        beginnings.append((text[:place], before))
    whole, *heads = encode([(text, literals), *beginnings])
    cuts = [place for place, head in zip(wanted, heads, strict=True) if whole[: len(head)] != head]
    if not cuts:
        return whole, {place: len(head) for place, head in zip(wanted, heads, strict=True)}
    ids: list[int] = []
    found: dict[int, int] = {}
    for start, end in pairwise([0, *cuts, len(text)]):
        inside = [place - start for place in places if start <= place <= end]
        words = []
        for one, other in literals:
            if start <= one and other <= end:
                words.append((one - start, other - start))
        piece, of_piece = ids_and_places(encode, text[start:end], marker, inside, words)
        found |= {start + place: len(ids) + number for place, number in of_piece.items()}
        ids += piece
    return ids, found


def _ends_of(marker: str, text: str, literals: Spans) -> list[int]:
    """Where each marker of the text ends, those in literals left out."""
    if not marker:
        return []
    marks = re.finditer(re.escape(marker), text)
    return [mark.end() for mark in marks if not touches(mark, literals)]


def expanded(
    ids: Sequence[int], values: Sequence[int], image_token: int, visual_tokens: int
) -> list[int]:
    """Return `values`, one for each id, with that of an image token repeated for each visual token."""
    result: list[int] = []
    for token, value in zip(ids, values, strict=True):
        repeats = visual_tokens if token == image_token else 1
        result += [value] * repeats
    return result


def replacements(text: str, placeholder: str, visual_tokens: int) -> list[dict[str, Any]]:
    """Return where each image of a text stands before and after it is `visual_tokens` placeholders
    long, in the words of transformers' processors: type, span, new_span (characters), text,
    replacement.

    Example, 3 visual tokens: "a <image>" -> span (2, 9), new_span (2, 23)
    """
    written = placeholder * visual_tokens
    gained = len(written) - len(placeholder)
    found = []
    for number, place in enumerate(re.finditer(re.escape(placeholder), text)):
        start = place.start() + number * gained
        found.append(
            {
                "type": "image",
                "span": place.span(),
                "new_span": (start, start + len(written)),
                "text": placeholder,
                "replacement": written,
            }
        )
    return found
