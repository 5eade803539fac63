"""Train one stage: `deepspeed --num_gpus N --module pargo_ds.train RUN.yaml [--set a.b=c ...]`.

The same command continues an interrupted run, on any number of ranks that divides
batch.packs_per_step. SIGTERM, SIGUSR1 (survival.stop_signal) or a file STOP in the run's folder end
it after the running step, saved. `--dry-run` checks everything that needs no GPU, no weights and no
network, and prints it.

exit status: 0 done, or stopped as asked (state.json in the run's folder says which); 1 failed, and
starting again may help; 2 do not start again: a fault in the run file or its inputs, or a loss that
stays no number.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pargo_ds import distributed
from pargo_ds.config import RunConfig, load_config
from pargo_ds.errors import ConfigError, OtherRankError, ShardError, comes_again

if TYPE_CHECKING:
    from pargo_ds.training.survival import StopRequest

log = logging.getLogger("pargo_ds")

EXAMPLES = """examples:
  python -m pargo_ds.train ds_configs/pretrain.yaml --dry-run --ranks 8
  deepspeed --num_gpus 8 --module pargo_ds.train ds_configs/pretrain.yaml
  torchrun --nproc_per_node 2 -m pargo_ds.train ds_configs/demo_pretrain.yaml --set train.steps=20 --set name=try
"""


def positive(text: str) -> int:
    """Read a whole number of 1 or more. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of 1 or more")
    return int(text)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="pargo_ds.train",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_file", help="YAML run file; shipped ones lie in ds_configs/")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        help="override one setting (repeat for more)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check and print the run; nothing is trained"
    )
    parser.add_argument(
        "--stop-after",
        type=positive,
        metavar="STEP",
        help="stop cleanly after this step; start again to go on",
    )
    parser.add_argument(
        "--profile", type=positive, metavar="N", help="torch profile of N steps into RUN/profile"
    )
    parser.add_argument(
        "--ranks", type=positive, help="ranks that --dry-run computes with (default: WORLD_SIZE)"
    )
    # The deepspeed launcher adds it.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status; the module's docstring lists them."""
    from pargo_ds.training.survival import DO_NOT_RESTART, DONE, FAILED

    options = parse_arguments(arguments)
    run: RunConfig | None = None
    try:
        run = load_config(options.run_file, options.set)
        if options.dry_run:
            from pargo_ds.convert.trial.trial import export_says
            from pargo_ds.training.dry_run import describe

            ranks = options.ranks or distributed.world_size()
            print(describe(run, ranks, lambda: export_says(run)))
        else:
            train(run, options.stop_after, options.profile)
        return DONE
    except (ValueError, FileNotFoundError, FloatingPointError, OtherRankError) as error:
        log.debug("stopped", exc_info=True)
        if isinstance(error, OtherRankError):
            if distributed.is_main():
                print(f"pargo_ds.train: error: {_reason(error)} (see logs/)", file=sys.stderr)
        else:
            print(f"pargo_ds.train: error: {error}", file=sys.stderr)
        hopeless = comes_again(error)
        note_failure(run, error, restart=not hopeless)
        return DO_NOT_RESTART if hopeless else FAILED
    except Exception as error:
        log.debug("failed", exc_info=True)
        first = note_failure(run, error, restart=True)
        if isinstance(error, ShardError):
            print(f"pargo_ds.train: error: {_reason(error)}", file=sys.stderr)
            return FAILED
        if first:
            raise
        print(
            f"pargo_ds.train: rank {distributed.rank()} ended because another rank had failed",
            file=sys.stderr,
        )
        return FAILED


def _reason(error: Exception) -> str:
    """The last line of a message: a loader process puts its whole traceback before it."""
    return str(error).strip().splitlines()[-1]


def note_failure(run: RunConfig | None, error: Exception, restart: bool) -> bool:
    """Write why the run ended into its folder, if it has one, and return whether this rank was the
    first to fail.
    """
    from pargo_ds.errors import RunBusyError
    from pargo_ds.training.survival import first_to_fail, write_state

    if run is None or not run.run_dir.is_dir() or isinstance(error, (RunBusyError, OtherRankError)):
        return True
    first = first_to_fail(run.run_dir, error)
    if first:
        reason = f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):  # a full or read-only disk must not hide the error
            write_state(run.run_dir, "failed", reason=reason, restart=restart)
    return first


def check_inputs(run: RunConfig) -> None:
    """Raise ConfigError for faults that need no process group: a missing or empty shard folder, a
    start folder that is no exported model.
    """
    from pargo_ds.data.shards.folder import is_remote
    from pargo_ds.data.shards.mds import read_index

    for path in filter(None, (*(stream.path for stream in run.data.train), run.data.validation)):
        if not is_remote(path) and not any(shard["samples"] for shard in read_index(path).shards):
            raise ConfigError(f"{path} is a folder of shards without a sample; build it again")
    if run.start_from is not None:
        check_start(Path(run.start_from))


def check_start(folder: Path) -> None:
    """Raise ConfigError unless `folder` is an exported model, with LoRA merged."""
    from pargo_ds.convert.hf_folder import read_config

    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"start_from: {folder} is not an exported model (config.json is missing); "
            "export a checkpoint with tools/convert_checkpoint.py zero-to-hf"
        )
    if (folder / "adapter").exists():
        raise ConfigError(
            f"start_from: {folder} keeps LoRA apart in adapter/, and a run that starts there would leave it "
            "out; export it with zero-to-hf --merge-lora"
        )
    read_config(folder)


def train(run: RunConfig, stop_after: int | None = None, profile_steps: int | None = None) -> None:
    """Run or continue `run` on the ranks that the launcher started."""
    from pargo_ds.training import run_folder
    from pargo_ds.training.engine import deepspeed_settings, start_distributed
    from pargo_ds.training.reporting import start_logging
    from pargo_ds.training.survival import StopRequest, mark_running

    settings = deepspeed_settings(run, distributed.world_size())
    check_inputs(run)
    if run_folder.done_file(run).exists():
        if distributed.is_main():
            print(
                f"{run.run_dir} is finished (it has a DONE file); give the run another name to train again"
            )
        return
    device = start_distributed()
    lock = distributed.run_on_all_ranks(lambda: open_folder(run))
    distributed.run_on_all_ranks(lambda: run_folder.check_writable(run))
    start_logging(run.run_dir)
    stop = StopRequest(run.run_dir, run.survival.stop_signal)
    distributed.run_on_all_ranks(lambda: mark_running(run.run_dir, stop))
    failed = True
    try:
        train_on(run, settings, device, stop, stop_after, profile_steps)
        failed = False
    finally:
        distributed.close_process_group(failed)
        if lock is not None:
            lock.close()


def open_folder(run: RunConfig) -> IO[str] | None:
    """Make the run's folder and lock it, on rank 0; the lock lives as long as the returned file."""
    from pargo_ds.training import run_folder

    if not distributed.is_main():
        return None
    run_folder.make_run_folder(run)
    run_folder.check_writable(run)
    lock = run_folder.lock_run_folder(run)
    run_folder.open_run_folder(run)
    return lock


def train_on(
    run: RunConfig,
    settings: dict[str, Any],
    device: Any,
    stop: StopRequest,
    stop_after: int | None,
    profile_steps: int | None,
) -> None:
    """Build everything on the joined process group, then hand over to the loop."""
    from pargo_ds import assembly
    from pargo_ds.assembly.calibration import start_projector
    from pargo_ds.assembly.zero import zero_stage
    from pargo_ds.checkpoint.frozen import frozen_hashes
    from pargo_ds.checkpoint.manifest import versions
    from pargo_ds.checkpoint.resume import find_resume
    from pargo_ds.evaluation.during_training import evaluator, read_slices
    from pargo_ds.training import preparation, run_folder
    from pargo_ds.training.engine import build_engine
    from pargo_ds.training.meters import StepMeter, flop_model
    from pargo_ds.training.profiling import StepProfile
    from pargo_ds.training.reporting import Reporter
    from pargo_ds.training.survival import Watchdog
    from pargo_ds.training.trainer import Trainer

    started = time.perf_counter()
    stage = zero_stage(settings)
    resume = find_resume(run_folder.checkpoints_dir(run))
    processor = assembly.build_processor(run)
    assembly.check_processor(run, processor)
    slices = distributed.run_on_all_ranks(lambda: read_slices(run.evaluation, processor))
    if resume is None or resume[1].versions != versions():
        try_what_follows(run, processor)
    model, fingerprint, again = preparation.prepare_model(run, processor, settings, device, resume)
    packing = model.packing(run.batch.tokens_per_pack, run.batch.tokens_per_row)
    log.info("packed samples: %s (%s)", packing.road, packing.reason)
    loader, validation = assembly.build_loaders(run, processor, packing)
    total_steps = preparation.count_steps(run, loader)
    flops = flop_model(model)
    if not resume:
        start_projector(run, model, loader, device)
    engine = build_engine(model, run, settings)
    frozen = frozen_hashes(engine.module)
    first_step = 0
    totals: dict[str, float] = {}
    if resume:
        first_step, totals = preparation.continue_from(*resume, engine, loader, frozen)

    left_out = {"skipped_too_long": loader.skipped, "refused": loader.refused}
    reporter = Reporter(run, total_steps, first_step, left_out)
    saver = preparation.build_saver(run, engine, stage, fingerprint, frozen, reporter.wandb_run)
    log.info("ready after %.0f s: %d steps", time.perf_counter() - started, total_steps)
    preparation.say_left_out(loader)
    watchdog = Watchdog(run.run_dir / "logs", run.survival.watchdog_minutes)
    profile = None
    if profile_steps:
        profile = StepProfile(run.run_dir / "profile", profile_steps)
    try:
        trainer = Trainer(
            run, engine, loader.steps(), validation, position=loader.state_dict, saver=saver, reporter=reporter,
            meter=StepMeter(run, flops, device, again), stop=stop, watchdog=watchdog, total_steps=total_steps,
            totals=totals, stop_after=stop_after, profile=profile,
            evaluate=evaluator(engine.module, processor, slices, run.evaluation),
        )  # fmt: skip
        steps_done = trainer.train(first_step)
    finally:
        watchdog.close()
        reporter.close()
        if profile is not None:
            profile.close()
    finish(run, stop, steps_done, total_steps)


def try_what_follows(run: RunConfig, processor: Any) -> None:
    """Export, reload and ask a tiny model of this kind, on rank 0; a fault ends the run before
    weights are loaded.

    A run that continues with the same versions has done so when it began.
    """
    from pargo_ds.convert.trial.trial import try_export

    said = distributed.run_on_all_ranks(
        lambda: try_export(run, processor) if distributed.is_main() else None
    )
    if said is not None:
        log.info(said)


def say_residual(run: RunConfig) -> None:
    """Log what tools/plan_run.py --save predicted of this run beside what was measured."""
    from pargo_ds.planning import residual

    if not (run.run_dir / residual.PLAN).is_file():
        return
    try:
        log.info("\n".join(residual.residual(run.run_dir, distributed.world_size())))
    except ConfigError as error:
        log.info("no residual of the plan: %s", error)


def finish(run: RunConfig, stop: StopRequest, steps_done: int, total_steps: int) -> None:
    """Leave DONE, or the word that the run was interrupted."""
    from pargo_ds.training import run_folder
    from pargo_ds.training.survival import write_state

    asked = [reason for reason in distributed.gather_objects(stop.reason) if reason]
    reasons = asked or ["--stop-after"]
    if distributed.is_main() and steps_done == total_steps:
        run_folder.done_file(run).write_text(f"{total_steps} steps\n")
        write_state(run.run_dir, "done", step=steps_done, restart=False)
        say_residual(run)
    elif distributed.is_main():
        write_state(run.run_dir, "interrupted", step=steps_done, reason=reasons[0])
        log.info(
            "stopped after step %d of %d (%s); the same command continues",
            steps_done,
            total_steps,
            reasons[0],
        )
    # A file that came while a signal was being obeyed is a word for what starts next.
    if steps_done == total_steps or reasons[0] == stop.FILE_REASON:
        stop.forget_file()
    distributed.barrier()


if __name__ == "__main__":
    sys.exit(main())
