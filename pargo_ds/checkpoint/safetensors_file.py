"""Opening a safetensors file: by memory map, with a fault that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pargo_ds.checkpoint.manifest import CheckpointError


def open_safetensors(path: Path) -> Any:
    """safetensors' handle of the file. Raises CheckpointError when it cannot be read."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); it was cut or altered") from error
