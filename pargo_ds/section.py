"""Section, the strict base class of all settings, and the faults of settings as sentences."""

from __future__ import annotations

import difflib
import typing
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pargo_ds.settings_file import KeyPath

RENAMED = {"held_out": "validation", "pictures_per_pack": "images_per_pack"}
"""Former names of keys and the names that they have now, for the message of an unknown key."""


class Section(BaseModel):
    """Base of all sections. It refuses unknown keys, values of another type and infinite numbers,
    and its values cannot change after loading.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def faults_of(
    error: ValidationError,
    top: type[Section],
    source: str,
    origins: typing.Mapping[KeyPath, str] | None = None,
) -> str:
    """Describe each fault of the settings in one line.

    Args:
        error: the faults that pydantic found.
        top: the class of the settings.
        source: name of the file or mapping that was read.
        origins: for each place in the settings, where its value was written, such as "line 3".
    """
    faults = []
    for one in error.errors():
        keys, section = _key_path(top, one["loc"])
        faults.append(f"  - {_origin(keys, origins or {})}{_fault(one, keys, section)}")
    return f"{source}: {len(faults)} fault(s)\n" + "\n".join(faults)


def _origin(keys: KeyPath, origins: typing.Mapping[KeyPath, str]) -> str:
    """Where the value of the deepest known key was written, ready to stand before its fault."""
    for depth in range(len(keys), 0, -1):
        if keys[:depth] in origins:
            return f"{origins[keys[:depth]]}, "
    return ""


def _fault(error: Any, keys: KeyPath, section: type[Section]) -> str:
    place = ".".join(str(key) for key in keys) or "run file"
    if error["type"] == "extra_forbidden":
        known = list(section.model_fields)
        return f"{place}: unknown key; {_nearest(str(keys[-1]), known, 'keys here')}"
    if error["type"] == "union_tag_invalid":
        known = [tag.strip().strip("'") for tag in error["ctx"]["expected_tags"].split(",")]
        tag = error["ctx"]["tag"]
        return f"{place}.type: unknown type '{tag}'; {_nearest(tag, known, 'types')}"
    if error["type"] == "missing":
        return f"{place}: missing; it has no default"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] != "value_error":
        message += f" (found {error['input']!r})"
    return f"{place}: {message}{_hint(error['type'], error['input'])}"


def _nearest(word: str, known: list[str], what: str) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if RENAMED.get(word) in known:
        near = [RENAMED[word]]
    if near:
        return f"did you mean {near[0]}?"
    return f"known {what}: {', '.join(sorted(known))}"


def _hint(kind: str, value: Any) -> str:
    """The advice for a value of a wrong type, if the value shows what was meant; else ""."""
    if kind == "string_type":
        return "; put it in quotes if it is meant as a text"
    if isinstance(value, str) and kind in ("int_type", "float_type"):
        return "; write the number alone, without quotes or a unit"
    if isinstance(value, str) and kind == "bool_type":
        return "; write true or false, without quotes"
    return ""


def _key_path(top: type[Section], location: KeyPath) -> tuple[KeyPath, type[Section]]:
    """The keys of the file that lead to `location`, and the class of the last section on the way.

    pydantic's location also names the member of a union that the key `type` chose. That name is no
    key of the file, so it is left out.
    """
    keys: list[str | int] = []
    section: type[Section] = top
    members: list[type[Section]] = []  # members of the union to which the last key leads
    for part in location:
        chosen = [one for one in members if part in _tags(one)]
        if len(members) > 1 and chosen:
            section = chosen[0]
        else:
            keys.append(part)
        field = None
        if isinstance(part, str) and not chosen:
            field = section.model_fields.get(part)
        # A number is a place in a list; the annotation of the list has already led to its section.
        members = []
        if field is not None:
            members = _sections(field.annotation)
        if len(members) == 1:
            section = members[0]
    return tuple(keys), section


def _sections(annotation: Any) -> list[type[Section]]:
    """The section classes in an annotation, which may be optional, a union or a list."""
    options = [annotation, *typing.get_args(annotation)]
    return [one for one in options if isinstance(one, type) and issubclass(one, Section)]


def _tags(section: type[Section]) -> tuple[Any, ...]:
    """The values that a section's key `type` may have; () when the section has no such key."""
    field = section.model_fields.get("type")
    if field is None:
        return ()
    return typing.get_args(field.annotation)
