#!/usr/bin/env python3
"""Our trainer beside Hugging Face's Trainer + DeepSpeed, as a user of LLaVA writes it, in turns.

Same model, weights, data, samples a step and ZeRO stage; a turn is an epoch. On the demo's questions (`demo`) and
on a mix with long conversations of text only (`mix`). Needs the demo's parts (tools/prepare_demo_parts.py runs/parts);
GPUs are used where there are any.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pargo_ds.errors import UserError
from pargo_ds.speed.training_benchmark import measure
from pargo_ds.speed.training_data import DATA, run_on, write_data
from pargo_ds.speed.training_rows import SYSTEMS, Row, Spread, as_json

EXAMPLES = """examples:
  python tools/bench_training.py --quick --json runs/bench.json
  python tools/bench_training.py --ranks 2 --turns 5 --scenes 240
  python tools/bench_training.py --data mix --scenes 400 --turns 1 --systems hf_trainer_grouped
  python tools/bench_training.py --set deepspeed=ds_configs/zero2.json
"""
QUICK = {"scenes": 12, "turns": 2}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("ds_configs/demo_finetune.yaml"),
        metavar="RUN.yaml",
        help="model and training (default ds_configs/demo_finetune.yaml)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override one setting of it"
    )
    parser.add_argument(
        "--data", nargs="+", choices=DATA, default=list(DATA), help="data sets (default: both)"
    )
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS[1:], default=list(SYSTEMS[1:]),
        help="trainers beside ours (default: both)",
    )  # fmt: skip
    parser.add_argument("--ranks", type=int, help="processes (default: all GPUs, or 1 without one)")
    parser.add_argument("--turns", type=int, help="epochs of each system (default 3; quick: 2)")
    parser.add_argument(
        "--scenes",
        type=int,
        help="questions; the mix has a third as many texts beside (default 120; quick: 12)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few samples: 9 minutes on two idle cores, measured",
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/bench_training"), help="folder for shards and logs"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; 0 when done, 1 for a fault of the user or of a system."""
    import torch

    options = parse_arguments(arguments)
    scenes = options.scenes or (QUICK["scenes"] if options.quick else 120)
    turns = options.turns or (QUICK["turns"] if options.quick else 3)
    ranks = options.ranks or max(1, torch.cuda.device_count())
    try:
        shards = write_data(options.work / "shards", scenes)
        runs = {}
        for data in options.data:
            runs[data] = run_on(options.run, data, shards[data], options.work, options.set, ranks)
        rows = measure(runs, ranks, turns, options.systems)
    except (UserError, RuntimeError) as error:
        print(f"bench_training: error: {error}", file=sys.stderr)
        return 1
    print_rows(rows)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(as_json(rows), indent=2) + "\n")
    return 0


def print_rows(rows: list[Row]) -> None:
    """Print the figures as a Markdown table, median [least, most] of the turns; then a step by
    part.
    """
    heads = (
        "data", "system", "samples/s", "ours over it", "useful tokens/s", "CPU s a sample", "CPU, it over ours",
        "data wait", "computed tokens a useful one", "peak GiB", "samples a step",
    )  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for row in rows:
        cells = (
            row.data, row.system, spread(row.samples_per_s_of_turns), spread(row.ratio_of_turns),
            spread(row.useful_tokens_per_s, 0), spread(row.cpu_s_per_sample), spread(row.cpu_ratio_of_turns),
            f"{row.data_wait.median:.1%}", f"{row.computed_per_useful.median:.2f}",
            f"{row.memory_gib:.2f}", f"{row.samples_per_step:.1f}",
        )  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    parts = list(rows[0].ms_per_sample_by_part)
    print(f"\none step by part, ms a sample:\n\n| data | system | {' | '.join(parts)} |")
    print(f"|{' --- |' * (len(parts) + 2)}")
    for row in rows:
        taken = [f"{row.ms_per_sample_by_part[part]:.0f}" for part in parts]
        print(f"| {row.data} | {row.system} | {' | '.join(taken)} |")


def spread(found: Spread, digits: int = 2) -> str:
    """Return `1.25 [1.20, 1.31]`."""
    return f"{found.median:.{digits}f} [{found.least:.{digits}f}, {found.most:.{digits}f}]"


if __name__ == "__main__":
    sys.exit(main())
