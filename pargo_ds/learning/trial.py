"""One trial: a run file's model and data, trained in one process without DeepSpeed, measured along the way.

The ordinary processor, model, loader, parameter groups and schedule are used; the loss of each step is the trainer's
(tests/learning compares them). What trains is kept in float32; with `precision: bf16` it computes under autocast.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pargo_ds.batch import Batch
from pargo_ds.config import RunConfig
from pargo_ds.learning.measures import ImageShare, caption_gap, module_norms, updates
from pargo_ds.training import assembly
from pargo_ds.training.calibration import start_projector
from pargo_ds.training.freezing import apply_freezing
from pargo_ds.training.optimizer import parameter_groups, set_learning_rates

WATCHED_STEPS = 100
"""Norms of gradients and updates are kept for each module over so many first steps."""


class Measured(NamedTuple):
    """What one trial needs."""

    run: RunConfig
    model: nn.Module
    batches: Iterator[list[Batch]]
    held_out: list[Batch]


def run_trial(run: RunConfig, out: Path, *, every: int, until: float | None = None) -> None:
    """Train `run.train.steps` steps and write a JSON line for each into `out`, which is whole or absent.

    A line has step, images, loss, grad_norm; over the first steps also, by module, the norm of its gradient and of its
    update relative to its weights; every `every` steps and at both ends `right`, `wrong`, `gap` (caption_gap) and
    `image_share` (ImageShare). With `until` the trial ends when a measured gap (nats) is at least so large; its
    schedule stays that of all steps.

    Raises ConfigError or ValueError for a run file that does not fit, FloatingPointError for a loss that is no number.
    """
    trial = prepare(run)
    part = out.with_name(out.name + ".part")
    out.parent.mkdir(parents=True, exist_ok=True)
    with part.open("w", encoding="utf-8") as file:
        for line in lines(trial, every):
            file.write(json.dumps(line) + "\n")
            file.flush()
            if until is not None and line.get("gap", float("-inf")) >= until:
                break
    part.replace(out)


def prepare(run: RunConfig) -> Measured:
    """Model, training batches and held-out batches of a run file, as its training would have them."""
    if run.train.steps is None:
        raise ValueError("a trial counts steps: set train.steps instead of train.epochs")
    processor = assembly.build_processor(run)
    model = assembly.build_model(run, processor, None)
    apply_freezing(model, run.train)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    loader, held_out = assembly.build_loaders(run, processor, model.packing(run.batch.tokens_per_pack))
    if not held_out:
        raise ValueError("data.held_out: a trial measures on held-out images; name their shards")
    start_projector(run, model, loader, "cpu")
    return Measured(run, model, loader.steps(), held_out)


def lines(trial: Measured, every: int) -> Iterator[dict[str, Any]]:
    """The lines of run_trial; line 0 is the start, before any update."""
    run, model = trial.run, trial.model
    steps = run.train.steps
    groups = parameter_groups(model, run)
    optimizer = torch.optim.AdamW(groups, betas=run.train.betas, eps=run.train.eps)
    share = ImageShare(model)
    yield {"step": 0, "images": 0, "seconds": 0.0, **measure(trial, share)}
    images, seconds = 0, 0.0
    for step in range(steps):
        started = time.perf_counter()
        set_learning_rates(optimizer.param_groups, run, step, steps)
        batches = next(trial.batches)
        line = optimizer_step(trial, optimizer, batches, watched=step < WATCHED_STEPS)
        seconds += time.perf_counter() - started
        images += sum(batch.num_images for batch in batches)
        line = {"step": step + 1, "images": images, "seconds": round(seconds, 2), **line}
        if (step + 1) % every == 0 or step + 1 == steps:
            line |= measure(trial, share)
        yield line


def measure(trial: Measured, share: ImageShare) -> dict[str, Any]:
    """right, wrong, gap and image_share on the held-out packs."""
    trial.model.eval()
    with torch.no_grad(), autocast(trial.run):
        figures = caption_gap(trial.model, trial.held_out)
        figures["image_share"] = share.measure(trial.held_out[0].pixel_values)
    trial.model.train()
    return figures


def optimizer_step(
    trial: Measured, optimizer: torch.optim.Optimizer, batches: list[Batch], watched: bool
) -> dict[str, Any]:
    """One update over the packs of a step, as trainer.Trainer.optimizer_step; returns its figures."""
    targets = max(1.0, float(sum(batch.num_targets for batch in batches)))
    loss = 0.0
    for batch in batches:
        with autocast(trial.run):
            output = trial.model(**batch.model_inputs("cpu"), num_items_in_batch=targets)
        output.loss.backward()
        loss += float(output.loss.detach())
    if loss != loss:
        raise FloatingPointError(f"the loss is no number; packs of {', '.join(batches[0].sample_ids[:3])}, ...")
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norms = module_norms(trial.model) if watched else {}
    before = [p.detach().clone() for p in trained] if watched else []
    total = float(nn.utils.clip_grad_norm_(trained, trial.run.train.clip_norm))
    optimizer.step()
    optimizer.zero_grad()
    line = {"loss": loss, "grad_norm": total}
    if watched:
        line |= {"grad_norms": norms, "updates": updates(trial.model, trained, before)}
    return line


def autocast(run: RunConfig) -> AbstractContextManager:
    """bf16 computation over float32 weights where the run asks for bf16."""
    return torch.autocast("cpu", torch.bfloat16) if run.train.precision == "bf16" else nullcontext()
