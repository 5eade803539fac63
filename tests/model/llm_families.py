"""Small configurations of every family of causal language models that tests train ParGo with.

Each has four layers or fewer, of all the kinds that the family has, and limits (windows, chunks)
that samples of a dozen tokens exceed.
"""

VOCABULARY = 97
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "attention_dropout": 0.0,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64,
}  # fmt: skip
WINDOW = {"sliding_window": 4}
SLIDING = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MOE = {**EXPERTS, "moe_intermediate_size": 16}
ROUTED = {
    "n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
LATENT = {
    **ROUTED, "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "qk_nope_head_dim": 8,
}  # fmt: skip
HEAD = {"head_dim": 8}
SCALED = {
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.1,
}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GEMMA2 = {**HEAD, **WINDOW, "query_pre_attn_scalar": 8}


def _rope(kind: str, **options: object) -> dict:
    return {"rope_scaling": {"rope_type": kind, **options}}


LONG = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

FAMILIES: dict[str, dict] = {
    "apertus": {},
    "arcee": {},
    "bamba": {**MAMBA, "attn_layer_indices": [1, 3]},
    "biogpt": {},
    "bitnet": {},
    "bloom": {"n_layer": 2, "n_head": 4},
    "codegen": {**GPT, "n_ctx": 64, "rotary_dim": 4},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {**SLIDING, "logit_scale": 0.0625},
    "ctrl": {**GPT, "dff": 48},
    "dbrx": {
        "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "diffllama": {},
    "doge": {},
    "doge, beyond its window": {"model_type": "doge", "keep_window_size": 4},
    "dots1": {**ROUTED, "layer_types": ["full_attention"] * 4},
    "ernie4_5": {},
    "ernie4_5_moe": {
        "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 1,
        "moe_layer_end_index": 3,
    },
    "exaone4": SLIDING,
    "falcon": {"multi_query": True, "new_decoder_architecture": False},
    "falcon, alibi": {"model_type": "falcon", "alibi": True, "multi_query": False},
    "falcon_h1": {
        **HEAD, **MAMBA, "mamba_d_ssm": 32, "mamba_d_head": 8, "lm_head_multiplier": 0.5, "embedding_multiplier": 5.657,
    },
    "falcon_mamba": {"state_size": 8},
    "flex_olmo": EXPERTS,
    "gemma": HEAD,
    "gemma2": GEMMA2,
    "gemma2, strong caps": {
        **GEMMA2, "model_type": "gemma2", "attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0,
    },
    "gemma3_text": {**HEAD, **SLIDING, "query_pre_attn_scalar": 8},
    "gemma3n_text": {
        **HEAD, **SLIDING, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [48] * 4,
    },
    "glm": HEAD,
    "glm4": HEAD,
    "glm4_moe": {**HEAD, **ROUTED},
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neo": {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 4},
    "gpt_neox": {"rotary_pct": 0.5},
    "gpt_oss": {**HEAD, **SLIDING, **LOCAL_EXPERTS},
    "gptj": {**GPT, "rotary_dim": 4},
    "granite": SCALED,
    "granitemoe": {**LOCAL_EXPERTS, **SCALED},
    "granitemoehybrid": {
        **LOCAL_EXPERTS, **MAMBA, "shared_intermediate_size": 16, "layer_types": ["mamba", "attention"] * 2,
    },
    "granitemoeshared": {**LOCAL_EXPERTS, "shared_intermediate_size": 16},
    "helium": HEAD,
    "hunyuan_v1_dense": HEAD,
    "hunyuan_v1_moe": {**HEAD, "num_experts": 4, "moe_topk": 2},
    "jamba": {
        "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False,
    },
    "jetmoe": {**LOCAL_EXPERTS, "kv_channels": 8, "num_key_value_heads": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "conv_L_cache": 3, "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {**MOE, "layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "llama": {},
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama, Llama 3 positions": {"model_type": "llama", **_rope("llama3", **LLAMA3)},
    "llama, dynamic NTK, below its limit": {"model_type": "llama", **_rope("dynamic", factor=2.0)},
    "llama, dynamic NTK, beyond its limit": {
        "model_type": "llama", "max_position_embeddings": 8, **_rope("dynamic", factor=2.0),
    },
    "llama, YaRN": {"model_type": "llama", **_rope("yarn", factor=4.0, original_max_position_embeddings=16)},
    "llama4_text": {
        **HEAD, "attention_chunk_size": 4, "num_local_experts": 2, "intermediate_size_mlp": 32,
        "interleave_moe_layer_step": 2,
    },
    "llama4_text, scaled queries": {
        **HEAD, "model_type": "llama4_text", "num_local_experts": 2, "intermediate_size_mlp": 32,
        "interleave_moe_layer_step": 2, "no_rope_layers": [1, 0, 1, 0], "floor_scale": 4, "attn_scale": 1.0,
    },
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "minimax": {
        **HEAD, **LOCAL_EXPERTS, "layer_types": ["linear_attention", "full_attention"] * 2, "block_size": 4,
    },
    "minimax_m3_vl_text": {
        **HEAD, **LOCAL_EXPERTS, "layer_types": ["minimax_m3_sparse"] * 4, "index_block_size": 2,
        "index_topk_blocks": 2, "index_head_dim": 8, "rotary_dim": 4, "dense_intermediate_size": 48,
        "shared_intermediate_size": 16,
    },
    "mistral": WINDOW,
    "mixtral": {**WINDOW, **LOCAL_EXPERTS},
    "modernbert-decoder": {
        "local_attention": 8, "global_attn_every_n_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "nanochat": {},
    "nemotron": HEAD,
    "olmo": {},
    "olmo2": {},
    "olmo3": SLIDING,
    "olmoe": EXPERTS,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3},
    "persimmon": {},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": WINDOW,
    "phi3, LongRoPE, below its limit": {
        "model_type": "phi3", "original_max_position_embeddings": 32, "rope_scaling": {"type": "longrope", **LONG},
    },
    "phi3, LongRoPE, beyond its limit": {
        "model_type": "phi3", "original_max_position_embeddings": 8, "rope_scaling": {"type": "longrope", **LONG},
    },
    "phimoe": {**WINDOW, **LOCAL_EXPERTS},
    "qwen2": {},
    "qwen2, windows": {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 2, **WINDOW},
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 16},
    "qwen3": HEAD,
    "qwen3, windows": {"model_type": "qwen3", **HEAD, "use_sliding_window": True, "max_window_layers": 2, **WINDOW},
    "qwen3_moe": {**MOE, **HEAD},
    "qwen3_next": {
        **HEAD, **MOE, "shared_expert_intermediate_size": 16, "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    "recurrent_gemma": {
        "lru_width": 32, "block_types": ["recurrent", "attention"], "attention_window_size": 4, "logits_soft_cap": 2.0,
    },
    "rwkv": {"attention_hidden_size": 32},
    "seed_oss": HEAD,
    "smollm3": {"no_rope_layer_interval": 2},
    "stablelm": {},
    "starcoder2": WINDOW,
    "vaultgemma": GEMMA2,
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "init_std": 0.3},
    "xlstm": {"num_heads": 4, "embedding_dim": 32, "num_blocks": 2},
    "zamba2": {
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba"], "mamba_d_state": 8, "n_mamba_heads": 4,
        "mamba_headdim": 16, "mamba_ngroups": 1, "num_mem_blocks": 1, "use_mem_rope": True, "chunk_size": 8,
        "num_key_value_heads": 4,
    },
    "bert": {"is_decoder": True},
    "roberta": {"is_decoder": True, "max_position_embeddings": 70},
}  # fmt: skip


def architecture(name: str) -> dict:
    """The keyword arguments of AutoConfig.for_model for a family of FAMILIES."""
    return {**COMMON, "model_type": name, **FAMILIES[name]}
