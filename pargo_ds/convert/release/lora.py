"""LoRA of the authors' release: on InternLM2's fused projection there, on query, key and value of the Llama here.

B's rows are split as the projection's are; A is the same for all three. Both ways give the same numbers.
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
"""Parts of the fused projection, in the order of split_wqkv."""


class ReleaseLora:
    """The adapters under the names that peft saves for a Llama.

    Args:
        where: the checkpoint, for messages.
        rank, alpha: the product of B and A is multiplied by alpha / rank.
        read: canonical release name -> tensor.
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
        """Canonical release names and shapes."""
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
            for half, shape in ((LORA_A, (self.rank, inside)), (LORA_B, (rows * head_dim, self.rank))):
                self._places[name + half] = fused + half, index
                self.specs[name + half] = Spec(shape, self._dtype)

    def read(self, name: str) -> torch.Tensor:
        """One matrix of the adapter by peft's name."""
        source, index = self._places[name]
        values = self._read(source)
        return (values if source.endswith(LORA_A) else split_wqkv(values, self.config)[index]).to(self._dtype)

    def delta(self, fused: str) -> torch.Tensor:
        """What LoRA adds to the fused weight of canonical name `fused`, fp32, in the order of its rows."""
        module = fused.removesuffix("weight")
        a, b = self._read(module + LORA_A).float(), self._read(module + LORA_B).float()
        return (self.alpha / self.rank) * (b @ a)


def lora_rank(found: Mapping[str, tuple[int, ...]]) -> int | None:
    """Rank of the first LoRA matrix on a fused projection; None where there is none."""
    for name, shape in found.items():
        if FUSED.match(name) and len(shape) == 2 and name.endswith((LORA_A, LORA_B)):
            return shape[0] if name.endswith(LORA_A) else shape[1]
    return None
