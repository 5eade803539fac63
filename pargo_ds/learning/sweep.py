"""A sweep: settings x worlds x seeds of one run file, each a trial in a process of its own; whole
results are kept.

A sweep that was interrupted continues with the trials that have no result; a setting may be added
later.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from pargo_ds.addresses import LocalPath
from pargo_ds.config import RunConfig, load_config
from pargo_ds.errors import ConfigError
from pargo_ds.section import Section, faults_of
from pargo_ds.settings_file import read_yaml


class Sweep(Section):
    """A sweep file.

    Values of `all` and of a variant are settings of the run file by their dotted names.
    """

    base: LocalPath
    """Run file that every trial starts from."""
    worlds: dict[str, LocalPath] = Field(min_length=1)
    """Name -> folder with shards `train` and `validation`."""
    all: dict[str, Any] = {}
    """Settings of every trial."""
    variants: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name -> settings of one variant."""
    seeds: list[int] = Field(min_length=1)
    every: int = Field(default=25, ge=1)
    """Steps between measurements."""
    gaps: list[float] = [1.0, 2.0, 3.0]
    """Gaps (nats) whose first reaching is reported."""
    until: float | None = None
    """A trial ends when its measured gap (nats) is so large; without a word it takes all its steps.
    """

    @field_validator("worlds", "variants")
    @classmethod
    def _names_are_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not name or set(name) & set("/\\") or name.startswith("."):
                raise ValueError(f"'{name}' cannot be a name: it becomes a folder")
        return value


@dataclass(frozen=True)
class Job:
    """One trial of a sweep and where its lines go."""

    world: str
    variant: str
    seed: int
    run: RunConfig
    out: Path

    def __str__(self) -> str:
        return f"{self.world}, {self.variant}, seed {self.seed}"


def load_sweep(path: Path) -> Sweep:
    """Read a sweep file. Raises ConfigError that names file and fault."""
    settings = read_yaml(path)
    try:
        return Sweep.model_validate(settings.values)
    except ValidationError as error:
        origins = {place: f"line {line}" for place, line in settings.lines.items()}
        raise ConfigError(faults_of(error, Sweep, str(path), origins)) from error


def jobs(sweep: Sweep, out: Path) -> list[Job]:
    """Return every trial of the sweep, seeds outermost, so that each variant has a first result
    early.

    Raises ConfigError for settings that the run file does not take, or a world whose shards are not
    there.
    """
    missing = []
    for name, folder in sweep.worlds.items():
        if not (Path(folder) / "train").is_dir():
            missing.append(f"{name}: {folder}")
    if missing:
        raise ConfigError(
            f"worlds without shards: {'; '.join(missing)}. Build one with: python tools/build_shards.py scenes FOLDER "
            "--concepts NUMBER --train 1600 --validation 300"
        )
    found = []
    for seed, world, variant in itertools.product(sweep.seeds, sweep.worlds, sweep.variants):
        run = trial_run(sweep, out, world, variant, seed)
        found.append(Job(world, variant, seed, run, place(out, world, variant, seed)))
    return found


def place(out: Path, world: str, variant: str, seed: int) -> Path:
    """Return the file of one trial's lines."""
    return out / world / variant / f"seed_{seed}.jsonl"


def trial_run(sweep: Sweep, out: Path, world: str, variant: str, seed: int) -> RunConfig:
    """Return the run file of one trial."""
    folder = Path(sweep.worlds[world])
    settings = {
        "data.train": str(folder / "train"),
        "data.validation": str(folder / "validation"),
        "data.workers": 0,
        "seed": seed,
        "output": str(out / "runs"),
        "name": f"seed_{seed}",
        **sweep.all,
        **sweep.variants[variant],
    }
    return load_config(
        sweep.base, [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    )


def run_sweep(
    todo: list[Job], *, every: int, until: float | None, workers: int
) -> Iterator[tuple[int, list[str]]]:
    """Run trials, `workers` at a time; yields (lines written so far, faults of trials that ended
    with an error).
    """
    faults: list[str] = []
    # A process for each trial: what one leaves in memory is not the next one's.
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        waiting: dict[Future, Job] = {pool.submit(_run_one, job, every, until): job for job in todo}
        while waiting:
            done, _ = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                job = waiting.pop(future)
                if (error := future.exception()) is not None:
                    faults.append(f"{job}: {type(error).__name__}: {error}")
            yield sum(written(job) for job in todo), faults


def written(job: Job) -> int:
    """Return the lines of a trial so far."""
    for path in (job.out, job.out.with_name(job.out.name + ".part")):
        if path.is_file():
            return path.read_bytes().count(b"\n")
    return 0


def _run_one(job: Job, every: int, until: float | None) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch
    import transformers

    from pargo_ds.learning.trial import run_trial

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    run_trial(job.run, job.out, every=every, until=until)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines of one trial."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
