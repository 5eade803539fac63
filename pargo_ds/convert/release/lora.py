"""Convert LoRA of the authors' release from InternLM2's fused projection to query, key and value of
a Llama.

The rows of B are divided like those of the projection; A is the same for all three. Both forms
compute the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import LlamaConfig

from pargo_ds.convert.release.keys import FUSED, LLM, LORA_A, LORA_B
from pargo_ds.convert.release.llm import split_wqkv
from pargo_ds.convert.weights import Spec

PARTS = ("q_proj", "k_proj", "v_proj")
"""The parts of the fused projection, in the order of split_wqkv."""


class ReleaseLora:
    """The adapters under the names that peft saves for a Llama.

    Args:
        where: the checkpoint, for messages.
        rank, alpha: the product of B and A is multiplied by alpha / rank.
        read: reads a tensor by its canonical release name.
    """

    def __init__(
        self,
        where: Path,
        config: LlamaConfig,
        rank: int,
        alpha: int,
        dtype: torch.dtype,
        read: Callable[[str], torch.Tensor],
    ) -> None:
        self.where, self.config, self.rank, self.alpha = where, config, rank, alpha
        self._read, self._dtype = read, dtype
        self._places: dict[str, tuple[str, int]] = {}
        self.specs: dict[str, Spec] = {}
        self.wanted: dict[str, tuple[int, ...]] = {}
        """Shapes of the adapter's tensors by their canonical release names."""
        for layer in range(config.num_hidden_layers):
            self._add_layer(layer)

    def _add_layer(self, layer: int) -> None:
        heads, groups = self.config.num_attention_heads, self.config.num_key_value_heads
        inside, head_dim = self.config.hidden_size, self.config.hidden_size // heads
        fused = f"{LLM}model.layers.{layer}.attention.wqkv."
        self.wanted[fused + LORA_A] = self.rank, inside
        self.wanted[fused + LORA_B] = (heads + 2 * groups) * head_dim, self.rank
        for index, (part, rows) in enumerate(zip(PARTS, (heads, groups, groups), strict=True)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{part}."
            for half, shape in (
                (LORA_A, (self.rank, inside)),
                (LORA_B, (rows * head_dim, self.rank)),
            ):
                self._places[name + half] = fused + half, index
                self.specs[name + half] = Spec(shape, self._dtype)

    def read(self, name: str) -> torch.Tensor:
        """Return one matrix of the adapter by its name in peft."""
        source, index = self._places[name]
        values = self._read(source)
        if source.endswith(LORA_B):
            values = split_wqkv(values, self.config)[index]
        return values.to(self._dtype)

    def delta(self, fused: str) -> torch.Tensor:
        """Return what LoRA adds to the fused weight with the canonical name `fused`, in fp32 and in
        the order of the rows of this weight.
        """
        module = fused.removesuffix("weight")
        a, b = self._read(module + LORA_A).float(), self._read(module + LORA_B).float()
        return (self.alpha / self.rank) * (b @ a)


def lora_rank(found: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the rank of the first LoRA matrix on a fused projection; None if there is no LoRA."""
    for name, shape in found.items():
        if not FUSED.match(name) or len(shape) != 2:
            continue
        if name.endswith(LORA_A):
            return shape[0]
        if name.endswith(LORA_B):
            return shape[1]
    return None
