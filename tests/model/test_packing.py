"""Samples of a pack stay apart in every LLM that trains: proven on a tiny copy, or refused."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pargo_ds.model import ParGoForConditionalGeneration
from pargo_ds.model.llm import decoder_of, final_logits, switch_off_noise
from pargo_ds.model.packing import PackingError, prove_packing
from pargo_ds.model.tiny_llm import exceeded_limits, tiny_config
from tests.model.family_worker import compare, tiny_pargo
from tests.model.llm_families import architecture


def configuration(name: str, **changes):
    return AutoConfig.for_model(**{**architecture(name), **changes})


@pytest.mark.parametrize(
    ("name", "road"),
    [
        ("llama", "packed"),
        ("gpt_oss", "packed"),
        ("gemma2, strong caps", "packed"),
        ("jamba", "rows"),
        ("lfm2", "rows"),
    ],
)
def test_packed_samples_compute_what_each_computes_alone_in_transformers_itself(name, road):
    found = compare(name)
    assert (found["verdict"], found["road"]) == ("exact", road)
    # Measured: at most 2.3e-6, from parts that transformers computes in float32. A leak is 1e-1 and
    # more.
    assert max(found["logits"], found["gradients"], found["loss"]) < 1e-5


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("llama, dynamic NTK, beyond its limit", 8),
        ("phi3, LongRoPE, beyond its limit", 8),
        ("gpt2", 64),
    ],
)
def test_samples_longer_than_the_llm_takes_exactly_are_refused_with_the_length_that_works(
    name, limit
):
    config = configuration(name)
    with pytest.raises(PackingError, match=f"batch.tokens_per_pack, now 100, to at most {limit}"):
        prove_packing(config, 100)
    prove_packing(config, limit)


def shortened(config, longest, row=None):
    return tiny_config(config, exceeded_limits(config, longest, row))


def test_queries_scaled_by_their_place_in_the_row_are_found_though_every_sample_is_short():
    """Llama 4 scales queries beyond `floor_scale` by their place, and takes the place in the row
    for it.
    """
    config = configuration(
        "llama4_text", attention_chunk_size=64, no_rope_layers=[1, 0] * 2, floor_scale=16
    )
    assert prove_packing(config, 12).road == "packed"  # a row of one sample
    assert prove_packing(config, 12, row=28).road == "rows"
    model = ParGoForConditionalGeneration(tiny_pargo(config)).double().eval()
    samples = [torch.randint(3, 90, (1, length)) for length in (12, 12, 10)]
    packed = model(
        input_ids=torch.cat(samples, 1), cu_seqlens=torch.tensor([0, 12, 24, 34], dtype=torch.int32)
    ).logits
    alone = torch.cat([model(input_ids=ids).logits for ids in samples], 1)
    off = float((packed - alone)[..., :97].detach().abs().max())
    assert off < 1e-5, off


def test_a_layer_that_keeps_its_best_keys_is_refused_where_padding_decides_between_equal_words():
    config = configuration("doge", keep_window_size=16)
    with pytest.raises(PackingError, match="batch.tokens_per_pack, now 60, to at most 16"):
        prove_packing(config, 60)
    prove_packing(config, 16)


@pytest.mark.parametrize("name", ["phi", "stablelm", "persimmon", "gpt_neox"])
def test_a_head_of_which_40_percent_rotate_is_let_through(name):
    """Phi-2: 0.4 of 80 are whole pairs, 0.4 of the copy's 8 are not."""
    part = {"rotary_pct": 0.4} if name == "gpt_neox" else {"partial_rotary_factor": 0.4}
    prove_packing(configuration(name, hidden_size=320, **part), 60)


LONG = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [4.0] * 48}
PUBLISHED = {
    "vicuna-7b-v1.5": {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32},
    "Qwen2.5-0.5B": {
        "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "max_window_layers": 21, "tie_word_embeddings": True,
    },
    "Phi-4-mini": {
        "model_type": "phi3", "hidden_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 24,
        "num_key_value_heads": 8, "partial_rotary_factor": 0.75, "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096, "rope_scaling": LONG, "vocab_size": 200064, "pad_token_id": 199999,
    },
    "falcon-7b": {
        "model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
        "multi_query": True, "new_decoder_architecture": False,
    },
    "DeepSeek-V3": {
        "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
        "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3,
    },
    "Qwen3-Next-80B": {
        "model_type": "qwen3_next", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 16,
        "num_key_value_heads": 2, "head_dim": 256, "linear_num_value_heads": 32, "linear_num_key_heads": 16,
        "num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512,
    },
    "granite-4.0-h-tiny": {
        "model_type": "granitemoehybrid", "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 12,
        "num_key_value_heads": 4, "layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
        "mamba_n_heads": 48, "mamba_d_head": 64, "mamba_d_state": 128, "num_local_experts": 64,
    },
}  # fmt: skip
"""Sizes of published models that small copies of equal proportions do not cover."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_let_through(name):
    assert prove_packing(AutoConfig.for_model(**PUBLISHED[name]), 4096).noise is None


@pytest.mark.parametrize("name", ["gemma3n_text", "modernbert-decoder", "bert"])
def test_an_llm_that_is_exact_on_no_road_is_refused_by_name(name):
    config = configuration(name)
    with pytest.raises(
        PackingError,
        match=rf"the LLM \({config.model_type}\) cannot train on packed samples exactly",
    ):
        prove_packing(config, 50)


def test_a_packed_batch_of_a_refused_llm_raises_instead_of_leaking():
    config = tiny_pargo(configuration("gemma3n_text"))
    model = ParGoForConditionalGeneration(config)
    ids, bounds = torch.randint(3, 90, (1, 8)), torch.tensor([0, 3, 8], dtype=torch.int32)
    with pytest.raises(PackingError):
        model(input_ids=ids, cu_seqlens=bounds)


def test_the_proof_disturbs_neither_random_numbers_nor_the_mode_it_is_asked_in():
    config = configuration("qwen2", hidden_size=64)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.inference_mode(), torch.device("meta"):
        assert prove_packing(config, 50).road == "packed"
    assert torch.equal(torch.rand(3), expected)


def test_the_proof_depends_on_lengths_only_where_the_configuration_names_them():
    config = configuration("mistral")
    assert exceeded_limits(config, 4) == ()
    assert exceeded_limits(config, 5) == (("sliding_window", 4, "sample"),)
    assert exceeded_limits(config, 4, row=65) == (
        ("max_position_embeddings", 64, "row"),
        ("sliding_window", 4, "row"),
    )
    both = (("max_position_embeddings", 64, "sample"), ("sliding_window", 4, "sample"))
    assert exceeded_limits(config, 65) == both


def test_a_tiny_copy_keeps_every_kind_of_layer_and_shortens_what_the_samples_exceed():
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    big = AutoConfig.for_model("qwen3_next", num_hidden_layers=48, layer_types=kinds * 12)
    tiny = shortened(big, 4096)
    assert tiny.layer_types == kinds
    assert (tiny.hidden_size, tiny.max_position_embeddings) == (32, 64)
    bamba = shortened(AutoConfig.for_model("bamba", attn_layer_indices=[9, 18, 27]), 4096)
    assert (bamba.num_hidden_layers, bamba.attn_layer_indices) == (10, [9])
    for window, short in ((1024, 4), (4096, 16), (8192, 64)):
        config = AutoConfig.for_model("mistral", sliding_window=window)
        assert shortened(config, 4096, row=6000).sliding_window == short


@pytest.mark.parametrize(
    "name", ["llama", "cohere", "granite", "gemma2, strong caps", "falcon_h1", "gpt_neox", "opt"]
)
def test_decoder_and_head_called_apart_give_the_llms_own_logits(name):
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(configuration(name)).double().eval()
    ids = torch.randint(3, 90, (2, 7))
    hidden = decoder_of(llm)(input_ids=ids, use_cache=False).last_hidden_state
    # Measured: 0; in float64, where transformers casts logits to fp32 in some families.
    torch.testing.assert_close(
        final_logits(llm, hidden), llm(input_ids=ids, use_cache=False).logits.double()
    )


@pytest.mark.parametrize("name", ["gpt2", "opt", "phi", "mixtral"])
def test_a_frozen_llm_in_training_mode_computes_as_in_inference(name):
    noisy = {
        "resid_pdrop": 0.5,
        "embd_pdrop": 0.5,
        "attn_pdrop": 0.5,
        "dropout": 0.5,
        "attention_dropout": 0.5,
    }
    config = configuration(name, **noisy, layerdrop=0.5, router_jitter_noise=0.5)
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(config)
    ids = torch.randint(3, 90, (2, 9))
    truth = llm.eval()(input_ids=ids, use_cache=False).logits
    llm.train()
    assert not torch.allclose(llm(input_ids=ids, use_cache=False).logits, truth)
    switch_off_noise(llm)
    assert torch.equal(llm(input_ids=ids, use_cache=False).logits, truth)


@pytest.mark.parametrize(
    "name", ["llama", "gemma", "gemma2", "gemma3_text", "granite", "opt", "xglm"]
)
def test_visual_tokens_reach_the_first_layer_at_the_scale_of_the_words(name):
    """Who scales embeddings, the embedding layer or the decoder, differs between families and
    versions.
    """
    torch.manual_seed(0)
    config = tiny_pargo(configuration(name))
    model = ParGoForConditionalGeneration(config).eval()
    scale = float(model.get_input_embeddings().weight.detach().std())
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=scale)
    model.projector.forward = lambda features: (
        scale * torch.randn(len(features), config.visual_tokens, 32)
    )
    seen = []
    layers = next(m for m in model.llm.modules() if isinstance(m, torch.nn.ModuleList))
    layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["hidden_states"] if not args else args[0]),
        with_kwargs=True,
    )
    words = torch.randint(3, 90, (1, 24))
    ids = torch.cat([words, torch.full((1, 5 * config.visual_tokens), config.image_token_id)], 1)
    with torch.no_grad():
        model(input_ids=ids, pixel_values=torch.zeros(5, 3, 32, 32))
    of_words, of_images = seen[0][0, :24].std(), seen[0][0, 24:].std()
    assert float(of_images / of_words) == pytest.approx(1.0, abs=0.2)  # measured below
