"""Tiny real runs: drawn images in shards, selected."""

from __future__ import annotations

from pathlib import Path

import pytest
from caption_runs import selected_run

from pargo_ds.captioning.run_files import RunFolder


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """40 selected squares."""
    return selected_run(tmp_path, 40)
