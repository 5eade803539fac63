"""The command line of inspect_shards: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from tiny import ROOT, merged, run_command

FILE = ROOT / "tools/inspect_shards.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The command line as a module: a process of its own takes seconds to start."""
    spec = importlib.util.spec_from_file_location("inspect_shards", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_file(tmp_path: Path, tiny_run: dict) -> Path:
    """The tiny run, in which the training folder has captions of its own choice."""
    stream = {"path": tiny_run["data"]["train"], "text": "turns"}
    path = tmp_path / "run.yaml"
    path.write_text(
        yaml.safe_dump(merged(tiny_run, {"data": {"train": [stream], "text": "captions"}}))
    )
    return path


def test_it_prints_statistics_and_writes_the_page(
    tmp_path: Path, tiny_shards: Path, run_file: Path
) -> None:
    page = tmp_path / "page.html"
    command = [
        sys.executable,
        str(FILE),
        str(tiny_shards / "train"),
        "--run",
        str(run_file),
        "--html",
        str(page),
        "--samples",
        "3",
    ]
    process = run_command(command)
    assert process.returncode == 0, process.stderr
    assert "120 of 120 samples looked at" in process.stdout
    (row,) = (line for line in process.stdout.splitlines() if "conversations to train on" in line)
    assert row.split()[-1] == "120"  # turns, as the stream says: there are more captions
    assert page.read_text().count("class=card") == 3


def test_a_folder_alone_is_enough(
    tool: ModuleType, tiny_shards: Path, capsys: pytest.CaptureFixture
) -> None:
    assert tool.main([str(tiny_shards / "validation"), "--limit", "5"]) == 0
    assert "5 of 20 samples looked at" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, said", [
    (["nowhere"], "nowhere is not a folder of shards"),
    (["nowhere", "--run", "no.yaml"], "run file no.yaml does not exist"),
    (["nowhere", "--html", "no/where.html"], "the folder no does not exist"),
])  # fmt: skip
def test_it_says_what_is_wrong_in_one_line(
    tool: ModuleType, arguments: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    assert tool.main(arguments) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


def test_a_damaged_shard_is_named(
    tool: ModuleType, tmp_path: Path, tiny_shards: Path, capsys: pytest.CaptureFixture
) -> None:
    for file in (tiny_shards / "validation").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard = bytearray((tmp_path / "shard.00000.mds").read_bytes())
    shard[len(shard) // 2] ^= 255
    (tmp_path / "shard.00000.mds").write_bytes(shard)
    assert tool.main([str(tmp_path)]) == 2
    assert "shard.00000.mds" in capsys.readouterr().err
