"""A file has its final name only when it is whole."""

from __future__ import annotations

import pytest

from pargo_ds.files.whole_file import whole_file, write_whole


def test_a_file_is_written_and_replaced_in_one_step(tmp_path):
    path = tmp_path / "below" / "answers.jsonl"
    write_whole(path, "first\n")
    write_whole(path, "Größe \u2028\n", writer="rank3")
    assert path.read_text(encoding="utf-8") == "Größe \u2028\n"
    assert [file.name for file in path.parent.iterdir()] == ["answers.jsonl"]


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    path = tmp_path / "one.json"
    (tmp_path / ".one.json.aside").write_text("half of it, and longer than the whole")
    write_whole(path, "whole")
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_is_absent_while_its_file_is_written(tmp_path, monkeypatch):
    path = tmp_path / "one.json"

    def full_disk(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, "whole")
    assert not path.exists()


def test_an_error_while_writing_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    path = tmp_path / "one.jsonl"
    write_whole(path, "before")
    rows = ({"a": "half", "b": 2 / n}["a"] for n in (1, 0))
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.writelines(rows)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_are_written_as_they_are(tmp_path):
    write_whole(tmp_path / "a.bin", b"\x00\r\n\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\r\n\xff"
