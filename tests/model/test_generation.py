"""Generation in transformers' modes, on prompts with images, against plain loops over `forward`."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    WatermarkingConfig,
)
from transformers.generation import GenerationMixin
from transformers.generation.streamers import BaseStreamer

from pargo_ds.model import ParGoForConditionalGeneration
from tests.model.family_worker import tiny_pargo
from tests.model.llm_families import architecture


def one_by_one(model, processor, conversations, images, **options):
    texts = []
    for turns, own in zip(conversations, images, strict=True):
        batch = processor.apply_chat_template(
            turns, images=own, add_generation_prompt=True, tokenize=True, return_tensors="pt"
        )
        ids = model.generate(**batch, **options)
        texts.append(ids[:, batch["input_ids"].shape[1] :].tolist())
    return texts


@pytest.fixture
def images(processor, conversations, image):
    return [
        [image(10 * i + k) for k in range(processor.num_images(c))]
        for i, c in enumerate(conversations)
    ]


def trimmed(row, stop):
    return row[: row.index(stop) + 1] if stop in row else row


@pytest.mark.parametrize("use_cache", [True, False])
def test_left_padded_batch_generates_what_one_by_one_does(
    model, processor, conversations, images, use_cache
):
    options = {"max_new_tokens": 12, "do_sample": False, "use_cache": use_cache}
    batch = processor.apply_chat_template(
        conversations, images=images, add_generation_prompt=True, tokenize=True, return_tensors="pt"
    )
    assert batch["attention_mask"][1, 0] == 0  # unequal prompts, padded on the left
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :].tolist()
    alone = one_by_one(model, processor, conversations, images, **options)
    stop = processor.tokenizer.eos_token_id
    assert [trimmed(row, stop) for row in together] == [trimmed(rows[0], stop) for rows in alone]
    assert len({tuple(row) for row in together}) > 1  # the prompts do make a difference


def test_cache_and_full_recomputation_generate_the_same(model, processor, conversations, images):
    options = {"max_new_tokens": 12, "do_sample": False}
    cached = one_by_one(model, processor, conversations, images, use_cache=True, **options)
    assert cached == one_by_one(model, processor, conversations, images, use_cache=False, **options)


def test_the_image_changes_the_answer_and_is_encoded_once(model, processor, conversations, image):
    calls = []
    model.vision.register_forward_hook(lambda *_: calls.append(1))
    answers = one_by_one(
        model, processor, conversations[:1] * 2, [[image(1)], [image(2)]], max_new_tokens=8
    )
    assert calls == [1, 1]
    assert answers[0] != answers[1]


def test_beams_repeat_the_images_of_a_row_as_one_block(model, processor, conversations, images):
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    stop = processor.tokenizer.eos_token_id
    batch = processor.apply_chat_template(
        conversations, images=images, add_generation_prompt=True, tokenize=True, return_tensors="pt"
    )
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :].tolist()
    alone = [
        row
        for rows in one_by_one(model, processor, conversations, images, **options)
        for row in rows
    ]
    assert [trimmed(row, stop) for row in together] == [trimmed(row, stop) for row in alone]


def test_image_token_is_never_generated_and_repetition_penalty_stays_in_range(
    model, processor, conversations, images
):
    answers = one_by_one(
        model, processor, conversations, images, max_new_tokens=8, do_sample=True, temperature=50.0,
        repetition_penalty=1.3,
    )  # fmt: skip
    assert all(processor.image_token_id not in row for rows in answers for row in rows)


MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_p": 0.9},
    "sampling, three of each": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "beams, sampled": {"do_sample": True, "num_beams": 3},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
    "no cache": {"do_sample": False, "use_cache": False},
    "temperature and length": {"do_sample": True, "temperature": 3.0, "min_new_tokens": 6},
}


@pytest.fixture(params=["outside", "inside"])
def asked(request, make_model, processor, conversations, images):
    """(model, batch of two prompts with 1 and 2 images): the image token outside of the vocabulary,
    and inside.
    """
    text = make_model().config.text_config.to_dict()
    if request.param == "inside":
        text["vocab_size"] += 8
    model = make_model(text_config=text).double()
    with torch.no_grad():  # logits all alike: whatever is allowed is chosen now and then
        model.llm.model.norm.weight.mul_(0.3)
    two = [0, 2]
    return model, dict(
        processor.apply_chat_template(
            [conversations[i] for i in two], images=[images[i] for i in two], add_generation_prompt=True,
            tokenize=True, return_tensors="pt",
        )
    )  # fmt: skip


def new_tokens(model, batch, **options):
    torch.manual_seed(0)
    ids = model.generate(**batch, **options)
    prompt = batch["input_ids"].repeat_interleave(ids.shape[0] // batch["input_ids"].shape[0], 0)
    assert torch.equal(ids[:, : prompt.shape[1]], prompt)
    return ids[:, prompt.shape[1] :]


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_answers_as_the_llm_alone_does_from_the_merged_embeddings(asked, mode):
    model, batch = asked
    options = {"max_new_tokens": 8, **MODES[mode]}
    embeds = model.merge_images(batch["input_ids"], batch["pixel_values"])
    never = (
        [model.config.image_token_id]
        if model.config.image_token_id < model.config.text_config.vocab_size
        else None
    )
    torch.manual_seed(0)
    expected = LlamaForCausalLM.generate(
        model.llm,
        inputs_embeds=embeds,
        attention_mask=batch["attention_mask"],
        suppress_tokens=never,
        **options,
    )
    assert torch.equal(new_tokens(model, batch, **options), expected)
    torch.manual_seed(0)
    ours = model.generate(inputs_embeds=embeds, attention_mask=batch["attention_mask"], **options)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("mode", ["greedy", "beams", "no cache"])
def test_a_rank_that_waits_for_the_others_gives_the_answer_that_it_had(asked, mode, monkeypatch):
    """Under ZeRO-3 a rank whose answers have ended computes on until those of all ranks have."""
    model, batch = asked
    options = {"max_new_tokens": 4, **MODES[mode]}
    expected = new_tokens(model, batch, **options)
    rounds_of_others = iter(range(3))

    def unfinished(finished, synced_gpus, **_):
        return not finished or (synced_gpus and next(rounds_of_others, None) is not None)

    monkeypatch.setattr(model, "_has_unfinished_sequences", unfinished)
    assert torch.equal(new_tokens(model, batch, synced_gpus=True, **options), expected)
    assert next(rounds_of_others, None) is None


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 8}, {"generation_config": GenerationConfig(max_new_tokens=8)}]
)
def test_the_image_token_is_never_chosen_however_likely(asked, options):
    model, batch = asked
    with torch.no_grad():  # an image token inside of the vocabulary becomes the likeliest word
        if model.config.image_token_id < model.config.text_config.vocab_size:
            model.set_output_embeddings(
                torch.nn.Linear(32, model.config.text_config.vocab_size, dtype=torch.double)
            )
            model.llm.lm_head.bias[model.config.image_token_id] = 100.0
            assert int(model(**batch).logits[0, -1].argmax()) == model.config.image_token_id
    found = new_tokens(model, batch, suppress_tokens=[7], **options)
    assert not torch.isin(found, torch.tensor([7, model.config.image_token_id])).any()


def greedy_with_penalty(model, batch, penalty, count):
    """Row by row, without a cache: words of the prompt and of the answer are penalised, the image
    token is no word.
    """
    rows, first = [], 0
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        ids = ids[mask.bool()]
        images = int((ids == model.config.image_token_id).sum()) // model.config.visual_tokens
        pixels, first = batch["pixel_values"][first : first + images], first + images
        start = len(ids)
        while (
            len(ids) < start + count
            and int(ids[-1]) != model.generation_config.eos_token_id
            or len(ids) == start
        ):
            logits = model(input_ids=ids[None], pixel_values=pixels).logits[0, -1].clone()
            words = ids[ids != model.config.image_token_id].unique()
            logits[words] = torch.where(
                logits[words] < 0, logits[words] * penalty, logits[words] / penalty
            )
            if model.config.image_token_id < len(logits):
                logits[model.config.image_token_id] = -torch.inf
            ids = torch.cat([ids, logits.argmax()[None]])
        rows.append(ids[start:].tolist())
    return rows


def test_a_repetition_penalty_counts_the_words_of_the_prompt_and_not_its_images(asked):
    model, batch = asked
    batch["attention_mask"][:, 0] = batch["attention_mask"][
        :, 0
    ]  # padding counts as a word for transformers
    one = {name: value[1:] for name, value in batch.items() if name != "pixel_values"}
    one["pixel_values"] = batch["pixel_values"][1:]
    found = new_tokens(model, one, max_new_tokens=8, do_sample=False, repetition_penalty=1.5)
    stop = model.generation_config.eos_token_id
    assert [trimmed(row, stop) for row in found.tolist()] == greedy_with_penalty(model, one, 1.5, 8)


PROCESSORS = {
    "no repeated pairs": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[5], [6, 7]]},
    "bias": {"sequence_bias": [[[5], -10.0]]},
    "forced end": {"forced_eos_token_id": 1},
    "typical": {"do_sample": True, "typical_p": 0.5},
    "min p": {"do_sample": True, "min_p": 0.1},
    "watermark": {"do_sample": True, "watermarking_config": WatermarkingConfig(bias=2.5)},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors_that_read_the_prompt_stay_within_the_vocabulary(asked, name):
    model, batch = asked
    found = new_tokens(model, batch, max_new_tokens=6, **PROCESSORS[name])
    assert found.max() < model.config.text_config.vocab_size
    assert not (found == model.config.image_token_id).any()


# Drafts: whoever proposes words, the answer stays that of greedy decoding.


def one_row(batch):
    return {
        name: value[1:] for name, value in batch.items()
    }  # the second prompt, and its two images


def drafters(model, make_model):
    text = LlamaConfig.from_dict(model.config.text_config.to_dict() | {"num_hidden_layers": 1})
    torch.manual_seed(5)
    return {
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
        "itself": {"assistant_model": model},
        "another ParGo": {"assistant_model": make_model(text_config=text).double()},
        "a text model": {"assistant_model": LlamaForCausalLM(text).double().eval()},
        "its first layer": {"assistant_early_exit": 1},
    }


@pytest.mark.parametrize(
    "name", ["prompt lookup", "itself", "another ParGo", "a text model", "its first layer"]
)
def test_drafted_words_do_not_change_the_greedy_answer(asked, make_model, name):
    model, batch = asked
    row = one_row(batch)
    expected = new_tokens(model, row, max_new_tokens=10, do_sample=False)
    draft = drafters(model, make_model)[name]
    assert torch.equal(
        new_tokens(model, row, max_new_tokens=10, do_sample=False, **draft), expected
    )
    sampled = new_tokens(model, row, max_new_tokens=10, do_sample=True, temperature=5.0, **draft)
    assert not (sampled == model.config.image_token_id).any()


# A conversation that goes on from a cache


def continued(model, processor, conversations, image, keep):
    """A second turn with an image of its own, from the cache of the first; `keep`: which images are
    given.
    """
    first = [{"role": "user", "content": "<image>What colour is it?"}]
    both = [
        *first,
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "<image>And this?"},
    ]
    images = [image(1), image(2)]
    start, whole = (
        processor.apply_chat_template(
            turns,
            images=images[: 1 + (turns is both)],
            add_generation_prompt=False,
            tokenize=True,
            return_tensors="pt",
        )
        for turns in (first, both)
    )
    cache = model(**start, use_cache=True).past_key_values
    given = {**whole, "pixel_values": whole["pixel_values"][keep]}
    return start, whole, given, cache


@pytest.mark.parametrize("keep", [slice(0, 2), slice(1, 2)], ids=["all images", "the new image"])
def test_a_cached_conversation_goes_on_with_all_its_images_or_the_new_ones(
    asked, processor, conversations, image, keep
):
    model, _ = asked
    start, whole, given, cache = continued(model, processor, conversations, image, keep)
    expected = new_tokens(model, whole, max_new_tokens=6, do_sample=False)
    assert torch.equal(
        new_tokens(model, given, past_key_values=cache, max_new_tokens=6, do_sample=False), expected
    )


def test_forward_takes_the_last_images_of_a_conversation_whose_first_ones_are_cached(
    asked, processor, conversations, image
):
    model, _ = asked
    start, whole, given, cache = continued(model, processor, conversations, image, slice(0, 2))
    new = whole["input_ids"][:, start["input_ids"].shape[1] :]
    logits = model(
        input_ids=new, pixel_values=given["pixel_values"], past_key_values=cache, use_cache=True
    ).logits
    torch.testing.assert_close(
        logits, model(**whole).logits[:, start["input_ids"].shape[1] :], rtol=0, atol=1e-10
    )
    with pytest.raises(ValueError, match="two names of one argument"):
        model(input_ids=new[:, :1], past_key_values=cache, cache=type(cache)())


# What comes with the tokens


def test_forward_and_generation_give_plain_logits_of_the_llms_vocabulary(asked):
    model, batch = asked
    size = model.config.text_config.vocab_size
    logits = model(**batch).logits
    assert logits.shape[-1] == size
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert torch.isfinite(entropy).all()
    found = model.generate(
        **batch,
        max_new_tokens=4,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
    )
    assert all(step.shape == (2, size) and torch.isfinite(step).all() for step in found.logits)
    scores = model.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
    assert torch.isfinite(scores).all()
    beams = model.generate(
        **batch,
        max_new_tokens=4,
        num_beams=2,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    transitions = model.compute_transition_scores(beams.sequences, beams.scores, beams.beam_indices)
    length = (transitions < 0).sum(1)
    torch.testing.assert_close(
        transitions.sum(1) / length, beams.sequences_scores, rtol=1e-6, atol=0
    )


class Kept(BaseStreamer):
    def __init__(self):
        self.ids, self.ended = [], False

    def put(self, value):
        self.ids += value.flatten().tolist()

    def end(self):
        self.ended = True


def test_a_streamer_gets_the_prompt_as_it_was_asked_and_each_word(asked):
    model, batch = asked
    row, kept = one_row(batch), Kept()
    ids = model.generate(**row, max_new_tokens=5, do_sample=False, streamer=kept)
    assert kept.ids == ids[0].tolist()
    assert kept.ended


def test_custom_decoding_loops_work(asked):
    model, batch = asked

    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        return GenerationMixin._sample(
            model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs
        )

    expected = new_tokens(model, batch, max_new_tokens=6, do_sample=False)
    assert torch.equal(
        new_tokens(model, batch, max_new_tokens=6, do_sample=False, custom_generate=loop), expected
    )


# Bad input


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}])
def test_generation_with_another_number_of_images_is_an_error(asked, options):
    model, batch = asked
    if "prompt_lookup_num_tokens" in options:
        batch = one_row(batch)
    batch["pixel_values"] = batch["pixel_values"][:1]
    with pytest.raises(ValueError, match=r"images"):
        model.generate(**batch, max_new_tokens=2, do_sample=False, **options)
    del batch["pixel_values"]
    with pytest.raises(ValueError, match="but 0 images"):
        model.generate(**batch, max_new_tokens=2, do_sample=False, **options)


def test_images_beside_embeddings_need_to_know_their_places(asked):
    model, batch = asked
    ids, pixels = batch["input_ids"], batch["pixel_values"]
    is_image = ids == model.config.image_token_id
    words = model.get_input_embeddings()(ids.masked_fill(is_image, 0))
    expected = model(**batch).logits
    given = {"attention_mask": batch["attention_mask"], "pixel_values": pixels}
    assert torch.equal(model(inputs_embeds=words, image_mask=is_image, **given).logits, expected)
    if model.config.image_token_id < model.config.text_config.vocab_size:
        assert torch.equal(
            model(inputs_embeds=model.get_input_embeddings()(ids), **given).logits, expected
        )
    else:
        with pytest.raises(ValueError, match="outside the LLM's vocabulary of .* give image_mask"):
            model(inputs_embeds=words, **given)


def test_a_static_cache_gives_an_assembled_model_its_own_masks():
    """An LLM that is handed over has a configuration of its own; families with kinds of layers read
    the model's.
    """
    torch.manual_seed(0)
    text = AutoConfig.for_model(**architecture("qwen3"))
    model = ParGoForConditionalGeneration(
        tiny_pargo(text), llm=AutoModelForCausalLM.from_config(text)
    ).eval()
    ids = torch.randint(3, 90, (1, 11))
    asked = {
        "max_new_tokens": 4,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    asked |= {"eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    logits = [
        torch.stack(model.generate(input_ids=ids, **asked, **cache).logits)[..., :97]
        for cache in ({}, {"cache_implementation": "static"})
    ]
    # Measured: 4e-6; with the masks of another implementation 0.8.
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-4)
