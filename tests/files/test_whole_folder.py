"""A folder has its final name only when it is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from pargo_ds.files.whole_folder import folder_aside, whole_folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_appears_when_the_block_ends(tmp_path):
    out = tmp_path / "below" / "out"
    with folder_aside(out) as aside:
        (aside / "a.txt").write_text("one")
        assert not out.exists()
    assert contents(out) == {"a.txt": "one"}
    assert list(out.parent.iterdir()) == [out]


def test_an_error_leaves_neither_the_folder_nor_what_was_beside_it(tmp_path):
    def interrupted() -> None:
        with folder_aside(tmp_path / "out") as aside:
            (aside / "a.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_no_part_of_the_next_folder(tmp_path):
    (tmp_path / ".out.unfinished").mkdir()
    (tmp_path / ".out.unfinished" / "old.txt").write_text("half")
    with folder_aside(tmp_path / "out") as aside:
        (aside / "a.txt").write_text("one")
    assert contents(tmp_path / "out") == {"a.txt": "one"}


@pytest.mark.parametrize("first_wins", [True, False])
def test_a_faster_process_keeps_its_folder(tmp_path, first_wins):
    def build() -> None:
        with folder_aside(tmp_path / "out", "slow", first_wins=first_wins) as aside:
            (aside / "a.txt").write_text("second")
            with folder_aside(tmp_path / "out", "fast") as faster:
                (faster / "a.txt").write_text("first")

    if first_wins:
        build()
    else:
        with pytest.raises(OSError, match="not empty"):
            build()
    assert contents(tmp_path / "out") == {"a.txt": "first"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_replaced_only_by_force_and_only_at_the_end(tmp_path):
    out = tmp_path / "out"
    with whole_folder(out) as aside:
        (aside / "a.txt").write_text("old")
    with pytest.raises(ValueError, match="exists already.*--force"), whole_folder(out):
        pass
    with pytest.raises(ZeroDivisionError), whole_folder(out, force=True) as aside:
        (aside / "a.txt").write_text(str(1 / 0))
    assert contents(out) == {"a.txt": "old"}
    with whole_folder(out, force=True) as aside:
        (aside / "b.txt").write_text("new")
        assert contents(out) == {"a.txt": "old"}
    assert contents(out) == {"b.txt": "new"}
    assert list(tmp_path.iterdir()) == [out]
