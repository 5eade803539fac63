"""Every file of a checkpoint, damaged in every way: found, named, and the checkpoint before is
taken.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pargo_ds.checkpoint.manifest import Manifest, newest, read_manifest, step_folder
from pargo_ds.checkpoint.resume import find_resume
from pargo_ds.errors import CheckpointError

FLIPS = 600
FILES = [
    "fragments/rank_00000.safetensors",
    "fragments/rank_00001.safetensors",
    "manifest.json",
    "random/rank_00000.safetensors",
    "random/rank_00001.safetensors",
]


def flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def flip_any(path: Path) -> None:
    drawn = random.Random(path.name)
    flip(path, drawn.randrange(path.stat().st_size), drawn.randrange(8))


def cut(bytes_left: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: bytes_left(path.stat().st_size)])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


DAMAGES = {
    "first bit": lambda path: flip(path, 0, 0),
    "last bit": lambda path: flip(path, path.stat().st_size - 1, 7),
    "any bit": flip_any,
    "one byte short": cut(lambda size: size - 1),
    "cut in half": cut(lambda size: size // 2),
    "empty": cut(lambda size: 0),
    "one byte more": lengthen,
    "missing": Path.unlink,
}


def test_the_files_damaged_here_are_all_that_a_checkpoint_has(finished_checkpoints):
    folder = step_folder(finished_checkpoints, 3)
    assert (
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        == FILES
    )
    assert sorted(path.name for path in finished_checkpoints.iterdir() if path.is_file()) == [
        "latest"
    ]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_named_and_the_checkpoint_before_is_taken(
    checkpoints, name, damage, caplog
):
    DAMAGES[damage](step_folder(checkpoints, 3) / name)
    with caplog.at_level(logging.WARNING, "pargo_ds"):
        folder, manifest = find_resume(checkpoints)
    assert (folder, manifest.step) == (step_folder(checkpoints, 2), 2)
    assert (checkpoints / "damaged_step_00000003").is_dir()
    assert "damaged checkpoint, trying the one before it" in caplog.text
    assert "step_00000003" in caplog.text
    assert name in caplog.text


@pytest.mark.parametrize("name", FILES)
def test_any_of_many_flipped_bits_is_found(checkpoints, name):
    """Of a folder without another checkpoint, which is then refused."""
    for step in (1, 2):
        step_folder(checkpoints, step).rename(checkpoints / f"aside_{step}")
    folder, drawn = step_folder(checkpoints, 3), random.Random(0)
    for _ in range(25):
        place, bit = drawn.randrange((folder / name).stat().st_size), drawn.randrange(8)
        flip(folder / name, place, bit)
        with pytest.raises(CheckpointError, match="holds no checkpoint that is whole") as caught:
            find_resume(checkpoints)
        assert name in str(caught.value), (place, bit)
        (checkpoints / f"damaged_{folder.name}").rename(folder)
        flip(folder / name, place, bit)
    assert find_resume(checkpoints)[0] == folder


def manifest_or_none(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except CheckpointError:
        return None


def test_no_flipped_bit_of_a_manifest_changes_what_is_read(checkpoints):
    folder, drawn = step_folder(checkpoints, 3), random.Random(0)
    before, content = read_manifest(folder), (folder / "manifest.json").read_bytes()
    refused = 0
    for _ in range(FLIPS):
        flip(folder / "manifest.json", drawn.randrange(len(content)), drawn.randrange(8))
        found = manifest_or_none(folder)
        assert found in (None, before)  # 1e-06 may have become 1E-06
        refused += found is None
        (folder / "manifest.json").write_bytes(content)
    assert refused > 0.99 * FLIPS


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("place", [0, 8, 12, 13])
def test_a_flipped_bit_in_latest_loses_nothing_and_is_said(checkpoints, place, bit, caplog):
    """It names a checkpoint that is there, by chance another one, or none; never one that is not
    whole.
    """
    flip(checkpoints / "latest", place, bit)
    with caplog.at_level(logging.WARNING, "pargo_ds"):
        folder, manifest = find_resume(checkpoints)
    named = (checkpoints / "latest").read_bytes().decode(errors="replace").strip()
    assert folder.name == (
        named if named in ("step_00000001", "step_00000002") else "step_00000003"
    )
    assert (
        named == "step_00000003" or f"{checkpoints / 'latest'} names" in caplog.text
    )  # a line end more or less
    assert sorted(path.name for path in checkpoints.glob("*step_*")) == [
        f"step_0000000{step}" for step in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    "content",
    [b"", b"step_0000", b"\xff\xfe", b"../checkpoints/step_00000001", b"a\0b", b"step_00000009"],
)
def test_a_latest_that_names_nothing_is_passed_over_by_a_run_and_refused_by_the_tools(
    checkpoints, content, caplog
):
    (checkpoints / "latest").write_bytes(content)
    with caplog.at_level(logging.WARNING, "pargo_ds"):
        assert find_resume(checkpoints)[0] == step_folder(checkpoints, 3)
    assert "latest names no checkpoint that is there; the newest one is taken" in caplog.text
    with pytest.raises(
        CheckpointError, match=r"latest says .* which is no checkpoint in .*found: step_00000001"
    ):
        newest(checkpoints)


def test_without_latest_the_newest_is_taken(checkpoints):
    (checkpoints / "latest").unlink()
    assert find_resume(checkpoints)[0] == step_folder(checkpoints, 3)
