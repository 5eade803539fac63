"""Turn paths and hub names as people write them into the form that libraries accept."""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator

HUB = re.compile(
    r"(?:hf[-_]hub:|hf://|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)(?!datasets/|spaces/)"
)
"""What people write before the name of a model on the hub: timm's prefix, fsspec's prefix, or the
address of the hub.
"""
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
VARIABLE = re.compile(r"\$(?:\w+|\{[^}]*\})")


def expand_path(path: str) -> str:
    """Replace `~` and variables such as $SCRATCH in a path. Addresses of object stores are returned
    unchanged.

    Raises ValueError for an empty path, the home of an unknown user and a variable that is not set,
    because nobody wants a folder that is named `~` or `$SCRATCH`.
    """
    if not path.strip():
        raise ValueError("the path is empty; give one, or leave the key out")
    if SCHEME.match(path):
        return path
    expanded = os.path.expanduser(os.path.expandvars(path))
    if missing := VARIABLE.search(expanded):
        raise ValueError(f"the variable {missing[0]} of the path {path} is not set on this machine")
    if expanded.startswith("~"):
        raise ValueError(
            f"the path {path} begins with the home of a user whom this machine does not know"
        )
    return expanded


def model_name(name: str) -> str:
    """Normalize the name of a model: the path of a folder is expanded, and a hub name loses the
    prefix `hf-hub:` or the address of the hub.

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
