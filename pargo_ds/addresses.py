"""Paths and hub names as people write them -> as files and libraries take them."""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator

HUB = re.compile(r"(?:hf[-_]hub:|hf://|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)(?!datasets/|spaces/)")
"""What people put before the name of a model on the hub: timm's way, fsspec's way, the address of its page."""
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
VARIABLE = re.compile(r"\$(?:\w+|\{[^}]*\})")


def expand_path(path: str) -> str:
    """A path with `~` and variables such as $SCRATCH replaced; addresses of object stores stay as they are.

    Raises ValueError for an empty path, an unknown user's home and a variable that is not set: a folder of the name
    `~` or `$SCRATCH` is never meant.
    """
    if not path.strip():
        raise ValueError("the path is empty; give one, or leave the key out")
    if SCHEME.match(path):
        return path
    expanded = os.path.expanduser(os.path.expandvars(path))
    if missing := VARIABLE.search(expanded):
        raise ValueError(f"the variable {missing[0]} of the path {path} is not set on this machine")
    if expanded.startswith("~"):
        raise ValueError(f"the path {path} begins with the home of a user whom this machine does not know")
    return expanded


def model_name(name: str) -> str:
    """The name of a model: a folder's path expanded, a hub name without `hf-hub:` or the address of the hub.

    Example: `https://huggingface.co/lmsys/vicuna-7b-v1.5` -> `lmsys/vicuna-7b-v1.5`.

    Raises ValueError as `expand_path` does.
    """
    if found := HUB.match(name):
        return name[found.end() :].rstrip("/")
    return expand_path(name)


LocalPath = Annotated[str, AfterValidator(expand_path)]
"""A path of a settings file, or an address of an object store."""
ModelName = Annotated[str, AfterValidator(model_name)]
"""A folder or a hub name of a settings file."""
