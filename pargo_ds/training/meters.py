"""Honest numbers of a step: tokens, fill, data wait, memory, MFU and HFU apart.

FLOPs are counted as the arithmetic that this stage needs: a frozen part has no weight gradient, the
vision encoder no backward at all, empty packs and blank images count nothing. HFU adds what
activation checkpointing repeats.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pargo_ds.batch import Batch
from pargo_ds.config import RunConfig
from pargo_ds.model import ParGoForConditionalGeneration
from pargo_ds.resident import resident_mib
from pargo_ds.training.recompute import Recompute

# Dense bf16 peak of one device in TFLOP/s (vendors' data sheets, without sparsity).
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "B200": 2250.0,
    "L40S": 362.0,
}


@dataclass(frozen=True)
class FlopModel:
    """Floating-point operations of one forward pass, per unit."""

    vision_per_image: float
    projector_per_image: float
    llm_per_token: float
    """Linear layers only, without the output head."""
    llm_head_per_target: float
    llm_attention_per_square: float
    """Per squared sample length (causal), all layers."""

    @classmethod
    def of(cls, meta_model: ParGoForConditionalGeneration, image_size: int) -> FlopModel:
        """Count on a copy of the model on the meta device: one image through vision and projector,
        the LLM from its linear layers and its configuration.
        """
        pixels = torch.zeros(1, 3, image_size, image_size, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as vision:
            features = meta_model.vision(pixels)
        # with a graph: the counter's hooks stumble over parameters that are returned without one
        with torch.enable_grad(), FlopCounterMode(display=False) as projector:
            meta_model.projector(features)
        llm = meta_model.llm
        head = cast("nn.Linear", llm.get_output_embeddings())
        linears = [m for m in llm.modules() if isinstance(m, nn.Linear) and m is not head]
        linear = sum(layer.weight.numel() for layer in linears)
        text = llm.config
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(
            vision_per_image=float(vision.get_total_flops()),
            projector_per_image=float(projector.get_total_flops()),
            llm_per_token=2.0 * linear,
            llm_head_per_target=2.0 * head.in_features * head.out_features,
            # scores and weighted sum, 2 FLOPs each per multiply-add, half of the square under a
            # causal mask
            llm_attention_per_square=2.0
            * text.num_attention_heads
            * head_dim
            * text.num_hidden_layers,
        )

    def of_batch(
        self,
        batch: Batch,
        run: RunConfig,
        training: bool = True,
        again: Recompute = Recompute(),  # noqa: B008 (it cannot change)
    ) -> tuple[float, float]:
        """Return (model FLOPs, hardware FLOPs) of one pack; forward only when not training.
        `again`: what activation checkpointing repeats.
        """
        if not batch.sample_ids:
            return 0.0, 0.0
        lengths = batch.cu_seqlens.diff().double()
        vision = self.vision_per_image * batch.num_images
        projector = self.projector_per_image * batch.num_images
        linear = self.llm_per_token * batch.num_tokens
        attention = self.llm_attention_per_square * float((lengths**2).sum())
        head = self.llm_head_per_target * batch.num_targets
        forward = vision + projector + linear + attention + head
        if not training:
            return forward, forward
        train = run.train
        # Gradients reach the projector through the whole LLM, so activations' gradients are needed
        # even when the LLM is frozen; weights' gradients only where it trains. Attention has twice
        # its forward in backward.
        in_llm = 2 if train.llm.mode == "full" else 1
        backward = linear * in_llm + 2 * attention
        backward += head * in_llm
        if train.projector.mode == "full":
            backward += 2 * projector
        if train.vision.mode == "full":
            backward += 2 * vision
        repeated = (linear + attention) * again.layers / again.of
        if again.projector:
            repeated += projector
        return forward + backward, forward + backward + repeated


def peak_tflops(run: RunConfig, device: torch.device) -> float | None:
    """Return the peak of one device in TFLOP/s, from the run file, else from the table; None when
    it is unknown (CPU).
    """
    if run.reporting.peak_tflops is not None:
        return run.reporting.peak_tflops
    if device.type != "cuda" or run.train.precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)


def memory_gib(device: torch.device) -> float:
    """Return the most memory that this rank has held, in GiB: allocated on the GPU, or resident on
    CPU.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resident_mib() / 1024


def imbalance(largest: list[float], added: list[float], ranks: int) -> float:
    """Return the maximum over the mean across ranks, micro-batch by micro-batch: how much longer
    ranks wait than if all had as many.

    `largest` and `added` are (micro-batches,) maxima and sums over the ranks. Ranks compute in
    step, so a rank with much in one micro-batch and little in the next holds up the others all the
    same. 1.0 when there is nothing.
    """
    if not any(added):
        return 1.0
    return sum(largest) * ranks / sum(added)


@dataclass
class StepMeter:
    """Adds up one optimizer step on this rank: `own` are its numbers, `figures` makes the step's
    figures of those of all ranks.
    """

    run: RunConfig
    flops: FlopModel
    device: torch.device
    again: Recompute = Recompute()
    sums: dict[str, float] = field(default_factory=dict)
    rows: list[tuple[int, int]] = field(default_factory=list)
    """Images and tokens of each micro-batch of the step."""
    _started: float = field(default_factory=time.perf_counter)

    def start(self, data_wait_s: float) -> None:
        """Begin a step whose batches took `data_wait_s` to arrive."""
        self._started = time.perf_counter() - data_wait_s
        names = (
            "tokens",
            "targets",
            "images",
            "samples",
            "packs",
            "model_flops",
            "hardware_flops",
        )
        self.sums = dict.fromkeys(names, 0.0) | {"data_wait_s": data_wait_s}
        self.rows = []

    def add(self, packs: Sequence[Batch]) -> None:
        """Count one micro-batch: packs that ran through the model together."""
        images = sum(one.num_images for one in packs)
        self.rows.append((images, sum(one.num_tokens for one in packs)))
        for batch in packs:
            self._add(batch)

    def _add(self, batch: Batch) -> None:
        model_flops, hardware_flops = self.flops.of_batch(batch, self.run, again=self.again)
        for name, value in (
            ("tokens", batch.num_tokens),
            ("targets", batch.num_targets),
            ("images", batch.num_images),
            ("samples", len(batch.sample_ids)),
            ("packs", int(bool(batch.sample_ids))),
            ("model_flops", model_flops),
            ("hardware_flops", hardware_flops),
        ):
            self.sums[name] += value

    def own(self) -> list[float]:
        """Return this rank's numbers at the end of a step; every rank has equally many."""
        images = [float(count) for count, _ in self.rows]
        tokens = [float(count) for _, count in self.rows]
        clock = [time.perf_counter() - self._started, memory_gib(self.device)]
        return [*images, *tokens, *self.sums.values(), *clock]

    def figures(self, loss_sum: float, of_ranks: torch.Tensor) -> dict[str, float | None]:
        """Return the figures of the step: `loss_sum` is the summed cross-entropy over the targets
        of all ranks, `of_ranks` `(ranks, numbers)` what `own` gave on each.
        """
        ranks = of_ranks.shape[0]
        added, largest = of_ranks.sum(0).tolist(), of_ranks.amax(0).tolist()
        rows = len(self.rows)
        summed = dict(zip(self.sums, added[2 * rows : -2], strict=True))
        data_wait_s = dict(zip(self.sums, largest[2 * rows : -2], strict=True))["data_wait_s"]
        step_s, memory = largest[-2:]
        capacity = self.run.batch.tokens_per_pack * max(1.0, summed["packs"])
        per_device = step_s * ranks * 1e12
        peak = peak_tflops(self.run, self.device)
        tflops, hardware = summed["model_flops"] / per_device, summed["hardware_flops"] / per_device
        mfu = hfu = None
        if peak:
            mfu, hfu = tflops / peak, hardware / peak
        return {
            "loss": loss_sum / max(1.0, summed["targets"]),
            "tokens": summed["tokens"],
            "target_tokens": summed["targets"],
            "images": summed["images"],
            "samples": summed["samples"],
            "packs": summed["packs"],
            "fill": summed["tokens"] / capacity,
            "image_imbalance": imbalance(largest[:rows], added[:rows], ranks),
            "token_imbalance": imbalance(largest[rows : 2 * rows], added[rows : 2 * rows], ranks),
            "step_s": step_s,
            "data_wait_s": data_wait_s,
            "tokens_per_s": summed["tokens"] / step_s,
            "target_tokens_per_s": summed["targets"] / step_s,
            "tflops_per_device": tflops,
            "hardware_tflops_per_device": hardware,
            "mfu": mfu,
            "hfu": hfu,
            "memory_gib": memory,
        }


def flop_model(model: ParGoForConditionalGeneration) -> FlopModel:
    """Return the FLOP counts of this model, from a copy on the meta device."""
    with torch.device("meta"):
        copy = ParGoForConditionalGeneration(model.config)
    return FlopModel.of(copy, model.config.vision_config.image_size)
