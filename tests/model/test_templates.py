"""Chat templates of published kinds: what is trained, where answers end, and which templates are
refused.
"""

from __future__ import annotations

import pytest
import torch
from published_templates import PUBLISHED, REFUSED, Published
from tiny_tokenizers import TEXTS, VISUAL_TOKENS, processor_of, tokenizer_of
from transformers import LlamaConfig

from pargo_ds.model import IGNORE_INDEX, ParGoForConditionalGeneration, ParGoProcessor

FIRST = [
    {"role": "user", "content": "<image>\nWhich colour has it?"},
    {"role": "assistant", "content": "Red."},
]
AGAIN = [
    *FIRST,
    {"role": "user", "content": "Are you sure about that?"},
    {"role": "assistant", "content": "Red."},
]
SYSTEM = [{"role": "system", "content": "Answer briefly, please."}, *AGAIN]


def trained(processor: ParGoProcessor, turns: list[dict], **options) -> list[str]:
    """The text of each run of labels."""
    _, labels = processor.encode_conversation(turns, **options)
    runs: list[list[int]] = [[]]
    for label in labels:
        if label == IGNORE_INDEX:
            runs.append([])
        else:
            runs[-1].append(label)
    return [
        processor.tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs if run
    ]


@pytest.fixture
def make_model_for(make_config):
    """Function (processor) -> a tiny random model of its vocabulary and visual tokens."""

    def make(processor: ParGoProcessor) -> ParGoForConditionalGeneration:
        torch.manual_seed(0)
        text = LlamaConfig(
            vocab_size=len(processor.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )  # fmt: skip
        projector = {"partial_tokens": 2, "global_tokens": 1, "layers": 1, "width": 16, "heads": 2}
        fields = {"projector_config": projector, "image_token_id": processor.image_token_id}
        return ParGoForConditionalGeneration(make_config(text_config=text, **fields))

    return make


@pytest.fixture(params=list(PUBLISHED))
def published(request) -> Published:
    return PUBLISHED[request.param]


def test_what_is_trained_is_every_answer_and_the_control_token_that_ends_it(published):
    processor = processor_of(published)
    first = published.last if published.first is None else published.first
    assert trained(processor, FIRST) == [published.last]
    assert trained(processor, AGAIN) == [first, published.last]


def test_generation_stops_at_control_tokens_only(published):
    processor = processor_of(published)
    tokens = processor.tokenizer.convert_ids_to_tokens(processor.stop_token_ids)
    assert set(tokens) == set(published.ends)
    ordinary = {token for text in TEXTS for token in processor.tokenizer(text)["input_ids"]}
    assert not ordinary & set(processor.stop_token_ids)


@pytest.mark.parametrize("kind", ["bytes", "llama 2"])
def test_ids_are_those_of_the_whole_text_for_training_and_both_ways_of_inference(
    published, kind, image
):
    processor = processor_of(published, kind)
    turns = [*SYSTEM] if published.system else [*AGAIN]
    ids, _ = processor.encode_conversation(turns)
    assert ids == whole_ids(processor, processor.render(turns))
    question = turns[:-1]
    asked = processor.apply_chat_template(
        question, images=image(), add_generation_prompt=True, tokenize=True
    )
    text = processor.apply_chat_template(question, add_generation_prompt=True)
    assert asked["input_ids"] == processor(images=image(), text=text)["input_ids"]
    assert asked["input_ids"][0] == whole_ids(processor, text)
    assert asked["input_ids"][0] == ids[: len(asked["input_ids"][0])] or published.first is not None


def whole_ids(processor: ParGoProcessor, text: str) -> list[int]:
    """The tokenizer's own ids of the text, `<image>` written as often as it counts."""
    return processor.tokenizer(
        text.replace("<image>", "<image>" * VISUAL_TOKENS), add_special_tokens=False
    )["input_ids"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_would_teach_something_else_is_refused_with_its_name_and_the_turn(name):
    template, message = REFUSED[name]
    tokens = (
        "<|im_end|>",
        "<|im_start|>",
        "<end_of_turn>",
        "<｜end▁of▁sentence｜>",
        "<｜User｜>",
        "<｜Assistant｜>",
    )
    processor = processor_of(Published(template, tokens, (), ""))
    turns = [dict(turn) for turn in (AGAIN if "question only" in name else SYSTEM)]
    turns[-2]["content"] = "Which one exactly?"
    turns[-1 if len(turns) == 4 else 4]["content"] = "It is </think> as usual."
    with pytest.raises(ValueError, match=message) as error:
        processor.encode_conversation(turns)
    assert "the chat template (it begins " in str(error.value)


def test_a_template_of_vision_models_gets_lists_of_parts():
    template = (
        "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
        "{% if m['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
        "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>{% endif %}"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    processor = processor_of(Published(template, ("<|im_end|>", "<|im_start|>"), (), ""))
    assert processor.render(FIRST) == (
        "<|im_start|>User:<image>\nWhich colour has it?<|im_end|>\nAssistant: Red.<|im_end|>"
    )


def test_of_named_templates_default_is_taken_and_another_one_when_it_is_named():
    chatml = PUBLISHED["ChatML (Qwen 2, Yi, SmolLM 2, InternLM 2)"]
    tokenizer = tokenizer_of(chatml)
    other = chatml.template.replace("<|im_start|>", "<|im_start|>the ")
    tokenizer.chat_template = {"default": chatml.template, "other": other}
    processor = ParGoProcessor(tokenizer, visual_tokens=VISUAL_TOKENS)
    assert processor.encode_conversation(AGAIN) == processor_of(chatml).encode_conversation(AGAIN)
    assert "the user" in processor.apply_chat_template(FIRST[:1], chat_template="other")
    with pytest.raises(
        ValueError, match="no chat template is named 'third': there are default, other"
    ):
        processor.apply_chat_template(FIRST[:1], chat_template="third")


def test_a_templates_own_variables_reach_it():
    processor = processor_of(PUBLISHED["Qwen 3"])
    quiet = processor.apply_chat_template(
        FIRST[:1], add_generation_prompt=True, enable_thinking=False
    )
    assert quiet.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert trained(processor, FIRST, enable_thinking=False) == ["Red.<|im_end|>"]


def test_a_token_never_reaches_from_the_prompt_into_an_answer():
    # Merged with its blank, " Red" would be one token: generation starts from "ASSISTANT: ", so it
    # never saw that one.
    tokenizer = tokenizer_of(PUBLISHED["Vicuna"])
    assert len(tokenizer(" Red", add_special_tokens=False)["input_ids"]) == 1
    processor = ParGoProcessor(tokenizer, visual_tokens=VISUAL_TOKENS, prompt="paper")
    ids, labels = processor.encode_conversation(AGAIN)
    for turns in (AGAIN[:1], AGAIN[:3]):
        start, _ = processor.encode_conversation(turns, add_generation_prompt=True)
        assert ids[: len(start)] == start
        assert labels[len(start)] != IGNORE_INDEX
    assert ids == processor._tokenise(processor.render(AGAIN))
    assert trained(processor, AGAIN) == ["Red.</s>"] * 2


def test_an_answer_that_begins_with_blanks_is_learnt_from_where_generation_starts():
    processor = processor_of(PUBLISHED["ChatML (Qwen 2, Yi, SmolLM 2, InternLM 2)"])
    turns = [FIRST[0], {"role": "assistant", "content": "\n\n Red."}]
    ids, _ = processor.encode_conversation(turns)
    start, _ = processor.encode_conversation(turns[:1], add_generation_prompt=True)
    assert ids[: len(start)] == start
    assert trained(processor, turns) == ["\n\n Red.<|im_end|>"]


@pytest.mark.parametrize(
    "name", ["GLM 4.5", "Minitron, a line break before the next turn", "gpt-oss"]
)
def test_a_model_trained_on_such_a_template_stops_where_its_answer_ends(name, make_model_for):
    # GLM's templates write nothing after an answer: the next turn's first token is what ends it.
    published = PUBLISHED[name]
    processor = processor_of(published)
    model = make_model_for(processor)
    ids, labels = (torch.tensor([values]) for values in processor.encode_conversation(FIRST))
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(input_ids=ids, labels=labels, pixel_values=pixels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1, loss
    model.generation_config.eos_token_id = processor.stop_token_ids
    asked, _ = processor.encode_conversation(FIRST[:1], add_generation_prompt=True)
    said = model.generate(
        input_ids=torch.tensor([asked]), pixel_values=pixels, max_new_tokens=40, do_sample=False
    )
    assert processor.tokenizer.decode(said[0, len(asked) :]) == published.last
