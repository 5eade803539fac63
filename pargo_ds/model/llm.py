"""The causal LM as ParGo uses it, from embeddings to hidden states and logits, with two roads for a
row of several samples.

`packed`: one row, in which attention stays within each sample (packed_attention.py, or
transformers' own mask from position ids). `rows`: each sample becomes a padded row, for language
models whose layers mix tokens by other means than attention. packing.py computes which of them is
exact for an LLM.

Axis legend: embeddings and hidden states are `(rows, tokens, width)`; cu_seqlens `(samples + 1,)`.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .packed_attention import NAME as PACKED_ATTENTION
from .packed_attention import LLMAttention, packed_row

ROADS = ("packed", "rows")

DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)

LOGIT_CHANGES: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "final_logit_softcapping": lambda logits, cap: torch.tanh(logits / cap) * cap,  # Gemma 2
    "logits_soft_cap": lambda logits, cap: torch.tanh(logits / cap) * cap,  # RecurrentGemma
    "output_logit_soft_cap": lambda logits, cap: torch.tanh(logits / cap) * cap,  # xLSTM
    "logit_scale": lambda logits, scale: logits * scale,  # Cohere
    "logits_scaling": lambda logits, scale: logits / scale,  # Granite
    "lm_head_multiplier": lambda logits, scale: logits * scale,  # Falcon-H1
}
"""Changes of the logits after the head, by the name in the configuration of the family. If a family
does anything else, the probe of packing.py finds it, and the LLM is refused."""


WORD_FACTORS = {"falcon_h1": "embedding_multiplier"}
"""Factors, by their name in a family's configuration, that its decoder puts on the words that it
looks up itself but not on embeddings that it is given.
"""


def switch_off_noise(part: nn.Module) -> None:
    """Set dropout, layer drop and router jitter of all modules of a part to zero, in place.

    eval() would do it too, but gradient checkpoints of transformers work in training mode only.
    """
    for module in part.modules():
        is_dropout = isinstance(module, DROPOUTS)
        for name, value in list(vars(module).items()):
            noisy = "drop" in name or "jitter" in name or (is_dropout and name == "p")
            if isinstance(value, float) and noisy:
                setattr(module, name, 0.0)


class DecoderOutput(Protocol):
    """What an LLM without its head returns: an output of transformers, of a class for each kind of
    LLM.
    """

    @property
    def last_hidden_state(self) -> torch.Tensor: ...


def decoder_of(llm: PreTrainedModel) -> nn.Module:
    """Return the LLM without its head, which gives `last_hidden_state`."""
    if hasattr(llm, "get_base_model"):  # peft's wrapper of an LLM
        llm = cast("Callable[[], PreTrainedModel]", llm.get_base_model)()
    # Each of them gives the whole LLM, head included, in some families that never defined it.
    found = (llm.base_model, llm.get_decoder(), getattr(llm, "model", llm))
    return next((decoder for decoder in found if decoder is not llm), llm)


def embedding_scale(llm: PreTrainedModel) -> float | torch.Tensor:
    """Return the factor that the embedding layer itself puts on its rows, 1.0 in most families.

    Who applies Gemma's sqrt(hidden_size) differs between versions of transformers: the decoder
    (4.57), or the embedding layer (5). Visual tokens are in the units of the embedding's rows and
    take this factor too, so that a model means the same in both.
    """
    embedding = llm.get_input_embeddings()
    return getattr(embedding, "scalar_embed_scale", getattr(embedding, "embed_scale", 1.0))


def final_logits(llm: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Compute the logits `(..., vocabulary)` of hidden states `(..., width)` as the LLM's own
    forward does.
    """
    head = llm.get_output_embeddings()
    # Mamba's residual stream is float32 whatever the weights' type.
    logits = head(hidden.to(head.weight.dtype))
    for name, change in LOGIT_CHANGES.items():
        value = getattr(llm.config, name, None)
        if value is not None:
            logits = change(logits, value)
    return logits


def run_llm(llm: PreTrainedModel, inputs_embeds: torch.Tensor, **inputs: Any) -> DecoderOutput:
    """Return the decoder's output for unpacked rows; `inputs` that are None are not handed on,
    because some families do not know them.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    if (factor := WORD_FACTORS.get(llm.config.model_type)) is not None:
        inputs_embeds = inputs_embeds * getattr(llm.config, factor)
    return decoder_of(llm)(inputs_embeds=inputs_embeds, **given)


def run_packed_llm(
    llm: PreTrainedModel,
    inputs_embeds: torch.Tensor,
    cu_seqlens: torch.Tensor,
    longest: int,
    road: str,
    attention: LLMAttention,
    **inputs: Any,
) -> DecoderOutput:
    """Return the decoder's output for one packed row `(1, tokens, width)`, with the hidden states
    in its order.

    Args:
        longest: tokens of the longest sample, as cu_seqlens has it.
        road: packed | rows.
        attention: how `pargo_packed` computes; other attention implementations ignore it.
        inputs: position_ids and what else the decoder takes; on `rows` each sample starts at
            position 0 anyway, so position_ids are left out there.
    """
    inputs["use_cache"] = False
    if road == "rows":
        inputs.pop("position_ids", None)
        return _run_rows(llm, inputs_embeds, cu_seqlens, longest, inputs)
    implementation = str(llm.config._attn_implementation)
    if implementation == PACKED_ATTENTION:
        inputs["pargo_llm"] = attention
    if implementation == PACKED_ATTENTION or "flash" in implementation:
        # Other implementations find the boundaries in position_ids.
        inputs |= {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens}
        inputs |= {"max_length_q": longest, "max_length_k": longest}
    with packed_row(implementation == PACKED_ATTENTION):
        return run_llm(llm, inputs_embeds, **inputs)


def _run_rows(
    llm: PreTrainedModel,
    inputs_embeds: torch.Tensor,
    cu_seqlens: torch.Tensor,
    longest: int,
    inputs: dict[str, Any],
) -> DecoderOutput:
    lengths = cu_seqlens.diff().long()
    samples = torch.arange(lengths.numel(), device=lengths.device)
    # (tokens,); with its size known the host need not wait for the lengths
    row = samples.repeat_interleave(lengths, output_size=inputs_embeds.shape[1])
    place = torch.arange(row.numel(), device=row.device) - cu_seqlens[:-1].long()[row]
    # Padding stands behind the tokens of its row, so a causal model needs no mask for it.
    padded = inputs_embeds.new_zeros(lengths.numel(), longest, inputs_embeds.shape[-1])
    padded = padded.index_put((row, place), inputs_embeds[0])
    hidden = run_llm(llm, padded, **inputs).last_hidden_state
    packed = cast("torch.FloatTensor", hidden[row, place].unsqueeze(0))
    return cast("DecoderOutput", BaseModelOutput(last_hidden_state=packed))
