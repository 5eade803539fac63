"""What is planned: a run and all of its model that does not depend on the hardware."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from pargo_ds.assembly.configs import build_meta_model
from pargo_ds.assembly.freezing import PartCount, apply_freezing
from pargo_ds.config import RunConfig
from pargo_ds.planning.gathers import MicroStep, ZeroSizes, replay
from pargo_ds.planning.rehearsal import Rehearsal, rehearse
from pargo_ds.planning.saved import saved_bytes
from pargo_ds.training.gathering import gather_sizes, layers_to_gather
from pargo_ds.training.meters import FlopModel
from pargo_ds.training.recompute import llm_layers


@dataclass(frozen=True)
class Subject:
    """A run, and what was counted of its model."""

    run: RunConfig
    rows: list[PartCount]
    flops: FlopModel
    layers: int
    """Of the LLM."""
    hidden: int
    """Width of the LLM."""
    vocabulary: int
    visual_tokens: int
    gather_defaults: dict[str, int]
    """ZeRO-3's sizes that the run sets where its DeepSpeed file is silent."""
    saved: Callable[[bool], tuple[float, float]]
    """As saved_bytes, for whether linear layers keep their inputs; counted once."""
    order: Callable[[int], Rehearsal]
    """The rehearsal with so many layers checkpointed; done once."""
    gathers: Callable[[int, ZeroSizes], tuple[MicroStep, MicroStep]]
    """As replay, for so many layers checkpointed; done once for the same sizes."""

    @property
    def trained(self) -> int:
        return sum(row.trainable for row in self.rows)

    @property
    def total(self) -> int:
        return sum(row.total for row in self.rows)

    @property
    def number_bytes(self) -> int:
        return 2 if self.run.train.precision == "bf16" else 4


def subject_of(run: RunConfig) -> Subject:
    """Of a run file; no weights, no GPU, no network. Raises ConfigError as --dry-run does."""
    model = build_meta_model(run)
    rows = apply_freezing(model, run.train)
    whole_layers = run.train.zero3_gather == "layers"
    order = cache(lambda checkpointed: rehearse(run, checkpointed))
    return Subject(
        run=run,
        rows=rows,
        flops=FlopModel.of(model, run.vision.image_size),
        layers=len(llm_layers(model)),
        hidden=model.config.text_config.hidden_size,
        vocabulary=model.config.text_config.vocab_size,
        visual_tokens=model.config.visual_tokens,
        gather_defaults=gather_sizes(layers_to_gather(model)) if whole_layers else {},
        saved=cache(lambda keeps_inputs: saved_bytes(run, keeps_inputs)),
        order=order,
        gathers=cache(lambda checkpointed, sizes: replay(order(checkpointed), sizes)),
    )


def with_packs(subject: Subject, packs: int) -> Subject:
    """The same with another number of packs a step."""
    batch = subject.run.batch.model_copy(update={"packs_per_step": packs})
    return replace(subject, run=subject.run.model_copy(update={"batch": batch}))
