"""Where a run's figures go: progress bar, metrics.jsonl, wandb, one log file per rank.

Only rank 0 prints and writes metrics; every rank has its own log file.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pargo_ds import distributed
from pargo_ds.config import RunConfig
from pargo_ds.files.figures_json import finite
from pargo_ds.files.whole_file import write_whole
from pargo_ds.training.wandb_run import WandbRun

log = logging.getLogger("pargo_ds")
RARE = ("validation_", "evaluation_")
"""Beginnings of figures that are written whenever there are any."""


def start_logging(run_dir: Path) -> None:
    """Log to `logs/rank_NNNNN.log` on every rank, and to the terminal on rank 0."""
    folder = run_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.handlers.clear()
    to_file = logging.FileHandler(folder / f"rank_{distributed.rank():05d}.log")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(to_file)
    if distributed.is_main():
        to_terminal = _AboveTheBar(
            level=logging.INFO
        )  # tracebacks of clear errors go to the file only
        to_terminal.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(to_terminal)


class _AboveTheBar(logging.Handler):
    """Prints without tearing the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class Reporter:
    """Rank 0's progress bar, metrics.jsonl and wandb; does nothing on other ranks.

    `constants` are figures of the whole run that stand in every line (conversations left out).
    """

    def __init__(
        self, run: RunConfig, total_steps: int, first_step: int, constants: dict[str, Any]
    ) -> None:
        self.every, self.constants = run.reporting.log_every, constants
        self.active = distributed.is_main()
        self.wandb_run: str | None = None
        if not self.active:
            return
        path = run.run_dir / "metrics.jsonl"
        drop_lines_after(path, first_step)
        self.file = path.open("a")
        self.wandb = WandbRun(run, path, first_step, total_steps)
        self.wandb_run = self.wandb.id
        self.bar = tqdm(
            total=total_steps, initial=first_step, desc=run.name, unit="step", dynamic_ncols=True
        )

    def step(self, step: int, figures: dict[str, Any]) -> None:
        """Report finished step `step` (counted from 1)."""
        if not self.active:
            return
        self.bar.update(1)
        shown = {"loss": f"{figures['loss']:.3f}", "tok/s": f"{figures['tokens_per_s']:.0f}"}
        shown |= {"fill": f"{figures['fill']:.0%}", "wait": f"{figures['data_wait_s']:.2f}s"}
        self.bar.set_postfix(shown, refresh=False)
        if step % self.every == 0 or any(name.startswith(RARE) for name in figures):
            clean = finite(figures | self.constants)
            self.file.write(json.dumps({"step": step, **clean}) + "\n")
            self.file.flush()
            self.wandb.log(step, clean)

    def close(self) -> None:
        """Finish all writers."""
        if not self.active:
            return
        self.bar.close()
        self.file.close()
        self.wandb.close()


def drop_lines_after(path: Path, step: int) -> None:
    """Cut metrics of steps that a resumed run will do again (lines above `step`, and a torn last
    line).
    """
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            known = json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):  # torn, or of another program
            continue
        if known:
            kept.append(line)
    write_whole(path, "".join(line + "\n" for line in kept))
