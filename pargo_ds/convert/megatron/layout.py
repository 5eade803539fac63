"""The mapping between the tensors of a megatron-core GPTModel and those of a Hugging Face language
model.
Pure index arithmetic.

Axis legend: H heads in G groups that share a key and a value head, head dimension D; weights are
`(out, in)`. In a torch_dist checkpoint the layers are stacked (`decoder.layers.NAME` of shape
`(layers, ...)`) or separate (`decoder.layers.3.NAME`). Norms have the names of Transformer Engine
there, even if the layers are not made with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pargo_ds.errors import CheckpointError

FAMILIES = ("llama", "qwen2", "qwen3")
LAYERS = "decoder.layers"
COPY, QKV, GATE_UP = "copy", "qkv", "gate_up"
STATEFUL = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
"""Modules of a layer for which a GPTModel reads an (empty) `_extra_state` when it loads."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a GPTModel, in a layer or outside the layers, and the Hugging Face tensors of
    which it is made.
    """

    name: str
    layer: int | None
    kind: str
    parts: tuple[str, ...]

    def key(self, stacked: bool) -> str:
        """Return the name of the tensor in a torch_dist checkpoint."""
        if self.layer is None:
            return self.name
        if stacked:
            return f"{LAYERS}.{self.name}"
        return f"{LAYERS}.{self.layer}.{self.name}"


@dataclass(frozen=True)
class Layout:
    """The numbers on which the mapping depends."""

    layers: int
    heads: int
    groups: int
    head_dim: int
    tied: bool
    qkv_bias: bool
    qk_norm: bool

    @classmethod
    def of(cls, config: Any) -> Layout:
        """Return the layout for the configuration of a language model.

        Raises CheckpointError when GPTModel cannot represent the model.
        """
        check_family(config)
        return cls(
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            groups=config.num_key_value_heads,
            head_dim=head_dim(config),
            tied=bool(config.tie_word_embeddings),
            qkv_bias=config.model_type == "qwen2",
            qk_norm=config.model_type == "qwen3",
        )

    def entries(self) -> Iterator[Entry]:
        """Yield all tensors in the order of the model."""
        yield Entry("embedding.word_embeddings.weight", None, COPY, ("model.embed_tokens.weight",))
        for layer in range(self.layers):
            yield from self._layer(layer)
        yield Entry("decoder.final_layernorm.weight", None, COPY, ("model.norm.weight",))
        if not self.tied:
            yield Entry("output_layer.weight", None, COPY, ("lm_head.weight",))

    def _layer(self, layer: int) -> Iterator[Entry]:
        def entry(name: str, kind: str, *parts: str) -> Entry:
            return Entry(name, layer, kind, tuple(f"model.layers.{layer}.{part}" for part in parts))

        qkv = ("q_proj", "k_proj", "v_proj")
        yield entry("self_attention.linear_qkv.layer_norm_weight", COPY, "input_layernorm.weight")
        yield entry(
            "self_attention.linear_qkv.weight", QKV, *(f"self_attn.{p}.weight" for p in qkv)
        )
        if self.qkv_bias:
            yield entry(
                "self_attention.linear_qkv.bias", QKV, *(f"self_attn.{p}.bias" for p in qkv)
            )
        if self.qk_norm:
            yield entry("self_attention.q_layernorm.weight", COPY, "self_attn.q_norm.weight")
            yield entry("self_attention.k_layernorm.weight", COPY, "self_attn.k_norm.weight")
        yield entry("self_attention.linear_proj.weight", COPY, "self_attn.o_proj.weight")
        yield entry("mlp.linear_fc1.layer_norm_weight", COPY, "post_attention_layernorm.weight")
        yield entry("mlp.linear_fc1.weight", GATE_UP, "mlp.gate_proj.weight", "mlp.up_proj.weight")
        yield entry("mlp.linear_fc2.weight", COPY, "mlp.down_proj.weight")

    def extra_states(self, stacked: bool) -> Iterator[str]:
        """Yield the keys of the empty objects beside the tensors."""
        for layer in range(self.layers):
            for module in STATEFUL:
                if stacked:
                    yield f"{LAYERS}.{module}._extra_state/shard_{layer}_{self.layers}"
                else:
                    yield f"{LAYERS}.{layer}.{module}._extra_state/shard_0_1"

    def join(self, entry: Entry, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Convert Hugging Face tensors to the tensor of megatron-core.

        Queries, keys and values are interleaved by group: H/G query heads, their key head, their
        value head, D rows each. Gate and up projection follow each other.
        """
        if entry.kind == QKV:
            query, key, value = parts
            rest = query.shape[1:]
            grouped = [
                query.reshape(self.groups, self.heads // self.groups * self.head_dim, *rest),
                key.reshape(self.groups, self.head_dim, *rest),
                value.reshape(self.groups, self.head_dim, *rest),
            ]
            return torch.cat(grouped, dim=1).reshape(-1, *rest)  # (groups x (H/G + 2) x D, in)
        if entry.kind == GATE_UP:
            return torch.cat(list(parts))
        return parts[0]

    def split(self, entry: Entry, whole: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Convert a tensor of megatron-core to Hugging Face tensors; the inverse of `join`."""
        if entry.kind == QKV:
            rest = whole.shape[1:]
            heads = whole.reshape(self.groups, -1, self.head_dim, *rest)  # (groups, H/G + 2, D, in)
            parts = heads[:, :-2], heads[:, -2], heads[:, -1]
            return tuple(part.reshape(-1, *rest) for part in parts)
        if entry.kind == GATE_UP:
            return whole.chunk(2)
        return (whole,)


def head_dim(config: Any) -> int:
    """Return the width of one attention head. If the configuration does not have it, it is hidden
    size / heads.
    """
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def check_family(config: Any) -> None:
    """Raise CheckpointError naming what the model has and the mapping (or GPTModel) does not
    support.
    """
    family = config.model_type
    if family not in FAMILIES:
        raise CheckpointError(
            f"the LLM's model_type is {family}; megatron-core is written for {', '.join(FAMILIES)}"
        )
    unmapped = {
        "attention_bias": family != "qwen2" and getattr(config, "attention_bias", False),
        "mlp_bias": getattr(config, "mlp_bias", False),
        "use_sliding_window": getattr(config, "use_sliding_window", False),
        "hidden_act": config.hidden_act not in ("silu", "swish") and config.hidden_act,
    }
    found = {name: value for name, value in unmapped.items() if value}
    if found:
        raise CheckpointError(
            f"the LLM's configuration has {found}, which the mapping to GPTModel does not know"
        )
    if config.num_attention_heads % config.num_key_value_heads:
        raise CheckpointError(
            f"{config.num_attention_heads} attention heads do not divide into {config.num_key_value_heads} groups"
        )
