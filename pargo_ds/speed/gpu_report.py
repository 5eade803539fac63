"""Runs the pieces of gpu_pieces.py and keeps their results, each whole or absent; the page of them."""

from __future__ import annotations

import contextlib
import html
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import psutil

from pargo_ds.files.whole_file import write_whole
from pargo_ds.speed.gpu_pieces import MINUTES, Machine, Piece

SHOWN_LINES = 60
"""Of a piece's output, in its result."""
SETTLED = 5
"""Steps that are left out of medians."""
FIGURES = ("step_s", "tokens_per_s", "images", "tflops_per_device", "mfu", "hfu", "memory_gib")


def result_file(folder: Path, piece: Piece) -> Path:
    """Exists when the piece has ended by itself, well or not."""
    return folder / f"{piece.name}.json"


def missing(folder: Path, piece: Piece) -> str:
    """Name of a piece that has to be done first, or empty."""
    if not piece.needs:
        return ""
    path = folder / f"{piece.needs}.json"
    done = path.is_file() and json.loads(path.read_text(encoding="utf-8"))["status"] == 0
    return "" if done else piece.needs


def run_piece(piece: Piece, folder: Path, machine: Machine, minutes: float = MINUTES) -> str:
    """Run one piece and write its result; `done`, `failed`, or `out of time`, which leaves none."""
    deadline, started = time.monotonic() + 60 * minutes, time.monotonic()
    log = folder / f"{piece.name}.log"
    status = 0
    if piece.run:  # a run that is finished, or has other settings, would not be trained again
        shutil.rmtree(folder / piece.run, ignore_errors=True)
    with log.open("w", encoding="utf-8") as output:
        for command in piece.commands:
            found = _run(command, machine, output, deadline - time.monotonic())
            if found is None:
                return "out of time"
            status = found
            if status:
                break
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    result = {
        "name": piece.name,
        "question": piece.question,
        "machine": machine.words,
        "status": status,
        "seconds": round(time.monotonic() - started, 1),
        "figures": run_figures(folder / piece.run) if piece.run else {},
        "output": text.splitlines()[-SHOWN_LINES:],
    }
    write_whole(result_file(folder, piece), json.dumps(result, indent=1) + "\n")
    return "failed" if status else "done"


def _run(command: Sequence[str], machine: Machine, output: Any, seconds: float) -> int | None:
    """Exit status of a command, whose processes are ended after so many seconds: None."""
    environment = {**os.environ, "PYTHON": sys.executable, "PROCESSES": "1"}
    if machine.device == "cpu":
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    try:
        return process.wait(timeout=max(0.0, seconds))
    except BaseException as error:
        kill_with_children(process)
        if isinstance(error, subprocess.TimeoutExpired):
            return None
        raise


def kill_with_children(process: subprocess.Popen) -> None:
    """Kill a process and all below it: torchrun's workers lie in sessions of their own, where they
    would train on.
    """
    first = psutil.Process(process.pid)
    for one in [first, *first.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def run_figures(run_dir: Path) -> dict[str, float | None]:
    """Medians of a run's metrics after its first steps, its last loss; {} where there are none."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    settled = [row for row in rows if row["step"] > SETTLED]
    if not settled:
        return {}
    found: dict[str, float | None] = {}
    for name in FIGURES:
        values = [row[name] for row in settled if row.get(name) is not None]
        found[name] = statistics.median(values) if values else None
    return found | {"first_loss": rows[0]["loss"], "last_loss": rows[-1]["loss"]}


def results(folder: Path, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """Those that are there, in the order of `pieces`."""
    files = [result_file(folder, piece) for piece in pieces]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]


def machines(found: Sequence[dict[str, Any]]) -> str:
    """Where the results were made."""
    return "; ".join(dict.fromkeys(result["machine"] for result in found)) or "nothing has run"


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """A row for each run of twenty steps, for docs/benchmarks.md, then one for each piece."""
    names = [*FIGURES, "first_loss", "last_loss"]
    lines = [
        f"{machines(found)}\n",
        f"| run | {' | '.join(names)} |",
        f"|{' --- |' * (len(names) + 1)}",
    ]
    for result in found:
        if result["figures"]:
            cells = [_cell(result["figures"].get(name)) for name in names]
            lines.append(f"| {result['name']} | {' | '.join(cells)} |")
    lines += ["", "| piece | what | result | seconds |", "| --- | --- | --- | --- |"]
    for result in found:
        said = "done" if result["status"] == 0 else f"failed, status {result['status']}"
        last = next((line for line in reversed(result["output"]) if line.strip()), "")
        shown = last.replace("|", "\\|")
        lines.append(
            f"| {result['name']} | {result['question']} | {said}: {shown} | {result['seconds']} |"
        )
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def write_report(folder: Path, pieces: Sequence[Piece]) -> Path:
    """Write report.md and report.html of what is there; the page's path."""
    found = results(folder, pieces)
    not_run = [piece.name for piece in pieces if not result_file(folder, piece).is_file()]
    rows = markdown(found)
    write_whole(folder / "report.md", rows)
    sections = []
    for result in found:
        output = html.escape("\n".join(result["output"]))
        title = html.escape(f"{result['name']}: {result['question']} (status {result['status']})")
        sections.append(f"<section><h2>{title}</h2><pre>{output}</pre></section>")
    template = Path(__file__).with_name("gpu_report.html.template").read_text(encoding="utf-8")
    page = Template(template).substitute(
        where=html.escape(machines(found)),
        rows=html.escape(rows),
        sections="\n".join(sections),
        not_run=html.escape(", ".join(not_run) or "none"),
    )
    write_whole(folder / "report.html", page)
    return folder / "report.html"
