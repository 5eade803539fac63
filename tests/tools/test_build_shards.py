"""tools/build_shards.py: it teaches, builds, goes on after a kill, and ends faults with one line
and status 2.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tiny import COLOURS, ROOT, draw, merged, run_command

from pargo_ds.data.shards.mds import read_samples

TOOL = ROOT / "tools" / "build_shards.py"


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], int]:
    spec = importlib.util.spec_from_file_location("build_shards", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """60 images and as many LLaVA entries, one of which is faulty and one a duplicate."""
    (tmp_path / "images").mkdir()
    entries = []
    for number in range(60):
        (tmp_path / "images" / f"{number}.png").write_bytes(
            draw(COLOURS[number % 6], number % 9, 64 + number)
        )
        talk = [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": f"It is {number}."},
        ]
        entries.append({"id": f"e{number}", "image": f"{number}.png", "conversations": talk})
    entries[7]["image"] = "none.png"
    entries[9] = {**entries[3], "id": "again"}
    (tmp_path / "entries.json").write_text(json.dumps(entries))
    return tmp_path


def llava(room: Path, out: str, *more: str) -> list[str]:
    arguments = [
        "llava",
        str(room / out),
        str(room / "entries.json"),
        "--image-folder",
        str(room / "images"),
    ]
    return [*arguments, "--chunk-inputs", "10", "--shard-bytes", "16384", *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    "command", ["llava", "mixture", "webdataset", "coco", "table", "scenes", "merge", "lengths"]
)
def test_each_command_explains_itself(
    main, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "usage:" in said
    assert f"build_shards.py {command}" in said


def test_build_prints_its_account(main, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            llava(
                room,
                "out",
                "--workers",
                "1",
                "--validation",
                "10",
                "--source-name",
                "S",
                "--license",
                "L",
            )
        )
        == 0
    )
    said = capsys.readouterr().out
    for line in (
        r"inputs 60 100.00 %",
        "samples 58 96.67 %",
        "duplicate content 1 1.67 %",
        "image missing 1 1.67 %",
    ):
        assert line in " ".join(said.split())
    assert f"{room / 'out'}/train: 48, {room / 'out'}/validation: 10 samples" in said
    assert {(sample.source, sample.license) for sample in read_samples(room / "out" / "train")} == {
        ("S", "L")
    }
    assert (
        main(
            llava(
                room,
                "out",
                "--workers",
                "1",
                "--validation",
                "10",
                "--source-name",
                "S",
                "--license",
                "L",
            )
        )
        == 0
    )
    assert "finished already" in capsys.readouterr().out


def test_parts_are_merged_by_hand(main, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("0/2", "1/2"):
        assert main(llava(room, "out", "--workers", "1", "--part", part)) == 0
        assert "when all are: build_shards.py merge" in capsys.readouterr().out
        assert not (room / "out" / "index.json").exists()
    assert main(["merge", str(room / "out")]) == 0
    assert len(list(read_samples(room / "out"))) == 58
    before = contents(room / "out")
    assert main(["merge", str(room / "out")]) == 0
    assert contents(room / "out") == before
    assert main(["merge", str(room / "images")]) == 2
    assert "nothing to merge" in capsys.readouterr().err


def test_a_merge_accepts_as_many_rejects_as_its_parts(
    main, room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("0/2", "1/2"):
        assert main(llava(room, "out", "--part", part, "--max-rejects", "0.01")) == 0
    assert main(["merge", str(room / "out")]) == 2
    assert "1 of 60 inputs are rejects; at most 1% are accepted" in capsys.readouterr().err
    assert main(["merge", str(room / "out"), "--max-rejects", "0.5"]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--run", "run.yaml", "--part", "0/2"], "give it to build_shards.py merge"),
        (["--image-folder", "nowhere"], "--image-folder nowhere is not a folder"),
        (["--max-rejects", "0.01"], "1 of 60 inputs are rejects; at most 1% are accepted"),
        (["--validation", "70"], "there are only 58"),
        (["--workers", "0"], "0 workers; expected at least 1"),
        (["--longest-side", "2"], "expected at least 8"),
        (["--work", "x"], "is local already"),
        (["--run", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_faults_are_one_line_and_status_2(
    main, room: Path, change: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(llava(room, "out", "--workers", "1", *change)) == 2
    message = capsys.readouterr().err
    assert message.startswith("build_shards.py: ")
    assert said in message
    assert not (room / "out" / "index.json").exists()


@pytest.mark.parametrize(
    "change", [["--part", "2/2"], ["--part", "x"], ["--validation", "some"], ["--max-rejects", "2"]]
)
def test_wrong_options_are_explained(
    main, room: Path, change: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(llava(room, "out", *change))
    assert ended.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_a_mixture_is_built_by_one_command_that_prints_its_streams(
    main, room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = str(next(path for path in room.iterdir() if path.suffix in (".json", ".jsonl")))
    meta = {
        name: {"root": str(room / "images"), "annotation": entries, "repeat_time": n}
        for n, name in enumerate("ab", 1)
    }
    (room / "meta.json").write_text(json.dumps(meta))
    options = ["--workers", "1", "--validation", "10"]
    mix = room / "a, b: #1"
    assert main(["mixture", str(mix), str(room / "meta.json"), *options]) == 0
    streams = yaml.safe_load(capsys.readouterr().out.partition("data:\n")[2])["train"]
    assert streams == [
        {"path": f"{mix}/a/train", "text": "turns"}, {"path": f"{mix}/b/train", "text": "turns", "repeat": 2}
    ]  # fmt: skip
    assert [len(list(read_samples(Path(stream["path"])))) for stream in streams] == [48, 48]


@pytest.fixture
def run_file(room: Path, tiny_run: dict) -> Path:
    data = {
        "train": [{"path": str(room / "out" / "train")}],
        "validation": str(room / "out" / "validation"),
    }
    (room / "run.yaml").write_text(yaml.safe_dump(merged(tiny_run, {"data": data})))
    return room / "run.yaml"


def test_lengths_are_written_with_the_shards(
    main, room: Path, run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once by the build itself, and again nothing to do for the command of its own."""
    assert (
        main(llava(room, "out", "--workers", "1", "--validation", "10", "--run", str(run_file)))
        == 0
    )
    for split in ("train", "validation"):
        (side_car,) = (room / "out" / split / "lengths").iterdir()
        assert (side_car / "lengths.json").is_file()
    before = contents(room / "out")
    assert main(["lengths", str(run_file), "--workers", "1"]) == 0
    assert contents(room / "out") == before
    assert capsys.readouterr().out.count(": lengths in ") == 4


def test_a_merge_writes_the_lengths_of_its_parts(main, room: Path, run_file: Path) -> None:
    for part in ("0/2", "1/2"):
        assert main(llava(room, "out", "--validation", "10", "--part", part)) == 0
    assert main(["merge", str(room / "out"), "--run", str(run_file), "--workers", "1"]) == 0
    before = contents(room / "out")
    assert main(["lengths", str(run_file), "--workers", "1"]) == 0
    assert contents(room / "out") == before
    assert len(list((room / "out").glob("*/lengths/*/lengths.json"))) == 2


def command(room: Path, out: str) -> list[str]:
    return [sys.executable, str(TOOL), *llava(room, out, "--workers", "2", "--validation", "10")]


def start(room: Path, out: str) -> subprocess.Popen:
    """The tool in a process group of its own, so that its workers can be counted."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command(room, out), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, start_new_session=True)  # fmt: skip


def members(group: int) -> int:
    found = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found += int(fields[2]) == group and fields[0] != "Z"
    return found


def check_all_ended(group: int) -> None:
    """Workers notice the end of the tool within a moment."""
    give_up_at = time.monotonic() + 10
    while members(group) and time.monotonic() < give_up_at:
        time.sleep(0.1)
    assert members(group) == 0, "workers live on without the tool"


@pytest.mark.slow
def test_two_workers_killed_at_random_give_the_same_bytes(main, room: Path) -> None:
    """Five kills of the tool, each a moment after it has begun one chunk of six more; its workers end
    with it, and the last start finishes what all have begun.
    """
    assert main(llava(room, "one", "--workers", "1", "--validation", "10")) == 0
    assert run_command(command(room, "whole")).returncode == 0
    rng = random.Random(5)
    chunks = room / "killed" / ".build" / "chunks"
    for begun in range(1, 6):
        process = start(room, "killed")
        while len(list(chunks.glob("[0-9]*"))) < begun and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
        check_all_ended(process.pid)
        print(f"killed with {len(list(chunks.glob('[0-9]*')))} of 6 chunks: {process.returncode}")
    last = run_command(command(room, "killed"))
    assert last.returncode == 0, last.stderr
    assert contents(room / "killed") == contents(room / "whole") == contents(room / "one")


@pytest.mark.slow
def test_interrupt_ends_with_one_line_and_keeps_the_work(room: Path) -> None:
    process = start(room, "out")
    while not list((room / "out" / ".build" / "chunks").glob("[0-9]*")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, 130), said
    if process.returncode == 130:
        assert said.strip().splitlines()[-1].endswith("the same command goes on")
        assert "Traceback" not in said
    check_all_ended(process.pid)
