"""What is frozen computes as in inference, whatever the published configuration says of dropout."""

import pytest
import torch
import transformers
from tiny import merged
from transformers import AutoConfig

from pargo_ds import assembly
from pargo_ds.assembly.freezing import apply_freezing
from pargo_ds.config import parse_config
from pargo_ds.errors import ConfigError
from pargo_ds.training import recompute
from tests.model.llm_families import architecture

NOISY = {
    "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 400, "n_positions": 256,
    "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5,
}  # fmt: skip


def built(tiny_run, changes):
    run = parse_config(merged(tiny_run, changes))
    model = assembly.build_model(run, assembly.build_processor(run), None).train()
    apply_freezing(model, run.train)
    return run, model


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_a_frozen_llm_trains_the_projector_without_dropout(tiny_run, checkpointing):
    train = {"llm": "frozen", "activation_checkpointing": checkpointing}
    run, model = built(
        {
            **tiny_run,
            "llm": {**tiny_run["llm"], "architecture": NOISY},
            "train": {**tiny_run["train"], **train},
        },
        {},
    )
    recompute.apply(model, recompute.decide(run, model, {}, torch.device("cpu")))
    ids = torch.randint(0, 400, (1, 12))
    with torch.no_grad():
        first, again = model(input_ids=ids).logits, model(input_ids=ids).logits
        truth = model.eval()(input_ids=ids).logits
    assert torch.equal(first, again)
    torch.testing.assert_close(first, truth, rtol=0, atol=1e-6)  # measured 0


def test_an_llm_that_trains_keeps_its_dropout_and_its_published_configuration(tiny_run):
    _, model = built({**tiny_run, "llm": {**tiny_run["llm"], "architecture": NOISY}}, {})
    ids = torch.randint(0, 400, (1, 12))
    with torch.no_grad():
        assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert model.config.text_config.resid_pdrop == 0.5


def test_an_llm_that_needs_float32_parts_does_not_start_in_bf16(tiny_run):
    family = "ernie4_5_moe" if transformers.__version__.startswith("4.") else "xlstm"
    run = parse_config(merged(tiny_run, {"train": {"precision": "bf16"}}))
    with pytest.raises(
        ConfigError, match=rf"train.precision: .*\({family}\) does not run .* set it to fp32"
    ):
        assembly.prove_llm(run, AutoConfig.for_model(**architecture(family)))
    assembly.prove_llm(parse_config(tiny_run), AutoConfig.for_model(**architecture(family)))
    assembly.prove_llm(
        run, AutoConfig.for_model(**architecture("mamba"))
    )  # its residual stream is float32


def test_an_llm_whose_noise_cannot_be_switched_off_is_not_frozen(tiny_run, monkeypatch):
    monkeypatch.setattr("pargo_ds.model.packing.switch_off_noise", lambda llm: None)
    architecture = {
        **NOISY,
        "n_positions": 257,
    }  # another configuration than those that were asked before
    run = parse_config({**tiny_run, "train": {**tiny_run["train"], "llm": "frozen"}})
    with pytest.raises(
        ConfigError, match=r"\(gpt2\) cannot be frozen: while training it computes something else"
    ):
        assembly.prove_llm(run, AutoConfig.for_model(**architecture))
