"""Figures as JSON that every reader takes."""

from __future__ import annotations

import json
import math
from typing import Any


def figures_json(value: Any) -> str:
    """Return indented JSON text that ends with a newline; see `finite`."""
    return json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Return `value` with None for every number that is not finite, at any depth.

    JSON has no word for NaN and infinity, which Python would write nevertheless.
    """
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
