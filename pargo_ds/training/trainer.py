"""The loop: load -> forward -> backward -> step -> report -> held-out loss -> save."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pargo_ds import distributed
from pargo_ds.batch import Batch
from pargo_ds.config import RunConfig
from pargo_ds.training.meters import StepMeter
from pargo_ds.training.optimizer import set_learning_rates
from pargo_ds.training.reporting import Reporter

log = logging.getLogger("pargo_ds")


class Trainer:
    """Runs one stage on a DeepSpeed engine.

    `steps` yields this rank's micro-batches of each optimizer step; every rank yields equally many, and each one
    runs vision, projector and LLM exactly once, because ZeRO-3's gathers are collective (a pack without pictures
    brings a blank one, see ParGoForConditionalGeneration.forward).
    """

    def __init__(
        self,
        run: RunConfig,
        engine: Any,
        steps: Iterator[list[Batch]],
        held_out: list[Batch],
        reporter: Reporter,
        meter: StepMeter,
        save: Callable[[int], None],
        total_steps: int,
    ) -> None:
        self.run, self.engine, self.steps, self.held_out = run, engine, steps, held_out
        self.reporter, self.meter, self.save, self.total_steps = reporter, meter, save, total_steps
        self.device = torch.device(engine.device)

    def train(self, first_step: int) -> None:
        """Train from `first_step` (steps already done) to the last step."""
        self.engine.train()
        for step in range(first_step, self.total_steps):
            asked = time.perf_counter()
            batches = next(self.steps)
            self.meter.start(data_wait_s=time.perf_counter() - asked)
            rates = set_learning_rates(self.engine.optimizer.param_groups, self.run, step, self.total_steps)
            loss_sum = self.optimizer_step(batches)
            figures = self.meter.reduce(loss_sum)
            self.check_finite(step + 1, figures["loss"], batches)
            figures |= {f"lr_{part}": rate for part, rate in rates.items()}
            figures |= {"lr": max(rates.values()), "grad_norm": float(self.engine.get_global_grad_norm())}
            last = step + 1 == self.total_steps
            if self.held_out and (last or (step + 1) % self.run.held_out.every == 0):
                figures["held_out_loss"] = self.held_out_loss()
            self.reporter.step(step + 1, figures)
            if last or (step + 1) % self.run.checkpoint.every == 0:
                self.save(step + 1)

    def optimizer_step(self, batches: list[Batch]) -> float:
        """Forward and backward of all micro-batches, then one update; returns this rank's summed cross-entropy.

        The loss is the mean over the target tokens of the global batch. DeepSpeed averages gradients over ranks and
        micro-batches, so each micro-batch's sum is divided by targets / (ranks * micro-batches).
        """
        targets = sum(batch.num_targets for batch in batches)
        (all_targets,) = distributed.all_reduce([targets], self.device)
        denominator = max(1.0, all_targets) / (distributed.world_size() * len(batches))
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in batches:
            output = self.engine(**batch.model_inputs(self.device), num_items_in_batch=denominator)
            self.engine.backward(output.loss)
            self.engine.step()
            loss_sum += output.loss.detach().double() * denominator
            self.meter.add(batch)
        return loss_sum.item()

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean cross-entropy over the target tokens of all held-out packs."""
        self.engine.eval()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in self.held_out:
            output = self.engine(**batch.model_inputs(self.device), num_items_in_batch=1.0)
            loss_sum += output.loss.double()
        self.engine.train()
        targets = sum(batch.num_targets for batch in self.held_out)
        total, count = distributed.all_reduce([loss_sum.item(), targets], self.device)
        return total / max(1.0, count)

    def check_finite(self, step: int, loss: float, batches: list[Batch]) -> None:
        """Stop a run whose loss is no number, naming the samples of this rank's packs."""
        if not math.isfinite(loss):
            names = [name for batch in batches for name in batch.sample_ids]
            raise FloatingPointError(
                f"step {step}: the loss is {loss}; samples of rank {distributed.rank()}: {', '.join(names[:20])}"
                f"{' ...' if len(names) > 20 else ''}. Lower the learning rate or look at these samples; "
                "the newest checkpoint is from before this step"
            )
