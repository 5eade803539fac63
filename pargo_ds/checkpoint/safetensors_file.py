"""Open safetensors files as memory maps, with errors that name the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pargo_ds.errors import CheckpointError


def open_safetensors(path: Path) -> Any:
    """Return safetensors' handle of a file. Raises CheckpointError when it cannot be read."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); it was cut or altered") from error
