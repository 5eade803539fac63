"""The LLM's attention over a packed row equals transformers' masked SDPA on both roads, and no
sample sees another.
"""

import copy

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from pargo_ds.model import packed_attention
from pargo_ds.model.packed_attention import NAME, LLMAttention, use_packed_attention
from tests.model.llm_families import architecture

ROADS = ("sdpa", "varlen", "eager")

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}


@pytest.fixture(
    params=[(LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM)],
    ids=["llama", "qwen2"],
)
def llm(request):
    config, model = request.param
    torch.manual_seed(0)
    built = model(config(**SIZES)).double()
    built.set_attn_implementation("sdpa")
    return built


def packed_inputs(lengths):
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return {
        "input_ids": torch.randint(0, 50, (1, sum(lengths))),
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "use_cache": False,
    }, {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def logits_and_gradients(llm, inputs):
    llm.zero_grad()
    logits = llm(**inputs).logits
    logits.square().mean().backward()
    return logits.detach(), [p.grad.clone() for p in llm.parameters()]


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("lengths", [[7], [3, 5, 1, 9], [1, 1, 1]])
def test_packed_attention_equals_masked_sdpa_forward_and_backward(llm, lengths, road):
    inputs, boundaries = packed_inputs(lengths)
    expected, expected_gradients = logits_and_gradients(llm, inputs)
    use_packed_attention(llm)
    assert llm.config._attn_implementation == NAME
    chosen = LLMAttention(road)
    found, gradients = logits_and_gradients(llm, {**inputs, **boundaries, "pargo_llm": chosen})
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)  # measured 1e-16
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_padding_mask_is_kept_without_boundaries(llm):
    """A left-padded batch in generation: the mask must not be dropped."""
    ids = torch.randint(0, 50, (2, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    expected = llm(input_ids=ids, attention_mask=mask).logits
    use_packed_attention(llm)
    found = llm(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-12)


def test_other_attention_implementations_are_left_alone(llm):
    llm.set_attn_implementation("eager")
    use_packed_attention(llm)
    assert llm.config._attn_implementation == "eager"


@pytest.mark.parametrize("road", ROADS)
def test_sliding_window_of_the_llm_is_kept_in_packed_samples(road):
    torch.manual_seed(0)
    llm = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)).double()
    llm.set_attn_implementation("sdpa")
    inputs, boundaries = packed_inputs([3, 9, 5])
    expected = llm(**inputs).logits
    use_packed_attention(llm)
    found = llm(**inputs, **boundaries, pargo_llm=LLMAttention(road)).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["gemma2, strong caps", "gpt_oss"])
def test_score_caps_and_sinks_are_kept_for_padded_rows_and_in_generation(family):
    """SDPA would leave both out in silence; the oracle is transformers' eager attention."""
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture(family))).eval()
    truth = copy.deepcopy(llm)
    truth.set_attn_implementation("eager")
    use_packed_attention(llm)
    assert llm.config._attn_implementation == NAME
    ids = torch.randint(3, 90, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # left-padded, as processors pad for generation
    seen = mask.bool()
    found, expected = (m(input_ids=ids, attention_mask=mask).logits[seen] for m in (llm, truth))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # measured 0
    asked = {
        "input_ids": ids,
        "attention_mask": mask,
        "max_new_tokens": 6,
        "min_new_tokens": 6,
        "do_sample": False,
    }
    assert torch.equal(llm.generate(**asked), truth.generate(**asked))


def test_a_road_that_would_leave_out_score_caps_is_refused():
    llm = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**architecture("gemma2, strong caps"))
    )
    use_packed_attention(llm)
    inputs, boundaries = packed_inputs([3, 4])
    with pytest.raises(
        ValueError, match="attention.llm: sdpa cannot compute this LLM, whose attention caps"
    ):
        llm(**inputs, **boundaries, pargo_llm=LLMAttention("sdpa"))


@pytest.fixture
def packed(model):
    """(model in float64 and training mode, text of three samples as one row, the same samples
    apart).
    """
    model = model.double().train()
    torch.manual_seed(1)
    samples = [torch.randint(0, 300, (1, n)) for n in (6, 1, 9)]
    row = torch.cat(samples, dim=1)
    cu_seqlens = torch.tensor([0, 6, 7, 16], dtype=torch.int32)
    return model, {"input_ids": row, "cu_seqlens": cu_seqlens}, samples


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("road", ROADS)
def test_packed_samples_do_not_see_each_other(packed, road, checkpointing):
    """The leak test: logits and gradients of a row equal those of its samples run separately."""
    model, row, samples = packed
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.set_attention(llm=road)
    seen = torch.randn(16, model.config.image_token_id, dtype=torch.float64)
    weights = [p for p in model.llm.parameters() if p.requires_grad]
    together = model(**row).logits[0]
    apart = torch.cat([model(input_ids=sample, use_cache=False).logits[0] for sample in samples])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-12)  # measured 4e-15
    gradients = [torch.autograd.grad((x * seen).sum(), weights) for x in (together, apart)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("road", ROADS)
def test_a_packed_row_reaches_attention_without_a_mask(packed, road, monkeypatch):
    model, row, _ = packed
    model.set_attention(llm=road)
    masks = []
    monkeypatch.setattr(packed_attention, "sdpa_mask", lambda *args, **kwargs: masks.append(args))
    model(**row)
    assert masks == []


def test_a_packed_row_whose_boundaries_do_not_arrive_is_an_error(packed):
    model, row, _ = packed
    decoder = model.get_decoder()
    inner = decoder.forward

    def drops_boundaries(*args, cu_seq_lens_q=None, **kwargs):
        return inner(*args, **kwargs)

    decoder.forward = drops_boundaries
    with pytest.raises(
        ValueError,
        match="packed row without cu_seq_lens_q: this LLM does not hand keyword arguments on",
    ):
        model(**row)


def test_roads_are_refused_where_they_would_be_ignored(model):
    with pytest.raises(
        ValueError, match="attention.llm is 'fast': choose one of auto, varlen, sdpa, eager"
    ):
        model.set_attention(llm="fast")
    model.llm.set_attn_implementation("eager")
    with pytest.raises(
        ValueError, match="attention.llm is 'varlen' but the LLM computes attention with 'eager'"
    ):
        model.set_attention(llm="varlen")


def test_missing_provider_is_said_when_it_is_chosen(model, monkeypatch):
    from pargo_ds.model import flash

    monkeypatch.setattr(flash, "installed", lambda: {})
    with pytest.raises(
        ValueError, match=r"flash_attn_3 is not installed \(installed: none\). To get it: build"
    ):
        model.set_attention(provider="flash_attn_3")


def test_the_choice_of_attention_is_not_saved(model, tmp_path):
    model.set_attention("flash_window", "flash", "auto", "varlen")
    model.save_pretrained(tmp_path)
    saved = (tmp_path / "config.json").read_text()
    assert not any(word in saved for word in ("flash_window", "varlen"))
