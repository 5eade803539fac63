"""Sections of the run file that say what trains: each part, its adapters and learning rates, and the
optimizer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pargo_ds.section import Section

PARTS = ("vision", "projector", "llm")
Beta = Annotated[float, Field(ge=0, lt=1)]
Layers = Annotated[int, Field(ge=1)]


class LoraSection(Section):
    """Low-rank adapters (LoRA) on the LLM, made by peft."""

    rank: int = Field(default=128, ge=1, le=2**16)
    """Rank of each adapter: the width between its two matrices."""
    alpha: int = Field(default=256, ge=1)
    """An adapter's output is multiplied by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Probability that an element of an adapter's input is dropped in training."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the LLM's modules that get an adapter, as peft matches them; all-linear: every
    Linear but the output head.
    """


class PartSection(Section):
    """How one part (vision, projector or llm) trains. A plain word is short for its mode."""

    mode: Literal["frozen", "lora", "full"] = "frozen"
    """frozen: no weight changes; lora: only the adapters of `lora` train; full: all weights do."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate, reached at the end of the warm-up."""
    min_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the last step, where the cosine ends."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay of the part's matrices; biases and norms have none."""
    lora: LoraSection | None = None
    """The adapters; required with mode: lora and refused with any other mode."""

    @model_validator(mode="before")
    @classmethod
    def _word_is_mode(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"mode": value}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> PartSection:
        if self.mode == "frozen" and (self.lr is not None or self.lora is not None):
            raise ValueError(
                "a frozen part takes neither lr nor lora; remove them or set mode: full or lora"
            )
        if self.mode != "frozen" and self.lr is None:
            raise ValueError(f"mode {self.mode} needs lr")
        if (self.mode == "lora") != (self.lora is not None):
            raise ValueError(
                "mode: lora and a lora section belong together; one of them is missing"
            )
        if self.lr is not None and self.min_lr > self.lr:
            raise ValueError(f"min_lr ({self.min_lr}) is above lr ({self.lr})")
        return self


class ProjectorTraining(PartSection):
    """How the projector trains. Its learning rates follow one schedule: the ratio of each of them
    to `lr` stays the same in all steps.
    """

    output_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the Linear layer that writes the visual tokens (default: `lr`)."""
    soft_prompt_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the soft prompt, in units of the standard deviation of the LLM's word
    embeddings (default: `lr`).
    """
    calibration_images: int = Field(default=64, ge=0)
    """Number of training images that calibrate the LayerNorm over the patches before the first
    step: after it each channel has mean 0 and standard deviation 1 over these images. 0: the
    LayerNorm starts with weight 1 and bias 0. A run that starts from a trained projector does not
    calibrate it.
    """

    @model_validator(mode="after")
    def _rates_train(self) -> ProjectorTraining:
        if self.mode == "frozen" and (self.output_lr or self.soft_prompt_lr):
            raise ValueError("a frozen projector takes neither output_lr nor soft_prompt_lr")
        return self


class TrainSection(Section):
    """What trains in this stage, and for how long. The optimizer is AdamW."""

    vision: PartSection = PartSection()
    """How the vision encoder trains: frozen or full."""
    projector: ProjectorTraining = ProjectorTraining()
    """How the projector trains: frozen or full."""
    llm: PartSection = PartSection()
    """How the LLM trains: frozen, lora or full."""
    steps: int | None = Field(default=None, ge=1)
    """Length of the run in optimizer steps; give either this or `epochs`."""
    epochs: int | None = Field(default=None, ge=1)
    """Length of the run in passes over the mixture of `data.train`."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rates rise from 0 to their peaks; a cosine follows."""
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.98), strict=False)  # YAML has lists only
    """AdamW's decay rates of the running means of the gradient and of its square."""
    eps: float = Field(default=1e-6, gt=0)
    """AdamW's epsilon, which is added to the denominator."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Upper bound of the norm of the gradient over all trained weights; a longer gradient is
    scaled down to it.
    """
    precision: Literal["bf16", "fp32"] = "bf16"
    """Type of the numbers in the forward and backward pass. The optimizer keeps the trained weights
    and its states in fp32 in both cases.
    """
    gradient_accumulation: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of the numbers in which a bf16 run adds up the gradients of a step's micro-batches. fp32
    costs 2 bytes more for each trained weight of a rank's share. auto: fp32 where a step has
    several micro-batches and the ZeRO stage is 2 or 3.
    """
    activation_checkpointing: Literal["auto", "none", "full"] | Layers = "auto"
    """Layers whose activations are computed again in the backward pass, to save memory: all of the
    projector's and the LLM's (full), the first N of the LLM's (a number), or as few as fit beside
    the model's states by an estimate that the log shows (auto).
    """
    zero3_gather: Literal["layers", "modules"] = "layers"
    """What ZeRO-3 gathers at once: the weights of whole layers, or of each module alone as
    DeepSpeed does by default (slower; the same numbers).
    """
    compile: Literal["none", "layers"] = "none"
    """layers: torch.compile makes one graph of each decoder layer of the LLM and each block of the
    vision encoder. Rows are then filled to their full length with tokens that nothing is learned from.
    """

    @model_validator(mode="after")
    def _consistent(self) -> TrainSection:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.vision.mode == "lora" or self.projector.mode == "lora":
            raise ValueError("lora is for the llm only; vision and projector are frozen or full")
        if all(getattr(self, part).mode == "frozen" for part in PARTS):
            raise ValueError(
                "every part is frozen: nothing would train; set projector: {mode: full, lr: ...}"
            )
        if self.steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) must be below steps ({self.steps})"
            )
        return self
