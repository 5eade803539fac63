"""The cells of a table: which of them count as empty, and texts that contain lists."""

from __future__ import annotations

import ast
import io
import json
import math
import tokenize
from typing import Any

from pargo_ds.data.sources.json_files import check_each_once, parsed
from pargo_ds.data.sources.keys import as_list
from pargo_ds.data.sources.rejects import Reject, shortened

EMPTY_WORDS = ("", "nan", "none", "null", "<na>")
"""The words by which programs mark a missing value in a text cell."""


def is_missing(value: Any) -> bool:
    """Whether a cell has no value: None, an empty list, a blank text, NaN, or one of
    EMPTY_WORDS.
    """
    if isinstance(value, str):
        return len(value) < 100 and value.strip().lower() in EMPTY_WORDS
    return value is None or value == [] or (isinstance(value, float) and math.isnan(value))


def texts_of(value: Any) -> list[Any]:
    """Return the captions in a cell: one text, a list of texts, or a text that contains a list as
    JSON (Flickr30k), Python or numpy writes it.

    A text that merely begins with a bracket is one caption.
    """
    if isinstance(value, str) and value.strip()[:1] == "[" and value.strip()[-1:] == "]":
        found = _list_in(value.strip())
        if found is not None:
            value = found
    return [text for text in as_list(value) if not is_missing(text)]


def _list_in(text: str) -> list[str | None] | None:
    for read in (json.loads, _python_list):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
            continue
        if isinstance(found, list) and all(one is None or isinstance(one, str) for one in found):
            return found
    return None


def _python_list(text: str) -> list[Any]:
    """Read a list as Python prints it, or an array as numpy prints it. numpy writes no commas, so
    Python would join the texts to one.
    """
    found = ast.literal_eval(text)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    texts = [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
    if len(texts) > len(found):
        return texts
    return found


def conversation_in(value: Any) -> Any:
    """Return the conversation in a cell; a text cell holds it as JSON. Raises Reject."""
    if not isinstance(value, str):
        return value
    try:
        conversation = parsed(value)
    except (ValueError, RecursionError) as error:
        raise Reject("not JSON", f"the conversation: {shortened(str(error))}") from error
    check_each_once(conversation)
    return conversation
