"""Scoring on a cluster of Ray, where GPUs are pooled: each actor keeps one scorer and makes one file of
scores after another, into the run's folder, which all machines must see.

Ray Data hands the tasks out, starts an actor that died again and repeats its task. A file is whole or
absent, so nothing is lost or made twice but the file that a dead actor was working on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pargo_ds.captioning.run_files import RunFolder
from pargo_ds.captioning.score.score import Scoring, Task, prepare
from pargo_ds.captioning.score.scorers import make_scorer
from pargo_ds.errors import CaptionError


class Worker:
    """What an actor runs: a scorer by its name on the command line, loaded once."""

    def __init__(self, path: str, name: str) -> None:
        self.work = Scoring(RunFolder(Path(path)), make_scorer(name))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A task as Ray's row -> whether its file was made."""
        return {"made": self.work.make(Task(row["name"], row["number"], row["start"]))}


def score_on_ray(
    run: RunFolder,
    names: Sequence[str],
    *,
    actors: int,
    gpus: float = 0.0,
    plants: int = 400,
    said: Callable[[str], None] = print,
) -> None:
    """Score as `score` does, with `actors` of a scorer at a time that have `gpus` each. It joins
    the cluster that RAY_ADDRESS names or that runs here, else starts one on this machine.

    Raises CaptionError when Ray is not installed, and what `prepare` raises.
    """
    try:
        import ray.data
    except ImportError as error:
        raise CaptionError(
            f"Ray Data cannot be imported ({error}): pip install -e .[ray], or score without --actors"
        ) from error
    if actors < 1:
        raise CaptionError(f"{actors} actors are to score; expected at least 1")
    tasks = prepare(run, [make_scorer(name) for name in names], plants)
    rows = [task._asdict() for task in tasks]
    for name in names:
        files = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            Worker,
            fn_constructor_args=(str(run.path.resolve()), name),
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_gpus=gpus,
        )
        made = sum(row["made"] for row in files.iter_rows())
        said(f"{name}: {made} files scored, {len(rows) - made} were there")
