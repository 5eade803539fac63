"""RunConfig: the one typed schema of a YAML run file.

Every key is checked when the file is read: an unknown key is an error that names the nearest known one, a
wrong value an error that names its place. Rules that cross sections are checked by `RunConfig` itself, so a
run that cannot work ends before a process group or a GPU is touched. Pure: no torch, no I/O but the file.
"""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from pargo_ds.addresses import LocalPath
from pargo_ds.model_sections import AttentionSection, LLMSection, ProjectorSection, VisionSection
from pargo_ds.section import Section, faults_of
from pargo_ds.settings_file import ConfigError, Place, parse_value, read_yaml

PARTS = ("vision", "projector", "llm")
SIZE = re.compile(r"\s*(\d+b?|\d+(\.\d+)?\s*[kmgt]b)\s*", re.IGNORECASE)
"""Of bytes, as `streaming` reads them."""
Beta = Annotated[float, Field(ge=0, lt=1)]


class LoraSection(Section):
    """Low-rank adapters on the LLM (peft)."""

    rank: int = Field(default=128, ge=1, le=2**16)
    alpha: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] = "all-linear"


class PartSection(Section):
    """How one part (vision, projector or llm) trains."""

    mode: Literal["frozen", "lora", "full"] = "frozen"
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate."""
    min_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the last step."""
    weight_decay: float = Field(default=0.0, ge=0)
    lora: LoraSection | None = None

    @model_validator(mode="before")
    @classmethod
    def _word_is_mode(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> PartSection:
        if self.mode == "frozen" and (self.lr is not None or self.lora is not None):
            raise ValueError("a frozen part takes neither lr nor lora; remove them or set mode: full or lora")
        if self.mode != "frozen" and self.lr is None:
            raise ValueError(f"mode {self.mode} needs lr")
        if (self.mode == "lora") != (self.lora is not None):
            raise ValueError("mode: lora and a lora section belong together; one of them is missing")
        if self.lr is not None and self.min_lr > self.lr:
            raise ValueError(f"min_lr ({self.min_lr}) is above lr ({self.lr})")
        return self


class ProjectorTraining(PartSection):
    """How the projector trains. Its rates follow one schedule: each keeps its proportion to lr."""

    output_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the Linear that writes the visual tokens; without a word, lr."""
    soft_prompt_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the soft prompt, in units of the deviation of the LLM's word embeddings; without a word,
    lr."""
    calibration_images: int = Field(default=64, ge=0)
    """The norm of the patches starts so that over so many training images each channel has mean 0 and deviation 1; 0:
    it starts as any LayerNorm. Only where a run begins with a new projector."""

    @model_validator(mode="after")
    def _rates_train(self) -> ProjectorTraining:
        if self.mode == "frozen" and (self.output_lr or self.soft_prompt_lr):
            raise ValueError("a frozen projector takes neither output_lr nor soft_prompt_lr")
        return self


class TrainSection(Section):
    """What trains in this stage, and for how long."""

    vision: PartSection = PartSection()
    projector: ProjectorTraining = ProjectorTraining()
    llm: PartSection = PartSection()
    steps: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    warmup_steps: int = Field(default=0, ge=0)
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.98), strict=False)  # YAML has lists only
    eps: float = Field(default=1e-6, gt=0)
    clip_norm: float = Field(default=1.0, gt=0)
    precision: Literal["bf16", "fp32"] = "bf16"
    activation_checkpointing: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> TrainSection:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.vision.mode == "lora" or self.projector.mode == "lora":
            raise ValueError("lora is for the llm only; vision and projector are frozen or full")
        if all(getattr(self, part).mode == "frozen" for part in PARTS):
            raise ValueError("every part is frozen: nothing would train; set projector: {mode: full, lr: ...}")
        if self.steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be below steps ({self.steps})")
        return self


class BatchSection(Section):
    """Packed batches: a pack is one micro-batch of one rank."""

    tokens_per_pack: int = Field(ge=2)
    pictures_per_pack: int = Field(ge=1)
    """Upper bound, for memory."""
    packs_per_step: int = Field(ge=1)
    """Packs of one optimizer step over all ranks; accumulation = packs_per_step / ranks."""


class CaptionPrompts(Section):
    """Text of the user's turn beside the picture in caption training, per kind of caption."""

    coarse: str = ""
    detailed: str = ""


class StreamSection(Section):
    """One folder of shards and its part of the mixture; texts that it leaves out are those of the data section."""

    path: LocalPath
    """Folder of MDS shards, or the address of one in an object store (s3://bucket/folder)."""
    repeat: float | None = Field(default=None, gt=0)
    """How often each conversation comes in an epoch (default 1); 0.5: half of them, the other half in the next."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the epoch's conversations, relative to the other streams' weights; instead of repeat."""
    text: Literal["captions", "turns"] | None = None
    caption: Literal["coarse", "detailed", "both"] | None = None
    caption_prompts: CaptionPrompts | None = None


class DataSection(Section):
    """MDS shards and what is read from each sample."""

    train: list[StreamSection] = Field(min_length=1)
    """One path, or a list of streams that are mixed; the same path may come twice with different captions."""
    held_out: LocalPath | None = None
    text: Literal["captions", "turns"]
    """Train on the sample's captions (stage 1) or on its conversation turns (stage 2)."""
    caption: Literal["coarse", "detailed", "both"] = "both"
    """both: every sample appears once with each of its captions."""
    caption_prompts: CaptionPrompts = CaptionPrompts()
    epoch_items: int | None = Field(default=None, ge=1)
    """Conversations in an epoch of a mixture by weight (default: as many as the streams hold together)."""
    too_long: Literal["error", "skip"] = "error"
    refused: Literal["error", "skip"] = "error"
    """Samples of which no conversation can be made (the template refuses their turns, a caption is missing): an error
    that names the first one, or left out and counted."""
    workers: int = Field(default=2, ge=0)
    """Loader processes per rank."""
    canonical_nodes: int = Field(default=1, ge=1)
    """Parts of the data that stay together on a node, so that it downloads its share only; fixed for a run. The number
    of nodes or a multiple of it; must divide batch.packs_per_step."""
    cache: LocalPath | None = None
    """Folder on a disk of the node for shards of an object store (default: below the system's temporary folder)."""
    cache_limit: str | None = None
    """Most that the cache may hold, such as 200gb; shards not used for longest go first. Object stores only."""

    @field_validator("cache_limit")
    @classmethod
    def _limit_is_a_size(cls, value: str | None) -> str | None:
        if value is not None and not SIZE.fullmatch(value):
            raise ValueError(f"{value!r} is no size; expected one such as 200gb or 500mb")
        return value

    @model_validator(mode="before")
    @classmethod
    def _path_is_stream(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "train" not in value:
            return value
        train = value["train"] if isinstance(value["train"], list) else [value["train"]]
        return {**value, "train": [{"path": stream} if isinstance(stream, str) else stream for stream in train]}

    @model_validator(mode="after")
    def _mixture_is_clear(self) -> DataSection:
        weighted = [stream.weight is not None for stream in self.train]
        if any(weighted) and (not all(weighted) or any(stream.repeat is not None for stream in self.train)):
            raise ValueError("give every stream of train a weight, or none: weight and repeat do not go together")
        if self.epoch_items is not None and not any(weighted):
            raise ValueError("epoch_items is for a mixture by weight; with repeat the streams decide the epoch's size")
        return self

    def of_stream(self, stream: StreamSection) -> DataSection:
        """This section with the texts that one stream asks for."""
        own = {name: getattr(stream, name) for name in ("text", "caption", "caption_prompts")}
        return self.model_copy(update={name: value for name, value in own.items() if value is not None})


class CheckpointSection(Section):
    """When the run is saved, and how many checkpoints stay."""

    every: int = Field(default=500, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    keep: int = Field(default=3, ge=1)
    """So many of the newest stay."""
    keep_every: int | None = Field(default=None, ge=1)
    """And every one whose step is a multiple of this."""
    background: bool = True
    """Train on while a checkpoint is written; it takes host memory for 12 bytes per trained weight and rank's share."""


class SurvivalSection(Section):
    """What a run does when it is stopped, stuck, or fed with bad numbers."""

    stop_signal: Literal["USR1", "USR2"] = "USR1"
    """Asks for a clean stop, as SIGTERM and a file STOP in the run's folder do; some NCCL versions take USR1."""
    watchdog_minutes: float = Field(default=30, gt=0)
    """A step, save or held-out evaluation that takes longer ends the run, with every rank's stacks in logs/."""
    bad_steps: int = Field(default=3, ge=1)
    """So many steps in a row whose loss or gradient is no number, each of them skipped, end the run."""


class HeldOutSection(Section):
    """Loss on held-out samples during the run."""

    every: int = Field(default=500, ge=1)
    packs: int = Field(default=32, ge=1)
    """At most so many packs in all, over all ranks."""


class ReportingSection(Section):
    """Progress, metrics.jsonl and wandb."""

    log_every: int = Field(default=1, ge=1)
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online with a key, offline without. The environment goes first: WANDB_MODE, WANDB_PROJECT, WANDB_NAME."""
    wandb_project: str = "pargo_ds"
    wandb_timeout_s: float = Field(default=30, gt=0)
    """Seconds that wandb may hold up a start of the run, and its end; a server that does not answer means offline."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """Peak of one device for MFU; without it known devices are looked up, others show TFLOP/s only."""


class RunConfig(Section):
    """One training run, complete: the file `RUN.yaml`, checked."""

    name: str
    output: LocalPath = "runs"
    """The run's folder is output/name. In all paths `~` and variables such as $SCRATCH are replaced."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    start_from: LocalPath | None = None
    """Stage hand-over: an exported Hugging Face folder whose weights this run starts from."""
    deepspeed: LocalPath
    """DeepSpeed JSON file; batch sizes, precision and clipping come from this file, not from there."""
    vision: VisionSection
    projector: ProjectorSection = ProjectorSection()
    attention: AttentionSection = AttentionSection()
    llm: LLMSection
    train: TrainSection
    batch: BatchSection
    data: DataSection
    checkpoint: CheckpointSection = CheckpointSection()
    survival: SurvivalSection = SurvivalSection()
    held_out: HeldOutSection = HeldOutSection()
    reporting: ReportingSection = ReportingSection()

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        plain = self.name.isprintable() and "/" not in self.name and self.name not in ("", ".", "..")
        if not plain or len(self.name.encode()) > 200:
            raise ValueError(f"name {self.name!r} must be a plain folder name; the parent folder goes to output")
        visual = self.projector.visual_tokens
        if visual >= self.batch.tokens_per_pack:
            raise ValueError(
                f"batch.tokens_per_pack ({self.batch.tokens_per_pack}) cannot hold one picture of {visual} visual "
                "tokens and its text; raise it or lower projector.partial_tokens"
            )
        if self.batch.packs_per_step % self.data.canonical_nodes:
            raise ValueError(
                f"data.canonical_nodes ({self.data.canonical_nodes}) must divide batch.packs_per_step "
                f"({self.batch.packs_per_step}): each part of the data gives the same number of packs to a step"
            )
        if self.llm.weights == "random" and self.llm.architecture is None:
            raise ValueError("llm.weights: random needs llm.architecture (a config.json as a mapping)")
        return self

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return Path(self.output) / self.name

    def check_ranks(self, world_size: int) -> int:
        """Packs per rank and step (the accumulation) for `world_size` ranks; ConfigError when it does not divide."""
        packs = self.batch.packs_per_step
        if packs % world_size:
            raise ConfigError(
                f"batch.packs_per_step = {packs} does not divide over {world_size} ranks; "
                f"use a multiple of {world_size} (for example {-(-packs // world_size) * world_size})"
            )
        return packs // world_size


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> RunConfig:
    """Read a run file and apply dotted overrides such as `train.steps=10`.

    Raises ConfigError for a file that cannot be read, YAML that is broken or means two things, unknown keys (naming
    the nearest) and wrong values, with their lines.
    """
    if not Path(path).is_file():
        raise ConfigError(f"run file {path} does not exist; shipped ones lie in ds_configs/")
    settings = read_yaml(path)
    raw = settings.values
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}, expected a mapping of run settings")
    origins = {place: f"line {line}" for place, line in settings.lines.items()}
    for override in overrides:
        origins[_apply_override(raw, override)] = "--set"
    return parse_config(raw, source=str(path), origins=origins)


def parse_config(
    raw: dict[str, Any], source: str = "config", origins: typing.Mapping[Place, str] | None = None
) -> RunConfig:
    """Check a plain mapping; `source` is named in errors, and `origins`: where each value was written."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(faults_of(error, RunConfig, source, origins or {})) from None


SHORT_FORMS = {"train": "mode", "data": "path"}
"""Section -> the key that a plain word below it stands for: `llm: frozen` is short for `llm: {mode: frozen}`."""


def _apply_override(raw: dict[str, Any], override: str) -> Place:
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
