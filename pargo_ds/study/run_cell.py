"""Run one cell: each stage through the ordinary entry points, then its questions; the result is
whole or absent.

A cell that was killed goes on: a stage whose export is there is not trained again, the trainer
continues from its checkpoint, and questions that have an answer are not asked again. The lock of a
cell is held by its children too, so that one whose parent was killed is waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import torch

from pargo_ds.errors import MachineFault, UserError
from pargo_ds.files.lock import lock_if_possible
from pargo_ds.files.whole_file import write_whole
from pargo_ds.study.cell_result import result_of
from pargo_ds.study.cells import Cell, Stage, changed_since
from pargo_ds.study.study_file import Size

ROOT = Path(__file__).resolve().parents[2]
LOG, LOCK, ASKED = "log.txt", ".lock", "asked"
DO_NOT_RESTART = 2


def finished(cell: Cell) -> bool:
    """Whether the cell's result is there.

    Raises UserError when it is the result of other settings.
    """
    if not cell.result.is_file():
        return False
    changed = changed_since(cell, json.loads(cell.result.read_text(encoding="utf-8"))["settings"])
    if changed:
        said = "; ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in changed.items())
        raise UserError(
            f"{cell.folder} holds the result of other settings ({said}): remove that folder to run "
            "the cell again, or give the variant another name"
        )
    return True


def run_cell(cell: Cell, size: Size, processes: int | None = None) -> None:
    """Run what is missing of a cell. `processes`: ranks of the trainer; default: a GPU for each of
    several cells at a time, all GPUs for a single one, 2 without any.

    Raises UserError for a fault that would come again, MachineFault for another one; both show the
    end of the cell's log.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    with held(cell.folder / LOCK) as lock, (cell.folder / LOG).open("a") as log:
        if finished(cell):
            return
        started = time.perf_counter()
        resumed = any(stage.run.run_dir.exists() for stage in cell.stages)
        calls = Calls(log, lock, environment(size.road))
        for stage in cell.stages:
            if not stage.export.is_dir():
                train(stage, size, processes, calls)
        ask(cell, size, calls)
        seconds = None
        if not resumed:
            seconds = time.perf_counter() - started
        write_whole(cell.result, json.dumps(result_of(cell, size, cell.folder / ASKED, seconds)))
        tidy(cell)


class Calls:
    """Runs commands that log into the cell's log and hold its lock."""

    def __init__(self, log: IO[str], lock: IO[str], environment: dict[str, str]) -> None:
        self.log, self.environment = log, environment
        self.kept = (lock.fileno(),)

    def __call__(self, *command: str | Path, unless: Path | None = None) -> None:
        """Run to the end. Raises as run_cell, unless the file `unless` is there then."""
        words = list(map(str, command))
        print("$", " ".join(words[:6]), "...", file=self.log, flush=True)
        done = subprocess.Popen(
            words, env=self.environment, stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=subprocess.STDOUT, pass_fds=self.kept,
        )  # fmt: skip
        try:
            done.wait()
        except BaseException:  # asked to stop: so is the program, which may save before it ends
            done.terminate()
            done.wait()
            raise
        if done.returncode == 0 or (unless is not None and unless.exists()):
            return
        end = "\n".join(Path(self.log.name).read_text(errors="replace").splitlines()[-8:])
        fault = UserError if done.returncode == DO_NOT_RESTART else MachineFault
        raise fault(f"status {done.returncode}; the end of {self.log.name}:\n{end}")


def environment(road: str) -> dict[str, str]:
    """Return the environment of a cell's processes: one thread each, this project importable. What
    trains on the CPU is asked there, too, so that a cell's times are of one device.
    """
    known = dict(os.environ)
    if road == "one_process":
        known["CUDA_VISIBLE_DEVICES"] = ""
    if road == "one_process" or not torch.cuda.device_count():
        known["DS_ACCELERATOR"] = "cpu"
    path = os.pathsep.join(filter(None, [str(ROOT), known.get("PYTHONPATH")]))
    return {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **known, "PYTHONPATH": path}


def train(stage: Stage, size: Size, processes: int | None, call: Calls) -> None:
    """Train one stage and export it."""
    settings: list[str] = []
    for override in stage.overrides:
        settings += ["--set", override]
    if size.road == "one_process":
        module = [sys.executable, "-m", "pargo_ds.study.one_process"]
        call(*module, stage.run_file, *settings, "--export", stage.export)
        return
    done = stage.run.run_dir / "DONE"
    if not done.exists():
        # With DONE written all is saved: gloo may still abort at exit, which is no fault of the
        # run.
        start = launcher(processes, size.at_a_time, torch.cuda.device_count())
        call(*start, "pargo_ds.train", stage.run_file, *settings, unless=done)
    if not done.exists():
        raise MachineFault(
            f"{stage.run.run_dir} was stopped before its end; the same command goes on"
        )
    tool = str(ROOT / "tools/convert_checkpoint.py")
    export: list[str | Path] = [sys.executable, tool, "zero-to-hf"]
    export += [stage.run.run_dir, stage.export]
    if stage.run.train.llm.mode == "lora":
        export.append("--merge-lora")
    call(*export)


def launcher(processes: int | None, at_a_time: int, gpus: int) -> list[str]:
    """Return DeepSpeed's launcher on this machine with `gpus` GPUs, as tools/demo.sh calls it."""
    ranks = processes or (min(gpus, 1) if at_a_time > 1 else gpus) or 2
    places = ["--num_gpus", str(ranks)]
    if gpus and (visible := os.environ.get("CUDA_VISIBLE_DEVICES")):
        # With --num_gpus the launcher would take the machine's first GPUs instead of these.
        places = ["--include", "localhost:" + ",".join(visible.split(",")[:ranks])]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [sys.executable, "-m", "deepspeed.launcher.runner", *places]
    return [*start, "--master_port", str(port), "--module"]


def ask(cell: Cell, size: Size, call: Calls) -> None:
    """Ask the last stage's export all questions."""
    benchmarks = [f"--benchmark={name}={path}" for name, path in size.evaluation.items()]
    tool = str(ROOT / "tools/evaluate.py")
    call(sys.executable, tool, cell.stages[-1].export, *benchmarks, "--out", cell.folder / ASKED)


def tidy(cell: Cell) -> None:
    """Remove weights, which are large and are not looked at again; settings, metrics, answers and
    logs stay.
    """
    for stage in cell.stages:
        for folder in (stage.export, stage.run.run_dir / "checkpoints"):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def held(path: Path) -> Iterator[IO[str]]:
    """Hold the lock of a cell; waits for another process that has it."""
    with path.open("a") as file:
        if not lock_if_possible(file, 0):
            print(f"{path.parent} is being run by another process, which is waited for", flush=True)
            lock_if_possible(file)
        yield file


def command_of(study: Path, size: str, number: int, more: Sequence[str]) -> list[str]:
    """Return the command that runs one cell in a process of its own."""
    tool = str(ROOT / "tools/study.py")
    return [sys.executable, tool, str(study), "--size", size, "--cell", str(number), *more]
