"""Our trainer as pargo_ds.train starts it, cut into turns at the ends of epochs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from pargo_ds import assembly
from pargo_ds.assembly.calibration import start_projector
from pargo_ds.assembly.freezing import apply_freezing
from pargo_ds.assembly.zero import zero_stage
from pargo_ds.batch import Batch
from pargo_ds.checkpoint.saver import RunMetadata, Saver
from pargo_ds.config import RunConfig
from pargo_ds.data.loader import PackLoader
from pargo_ds.model import ParGoForConditionalGeneration, ParGoProcessor
from pargo_ds.speed.training_turns import Turns
from pargo_ds.training import recompute, run_folder
from pargo_ds.training.engine import build_engine
from pargo_ds.training.meters import StepMeter, flop_model
from pargo_ds.training.reporting import Reporter
from pargo_ds.training.survival import StopRequest, Watchdog
from pargo_ds.training.trainer import Trainer


def prepare(
    run: RunConfig,
    device: torch.device,
    settings: dict[str, Any],
    built_for: dict[str, Any] | None,
) -> tuple[ParGoProcessor, ParGoForConditionalGeneration, PackLoader, recompute.Recompute]:
    """Prepare processor, model as it trains, loader, and what is recomputed: the same for all
    trainers. `built_for` are DeepSpeed's settings with which weights are partitioned as they are
    loaded; None leaves that to deepspeed.initialize.
    """
    processor = assembly.build_processor(run)
    model = assembly.build_model(run, processor, built_for)
    apply_freezing(model, run.train)
    again = recompute.decide(run, model, settings, device)
    recompute.apply(model, again)
    packing = model.packing(run.batch.tokens_per_pack, run.batch.tokens_per_row)
    loader, _ = assembly.build_loaders(run, processor, packing)
    start_projector(run, model, loader, device)
    return processor, model, loader, again


def train(run: RunConfig, device: torch.device, settings: dict[str, Any], turns: Turns) -> None:
    """Train until nobody asks for turns any more (EOFError)."""
    _, model, loader, again = prepare(run, device, settings, settings)
    flops = flop_model(model)
    engine = build_engine(model, run, settings)
    turns.parts.watch(engine)
    facts = RunMetadata(
        model_fingerprint=assembly.model_fingerprint(model),
        zero_stage=zero_stage(settings),
        config={},
        model_config={},
        frozen_sources={},
        frozen={},
    )
    total_steps = run.train.steps
    assert total_steps is not None  # training_data.run_on sets it
    turns.pipe.send("ready")
    Trainer(
        run, engine, steps_of_turns(loader, turns), [], position=loader.state_dict,
        saver=Saver(run_folder.checkpoints_dir(run), facts, keep=1),
        reporter=LossReporter(run, total_steps, turns), meter=StepMeter(run, flops, device, again),
        stop=StopRequest(run.run_dir, run.survival.stop_signal),
        watchdog=Watchdog(run.run_dir / "logs", run.survival.watchdog_minutes),
        total_steps=total_steps, totals={},
    ).train(0)  # fmt: skip


class LossReporter(Reporter):
    """The run's reporter, which also tells each step's loss."""

    def __init__(self, run: RunConfig, total_steps: int, turns: Turns) -> None:
        super().__init__(run, total_steps, 0, {})
        self.turns = turns

    def step(self, step: int, figures: dict[str, Any]) -> None:
        """Report a finished step; its loss counts to the turn in which it is reported."""
        super().step(step, figures)
        self.turns.loss(figures["loss"])


def steps_of_turns(loader: PackLoader, turns: Turns) -> Iterator[list[Batch]]:
    """Yield the loader's steps, turn after turn: a whole epoch, or some steps after which the
    loader goes back to where it was.

    The trainer asks for the next step when it has done the last one, so a turn ends here.
    """
    while True:
        asked = turns.begin()
        before = loader.state_dict()
        steps = loader.steps()
        ended = False
        while not ended:
            with turns.waiting():
                batches = next(steps)
            for batch in batches:
                turns.computed(list(batch.sample_ids), batch.num_tokens, batch.num_tokens)
            yield batches
            ended = turns.step_ended() or loader.state_dict()["epoch"] != before["epoch"]
        steps.close()
        if asked.steps is not None:
            loader.load_state_dict(before)
        turns.end()
