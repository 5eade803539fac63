"""Loss, packing and generation of the whole model against plain rewritings."""

import pytest
import torch
import torch.nn.functional as F
from transformers import CohereConfig, Gemma2Config

from pargo_ds.model import IGNORE_INDEX


def answered(turns):
    return [*turns, {"role": "assistant", "content": "A green square."}]


@pytest.fixture
def samples(processor, conversations, image):
    """(ids, labels, pixels) of each answered conversation."""
    out = []
    for turns in conversations:
        ids, labels = processor.encode_conversation(answered(turns))
        images = [image(len(out) + i) for i in range(processor.num_images(turns))]
        pixels = torch.stack([processor.pixels(p) for p in images]) if images else None
        out.append((torch.tensor([ids]), torch.tensor([labels]), pixels))
    return out


def packed(samples, order=None):
    """The samples in one row, as training packs them."""
    samples = [samples[i] for i in order or range(len(samples))]
    lengths = torch.tensor([ids.shape[1] for ids, _, _ in samples])
    return {
        "input_ids": torch.cat([ids for ids, _, _ in samples], 1),
        "position_ids": torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0),
        "pixel_values": torch.cat([pixels for _, _, pixels in samples if pixels is not None]),
        "cu_seqlens": F.pad(lengths.cumsum(0), (1, 0)).int(),
        "max_seqlen": int(lengths.max()),
        "use_cache": False,
    }


def labels_of(samples):
    return torch.cat([labels for _, labels, _ in samples], 1)


def test_packed_logits_equal_those_of_separate_samples(model, samples):
    model = model.double()
    pack = model(**packed(samples)).logits[0]
    alone = [model(input_ids=ids, pixel_values=pixels).logits[0] for ids, _, pixels in samples]
    # Measured worst difference: 2e-14 at logits of about 30.
    torch.testing.assert_close(pack, torch.cat(alone), rtol=0, atol=1e-10)


def test_changing_one_packed_sample_leaves_the_others_logits_alone(model, samples):
    batch = packed(samples)
    before = model(**batch).logits[0]
    batch["pixel_values"][0] = 255 - batch["pixel_values"][0]  # the only image of sample 0
    after = model(**batch).logits[0]
    first = batch["cu_seqlens"][1]
    assert not torch.equal(before[:first], after[:first])
    assert torch.equal(before[first:], after[first:])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_loss_is_the_mean_over_targets_of_a_full_logits_oracle(
    model, samples, checkpointing
):
    model = model.double()
    terms = []
    for ids, labels, pixels in samples:
        logits = model(input_ids=ids, pixel_values=pixels).logits[0, :-1]
        targets = labels[0, 1:]
        terms.append(-logits.log_softmax(-1)[targets != -100, targets[targets != -100]])
    expected = torch.cat(terms).mean()
    weights = [p for p in model.parameters() if p.requires_grad]
    expected_grads = torch.autograd.grad(expected, weights)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    output = model(**packed(samples), labels=labels_of(samples), return_logits=False)
    assert output.logits is None
    assert output.num_targets == torch.cat(terms).numel()
    torch.testing.assert_close(output.loss, expected, rtol=1e-10, atol=0)
    for got, want in zip(torch.autograd.grad(output.loss, weights), expected_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_num_items_in_batch_divides_the_sum(model, samples):
    batch, labels = packed(samples), labels_of(samples)
    mean = model(**batch, labels=labels, return_logits=False)
    part = model(**batch, labels=labels, num_items_in_batch=torch.tensor(100))
    torch.testing.assert_close(part.loss * 100, mean.loss * mean.num_targets)


def test_no_target_crosses_the_boundary_of_two_samples(model, samples):
    batch = packed(samples)
    labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
    labels[0, batch["cu_seqlens"][1]] = 5  # first token of the second sample: nobody may predict it
    assert model(**batch, labels=labels, return_logits=False).num_targets == 0


def test_a_batch_without_targets_has_zero_loss_and_zero_gradients(model, samples):
    batch = packed(samples)
    output = model(**batch, labels=torch.full_like(batch["input_ids"], IGNORE_INDEX))
    output.loss.backward()
    assert output.loss == 0
    for part in (model.projector, model.llm):  # the head included: other ranks would gather it
        assert all(p.grad is not None and not p.grad.any() for p in part.parameters())


def test_text_only_pack_runs_the_vision_and_gives_the_projector_zero_gradients(model, samples):
    ids, labels, _ = samples[1]
    calls = []
    model.vision.register_forward_hook(lambda *_: calls.append("vision"))
    model.projector.register_forward_hook(lambda *_: calls.append("projector"))
    plain = model(input_ids=ids, labels=labels).loss
    assert calls == []
    loss = model(
        input_ids=ids, labels=labels, pixel_values=torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    ).loss
    loss.backward()
    assert calls == ["vision", "projector"]
    assert torch.equal(loss, plain)
    assert all(p.grad is not None and not p.grad.any() for p in model.projector.parameters())


def test_vision_runs_once_for_a_pack_of_many_images(model, samples):
    calls = []
    model.vision.register_forward_hook(lambda *_: calls.append(1))
    model(**packed(samples), labels=labels_of(samples))
    assert calls == [1]


def test_frozen_llm_and_vision_still_train_the_projector_in_bf16(model, samples):
    model = model.bfloat16()
    model.vision.requires_grad_(False)
    model.llm.requires_grad_(False)
    model.gradient_checkpointing_enable()
    model.train()
    model(**packed(samples), labels=labels_of(samples)).loss.backward()
    silent = [
        name for name, p in model.projector.named_parameters() if p.grad is None or not p.grad.any()
    ]
    assert silent == []
    assert all(p.grad is None for p in model.llm.parameters())


def test_labels_give_the_logits_as_well_as_the_loss_unless_the_loss_alone_is_asked_for(
    model, samples
):
    batch, labels = packed(samples), labels_of(samples)
    both, loss_alone = (
        model(**batch, labels=labels),
        model(**batch, labels=labels, return_logits=False),
    )
    torch.testing.assert_close(both.logits, model(**batch).logits)
    torch.testing.assert_close(both.loss, loss_alone.loss)
    assert loss_alone.logits is None
    assert both.num_targets is None  # transformers' Trainer gathers all that is beside the loss
    torch.testing.assert_close(
        model(**batch, labels=labels, logits_to_keep=3).logits, both.logits[:, -3:]
    )
    torch.testing.assert_close(model(**batch, logits_to_keep=3).logits, both.logits[:, -3:])


def test_a_tuple_is_returned_when_asked_for_or_configured(model, samples):
    ids, labels, pixels = samples[0]
    whole = model(input_ids=ids, labels=labels, pixel_values=pixels)
    loss, logits = model(input_ids=ids, labels=labels, pixel_values=pixels, return_dict=False)
    assert torch.equal(loss, whole.loss)
    assert torch.equal(logits, whole.logits)
    model.config.return_dict = False
    assert isinstance(model(input_ids=ids, labels=labels, pixel_values=pixels), tuple)
    assert torch.equal(model(input_ids=ids, pixel_values=pixels, return_dict=True).logits, logits)


@pytest.mark.parametrize("kind", ["gemma2", "cohere"])
def test_llms_that_rescale_logits_are_asked_to_do_so(make_model, processor, samples, kind):
    sizes = {
        "vocab_size": processor.image_token_id, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1,
        "initializer_range": 0.3,
    }  # fmt: skip
    if kind == "gemma2":
        text = Gemma2Config(
            **sizes, head_dim=8, final_logit_softcapping=2.0, attn_implementation="eager"
        )
    else:
        text = CohereConfig(**sizes, logit_scale=0.125)
    model = make_model(text_config=text)
    ids, labels, pixels = samples[0]
    logits = model(input_ids=ids, pixel_values=pixels).logits
    if kind == "gemma2":
        assert logits.abs().max() <= 2
    expected = F.cross_entropy(logits[0, :-1], labels[0, 1:])
    torch.testing.assert_close(
        model(input_ids=ids, labels=labels, pixel_values=pixels).loss, expected
    )


# Bad input


def test_wrong_number_of_images_is_an_error(model, samples):
    ids, _, pixels = samples[0]
    with pytest.raises(
        ValueError, match="6 image tokens .* but 2 images of 6 visual tokens each: expected 12"
    ):
        model(input_ids=ids, pixel_values=pixels.repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match="6 image tokens .* but 0 images"):
        model(input_ids=ids)


def test_packed_batch_with_a_mask_a_cache_or_running_positions_is_an_error(model, samples):
    batch = packed(samples)
    with pytest.raises(ValueError, match="takes no attention_mask and no cache"):
        model(**batch, attention_mask=torch.ones_like(batch["input_ids"]))
    with pytest.raises(ValueError, match="takes no attention_mask and no cache"):
        model(**(batch | {"use_cache": True}))
    with pytest.raises(ValueError, match="must restart at 0 at each boundary"):
        model(**(batch | {"position_ids": torch.arange(batch["input_ids"].shape[1]).unsqueeze(0)}))


def test_prebuilt_parts_are_not_initialised_again(make_config, make_model):
    parts = make_model()
    before = {k: v.clone() for k, v in parts.state_dict().items() if not k.startswith("projector.")}
    from pargo_ds.model import ParGoForConditionalGeneration

    parts.llm.generation_config.max_length = 77
    model = ParGoForConditionalGeneration(make_config(), vision=parts.vision, llm=parts.llm)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert model.generation_config.max_length == 77


def test_image_tokens_among_the_labels_are_no_targets(model, processor, image):
    """Collators that copy input_ids to labels; the image token may even lie outside the vocabulary."""
    turns = [{"role": "user", "content": "<image>What colour is it?"}]
    batch = processor.apply_chat_template(turns, images=image(), tokenize=True, return_tensors="pt")
    labels = batch["input_ids"].clone()
    without = labels.masked_fill(labels == model.config.image_token_id, -100)
    assert torch.equal(model(**batch, labels=labels).loss, model(**batch, labels=without).loss)
    assert (
        labels[labels == model.config.image_token_id].numel() > 0
    )  # the caller's own are as they were
