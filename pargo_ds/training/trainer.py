"""The loop: load -> forward -> backward -> step -> held-out loss, benchmarks -> report -> save."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from pargo_ds import distributed
from pargo_ds.batch import Batch, fill, join, split_into_rows
from pargo_ds.checkpoint.saver import Saver
from pargo_ds.config import RunConfig
from pargo_ds.training.bad_steps import BadSteps
from pargo_ds.training.inputs import device_inputs
from pargo_ds.training.meters import StepMeter
from pargo_ds.training.optimizer import set_learning_rates
from pargo_ds.training.profiling import StepProfile
from pargo_ds.training.reporting import Reporter
from pargo_ds.training.survival import StopRequest, Watchdog

TOTALS = ("tokens", "target_tokens", "images", "samples", "skipped_steps")
"""Figures that are added up over the whole run, across its interruptions."""


@dataclass(frozen=True)
class NextStep:
    """What a rank has read for its next step."""

    batches: list[Batch] = field(default_factory=list)
    wait_s: float = 0.0
    error: Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether the step could not be read."""
        return self.error is not None

    def check(self, agreed: Agreed) -> None:
        """Raise on every rank when any could not read: the others would wait for it in a collective
        for ever.
        """
        if agreed.not_read:
            distributed.run_on_all_ranks(lambda: _raise(self.error))


class Agreed(NamedTuple):
    """What all ranks know after telling each other."""

    to_stop: bool
    not_read: bool
    """Some rank could not read the next step."""
    targets: float
    """Target tokens of the next step over all ranks."""
    of_ranks: torch.Tensor
    """(ranks, numbers) of the step that ended."""


class Trainer:
    """Runs one stage on a DeepSpeed engine.

    `steps` yields this rank's micro-batches of each optimizer step; every rank yields equally many,
    and each one runs vision, projector and LLM exactly once, because ZeRO-3's gathers are
    collective (a pack without images brings a blank one, see
    ParGoForConditionalGeneration.forward).
    """

    def __init__(
        self,
        run: RunConfig,
        engine: Any,
        steps: Iterator[list[Batch]],
        validation: list[Batch],
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
        evaluate: Callable[[Callable[[], None]], dict[str, float]] | None = None,
    ) -> None:
        self.run, self.engine, self.steps, self.validation = run, engine, steps, validation
        self.position, self.saver, self.reporter, self.meter = position, saver, reporter, meter
        self.stop, self.watchdog, self.profile = stop, watchdog, profile
        self.evaluate = evaluate
        self.total_steps, self.stop_after = total_steps, stop_after
        self.totals = {name: totals.get(name, 0.0) for name in TOTALS}
        self.bad_steps = BadSteps(run.survival.bad_steps)
        self.device = torch.device(engine.device)

    def train(self, first_step: int) -> int:
        """Train from `first_step` (steps already done) to the last step, or to the one at whose end
        all ranks agree to stop, and return the steps done. The last checkpoint is whole when this
        returns.
        """
        self.engine.train()
        step = first_step
        stopping = False
        next_step = self.read()
        agreed = self.agree(next_step)
        while step < self.total_steps and not stopping:
            self.watchdog.heartbeat()
            next_step.check(agreed)
            self.meter.start(data_wait_s=next_step.wait_s)
            rates = set_learning_rates(
                self.engine.optimizer.param_groups, self.run, step, self.total_steps
            )
            batches, position = next_step.batches, self.position()
            loss_sum = self.optimizer_step(batches, agreed.targets)
            step += 1
            last = step == self.total_steps
            numbers = self.meter.own()
            next_step = NextStep() if last else self.read()
            agreed = self.agree(next_step, [loss_sum, *numbers])
            figures = self.figures(step, agreed.of_ranks, rates, batches)
            stopping = agreed.to_stop or step == self.stop_after
            if self.validation and (last or step % self.run.validation.every == 0):
                self.watchdog.heartbeat()
                figures["validation_loss"] = self.validation_loss()
            if self.evaluate and (last or step % self.run.evaluation.every == 0):
                figures |= self.evaluation(self.evaluate)
            self.reporter.step(step, figures)
            if last or stopping or step % self.run.checkpoint.every == 0:
                self.watchdog.heartbeat()
                self.saver.save(self.engine, step=step, data_state=position, totals=self.totals)
            if self.profile is not None:
                self.profile.step()
        self.saver.wait()
        return step

    def read(self) -> NextStep:
        """Read this rank's micro-batches of the next step, before the present one is reported."""
        asked = time.perf_counter()
        error: Exception | None = None
        batches: list[Batch] = []
        try:
            batches = next(self.steps)
        except Exception as caught:  # raised by `check`, on every rank
            error = caught
        return NextStep(batches, time.perf_counter() - asked, error)

    def agree(self, next_step: NextStep, numbers: Sequence[float | torch.Tensor] = ()) -> Agreed:
        """Exchange what the ranks tell each other once a step, in one collective: `numbers` of the
        step that ended, whether to stop, and the targets of the next one.

        The host waits for the update here, and it has to: nothing in DeepSpeed 0.19.8 makes ZeRO-3's
        next gathers, on a stream of their own, wait for the weights that the update writes, unless
        some weights are kept whole (`stage3_param_persistence_threshold`, which is 0 here).

        Raises on all when one could not write its part of a checkpoint.
        """
        flags = [float(self.stop.asked()), float(self.saver.failed()), float(next_step.failed)]
        targets = float(sum(batch.num_targets for batch in next_step.batches))
        told = distributed.gather_numbers([*flags, targets, *numbers], self.device)
        asked, not_written, not_read = told[:, :3].any(0).tolist()
        if not_written:
            self.saver.wait()
        return Agreed(asked, not_read, float(told[:, 3].sum()), told[:, 4:])

    def figures(
        self, step: int, of_ranks: torch.Tensor, rates: dict[str, float], batches: list[Batch]
    ) -> dict[str, Any]:
        """Return what is reported of a step, of `(ranks, numbers)` that begin with each rank's loss.
        Raises FloatingPointError after too many bad steps in a row.
        """
        loss_sum = float(of_ranks[:, 0].sum())
        figures: dict[str, Any] = self.meter.figures(loss_sum, of_ranks[:, 1:])
        skipped = bool(self.engine.optimizer.overflow)
        bad = self.bad_steps.check_step(step, figures, skipped, batches)
        figures |= {f"lr_{part}": rate for part, rate in rates.items()}
        figures |= {
            "lr": max(rates.values()),
            "grad_norm": float(self.engine.get_global_grad_norm()),
        }
        added = figures | {"skipped_steps": float(bad)}
        for name in TOTALS:
            self.totals[name] += added[name]
        return figures | {f"total_{name}": value for name, value in self.totals.items()}

    def optimizer_step(self, batches: list[Batch], all_targets: float) -> torch.Tensor:
        """Run forward and backward of all packs, then one update, and return this rank's
        summed cross-entropy, float64, on its device.

        The loss is the mean over the target tokens of the global batch. DeepSpeed averages
        gradients over ranks and micro-batches (rows of packs), so each one's sum is divided by targets /
        (ranks * micro-batches).
        """
        rows = split_into_rows(batches, self.run.batch.packs_per_forward)
        denominator = max(1.0, all_targets) / (distributed.world_size() * len(rows))
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for packs in rows:
            loss_sum += self.micro_batch(join(packs), denominator) * denominator
            self.meter.add(packs)
        return loss_sum

    def micro_batch(self, batch: Batch, denominator: float) -> torch.Tensor:
        """Run forward and backward of one row (and the update, at the last of a step), and return
        its loss, float64.
        """
        try:
            inputs = self.inputs(batch)
            output = self.engine(**inputs, num_items_in_batch=denominator)
            self.engine.backward(output.loss)
            self.engine.step()
        except torch.OutOfMemoryError as error:
            budget = self.run.batch
            raise torch.OutOfMemoryError(
                f"out of memory with a row of {batch.num_tokens} tokens, {batch.num_images} images and "
                f"{batch.num_targets} targets (batch.tokens_per_pack: {budget.tokens_per_pack}, images_per_pack: "
                f"{budget.images_per_pack}, packs_per_forward: {budget.packs_per_forward}). Lower these, "
                "set train.activation_checkpointing: full, or use "
                f"ds_configs/zero3_offload.json. {error}"
            ) from error
        return output.loss.detach().double()

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Return the model's arguments for a row; for compiled layers it gets its full length."""
        if self.run.train.compile == "layers":
            budget = self.run.batch
            batch = fill(batch, budget.tokens_per_row, budget.tokens_per_pack)
        return device_inputs(batch, self.engine.module, self.device)

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Return the mean cross-entropy over the target tokens of all held-out packs."""
        self.engine.eval()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in self.validation:
            inputs = self.inputs(batch)
            loss_sum += self.engine(**inputs, num_items_in_batch=1.0).loss.double()
            self.watchdog.heartbeat()
        self.engine.train()
        targets = sum(batch.num_targets for batch in self.validation)
        total, count = distributed.gather_numbers([loss_sum, targets], self.device).sum(0).tolist()
        return total / max(1.0, count)

    def evaluation(
        self, evaluate: Callable[[Callable[[], None]], dict[str, float]]
    ) -> dict[str, float]:
        """Return the figures of the benchmarks and the seconds that they took; on all ranks at
        once.
        """
        self.watchdog.heartbeat()
        started = time.perf_counter()
        self.engine.eval()
        figures = evaluate(self.watchdog.heartbeat)
        self.engine.train()
        self.watchdog.heartbeat()
        return figures | {"evaluation_s": time.perf_counter() - started}


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
