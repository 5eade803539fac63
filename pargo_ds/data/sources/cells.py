"""The cells of a table: what counts as empty, and texts that are lists."""

from __future__ import annotations

import ast
import json
import math
from typing import Any

from pargo_ds.data.sources.json_files import parsed
from pargo_ds.data.sources.rejects import Reject, shortened

EMPTY_WORDS = ("", "nan", "none", "null", "<na>")
"""How programs write a missing value into a text cell."""


def is_missing(value: Any) -> bool:
    """Nothing, an empty list, a blank text, a table's NaN, or the word that a program wrote for it."""
    if isinstance(value, str):
        return len(value) < 100 and value.strip().lower() in EMPTY_WORDS
    return value is None or value == [] or (isinstance(value, float) and math.isnan(value))


def texts_of(value: Any) -> list[Any]:
    """The captions in a cell: one, or several as a list or as a text of one, JSON (Flickr30k) or as Python prints it.

    Text that merely begins with a bracket is one caption.
    """
    if isinstance(value, str) and value.strip()[:1] == "[" and value.strip()[-1:] == "]":
        found = _list_in(value.strip())
        value = value if found is None else found
    values = value if isinstance(value, list) else [value]
    return [text for text in values if not is_missing(text)]


def _list_in(text: str) -> list[str] | None:
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return found
    return None


def conversation_in(value: Any) -> Any:
    """A conversation, which text cells hold as JSON. Raises Reject."""
    if not isinstance(value, str):
        return value
    try:
        return parsed(value)
    except (ValueError, RecursionError) as error:
        raise Reject("not JSON", f"the conversation: {shortened(str(error))}") from error
