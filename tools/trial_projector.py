#!/usr/bin/env python3
"""How does a projector learn? Short trials of settings, side by side over seeds, on this machine's cores.

A sweep file names a run file, worlds (shards), settings to compare and seeds. Each trial trains the ordinary model on
the ordinary data in one process and one thread, without DeepSpeed. On held-out images it measures the caption loss with
the right image and with another one; their difference, the gap, is what the image tells. OUT receives a file of lines
for each trial, table.md, curves.png and results.json. A trial that has its file is not run again: the same command
continues an interrupted sweep, and runs what was added to the file.

examples:
  python tools/trial_projector.py ds_configs/learning/recipe.yaml runs/learning/recipe
  python tools/trial_projector.py ds_configs/learning/recipe.yaml runs/learning/recipe --only ParGo
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pargo_ds.files.figures_json import figures_json

if TYPE_CHECKING:
    from pargo_ds.learning.sweep import Job


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path, metavar="SWEEP.yaml", help="what is compared")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the results")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="trials at a time (default: cores)"
    )
    parser.add_argument(
        "--only", action="append", metavar="VARIANT", help="run this variant only (repeat for more)"
    )
    parser.add_argument(
        "--report", action="store_true", help="run nothing; write table and curves of what is there"
    )
    return parser.parse_args(arguments)


def sweep_over(options: argparse.Namespace) -> int:
    """Run what is missing and write the report; returns the number of trials that failed. Raises
    ValueError.
    """
    from tqdm import tqdm

    from pargo_ds.learning.sweep import jobs, load_sweep, run_sweep
    from pargo_ds.learning.trial import steps_of

    sweep = load_sweep(options.sweep)
    if unknown := set(options.only or ()) - set(sweep.variants):
        raise ValueError(
            f"--only {', '.join(sorted(unknown))}: the sweep has {', '.join(sweep.variants)}"
        )
    found = jobs(sweep, options.out)
    wanted = options.only or sweep.variants
    todo = [job for job in found if not job.out.exists() and job.variant in wanted]
    faults: list[str] = []
    if not options.report:
        say_slow(todo)
        steps = sum(steps_of(job.run) + 1 for job in todo)
        every = 0.1 if sys.stderr.isatty() else 60  # seconds: a log gets a line a minute
        title = f"{len(todo)} of {len(found)} trials"
        with tqdm(total=steps, unit="step", desc=title, mininterval=every) as bar:
            for done, failed in run_sweep(
                todo, every=sweep.every, until=sweep.until, workers=options.workers
            ):
                bar.update(done - bar.n)
                faults = failed
    for fault in faults:
        print(f"failed: {fault}", file=sys.stderr)
    report(options.out, found, sweep.gaps)
    return len(faults)


def say_slow(todo: list[Job]) -> None:
    """Tell when the trials would take several times as long as they need to on this CPU."""
    from pargo_ds.slow_bf16 import slow_bf16

    slow = slow_bf16("cpu")
    if slow and any(job.run.train.precision == "bf16" for job in todo):
        print(f"{slow}: set train.precision: fp32 under `all`", file=sys.stderr)


def report(out: Path, found: list, gaps: list[float]) -> None:
    """Write table.md, curves.png and results.json of the trials that have a result."""
    from pargo_ds.evaluation.figures import to_png
    from pargo_ds.learning.curves import curves, rows_of, table
    from pargo_ds.learning.sweep import read_lines

    trials: dict[tuple[str, str], dict[int, list]] = {}
    for job in found:
        if job.out.exists():
            trials.setdefault((job.world, job.variant), {})[job.seed] = read_lines(job.out)
    if not trials:
        print("no trial has a result yet")
        return
    rows = rows_of(trials, gaps)
    text = table(rows, gaps)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    (out / "results.json").write_text(figures_json(rows), encoding="utf-8")
    (out / "curves.png").write_bytes(to_png(curves(trials, out.name)))
    print(text)
    print(f"curves: {out / 'curves.png'}")


def main() -> None:
    """Run the command line; the exit status says what came of it."""
    options = parse_arguments()
    try:
        sys.exit(1 if sweep_over(options) else 0)
    except ValueError as error:
        sys.exit(f"trial_projector: error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command continues with the trials that have no result")


if __name__ == "__main__":
    main()
