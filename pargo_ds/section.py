"""Section: the base of all settings, strict; and its faults as sentences."""

from __future__ import annotations

import difflib
import typing
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pargo_ds.settings_file import Place


class Section(BaseModel):
    """Base of all sections: unknown keys, values of another type and infinite numbers are refused; values cannot
    change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def faults_of(
    error: ValidationError, top: type[Section], source: str, origins: typing.Mapping[Place, str] | None = None
) -> str:
    """Each fault of the settings `top` of `source` in a line of its own; `origins` says where values were written."""
    faults = []
    for one in error.errors():
        above = (one["loc"][:depth] for depth in range(len(one["loc"]), 0, -1))
        origin = next((origins[place] for place in above if place in origins), None) if origins else None
        faults.append(f"  - {f'{origin}, ' if origin else ''}{_fault(one, top)}")
    return f"{source}: {len(faults)} fault(s)\n" + "\n".join(faults)


def _fault(error: Any, top: type[Section]) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "run file"
    if error["type"] == "extra_forbidden":
        known = _known_keys(top, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys here: {', '.join(sorted(known))}"
        return f"{place}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{place}: missing; it has no default"
    message = error["msg"].removeprefix("Value error, ")
    shown = "" if error["type"] == "value_error" else f" (found {error['input']!r})"
    return f"{place}: {message}{shown}{_hint(error['type'], error['input'])}"


def _hint(kind: str, value: Any) -> str:
    """What to do about a value of another type, where that can be told from the value."""
    if kind == "string_type":
        return "; put it in quotes if it is meant as a text"
    if isinstance(value, str) and kind in ("int_type", "float_type"):
        return "; write the number alone, without quotes or a unit"
    if isinstance(value, str) and kind == "bool_type":
        return "; write true or false, without quotes"
    return ""


def _known_keys(top: type[Section], location: tuple[Any, ...]) -> list[str]:
    """Field names of the section at `location`, walking through optional annotations and lists."""
    section: Any = top
    for part in location:
        if isinstance(part, int):  # a place in a list: the list's own annotation has led to its section
            continue
        annotation = section.model_fields[part].annotation
        options = [annotation, *typing.get_args(annotation)]
        section = next(o for o in options if isinstance(o, type) and issubclass(o, Section))
    return list(section.model_fields)
