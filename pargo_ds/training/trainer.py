"""The loop: load -> forward -> backward -> step -> report -> held-out loss -> save."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pargo_ds import distributed
from pargo_ds.batch import Batch
from pargo_ds.checkpoint.store import Saver
from pargo_ds.config import RunConfig
from pargo_ds.training.bad_steps import BadSteps
from pargo_ds.training.meters import StepMeter
from pargo_ds.training.optimizer import set_learning_rates
from pargo_ds.training.profiling import StepProfile
from pargo_ds.training.reporting import Reporter
from pargo_ds.training.survival import StopRequest, Watchdog

TOTALS = ("tokens", "target_tokens", "images", "samples", "skipped_steps")
"""Figures that are added up over the whole run, across its interruptions."""


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
        *,
        position: Callable[[], dict[str, Any]],
        saver: Saver,
        reporter: Reporter,
        meter: StepMeter,
        stop: StopRequest,
        watchdog: Watchdog,
        total_steps: int,
        totals: dict[str, float],
        stop_after: int | None = None,
        profile: StepProfile | None = None,
    ) -> None:
        self.run, self.engine, self.steps, self.held_out = run, engine, steps, held_out
        self.position, self.saver, self.reporter, self.meter = position, saver, reporter, meter
        self.stop, self.watchdog, self.profile = stop, watchdog, profile
        self.total_steps, self.stop_after = total_steps, stop_after
        self.totals = {name: totals.get(name, 0.0) for name in TOTALS}
        self.bad_steps = BadSteps(run.survival.bad_steps)
        self.device = torch.device(engine.device)

    def train(self, first_step: int) -> int:
        """Train from `first_step` (steps already done) to the last step, or to the one at whose end all ranks agree to
        stop; returns the steps done. The last checkpoint is whole when this returns."""
        self.engine.train()
        step = first_step
        stopping = False
        while step < self.total_steps and not stopping:
            self.watchdog.beat()
            batches, all_targets = self.next_batches()
            rates = set_learning_rates(self.engine.optimizer.param_groups, self.run, step, self.total_steps)
            loss_sum = self.optimizer_step(batches, all_targets)
            step += 1
            figures = self.figures(step, loss_sum, rates, batches)
            stopping = self.agree_to_stop() or step == self.stop_after
            last = step == self.total_steps
            if self.held_out and (last or step % self.run.held_out.every == 0):
                self.watchdog.beat()
                figures["held_out_loss"] = self.held_out_loss()
            self.reporter.step(step, figures)
            if last or stopping or step % self.run.checkpoint.every == 0:
                self.watchdog.beat()
                self.saver.save(self.engine, step=step, data_state=self.position(), totals=self.totals)
            if self.profile is not None:
                self.profile.step()
        self.saver.wait()
        return step

    def next_batches(self) -> tuple[list[Batch], float]:
        """This rank's micro-batches of the next step, and the target tokens of all ranks; the meter counts the wait.

        Raises on every rank when any could not read: the others would wait for it in a collective for ever.
        """
        asked = time.perf_counter()
        error: Exception | None = None
        batches: list[Batch] = []
        try:
            batches = next(self.steps)
        except Exception as caught:  # raised below, on every rank
            error = caught
        self.meter.start(data_wait_s=time.perf_counter() - asked)
        targets = float(sum(batch.num_targets for batch in batches))
        all_targets, failed = distributed.all_reduce([targets, float(error is not None)], self.device)
        if failed:
            distributed.together(lambda: _raise(error))
        return batches, all_targets

    def figures(self, step: int, loss_sum: float, rates: dict[str, float], batches: list[Batch]) -> dict[str, Any]:
        """What is reported of a step; FloatingPointError after too many bad steps in a row."""
        figures: dict[str, Any] = self.meter.reduce(loss_sum)
        skipped = bool(self.engine.optimizer.overflow)
        bad = self.bad_steps.look(step, figures, skipped, batches)
        figures |= {f"lr_{part}": rate for part, rate in rates.items()}
        figures |= {"lr": max(rates.values()), "grad_norm": float(self.engine.get_global_grad_norm())}
        for name in TOTALS:
            self.totals[name] += float(bad) if name == "skipped_steps" else figures[name]
        return figures | {f"total_{name}": value for name, value in self.totals.items()}

    def agree_to_stop(self) -> bool:
        """Whether any rank was asked to stop. Raises on all when one could not write its part of a checkpoint."""
        own = [float(self.stop.asked()), float(self.saver.failed())]
        asked, failed = distributed.all_reduce(own, self.device, "max")
        if failed:
            self.saver.wait()
        return bool(asked)

    def optimizer_step(self, batches: list[Batch], all_targets: float) -> float:
        """Forward and backward of all micro-batches, then one update; returns this rank's summed cross-entropy.

        The loss is the mean over the target tokens of the global batch. DeepSpeed averages gradients over ranks and
        micro-batches, so each micro-batch's sum is divided by targets / (ranks * micro-batches).
        """
        denominator = max(1.0, all_targets) / (distributed.world_size() * len(batches))
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in batches:
            loss_sum += self.micro_batch(batch, denominator) * denominator
            self.meter.add(batch)
        return loss_sum.item()

    def micro_batch(self, batch: Batch, denominator: float) -> torch.Tensor:
        """Forward and backward of one pack (and the update, at the last of a step); returns its loss, float64."""
        try:
            output = self.engine(**batch.model_inputs(self.device), num_items_in_batch=denominator)
            self.engine.backward(output.loss)
            self.engine.step()
        except torch.OutOfMemoryError as error:
            budget = self.run.batch
            raise torch.OutOfMemoryError(
                f"out of memory with a pack of {batch.num_tokens} tokens, {batch.num_images} pictures and "
                f"{batch.num_targets} targets (batch.tokens_per_pack: {budget.tokens_per_pack}, pictures_per_pack: "
                f"{budget.pictures_per_pack}). Lower these, set train.activation_checkpointing: true, or use "
                f"ds_configs/zero3_offload.json. {error}"
            ) from error
        return output.loss.detach().double()

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


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
