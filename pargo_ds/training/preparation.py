"""The steps between the model of a run and its loop: what trains, for how many steps, from where, and
who saves it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from pargo_ds import assembly, distributed
from pargo_ds.assembly.freezing import apply_freezing, format_table
from pargo_ds.checkpoint.frozen import check_frozen
from pargo_ds.checkpoint.manifest import Manifest
from pargo_ds.checkpoint.resume import check_resumable, load_checkpoint
from pargo_ds.checkpoint.saver import RunMetadata, Saver
from pargo_ds.config import RunConfig
from pargo_ds.errors import ConfigError
from pargo_ds.model import ParGoForConditionalGeneration, ParGoProcessor
from pargo_ds.slow_bf16 import slow_bf16
from pargo_ds.training import recompute, run_folder
from pargo_ds.training.compiling import check_llm

log = logging.getLogger("pargo_ds")


def prepare_model(
    run: RunConfig,
    processor: ParGoProcessor,
    settings: dict[str, Any],
    device: torch.device,
    resume: tuple[Path, Manifest] | None,
) -> tuple[ParGoForConditionalGeneration, str, recompute.Recompute]:
    """Return (the model with its weights and all that does not train frozen, its fingerprint, what
    it computes again in backward).

    Raises ConfigError when weights and run file do not belong together, and CheckpointError when
    the checkpoint in `resume` is of another model.
    """
    check_llm(run, assembly.llm_config(run))
    model = assembly.build_model(run, processor, settings)
    fingerprint = freeze(run, model, device, resume)
    again = recompute.decide(run, model, settings, device)
    recompute.apply(model, again)
    log.info("%s", again)
    return model, fingerprint, again


def freeze(
    run: RunConfig,
    model: ParGoForConditionalGeneration,
    device: torch.device,
    resume: tuple[Path, Manifest] | None,
) -> str:
    """Freeze what does not train, log the table of parts, and return the model's fingerprint.

    Raises CheckpointError when the checkpoint in `resume` is of another model.
    """
    table = apply_freezing(model, run.train)
    fingerprint = assembly.model_fingerprint(model)
    if resume:
        folder, manifest = resume
        check_resumable(manifest, folder, fingerprint=fingerprint)
    ranks = distributed.world_size()
    log.info("run %s: %d ranks on %s\n%s", run.name, ranks, device.type, format_table(table))
    if run.train.precision == "bf16" and (slow := slow_bf16(device)):
        log.warning("%s: train.precision=fp32 is the faster one here", slow)
    return fingerprint


def count_steps(run: RunConfig, loader: Any) -> int:
    """Return the steps of the whole run, which the run file says in steps or in epochs.

    Raises ConfigError as `check_warmup`.
    """
    epochs = range(run.train.epochs or 0)
    total_steps = run.train.steps or sum(loader.steps_per_epoch(epoch) for epoch in epochs)
    check_warmup(run, total_steps)
    return total_steps


def check_warmup(run: RunConfig, total_steps: int) -> None:
    """Raise ConfigError where the warm-up would outlast the epochs: the peak rates would never be
    reached.
    """
    if run.train.warmup_steps >= total_steps:
        raise ConfigError(
            f"train.warmup_steps ({run.train.warmup_steps}) must be below the run's {total_steps} steps "
            f"(train.epochs: {run.train.epochs} of this data)"
        )


def continue_from(
    folder: Path, manifest: Manifest, engine: Any, loader: Any, frozen: dict[str, str]
) -> tuple[int, dict[str, float]]:
    """Put engine and loader where the checkpoint was saved, and return (its step, the totals of the
    run until then). Collective.

    Raises CheckpointError when the frozen weights are others, or the checkpoint does not fit.
    """
    if manifest.frozen:
        check_frozen(frozen, manifest.frozen, str(folder))
    load_checkpoint(folder, manifest, engine)
    loader.load_state_dict(manifest.data_state)
    log.info("continuing after step %d from %s", manifest.step, folder)
    return manifest.step, manifest.totals


def say_left_out(loader: Any) -> None:
    """Log how much of the data the run leaves out, and why."""
    if loader.skipped:
        log.info(
            "left out %d conversations longer than batch.tokens_per_pack (data.too_long: skip)",
            loader.skipped,
        )
    if loader.refused:
        log.info(
            "left out %d samples of which no conversation can be made (data.refused: skip)",
            loader.refused,
        )


def build_saver(
    run: RunConfig,
    engine: Any,
    stage: int,
    fingerprint: str,
    frozen: dict[str, str],
    wandb_run: str | None,
) -> Saver:
    """Return the writer of this run's checkpoints."""
    facts = RunMetadata(
        model_fingerprint=fingerprint,
        zero_stage=stage,
        config=run.model_dump(mode="json"),
        model_config=assembly.model_description(engine.module),
        frozen_sources=assembly.frozen_sources(run),
        frozen=frozen,
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
