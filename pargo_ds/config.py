"""RunConfig: the one typed schema of a YAML run file.

Every key is checked when the file is read: an unknown key is an error that names the nearest known
one, a wrong value an error that names its place. Rules that cross sections are checked by
`RunConfig` itself, so a run that cannot work ends before a process group or a GPU is touched. Pure:
no torch, no I/O but the file.
"""

from __future__ import annotations

import math
import typing
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from pargo_ds.addresses import LocalPath
from pargo_ds.data_sections import BatchSection, DataSection
from pargo_ds.errors import ConfigError
from pargo_ds.model_sections import AttentionSection, LLMSection, VisionSection
from pargo_ds.projector_sections import AnyProjectorSection, ParGoSection
from pargo_ds.section import Section, faults_of
from pargo_ds.settings_file import KeyPath, parse_value, read_yaml
from pargo_ds.train_sections import TrainSection


class CheckpointSection(Section):
    """When the run is saved, and which checkpoints are kept."""

    every: int = Field(default=500, ge=1)
    """Number of steps between two checkpoints; the last step is always saved."""
    keep: int = Field(default=3, ge=1)
    """Number of the newest checkpoints that are kept; older ones are deleted."""
    keep_every: int | None = Field(default=None, ge=1)
    """Checkpoints whose step is a multiple of this number are kept, too (default: none)."""
    background: bool = True
    """Continue training while a checkpoint is written. The copy that is written takes host memory:
    12 bytes for each trained weight of a rank's share.
    """


class SurvivalSection(Section):
    """What a run does when it is asked to stop, when it hangs, and when its loss is not finite."""

    stop_signal: Literal["USR1", "USR2"] = "USR1"
    """Signal that asks for a clean stop, as SIGTERM and a file STOP in the run's folder do. Choose
    USR2 where NCCL uses USR1 itself, as some versions do.
    """
    watchdog_minutes: float = Field(default=30, gt=0)
    """A step, a save or a validation that takes longer than this ends the run; the stacks of every
    rank are then in the run's folder logs/.
    """
    bad_steps: int = Field(default=3, ge=1)
    """The run ends after this number of consecutive steps whose loss or gradient is not finite.
    Each of these steps is skipped: it changes no weight.
    """


class ValidationSection(Section):
    """The loss on the held-out samples of `data.validation` during the run."""

    every: int = Field(default=500, ge=1)
    """Number of steps between two validations."""
    packs: int = Field(default=32, ge=1)
    """Upper bound of the packs of one validation, summed over all ranks."""


class EvaluationSection(Section):
    """Small benchmarks asked during the run, so that a wrong recipe is seen on its first day."""

    benchmarks: dict[str, LocalPath] = Field(default_factory=dict)
    """NAME or NAME:PROMPT -> the files of the benchmark, as tools/evaluate.py takes them (default:
    no benchmark).
    """
    every: int = Field(default=1000, ge=1)
    """Number of steps between two evaluations; the last step is always evaluated."""
    questions: int = Field(default=200, ge=1)
    """Upper bound of the questions of one benchmark. They are always the same ones, and an image, or
    a set of questions that is scored together, is asked whole.
    """
    minutes: float = Field(default=10, gt=0)
    """Minutes after which an evaluation asks no further batch; the answers until then are scored."""
    batch: int = Field(default=8, ge=1)
    """Number of questions that a rank answers at once."""


class ReportingSection(Section):
    """The bar on the terminal, the file metrics.jsonl, and wandb."""

    log_every: int = Field(default=1, ge=1)
    """Number of steps between two lines of metrics.jsonl, and between two points in wandb. The bar
    on the terminal shows every step.
    """
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online if an API key is found, offline otherwise. The environment variables WANDB_MODE,
    WANDB_PROJECT and WANDB_NAME take precedence over the run file.
    """
    wandb_project: str = "pargo_ds"
    """Project of wandb in which the run appears."""
    wandb_timeout_s: float = Field(default=30, gt=0)
    """Longest time in seconds that wandb may delay the start of the run and its end. If the server
    does not answer in this time, the run is recorded offline.
    """
    peak_tflops: float | None = Field(default=None, gt=0)
    """Peak TFLOP/s of one device, from which the model FLOP utilization (MFU) is computed. Without
    it the peaks of known devices are used; for other devices only TFLOP/s are shown.
    """


class RunConfig(Section):
    """All settings of one training run: the contents of a run file, checked."""

    name: str
    """Name of the run, and of its folder."""
    output: LocalPath = "runs"
    """Parent of the run's folder, which is output/name.

    In all paths `~` and variables such as $SCRATCH are replaced.
    """
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of all random numbers of the run, the order of the data included."""
    start_from: LocalPath | None = None
    """Folder of a Hugging Face export from whose weights this run starts: stage 2 starts from the
    export of stage 1.
    """
    deepspeed: LocalPath
    """DeepSpeed's JSON file. Batch sizes, precision and gradient clipping belong into the run file;
    DeepSpeed's file must not set them.
    """
    vision: VisionSection
    """The vision encoder."""
    projector: AnyProjectorSection = ParGoSection()
    """One of the projectors of docs/models.md, chosen by its `type` (default: pargo)."""
    attention: AttentionSection = AttentionSection()
    """Which attention kernels are used."""
    llm: LLMSection
    """The language model."""
    train: TrainSection
    """What trains, and for how long."""
    batch: BatchSection
    """The size of batches."""
    data: DataSection
    """The shards."""
    checkpoint: CheckpointSection = CheckpointSection()
    """When the run is saved."""
    survival: SurvivalSection = SurvivalSection()
    """Stops, hangs and losses that are not finite."""
    validation: ValidationSection = ValidationSection()
    """How often the validation loss is computed."""
    evaluation: EvaluationSection = EvaluationSection()
    """Benchmarks that are asked during the run."""
    reporting: ReportingSection = ReportingSection()
    """What the run tells of itself."""

    @model_validator(mode="before")
    @classmethod
    def _projector_is_pargo(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("projector"), dict):
            return value
        return {**value, "projector": {"type": "pargo", **value["projector"]}}

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        plain = (
            self.name.isprintable() and "/" not in self.name and self.name not in ("", ".", "..")
        )
        if not plain or len(self.name.encode()) > 200:
            raise ValueError(
                f"name {self.name!r} must be a plain folder name; the parent folder goes to output"
            )
        if self.projector.fixed_tokens is not None:
            self.check_pack(self.projector.fixed_tokens)
        if self.batch.packs_per_step % self.data.canonical_nodes:
            raise ValueError(
                f"data.canonical_nodes ({self.data.canonical_nodes}) must divide batch.packs_per_step "
                f"({self.batch.packs_per_step}): each part of the data gives the same number of packs to a step"
            )
        if self.llm.weights == "random" and self.llm.architecture is None:
            raise ValueError(
                "llm.weights: random needs llm.architecture (a config.json as a mapping)"
            )
        return self

    def check_pack(self, visual_tokens: int) -> None:
        """Raise ConfigError when an image of `visual_tokens` tokens and its text do not fit into a
        pack.
        """
        if visual_tokens >= self.batch.tokens_per_pack:
            raise ConfigError(
                f"batch.tokens_per_pack ({self.batch.tokens_per_pack}) cannot hold one image of "
                f"{visual_tokens} visual tokens and its text; raise it, or let the projector give "
                "fewer"
            )

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return Path(self.output) / self.name

    def check_ranks(self, world_size: int) -> int:
        """Return the number of packs that each of `world_size` ranks accumulates in a step.

        Raises ConfigError when batch.packs_per_step is no multiple of `world_size`.
        """
        packs = self.batch.packs_per_step
        if packs % world_size:
            raise ConfigError(
                f"batch.packs_per_step = {packs} does not divide over {world_size} ranks; "
                f"use a multiple of {world_size} (for example {-(-packs // world_size) * world_size})"
            )
        return packs // world_size

    def micro_batches(self, world_size: int) -> int:
        """Return the number of rows that each of `world_size` ranks computes in a step.

        Raises ConfigError as `check_ranks` does.
        """
        return math.ceil(self.check_ranks(world_size) / self.batch.packs_per_forward)


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> RunConfig:
    """Read a run file and apply dotted overrides such as `train.steps=10`.

    Raises ConfigError for a file that cannot be read, YAML that is broken or means two things,
    unknown keys (naming the nearest) and wrong values, with their lines.
    """
    if not Path(path).is_file():
        raise ConfigError(f"run file {path} does not exist; shipped ones lie in ds_configs/")
    settings = read_yaml(path)
    raw = settings.values
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}, expected a mapping of run settings")
    origins = {keys: f"line {line}" for keys, line in settings.lines.items()}
    for override in overrides:
        origins[_apply_override(raw, override)] = "--set"
    return parse_config(raw, source=str(path), origins=origins)


def parse_config(
    raw: dict[str, Any], source: str = "config", origins: typing.Mapping[KeyPath, str] | None = None
) -> RunConfig:
    """Check a plain mapping of settings.

    Args:
        source: name of the mapping in errors.
        origins: for each place in the mapping, where its value was written, such as "line 3".
    """
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(faults_of(error, RunConfig, source, origins or {})) from None


SHORT_FORMS = {"train": "mode", "data": "path"}
"""For each section, the key for which a plain word below it stands: `llm: frozen` in `train` is
short for `llm: {mode: frozen}`.
"""


def _apply_override(raw: dict[str, Any], override: str) -> KeyPath:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override!r}: expected a.b=value")
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        below = node.get(parent, {})
        if isinstance(below, str) and parents[0] in SHORT_FORMS:
            below = {SHORT_FORMS[parents[0]]: below}
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override!r}: {parent} is not a section")
        node[parent] = dict(below)  # a copy: an alias (*name) puts one mapping into several places
        node = node[parent]
    node[last] = parse_value(text, f"--set {override!r}")
    return (*parents, last)
