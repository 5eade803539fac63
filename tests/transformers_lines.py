"""The transformers lines that the tests know: the installed one, and others in folders of their
own.

PARGO_OTHER_TRANSFORMERS names the folders (`make transformers-lines` fills them, `make test-slow`
sets it), separated like PATH. A test that needs one that is not there is skipped with the reason.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import transformers

FOLDERS = "PARGO_OTHER_TRANSFORMERS"
OLDEST, MIDDLE, NEWEST = LINES = ("4.57.6", "5.17.0", "5.24.0")
OTHERS = (MIDDLE, NEWEST)


def line_folders() -> list[str]:
    """The folders of other lines that are there."""
    return [
        str(Path(folder).absolute())
        for folder in os.environ.get(FOLDERS, "").split(os.pathsep)
        if folder
    ]


def line_path(version: str) -> list[str]:
    """What comes first in PYTHONPATH for a line: [] for the installed one, else its folder; skips
    where it lacks.
    """
    if transformers.__version__ == version:
        return []
    for folder in line_folders():
        if (Path(folder) / f"transformers-{version}.dist-info").is_dir():
            return [folder]
    pytest.skip(f"{FOLDERS} names no folder with transformers {version} (make transformers-lines)")
