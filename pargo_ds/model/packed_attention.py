"""Attention of the LLM over a packed row, sample by sample; registered with transformers as `pargo_packed`.

transformers' SDPA road finds the sample boundaries in position_ids and builds a (tokens, tokens) mask; on a CPU that
mask costs the whole square (48 % of a training step at 10 samples of 100 tokens, measured). Here each sample is one
causal call. Without boundaries (generation, unpacked batches) and on other devices it is transformers' SDPA itself.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "pargo_packed"


def packed_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query `(rows, heads, tokens, head_dim)`, key and value with their own number of heads -> `(rows, tokens, heads,
    head_dim)`; `cu_seq_lens_q` `(samples + 1,)` marks one packed row."""
    if cu_seq_lens_q is None or query.device.type != "cpu" or kwargs.get("sliding_window") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    bounds = cu_seq_lens_q.tolist()
    grouped = query.shape[1] != key.shape[1]
    outputs = [
        F.scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=grouped,
        )
        for start, end in zip(bounds, bounds[1:], strict=False)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def use_packed_attention(llm: PreTrainedModel) -> None:
    """Switch an LLM that would use SDPA to `pargo_packed`; others keep what they have."""
    if llm.config._attn_implementation == "sdpa" and getattr(llm, "_supports_attention_backend", False):
        llm.set_attn_implementation(NAME)


AttentionInterface.register(NAME, packed_attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
