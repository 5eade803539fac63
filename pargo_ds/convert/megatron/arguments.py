"""The arguments of megatron-core's TransformerConfig and GPTModel for a Hugging Face language
model, as plain JSON.
"""

from __future__ import annotations

from typing import Any

from pargo_ds.convert.megatron.layout import Layout, head_dim
from pargo_ds.errors import CheckpointError

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The constants of Llama 3.1's rotary scaling that GPTModel has built in."""


def gpt_arguments(config: Any) -> dict[str, dict[str, Any]]:
    """Return the arguments in three groups: `transformer_config` (without activation_func, which is
    no JSON), `layer_spec` and `gpt_model`.

    Raises CheckpointError when the language model has something that the arguments cannot express.
    """
    layout = Layout.of(config)
    return {
        "transformer_config": {
            "num_layers": layout.layers,
            "hidden_size": config.hidden_size,
            "num_attention_heads": layout.heads,
            "num_query_groups": layout.groups,
            "kv_channels": head_dim(config),
            "ffn_hidden_size": config.intermediate_size,
            "gated_linear_unit": True,
            "add_bias_linear": False,
            "add_qkv_bias": layout.qkv_bias,
            "qk_layernorm": layout.qk_norm,
            "normalization": "RMSNorm",
            "layernorm_epsilon": config.rms_norm_eps,
            "hidden_dropout": 0.0,
            "attention_dropout": config.attention_dropout,
        },
        "layer_spec": {"qk_layernorm": layout.qk_norm, "normalization": "RMSNorm"},
        "gpt_model": {
            "vocab_size": config.vocab_size,
            "max_sequence_length": config.max_position_embeddings,
            "share_embeddings_and_output_weights": layout.tied,
            "position_embedding_type": "rope",
            **rotary_arguments(config),
        },
    }


def rotary_arguments(config: Any) -> dict[str, Any]:
    """Return the rotary arguments of GPTModel. transformers 4 has theta and scaling in two fields,
    version 5 in the field `rope_parameters`.
    """
    rope = dict(
        getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    )
    theta = rope.pop("rope_theta", None) or getattr(config, "rope_theta", 10000.0)
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    if float(theta).is_integer():
        theta = int(theta)
    arguments: dict[str, Any] = {"rotary_base": theta}
    if kind == "default":
        return arguments
    if kind == "linear":
        return arguments | {"seq_len_interpolation_factor": rope["factor"]}
    if kind == "llama3" and {key: rope.get(key) for key in LLAMA3} == LLAMA3:
        return arguments | {"rope_scaling": True, "rope_scaling_factor": rope["factor"]}
    raise CheckpointError(
        f"the LLM scales its rotary positions with {kind} {rope}, for which GPTModel has no argument"
    )
