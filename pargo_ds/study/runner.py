"""All cells of a study on this machine: what is missing is run, a few at a time, and the time left
is shown. What the study is going to be, before anything runs, and how far it is.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pargo_ds.study.cell_result import read_result
from pargo_ds.study.cells import Cell, Stage, alike
from pargo_ds.study.costs import ProjectorSize
from pargo_ds.study.run_cell import finished
from pargo_ds.study.study_file import Size

POLL_S = 1.0


@dataclass
class Progress:
    """What is shown while cells run."""

    done: int
    cells: int
    running: list[str]
    seconds_left: float


def run_all(
    numbers: Sequence[int], cells: Sequence[Cell], size: Size, commands: Sequence[list[str]]
) -> Iterator[Progress | str]:
    """Run the cells of these numbers, `size.at_a_time` side by side; yields Progress about once a
    second, and a line for each cell that failed.

    A cell is a process of its own: what one leaves in memory is not the next one's.
    """
    waiting, running = list(numbers), dict[int, subprocess.Popen]()
    try:
        while waiting or running:
            while waiting and len(running) < size.at_a_time:
                number = waiting.pop(0)
                running[number] = subprocess.Popen(
                    commands[number], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
            for number in [n for n, process in running.items() if process.poll() is not None]:
                process = running.pop(number)
                if process.returncode:
                    yield f"failed: {cells[number]}: {process.communicate()[1].strip()}"
            left = [cells[number] for number in (*waiting, *running)]
            yield Progress(
                len(numbers) - len(left),
                len(numbers),
                [str(cells[number]) for number in running],
                seconds_left(left, cells, size),
            )
            if running:
                time.sleep(POLL_S)
    finally:  # Ctrl-C, or an error here: the cells end too, and go on with the next start
        for process in running.values():
            process.terminate()
            process.wait()


def seconds_left(todo: Sequence[Cell], cells: Sequence[Cell], size: Size) -> float:
    """Time until these cells are done, by the steps that they have not done yet."""
    step, other = pace(cells, size)
    seconds = 0.0
    for cell in todo:
        seconds += other
        for stage in cell.stages:
            seconds += step[stage.name] * max(0, stage.steps - steps_done(stage))
    return seconds / min(size.at_a_time, max(1, len(todo)))


def steps_done(stage: Stage) -> int:
    """Return the steps that a stage has done, which runs or ran."""
    for name in ("metrics.jsonl", "metrics.jsonl.part"):
        path = stage.run.run_dir / name
        if path.is_file():
            return path.read_bytes().count(b"\n")
    return 0


def pace(cells: Sequence[Cell], size: Size) -> tuple[dict[str, float], float]:
    """Return (seconds of a step by stage, other seconds of a cell): the mean of finished cells, or
    what the study file expects.
    """
    results = [read_result(cell.result) for cell in cells if cell.result.is_file()]
    step = dict(size.expected.step)
    for stage in step:
        known = [result["seconds"]["step"].get(stage) for result in results]
        if known := [seconds for seconds in known if seconds is not None]:
            step[stage] = sum(known) / len(known)
    others = []
    for result in results:
        if (whole := result["seconds"]["cell"]) is not None:
            lines = chain.from_iterable(result["curves"].values())
            others.append(whole - sum(line["seconds"] for line in lines))
    if not others:
        return step, size.expected.other
    return step, sum(others) / len(others)


def plan(cells: Sequence[Cell], size: Size, sizes: dict[str, ProjectorSize]) -> str:
    """Return the cells with their state, what each variant costs, and the time that is left."""
    reference = sizes[size.reference]
    lines = [
        f"machine: {size.machine}",
        f"road: {size.road}, {size.at_a_time} cells at a time",
        f"held equal: {', '.join(size.held_equal)}; claims about: {', '.join(size.claims)}",
        "",
        f"{'variant':<28} {'tokens':>7} {'parameters':>12}  equal to {size.reference} in",
    ]
    for name, own in sizes.items():
        equal = [what for what in ("tokens", "parameters") if alike(own, reference, what)]
        words = ", ".join(equal) or "neither"
        lines.append(f"{name:<28} {own.tokens:>7,} {own.parameters:>12,}  {words}")
    lines += ["", f"{'cell':>5}  {'variant':<28} {'seed':>5}  steps"]
    for number, cell in enumerate(cells):
        steps = " + ".join(f"{stage.steps} {stage.name}" for stage in cell.stages)
        line = f"{number:>5}  {cell.variant:<28} {cell.seed:>5}  {steps}"
        if cell.result.is_file():
            line += "  done"
        lines.append(line)
    todo = [cell for cell in cells if not cell.result.is_file()]
    left = duration(seconds_left(todo, cells, size))
    source = "by what the study file expects of a step"
    if len(todo) < len(cells):
        source = "by the finished cells"
    lines += ["", f"{len(todo)} of {len(cells)} cells to run, about {left} ({source})"]
    return "\n".join(lines)


def missing(cells: Sequence[Cell]) -> list[int]:
    """Return the numbers of the cells without a result. Raises UserError for a result of other
    settings.
    """
    return [number for number, cell in enumerate(cells) if not finished(cell)]


def check_data(cells: Sequence[Cell], size: Size) -> list[str]:
    """Return what the cells read and is not there: run files' shards, weights, benchmarks."""
    wanted = {str(path) for path in size.evaluation.values()}
    for cell in cells:
        for stage in cell.stages:
            data = stage.run.data
            wanted |= {str(stream.path) for stream in data.train} | {str(data.validation)}
            named = {str(stage.run.vision.weights), str(stage.run.llm.name)}
            wanted |= {name for name in named if Path(name).parts[0] == "runs"}
    local = [path for path in sorted(wanted - {"None", "random"}) if "://" not in path]
    return [path for path in local if not Path(path).exists()]


def duration(seconds: float) -> str:
    """Return `2 h 05 min`, `12 min`, `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes:02d} min"
