"""What tests of photographs need and may not have: OpenCV, the fetched weights, a real photograph."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from tiny import ROOT

PARTS = Path(os.environ.get("PARGO_CAPTION_PARTS", ROOT / "runs" / "parts"))


def weights(part: str) -> Path:
    """The folder of a part's weights; the test is skipped where they or OpenCV are missing."""
    if importlib.util.find_spec("cv2") is None:
        pytest.skip("OpenCV is not installed: pip install -e .[caption-photos]")
    if not (PARTS / part).is_dir():
        pytest.skip(f"no weights: python tools/fetch_caption_parts.py runs/parts {part}")
    return PARTS / part


def photograph(name: str) -> Path:
    """One of scikit-image's photographs; the test is skipped where that package is missing."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("scikit-image, which brings photographs, is not installed")
    return Path(spec.submodule_search_locations[0]) / "data" / name
