"""One trial: a run file's model and data, trained in one process without DeepSpeed, measured along
the way.

The ordinary processor, model, loader, parameter groups and schedule are used; the loss of each step
is the trainer's (tests/learning compares them). What trains is kept in float32; with `precision:
bf16` it computes under autocast.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pargo_ds import assembly
from pargo_ds.assembly.calibration import start_projector
from pargo_ds.assembly.freezing import apply_freezing
from pargo_ds.batch import Batch
from pargo_ds.config import RunConfig
from pargo_ds.learning.measures import ImageShare, caption_gap, module_norms, updates
from pargo_ds.model import ParGoForConditionalGeneration, ParGoProcessor
from pargo_ds.training import recompute
from pargo_ds.training.optimizer import parameter_groups, set_learning_rates

WATCHED_STEPS = 100
"""Number of first steps for which the norms of gradients and updates of each module are
recorded.
"""


class Measured(NamedTuple):
    """What one trial needs."""

    run: RunConfig
    processor: ParGoProcessor
    model: ParGoForConditionalGeneration
    batches: Iterator[list[Batch]]
    validation: list[Batch]


def run_trial(run: RunConfig, out: Path, *, every: int, until: float | None = None) -> None:
    """Train `run.train.steps` steps and write a JSON line for each into `out`, which is whole or
    absent.

    A line has step, images, loss, grad_norm; over the first steps also, by module, the norm of its
    gradient and of its update relative to its weights; every `every` steps and at both ends
    `right`, `wrong`, `gap` (caption_gap) and `image_share` (ImageShare). With `until` the trial
    ends when a measured gap (nats) is at least so large; its schedule stays that of all steps.

    Raises ConfigError or ValueError for a run file that does not fit, FloatingPointError for a loss
    that is no number.
    """
    write_lines(prepare(run), out, every=every, until=until)


def write_lines(trial: Measured, out: Path, *, every: int, until: float | None = None) -> None:
    """Train a prepared trial and write the lines of run_trial. Raises as run_trial does."""
    # Not written by files/whole_file, because sweep.written counts the lines of the unfinished
    # file.
    part = out.with_name(out.name + ".part")
    out.parent.mkdir(parents=True, exist_ok=True)
    with part.open("w", encoding="utf-8") as file:
        for line in lines(trial, every):
            file.write(json.dumps(line) + "\n")
            file.flush()
            if until is not None and line.get("gap", float("-inf")) >= until:
                break
    part.replace(out)


def steps_of(run: RunConfig) -> int:
    """Return the number of steps of a trial. Raises ValueError for a run that counts epochs."""
    if run.train.steps is None:
        raise ValueError("a trial counts steps: set train.steps instead of train.epochs")
    return run.train.steps


def prepare(run: RunConfig) -> Measured:
    """Prepare model, training batches and held-out batches of a run file, as its training would
    have them.
    """
    steps_of(run)
    processor = assembly.build_processor(run)
    model = assembly.build_model(run, processor, None)
    apply_freezing(model, run.train)
    recompute.apply(model, recompute.decide(run, model, {}, torch.device("cpu")))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    loader, validation = assembly.build_loaders(
        run, processor, model.packing(run.batch.tokens_per_pack)
    )
    if not validation:
        raise ValueError("data.validation: a trial measures on held-out images; name their shards")
    start_projector(run, model, loader, "cpu")
    return Measured(run, processor, model, loader.steps(), validation)


def lines(trial: Measured, every: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of run_trial; line 0 is the start, before any update."""
    run, model = trial.run, trial.model
    steps = steps_of(run)
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
    """Measure right, wrong, gap and image_share on the held-out packs."""
    trial.model.eval()
    with torch.no_grad(), autocast(trial.run):
        figures: dict[str, Any] = {**caption_gap(trial.model, trial.validation)}
        figures["image_share"] = share.measure(trial.validation[0].pixel_values)
    trial.model.train()
    return figures


def optimizer_step(
    trial: Measured, optimizer: torch.optim.Optimizer, batches: list[Batch], watched: bool
) -> dict[str, Any]:
    """Make one update over the packs of a step, as trainer.Trainer.optimizer_step; returns its
    figures.
    """
    targets = max(1.0, float(sum(batch.num_targets for batch in batches)))
    loss = 0.0
    for batch in batches:
        with autocast(trial.run):
            output = trial.model(**batch.model_inputs("cpu"), num_items_in_batch=targets)
        output.loss.backward()
        loss += float(output.loss.detach())
    if loss != loss:
        raise FloatingPointError(
            f"the loss is no number; packs of {', '.join(batches[0].sample_ids[:3])}, ..."
        )
    trained = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    watch: dict[str, Any] = {}
    before: list[torch.Tensor] = []
    if watched:
        watch["grad_norms"] = module_norms(trial.model)
        before = [parameter.detach().clone() for parameter in trained]
    total = float(nn.utils.clip_grad_norm_(trained, trial.run.train.clip_norm))
    optimizer.step()
    optimizer.zero_grad()
    if watched:
        watch["updates"] = updates(trial.model, trained, before)
    return {"loss": loss, "grad_norm": total, **watch}


def autocast(run: RunConfig) -> AbstractContextManager:
    """Return a context of bf16 computation over float32 weights where the run asks for bf16."""
    if run.train.precision != "bf16":
        return nullcontext()
    return torch.autocast("cpu", torch.bfloat16)
