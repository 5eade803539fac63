"""Train one stage: `deepspeed --num_gpus N --module pargo_ds.train RUN.yaml [--set a.b=c ...]`.

The same command continues an interrupted run. `--dry-run` checks everything that needs no GPU, no weights and no
network, and prints it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

from pargo_ds import distributed
from pargo_ds.config import ConfigError, RunConfig, load_config

log = logging.getLogger("pargo_ds")

EXAMPLES = """examples:
  python -m pargo_ds.train ds_configs/pretrain.yaml --dry-run --ranks 8
  deepspeed --num_gpus 8 --module pargo_ds.train ds_configs/pretrain.yaml
  torchrun --nproc_per_node 2 -m pargo_ds.train ds_configs/demo_pretrain.yaml --set train.steps=10 --set name=try
"""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pargo_ds.train",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_file", help="YAML run file; shipped ones lie in ds_configs/")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override one setting (repeat for more)"
    )
    parser.add_argument("--dry-run", action="store_true", help="check and print the run; nothing is trained")
    parser.add_argument("--ranks", type=int, help="number of ranks that --dry-run computes with (default: WORLD_SIZE)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0 when done, 2 for a fault in the run file or its inputs, 1 for anything else."""
    options = parse_arguments(arguments)
    try:
        run = load_config(options.run_file, options.set)
        if options.dry_run:
            from pargo_ds.training.dry_run import describe

            print(describe(run, options.ranks or distributed.world_size()))
        else:
            train(run)
        return 0
    except (ValueError, FileNotFoundError, FloatingPointError, distributed.OtherRankError) as error:
        log.debug("stopped", exc_info=True)
        if distributed.is_main() or not isinstance(error, distributed.OtherRankError):
            print(f"pargo_ds.train: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def check_inputs(run: RunConfig) -> None:
    """Faults that need no process group: a missing shard folder or start folder."""
    from pargo_ds.data.shards import read_index
    from pargo_ds.data.stores import is_remote

    for path in filter(None, (*(stream.path for stream in run.data.train), run.data.held_out)):
        if not is_remote(path):
            read_index(path)
    if run.start_from is not None and not (Path(run.start_from) / "config.json").is_file():
        raise ConfigError(
            f"start_from: {run.start_from} is not an exported model (config.json is missing); "
            "export a checkpoint with tools/convert_checkpoint.py zero-to-hf"
        )


def train(run: RunConfig) -> None:
    """Run or continue `run` on the ranks that the launcher started."""
    from pargo_ds.training import run_folder
    from pargo_ds.training.engine import deepspeed_settings, start_distributed
    from pargo_ds.training.reporting import start_logging

    settings = deepspeed_settings(run, distributed.world_size())
    check_inputs(run)
    if run_folder.done_file(run).exists():
        if distributed.is_main():
            print(f"{run.run_dir} is finished (it has a DONE file); give the run another name to train again")
        return
    device = start_distributed()
    distributed.together(lambda: run_folder.open_run_folder(run) if distributed.is_main() else None)
    start_logging(run.run_dir)
    try:
        train_on(run, settings, device)
    finally:
        close_process_group()


def train_on(run: RunConfig, settings: dict[str, Any], device: Any) -> None:
    """Build everything on the joined process group, then hand over to the loop."""
    from pargo_ds.checkpoint import store
    from pargo_ds.training import assembly, run_folder
    from pargo_ds.training.engine import build_engine, zero_stage
    from pargo_ds.training.freezing import apply_freezing, format_table
    from pargo_ds.training.meters import StepMeter
    from pargo_ds.training.reporting import Reporter
    from pargo_ds.training.trainer import Trainer

    started = time.perf_counter()
    stage, checkpoints = zero_stage(settings), run_folder.checkpoints_dir(run)
    resume = store.find_resume(checkpoints)
    processor = assembly.build_processor(run)
    model = assembly.build_model(run, processor, settings)
    table = apply_freezing(model, run.train)
    fingerprint = assembly.model_fingerprint(model)
    if resume:
        folder, manifest = resume
        world = distributed.world_size()
        store.check_resumable(manifest, folder, world_size=world, stage=stage, fingerprint=fingerprint)
    log.info("%s\n%s", f"run {run.name}: {distributed.world_size()} ranks on {device.type}", format_table(table))

    loader, held_out = assembly.build_loaders(run, processor)
    total_steps = run.train.steps or sum(loader.steps_per_epoch(epoch) for epoch in range(run.train.epochs))
    flops = assembly.flop_model(model)
    engine = build_engine(model, run, settings)
    first_step = 0
    if resume:
        store.load(folder, engine)
        loader.load_state_dict(manifest.data_state)
        first_step = manifest.step
        log.info("continuing after step %d from %s", first_step, folder)

    def save(step: int) -> None:
        where = store.save(
            checkpoints,
            engine,
            step=step,
            zero_stage=stage,
            data_state=loader.state_dict(),
            model_fingerprint=fingerprint,
            config=run.model_dump(mode="json"),
            frozen_sources=assembly.frozen_sources(run),
            keep=run.checkpoint.keep,
        )
        log.info("saved %s", where)

    reporter = Reporter(run, total_steps, first_step, {"skipped_too_long": loader.skipped})
    log.info("ready after %.0f s: %d steps", time.perf_counter() - started, total_steps)
    if loader.skipped:
        log.info("left out %d conversations longer than batch.tokens_per_pack (data.too_long: skip)", loader.skipped)
    meter = StepMeter(run, flops, device)
    try:
        Trainer(run, engine, loader.steps(), held_out, reporter, meter, save, total_steps).train(first_step)
    finally:
        reporter.close()
    if distributed.is_main():
        run_folder.done_file(run).write_text(f"{total_steps} steps\n")
    distributed.barrier()


def close_process_group() -> None:
    """Leave the process group; without it gloo's threads may abort at interpreter exit."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
