"""Train one stage: `deepspeed --num_gpus N --module pargo_ds.train RUN.yaml [--set a.b=c ...]`.

The same command continues an interrupted run, on any number of ranks that divides batch.packs_per_step. SIGTERM,
SIGUSR1 (survival.stop_signal) or a file STOP in the run's folder end it after the running step, saved. `--dry-run`
checks everything that needs no GPU, no weights and no network, and prints it.

exit status: 0 done, or stopped as asked (state.json in the run's folder says which); 1 failed, and starting again may
help; 2 do not start again: a fault in the run file or its inputs, or a loss that stays no number.
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
from pargo_ds.config import ConfigError, RunConfig, load_config

if TYPE_CHECKING:
    from pargo_ds.checkpoint.store import Saver
    from pargo_ds.training.survival import StopRequest

log = logging.getLogger("pargo_ds")

EXAMPLES = """examples:
  python -m pargo_ds.train ds_configs/pretrain.yaml --dry-run --ranks 8
  deepspeed --num_gpus 8 --module pargo_ds.train ds_configs/pretrain.yaml
  torchrun --nproc_per_node 2 -m pargo_ds.train ds_configs/demo_pretrain.yaml --set train.steps=10 --set name=try
"""


def positive(text: str) -> int:
    """A whole number of 1 or more. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of 1 or more")
    return int(text)


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
    parser.add_argument(
        "--stop-after", type=positive, metavar="STEP", help="stop cleanly after this step; start again to go on"
    )
    parser.add_argument("--profile", type=positive, metavar="N", help="torch profile of N steps into RUN/profile")
    parser.add_argument("--ranks", type=positive, help="ranks that --dry-run computes with (default: WORLD_SIZE)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit statuses stand in the module's docstring."""
    from pargo_ds.training.survival import DO_NOT_RESTART, DONE, FAILED

    options = parse_arguments(arguments)
    run: RunConfig | None = None
    try:
        run = load_config(options.run_file, options.set)
        if options.dry_run:
            from pargo_ds.convert.trial.trial import export_says
            from pargo_ds.training.dry_run import describe

            print(describe(run, options.ranks or distributed.world_size(), lambda: export_says(run)))
        else:
            train(run, options.stop_after, options.profile)
        return DONE
    except (ValueError, FileNotFoundError, FloatingPointError, distributed.OtherRankError) as error:
        log.debug("stopped", exc_info=True)
        if isinstance(error, distributed.OtherRankError):
            if distributed.is_main():
                print(f"pargo_ds.train: error: {_reason(error)} (see logs/)", file=sys.stderr)
        else:
            print(f"pargo_ds.train: error: {error}", file=sys.stderr)
        hopeless = isinstance(error, (ValueError, FloatingPointError))
        note_failure(run, error, restart=not hopeless)
        return DO_NOT_RESTART if hopeless else FAILED
    except Exception as error:
        log.debug("failed", exc_info=True)
        first = note_failure(run, error, restart=True)
        if type(error).__name__ == "ShardError":  # by name: its module need not be loaded for this
            print(f"pargo_ds.train: error: {_reason(error)}", file=sys.stderr)
            return FAILED
        if first:
            raise
        print(f"pargo_ds.train: rank {distributed.rank()} ended because another rank had failed", file=sys.stderr)
        return FAILED


def _reason(error: Exception) -> str:
    """The last line of a message: a loader process puts its whole traceback before it."""
    return str(error).strip().splitlines()[-1]


def note_failure(run: RunConfig | None, error: Exception, restart: bool) -> bool:
    """Write why the run ended into its folder, if it has one; whether this rank was the first to fail."""
    from pargo_ds.training.run_folder import RunBusyError
    from pargo_ds.training.survival import first_to_fail, write_state

    if run is None or not run.run_dir.is_dir() or isinstance(error, (RunBusyError, distributed.OtherRankError)):
        return True
    first = first_to_fail(run.run_dir, error)
    if first:
        with contextlib.suppress(OSError):  # a full or read-only disk must not hide the error itself
            write_state(run.run_dir, "failed", reason=f"{type(error).__name__}: {error}", restart=restart)
    return first


def check_inputs(run: RunConfig) -> None:
    """Faults that need no process group: a missing or empty shard folder, a start folder that is no exported model."""
    from pargo_ds.data.shards import read_index
    from pargo_ds.data.stores import is_remote

    for path in filter(None, (*(stream.path for stream in run.data.train), run.data.held_out)):
        if not is_remote(path) and not any(shard["samples"] for shard in read_index(path)["shards"]):
            raise ConfigError(f"{path} is a folder of shards without a sample; build it again")
    if run.start_from is not None:
        check_start(Path(run.start_from))


def check_start(folder: Path) -> None:
    """ValueError unless `folder` is an exported model, LoRA merged."""
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
    from pargo_ds.training.survival import StopRequest, begin

    settings = deepspeed_settings(run, distributed.world_size())
    check_inputs(run)
    if run_folder.done_file(run).exists():
        if distributed.is_main():
            print(f"{run.run_dir} is finished (it has a DONE file); give the run another name to train again")
        return
    device = start_distributed()
    lock = distributed.together(lambda: open_folder(run))
    distributed.together(lambda: run_folder.check_writable(run))
    start_logging(run.run_dir)
    stop = StopRequest(run.run_dir, run.survival.stop_signal)
    distributed.together(lambda: begin(run.run_dir, stop))
    try:
        train_on(run, settings, device, stop, stop_after, profile_steps)
    finally:
        distributed.close_process_group()
        if lock is not None:
            lock.close()


def open_folder(run: RunConfig) -> IO[str] | None:
    """Rank 0: make the run's folder and lock it; the lock lives as long as the returned file."""
    from pargo_ds.training import run_folder

    if not distributed.is_main():
        return None
    run_folder.make_run_folder(run)
    run_folder.check_writable(run)
    lock = run_folder.hold(run)
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
    from pargo_ds.checkpoint import store
    from pargo_ds.checkpoint.frozen import check_frozen, frozen_hashes
    from pargo_ds.training import assembly, run_folder
    from pargo_ds.training.calibration import start_projector
    from pargo_ds.training.engine import build_engine, zero_stage
    from pargo_ds.training.freezing import apply_freezing, format_table
    from pargo_ds.training.meters import StepMeter
    from pargo_ds.training.profiling import StepProfile
    from pargo_ds.training.reporting import Reporter
    from pargo_ds.training.survival import Watchdog
    from pargo_ds.training.trainer import Trainer

    started = time.perf_counter()
    stage = zero_stage(settings)
    resume = store.find_resume(run_folder.checkpoints_dir(run))
    processor = assembly.build_processor(run)
    assembly.check_processor(run, processor)
    if resume is None or resume[1].versions != store.versions():
        try_what_follows(run, processor)
    model = assembly.build_model(run, processor, settings)
    table = apply_freezing(model, run.train)
    fingerprint = assembly.model_fingerprint(model)
    if resume:
        folder, manifest = resume
        store.check_resumable(manifest, folder, stage=stage, fingerprint=fingerprint)
    log.info("%s\n%s", f"run {run.name}: {distributed.world_size()} ranks on {device.type}", format_table(table))

    packing = model.packing(run.batch.tokens_per_pack)
    log.info("packed samples: %s (%s)", packing.road, packing.reason)
    loader, held_out = assembly.build_loaders(run, processor, packing)
    total_steps = run.train.steps or sum(loader.steps_per_epoch(epoch) for epoch in range(run.train.epochs))
    check_warmup(run, total_steps)
    flops = assembly.flop_model(model)
    if not resume:
        start_projector(run, model, loader, device)
    engine = build_engine(model, run, settings)
    frozen = frozen_hashes(engine.module)
    first_step, totals = 0, {}
    if resume:
        if manifest.frozen:
            check_frozen(frozen, manifest.frozen, str(folder))
        store.load(folder, manifest, engine)
        loader.load_state_dict(manifest.data_state)
        first_step, totals = manifest.step, manifest.totals
        log.info("continuing after step %d from %s", first_step, folder)

    reporter = Reporter(run, total_steps, first_step, {"skipped_too_long": loader.skipped, "refused": loader.refused})
    saver = build_saver(run, engine, stage, fingerprint, frozen, reporter.wandb_run)
    log.info("ready after %.0f s: %d steps", time.perf_counter() - started, total_steps)
    say_left_out(loader)
    watchdog = Watchdog(run.run_dir / "logs", run.survival.watchdog_minutes)
    profile = StepProfile(run.run_dir / "profile", profile_steps) if profile_steps else None
    try:
        trainer = Trainer(
            run, engine, loader.steps(), held_out, position=loader.state_dict, saver=saver, reporter=reporter,
            meter=StepMeter(run, flops, device), stop=stop, watchdog=watchdog, total_steps=total_steps, totals=totals,
            stop_after=stop_after, profile=profile,
        )  # fmt: skip
        steps_done = trainer.train(first_step)
    finally:
        watchdog.close()
        reporter.close()
        if profile is not None:
            profile.close()
    finish(run, stop, steps_done, total_steps)


def say_left_out(loader: Any) -> None:
    """Log how much of the data the run leaves out, and why."""
    if loader.skipped:
        log.info("left out %d conversations longer than batch.tokens_per_pack (data.too_long: skip)", loader.skipped)
    if loader.refused:
        log.info("left out %d samples of which no conversation can be made (data.refused: skip)", loader.refused)


def check_warmup(run: RunConfig, total_steps: int) -> None:
    """ConfigError where the warm-up would outlast the epochs: the peak rates would never be reached."""
    if run.train.warmup_steps >= total_steps:
        raise ConfigError(
            f"train.warmup_steps ({run.train.warmup_steps}) must be below the run's {total_steps} steps "
            f"(train.epochs: {run.train.epochs} of this data)"
        )


def try_what_follows(run: RunConfig, processor: Any) -> None:
    """Export, reload and ask a tiny model of this kind, on rank 0; a fault ends the run before weights are loaded.

    A run that continues with the same versions has done so when it began.
    """
    from pargo_ds.convert.trial.trial import try_export

    said = distributed.together(lambda: try_export(run, processor) if distributed.is_main() else None)
    if said is not None:
        log.info(said)


def build_saver(
    run: RunConfig, engine: Any, stage: int, fingerprint: str, frozen: dict[str, str], wandb_run: str | None
) -> Saver:
    """The writer of this run's checkpoints."""
    from pargo_ds.checkpoint.frozen import frozen_shapes
    from pargo_ds.checkpoint.store import RunFacts, Saver
    from pargo_ds.training import assembly, run_folder

    facts = RunFacts(
        model_fingerprint=fingerprint,
        zero_stage=stage,
        config=run.model_dump(mode="json"),
        frozen_sources=assembly.frozen_sources(run),
        frozen=frozen,
        frozen_shapes=frozen_shapes(engine.module),
        wandb_run=wandb_run,
    )
    saving = run.checkpoint
    return Saver(
        run_folder.checkpoints_dir(run),
        facts,
        keep=saving.keep,
        keep_every=saving.keep_every,
        background=saving.background,
    )


def finish(run: RunConfig, stop: StopRequest, steps_done: int, total_steps: int) -> None:
    """Leave DONE, or the word that the run was interrupted."""
    from pargo_ds.training import run_folder
    from pargo_ds.training.survival import write_state

    reasons = [reason for reason in distributed.gather_objects(stop.reason) if reason] or ["--stop-after"]
    if distributed.is_main() and steps_done == total_steps:
        run_folder.done_file(run).write_text(f"{total_steps} steps\n")
        write_state(run.run_dir, "done", step=steps_done, restart=False)
    elif distributed.is_main():
        write_state(run.run_dir, "interrupted", step=steps_done, reason=reasons[0])
        log.info("stopped after step %d of %d (%s); the same command continues", steps_done, total_steps, reasons[0])
    # A file that came while a signal was being obeyed is a word for what starts next.
    if steps_done == total_steps or reasons[0] == stop.FILE_REASON:
        stop.forget_file()
    distributed.barrier()


if __name__ == "__main__":
    sys.exit(main())
