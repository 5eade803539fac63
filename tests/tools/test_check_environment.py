"""What `make ... SYSTEM=1` says about an interpreter."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "check_environment.py"
    spec = importlib.util.spec_from_file_location("check_environment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lists_come_from_setup_py(tool) -> None:
    lists = tool.read_lists(ROOT / "setup.py")
    assert any(item.startswith("deepspeed>=") for item in lists["install"])
    assert {"flash", "megatron", "demo", "dev"} <= set(lists)


def test_missing_and_old_packages_are_named(tool) -> None:
    assert tool.complaint("pytest") is None
    assert (
        tool.complaint("no-such-package>=1")
        == "no-such-package: missing, no-such-package>=1 is needed"
    )
    assert "found, pytest>=999 is needed" in tool.complaint("pytest>=999")


def test_constraints_cover_every_direct_dependency(tool) -> None:
    """A constraint left out would let a fresh clone install versions that were never tested."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    pinned = {
        canonicalize_name(Requirement(line).name)
        for line in lines
        if line and not line.startswith("#")
    }
    lists = tool.read_lists(ROOT / "setup.py")
    direct = {
        canonicalize_name(Requirement(item).name)
        for name in ("install", "demo", "dev")
        for item in lists[name]
    }
    assert not direct - pinned
