#!/usr/bin/env python3
"""What a run needs and takes on given GPUs, before it is queued: memory, time, communication, storage.

Needs no GPU, weights or network. Status 2, with one sentence, for a run that does not fit. It is a
model of which no GPU has confirmed anything; docs/scaling.md says what of it is measured.

examples:
  python tools/plan_run.py ds_configs/pretrain.yaml --gpus 8 --gpu h100
  python tools/plan_run.py ds_configs/finetune.yaml --gpus 64 --network 8x400g --set batch.packs_per_step=64 --save
  python tools/plan_run.py --residual runs/finetune
  python tools/plan_run.py ds_configs/pretrain.yaml ds_configs/finetune.yaml --sweep --picture scaling.png
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line; words that do not go together end with status 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run_file", nargs="*", help="YAML run file (with --sweep: one or more)")
    add("--gpus", type=whole(1), default=8, metavar="N", help="ranks (default 8)")
    add("--gpu", default="h100", help="a100, h100, h200, b200 or l40s (default h100)")
    add("--gpus-per-node", type=whole(1), default=8, metavar="N", help="default 8")
    add("--network", default="400g", help="of a node: 400g, or 8x400g (Gbit/s; default 400g)")
    add("--images", type=whole(0), metavar="N", help="of a pack (default: as many as fit)")
    add("--targets", type=whole(1), metavar="N", help="target tokens of a pack (default 11 %%)")
    add("--disk", type=above_zero, default=2.0, metavar="GB/S", help="a node writes (default 2)")
    add(
        "--measure-host", action="store_true",
        help="measure host time on this machine (a minute or more) in place of the table's",
    )  # fmt: skip
    add("--save", action="store_true", help="write the prediction into the run's folder: plan.json")
    add("--residual", type=Path, metavar="RUN_DIR", help="print predicted against measured")
    add("--sweep", action="store_true", help="a table over 1 to 4,096 GPUs")
    add(
        "--sizes", nargs="+", default=[], metavar="B",
        help="with --sweep: the LLM in these sizes: 1b, 7b, 13b, 70b (default: the run's own)",
    )  # fmt: skip
    add("--picture", type=Path, metavar="PNG", help="with --sweep: draw it")
    add("--set", action="append", default=[], metavar="A.B=C", help="override one setting")
    options = parser.parse_args(arguments)
    if options.residual is None and not options.run_file:
        parser.error("which run? Give a run file such as ds_configs/pretrain.yaml")
    if len(options.run_file) > 1 and not options.sweep:
        parser.error("several run files can be planned with --sweep only")
    if (options.sizes or options.picture) and not options.sweep:
        parser.error("--sizes and --picture belong to --sweep")
    if options.sweep and options.save:
        parser.error("--save stores the plan of one run; a sweep has many")
    return options


def whole(least: int):
    """A reader of whole numbers of `least` or more."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is no whole number of {least} or more")
        return int(text)

    return read


def above_zero(text: str) -> float:
    """A reader of numbers above zero."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return number


def main(arguments: list[str] | None = None) -> int:
    """Print what was asked for; 0, or 2 after one line that says what is wrong."""
    from pargo_ds.errors import MachineFault

    options = parse_arguments(arguments)
    try:
        if options.residual is not None:
            from pargo_ds.planning import residual

            print("\n".join(residual.residual(options.residual)))
        elif options.sweep:
            sweep_runs(options)
        else:
            plan_run(options)
    except (ValueError, OSError, MachineFault) as error:
        print(f"plan_run.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def sweep_runs(options: argparse.Namespace) -> None:
    """Print the table of a sweep, draw its picture."""
    from pargo_ds.config import load_config
    from pargo_ds.files.whole_file import write_whole
    from pargo_ds.planning import hardware, host, sweep

    runs = [load_config(file, options.set) for file in options.run_file]
    gpu = hardware.gpu_named(options.gpu, options.gpus_per_node)
    network = hardware.network_of(options.network)
    times = cache(host.measured_times if options.measure_host else host.table_times)
    rows = sweep.sweep(sweep.variants(runs, options.sizes), gpu, network, times)
    print(sweep.table(rows))
    if options.picture:
        write_whole(options.picture, sweep.picture(rows, f"{gpu.name}, {network}"))


def plan_run(options: argparse.Namespace) -> None:
    """Print the plan of one run, and store it. Raises ConfigError for a run that does not fit."""
    from pargo_ds.config import load_config
    from pargo_ds.planning import hardware, host, load, plan, report, residual, subject

    run = load.with_rows_as_packs(load_config(options.run_file[0], options.set), options.gpus)
    gpu = hardware.gpu_named(options.gpu, options.gpus_per_node)
    network = hardware.network_of(options.network)
    what = subject.subject_of(run)
    typical = load.typical_load(run, what.visual_tokens, options.images, options.targets)
    mode = run.train.llm.mode
    times = host.measured_times(mode) if options.measure_host else host.table_times(mode)
    cluster = plan.Cluster(options.gpus, gpu, network, times)
    asked = plan.asked_strategy(what, cluster, typical)
    others = plan.strategies(what, cluster, typical)
    plan.check_fits(asked, others, cluster)
    if options.save:
        residual.save(run.run_dir, residual.prediction(what, cluster, typical, asked))
    print(report.plan_text(what, cluster, typical, asked, others, options.disk))


if __name__ == "__main__":
    raise SystemExit(main())
