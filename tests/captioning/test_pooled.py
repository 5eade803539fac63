"""Scoring by actors of Ray: the numbers of one process, and an actor that is killed loses nothing."""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import pytest
from caption_runs import captioned, numbers_of, write_clip

from pargo_ds.captioning.run_files import RunFolder, read_lines, write_lines
from pargo_ds.captioning.score.score import score
from pargo_ds.captioning.score.scorers import make_scorer
from pargo_ds.errors import CaptionError


def test_without_ray_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip_folder: Path
) -> None:
    from pargo_ds.captioning.score.pooled import score_on_ray

    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(CaptionError, match=r"pip install -e .\[ray\]"):
        score_on_ray(captioned(tmp_path), [f"clip:{clip_folder}"], actors=2)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"), tokenizer_folder)


class Killer(threading.Thread):
    """Kills an actor with SIGKILL once the first file of scores is there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.done = folder, threading.Event()
        self.killed: list[int] = []
        self.files = 0

    def run(self) -> None:
        while not self.done.wait(0.05):
            self.files = len(list(self.folder.glob("*-*.jsonl")))
            if self.files:
                actors = [
                    process
                    for process in psutil.Process().children(recursive=True)
                    if "ray::MapWorker" in " ".join(process.cmdline())
                ]
                for actor in actors[:1]:
                    actor.kill()
                    self.killed.append(actor.pid)
                return


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_actors_score_as_one_process_does_though_one_is_killed(
    tmp_path: Path, clip_folder: Path
) -> None:
    pytest.importorskip("ray.data", reason="pip install -e .[ray]")
    import ray

    from pargo_ds.captioning.score.pooled import score_on_ray

    run = captioned(tmp_path)
    rows = list(read_lines(run.captions))
    again = [row for row in rows for _ in range(40)]
    write_lines(run.captions, [*rows, *again])  # 4 files of scores, and one of the copies
    alone = RunFolder(tmp_path / "alone")
    shutil.copytree(run.path, alone.path)
    name = f"clip:{clip_folder}"
    score(alone, [make_scorer(name)], plants=40)
    killer = Killer(run.scores / "clip")
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        # Its sockets lie in there, whose paths must be short: tmp_path is too long.
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000,
                 _temp_dir=folder)  # fmt: skip
        try:
            killer.start()
            score_on_ray(run, [name], actors=2, plants=40)
        finally:
            killer.done.set()
            ray.shutdown()
    expected, found = numbers_of(alone, "clip"), numbers_of(run, "clip")
    assert killer.killed
    assert killer.files < len(list((run.scores / "clip").glob("*-*.jsonl"))), "killed at the end"
    assert list(found) == list(expected)
    for row, numbers in expected.items():
        # Measured: the last digit (1e-5) where torch has another number of threads.
        assert found[row] == pytest.approx(numbers, abs=1e-4)
