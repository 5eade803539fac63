"""The cells of a table: what counts as empty, and texts that are lists."""

from __future__ import annotations

import ast
import io
import json
import math
import tokenize
from typing import Any

from pargo_ds.data.sources.json_files import check_each_once, parsed
from pargo_ds.data.sources.rejects import Reject, shortened

EMPTY_WORDS = ("", "nan", "none", "null", "<na>")
"""How programs write a missing value into a text cell."""


def is_missing(value: Any) -> bool:
    """Nothing, an empty list, a blank text, a table's NaN, or the word that a program wrote for it."""
    if isinstance(value, str):
        return len(value) < 100 and value.strip().lower() in EMPTY_WORDS
    return value is None or value == [] or (isinstance(value, float) and math.isnan(value))


def texts_of(value: Any) -> list[Any]:
    """The captions in a cell: one, or several as a list or as its text, as JSON (Flickr30k), Python or numpy has it.

    Text that merely begins with a bracket is one caption.
    """
    if isinstance(value, str) and value.strip()[:1] == "[" and value.strip()[-1:] == "]":
        found = _list_in(value.strip())
        value = value if found is None else found
    values = value if isinstance(value, list) else [value]
    return [text for text in values if not is_missing(text)]


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
    """What Python prints of a list, or numpy of an array: without commas, where Python would join the texts to one."""
    found = ast.literal_eval(text)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    texts = [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
    return texts if len(texts) > len(found) else found


def conversation_in(value: Any) -> Any:
    """A conversation, which text cells hold as JSON. Raises Reject."""
    if not isinstance(value, str):
        return value
    try:
        conversation = parsed(value)
    except (ValueError, RecursionError) as error:
        raise Reject("not JSON", f"the conversation: {shortened(str(error))}") from error
    check_each_once(conversation)
    return conversation
