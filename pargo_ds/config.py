"""RunConfig: the one typed schema of a YAML run file.

Every key is checked when the file is read: an unknown key is an error that names the nearest known one, a
wrong value an error that names its place. Rules that cross sections are checked by `RunConfig` itself, so a
run that cannot work ends before a process group or a GPU is touched. Pure: no torch, no I/O but the file.
"""

from __future__ import annotations

import datetime
import difflib
import typing
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

PARTS = ("vision", "projector", "llm")


class ConfigError(ValueError):
    """A run file that cannot be used; the message lists every fault with its place in the file."""


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class VisionSection(Section):
    """The frozen picture encoder. Source of the paper's choice: EVA-02-CLIP-L/14 at 336 px."""

    library: Literal["timm", "transformers"]
    name: str
    """timm architecture, or a Hugging Face hub name or folder."""
    revision: str | None = None
    """Hub revision (commit, tag or branch)."""
    weights: str | None = None
    """Local safetensors file; without it the weights come from the hub under `name`. "random": untrained."""
    image_size: int = Field(gt=0)
    """Side of the square picture in pixels."""
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    feature_layer: int = Field(default=-1, le=-1)
    """-1: the last block before the final norm; -2: the one before it."""
    feature_norm: bool = False
    """A frozen LayerNorm over the features (the authors' release has one)."""
    architecture: dict[str, Any] | None = None
    """Architecture numbers of a transformers encoder, so that --dry-run needs no files."""


class ProjectorSection(Section):
    """The partial-global projector; defaults are the paper's token counts (equation 1)."""

    type: str = "pargo"
    partial_tokens: int = Field(default=288, ge=1)
    global_tokens: int = Field(default=16, ge=0)
    layers: int = Field(default=6, ge=1)
    width: int = Field(default=1024, ge=1)
    heads: int = Field(default=16, ge=1)
    cascade: Literal["shifted", "centered", "each_side", "none", "release"] = "shifted"
    grouping: Literal["raster", "block"] = "raster"
    """Patches of a partial token: a run of the raster order (the paper), or a 2-D block (ours)."""
    norm: Literal["pre", "post"] = "pre"
    """post: BERT's order, as the authors' release has it; it has no norm of the patches, so set vision.feature_norm."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Epsilon of the projector's LayerNorms; 1e-12 in the authors' release."""
    query_positions: bool = False
    """Learned position embeddings on the learned tokens, as in the authors' release."""

    @property
    def visual_tokens(self) -> int:
        """Tokens that one picture gives to the LLM."""
        return self.partial_tokens + self.global_tokens

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ProjectorSection:
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        return self


class AttentionSection(Section):
    """How attention is computed: speed and memory, never numbers; may change between a run and its continuation."""

    partial: Literal["auto", "fused", "flash_window", "flash_varlen", "dense"] = "auto"
    """Partial tokens and their patches."""
    cascade: Literal["auto", "flash", "dense"] = "auto"
    """Partial tokens among themselves."""
    provider: Literal["auto", "torch", "flash_attn_2", "flash_attn_3", "flash_attn_4", "emulated"] = "auto"
    """Where FlashAttention comes from; emulated: in plain torch, for tests."""
    llm: Literal["auto", "varlen", "sdpa", "eager"] = "auto"
    """Packed sequences in the LLM."""


class LLMSection(Section):
    """The language model: any causal LM of transformers."""

    name: str
    """Hub name or folder."""
    revision: str | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` builds an untrained LLM of `architecture` (tests, throughput measurements)."""
    architecture: dict[str, Any] | None = None
    """config.json numbers of the LLM, so that --dry-run needs no files; compared with the real ones in a run."""
    prompt: Literal["chat", "paper"] = "chat"
    """The LLM's own chat template, or the prompt of the paper's release."""
    system_prompt: str | None = None
    """Replaces the chat template's default system message; null leaves it to the template."""
    chat_template: str | None = None
    """File with a Jinja chat template that replaces the tokenizer's, for training and in the export."""
    template_date: str | None = None
    """The day (such as 2026-01-31) that is written where a chat template asks for today's date; null refuses those."""

    @field_validator("template_date", mode="before")
    @classmethod
    def _date_is_iso(cls, value: Any) -> Any:
        try:
            return value if value is None else datetime.date.fromisoformat(str(value)).isoformat()
        except ValueError as error:
            raise ValueError(f"{value!r} is no date; expected one such as 2026-01-31") from error


class LoraSection(Section):
    """Low-rank adapters on the LLM (peft)."""

    rank: int = Field(default=128, ge=1)
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
    output_lr: Literal["scaled", "same"] = "same"
    """Of the projector's last layer. scaled: lr times the deviation of the LLM's word embeddings, which is the scale of
    this layer's weights (docs/learning.md); same: lr, as everywhere else."""
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


class TrainSection(Section):
    """What trains in this stage, and for how long."""

    vision: PartSection = PartSection()
    projector: PartSection = PartSection()
    llm: PartSection = PartSection()
    steps: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    warmup_steps: int = Field(default=0, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
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

    path: str
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
    held_out: str | None = None
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
    cache: str | None = None
    """Folder on a disk of the node for shards of an object store (default: below the system's temporary folder)."""
    cache_limit: str | None = None
    """Most that the cache may hold, such as 200gb; shards not used for longest go first. Object stores only."""

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
    """auto: online with a key, offline without."""
    wandb_project: str = "pargo_ds"
    peak_tflops: float | None = Field(default=None, gt=0)
    """Peak of one device for MFU; without it known devices are looked up, others show TFLOP/s only."""


class RunConfig(Section):
    """One training run, complete: the file `RUN.yaml`, checked."""

    name: str
    output: str = "runs"
    """The run's folder is output/name."""
    seed: int = 0
    start_from: str | None = None
    """Stage hand-over: an exported Hugging Face folder whose weights this run starts from."""
    deepspeed: str
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
        if "/" in self.name or self.name in ("", ".", ".."):
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

    Raises ConfigError for a missing file, broken YAML, unknown keys (naming the nearest) and wrong values.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"run file {path} does not exist; shipped ones lie in ds_configs/")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}, expected a mapping of run settings")
    for override in overrides:
        _apply_override(raw, override)
    return parse_config(raw, source=str(path))


def parse_config(raw: dict[str, Any], source: str = "config") -> RunConfig:
    """Check a plain mapping; `source` is named in errors."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        faults = [_fault(one) for one in error.errors()]
        raise ConfigError(f"{source}: {len(faults)} fault(s)\n" + "\n".join(f"  - {f}" for f in faults)) from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected a.b=value")
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        below = node.setdefault(parent, {})
        if isinstance(below, str):  # `llm: frozen` is short for `llm: {mode: frozen}`
            below = node[parent] = {"mode": below}
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override!r}: {parent} is not a section")
        node = below
    node[last] = yaml.safe_load(text)


def _fault(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "run file"
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys here: {', '.join(sorted(known))}"
        return f"{place}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{place}: missing; it has no default"
    message = error["msg"].removeprefix("Value error, ")
    shown = "" if error["type"] == "value_error" else f" (found {error['input']!r})"
    return f"{place}: {message}{shown}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Field names of the section at `location`, walking through optional annotations and lists."""
    section: Any = RunConfig
    for part in location:
        if isinstance(part, int):  # a place in a list: the list's own annotation has led to its section
            continue
        annotation = section.model_fields[part].annotation
        options = [annotation, *typing.get_args(annotation)]
        section = next(o for o in options if isinstance(o, type) and issubclass(o, Section))
    return list(section.model_fields)
