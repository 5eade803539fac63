#!/usr/bin/env python3
"""Time a checkpoint beside DeepSpeed's own: seconds that training waits, seconds in all, bytes on disk.

Both save the same ZeRO engine in turns: half of its weights trained with AdamW, half frozen. Ours copies to host
memory, writes, flushes and hashes in the background and publishes with a manifest; DeepSpeed's save_checkpoint leaves
the frozen weights out as ours does, flushes and hashes nothing, and holds the training up until all is written.

examples:
  python tools/bench_checkpoint.py --millions 8 32
  torchrun --nproc_per_node 2 tools/bench_checkpoint.py --millions 32 --json checkpoint.json
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from pargo_ds.files.figures_json import figures_json

WIDTH = 1024


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--millions",
        type=float,
        nargs="+",
        default=[8, 32],
        metavar="M",
        help="weights that train (default 8 32)",
    )
    add("--stage", type=int, choices=(1, 2, 3), default=3, help="ZeRO stage (default 3)")
    add(
        "--turns",
        type=int,
        default=5,
        metavar="N",
        help="saves of each kind; the medians count (default 5)",
    )
    add("--folder", type=Path, help="where to write (default: a temporary folder)")
    add("--json", type=Path, metavar="FILE", help="write the figures")
    return parser.parse_args(arguments)


def build(millions: float, stage: int) -> Any:
    """Return a ZeRO engine after one step. It has square layers, of which every second is
    frozen.
    """
    import deepspeed
    import torch

    layers = max(1, round(millions * 1e6 / WIDTH**2))
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(2 * layers)))
    for layer in model[1::2]:
        layer.requires_grad_(False)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": True},
        "steps_per_print": 10**9,
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=settings, dist_init_required=False
    )
    engine.backward(
        engine(torch.randn(1, WIDTH, device=engine.device, dtype=torch.bfloat16))
        .float()
        .square()
        .sum()
    )
    engine.step()
    return engine


def measure(millions: float, stage: int, turns: int, folder: Path) -> dict[str, Any]:
    """Return the medians of both kinds of checkpoint for one size."""
    from pargo_ds import distributed
    from pargo_ds.checkpoint.saver import RunMetadata, Saver

    engine = build(millions, stage)
    facts = RunMetadata(
        model_fingerprint="",
        zero_stage=stage,
        config={"seed": 0},
        model_config={},
        frozen_sources={},
        frozen={},
    )
    saver = Saver(folder / "ours", facts, keep=1)
    ours, theirs = [], []
    for turn in range(turns + 1):
        saver.save(engine, step=turn, data_state={}, totals={})
        saver.wait()
        started = time.perf_counter()
        engine.save_checkpoint(str(folder / "theirs"), tag="engine", exclude_frozen_parameters=True)
        distributed.barrier()
        if turn:  # the first turn has cold caches
            ours.append(saver.last)
            theirs.append(time.perf_counter() - started)
    stalled, total = (
        median(one["stalled_s"] for one in ours),
        median(one["total_s"] for one in ours),
    )
    row = {
        "millions": millions,
        "stage": stage,
        "ranks": distributed.world_size(),
        "stalled_s": stalled,
        "total_s": total,
        "deepspeed_s": median(theirs),
        "stall_ratio": median(theirs) / stalled,
        "total_ratio": median(theirs) / total,
        "mb": size(folder / "ours") / 1e6,
    }
    distributed.barrier()
    if distributed.is_main():
        shutil.rmtree(folder / "ours")
        shutil.rmtree(folder / "theirs")
    distributed.barrier()
    return row


def size(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    options = parse_arguments(arguments)
    from pargo_ds import distributed
    from pargo_ds.training.engine import start_distributed

    start_distributed()
    made = None
    if options.folder is None and distributed.is_main():
        made = tempfile.mkdtemp(prefix="pargo_ds_bench_")
    folder = distributed.broadcast_object(Path(made) if made else options.folder)
    rows = []
    for millions in options.millions:
        rows.append(measure(millions, options.stage, options.turns, folder))
    if distributed.is_main():
        print(
            f"ZeRO {options.stage}, {distributed.world_size()} rank(s), medians of {options.turns}"
        )
        print(
            f"{'trained':>9} {'stalled s':>10} {'in all s':>10} {'DeepSpeed s':>12} {'stall':>7} {'all':>7} {'MB':>7}"
        )
        for row in rows:
            print(
                f"{row['millions']:7.0f} M {row['stalled_s']:10.3f} {row['total_s']:10.3f} {row['deepspeed_s']:12.3f} "
                f"{row['stall_ratio']:5.1f} x {row['total_ratio']:5.1f} x {row['mb']:7.0f}"
            )
        if options.json:
            options.json.write_text(figures_json(rows), encoding="utf-8")
        if made:
            shutil.rmtree(made, ignore_errors=True)
    distributed.close_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
