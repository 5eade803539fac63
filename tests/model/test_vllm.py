"""What vLLM's Transformers back end asks of a processor and a model, as far as an export gives it.

vLLM itself is not run by tests (docs/serving.md has what it answered): these are the calls of its
model_executor/models/transformers/{multimodal,base}.py of 0.33, read in November 2026.
"""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tests.model.family_worker import tiny_pargo
from tests.model.llm_families import architecture

TEXT = "<image>What colour is it? <image>And here?"


def test_tokens_of_an_image_are_counted_before_it_is_read(processor):
    counted = processor._get_num_multimodal_tokens(image_sizes=[(10, 20), (10_000, 10_000)])
    assert counted["num_image_tokens"] == [processor.visual_tokens] * 2
    assert counted["num_image_patches"] == [1, 1]
    assert "num_image_tokens" not in processor._get_num_multimodal_tokens()


def test_placeholders_are_where_the_types_of_tokens_say(processor, image):
    """Before transformers 5.15: the prompt is decoded, expanded by the processor, and split by the
    counts."""
    prompt = processor.tokenizer.encode(TEXT, add_special_tokens=False)
    batch = processor(
        text=processor.decode(prompt),
        images=[image(), image()],
        return_mm_token_type_ids=True,
        truncation=False,
        add_special_tokens=False,
        return_tensors="pt",
    )
    places = torch.where(batch["mm_token_type_ids"][0] == 1)[0]
    runs = places.split(processor._get_num_multimodal_tokens([(1, 1)] * 2)["num_image_tokens"])
    for run in runs:
        assert torch.equal(run, torch.arange(int(run[0]), int(run[0]) + processor.visual_tokens))
    assert (batch["input_ids"][0][places] == processor.image_token_id).all()
    assert len(batch["pixel_values"]) == 2


@pytest.mark.parametrize("tensors", ["pt", None])
def test_replacements_rebuild_the_expanded_prompt(processor, image, tensors):
    """From transformers 5.15 on: the expanded prompt is made of the replacements' own ids."""
    batch = processor(
        text=TEXT,
        images=[image(), image()],
        return_text_replacement_offsets=True,
        return_tensors=tensors,
    )
    (found,) = batch["text_replacement_offsets"]
    expanded, end = "", 0
    for one in found:
        assert one["type"] == "image"
        assert TEXT[slice(*one["span"])] == one["text"] == processor.image_token
        expanded += TEXT[end : one["span"][0]] + one["replacement"]
        assert one["new_span"] == (len(expanded) - len(one["replacement"]), len(expanded))
        end = one["span"][1]
        ids = processor.tokenizer.encode(one["replacement"], add_special_tokens=False)
        assert ids == [processor.image_token_id] * processor.visual_tokens
    expanded += TEXT[end:]
    ids = processor.tokenizer.encode(expanded, add_special_tokens=False)
    assert ids == torch.as_tensor(batch["input_ids"])[0].tolist()


def test_offsets_of_several_texts_come_in_their_order(processor, image):
    batch = processor(
        text=["none", TEXT], images=[image(), image()], return_text_replacement_offsets=True
    )
    assert [len(found) for found in batch["text_replacement_offsets"]] == [0, 2]


def test_the_attention_of_the_llm_is_the_one_that_was_named_and_gets_its_arguments(
    make_model, processor, image
):
    """vLLM registers an attention by name, and hands its own instances through `forward`."""
    instances, seen = {0: object()}, []

    def named_attention(module, *args, attention_instances=None, **kwargs):
        seen.append(attention_instances)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("named_attention", named_attention)
    AttentionMaskInterface.register("named_attention", sdpa_mask)
    model = make_model()
    batch = processor(text=TEXT, images=[image(), image()], return_tensors="pt")
    wanted = model.base_model(**batch).last_hidden_state
    model.set_attn_implementation({"text_config": "named_attention"})
    embeds = model.merge_images(batch["input_ids"], batch["pixel_values"])
    positions = torch.arange(embeds.shape[1])[None]
    hidden = model.base_model(
        inputs_embeds=embeds,
        position_ids=positions,
        use_cache=False,
        attention_instances=instances,
    ).last_hidden_state
    assert seen == [instances] * model.config.text_config.num_hidden_layers
    # Both roads are SDPA for a single row: no difference was measured.
    torch.testing.assert_close(hidden, wanted, atol=1e-6, rtol=0)


@pytest.fixture
def named_attention():
    """An attention that is registered by name, as vLLM registers its own; it notes the instances
    that it is handed."""
    seen = []

    def attention(module, *args, attention_instances=None, **kwargs):
        seen.append(attention_instances)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("vllms_attention", attention)
    AttentionMaskInterface.register("vllms_attention", sdpa_mask)
    return seen


@pytest.mark.parametrize("tied", [True, False])
def test_auto_model_is_the_model_without_head_and_takes_what_vllm_hands_it(
    make_model, make_config, processor, image, named_attention, tied
):
    """The calls of its base.py: a configuration whose attention was named first, then hidden states
    as the first of a tuple."""
    whole = make_model(tied=tied)
    config = make_config(tied=tied)
    config.text_config._attn_implementation = "vllms_attention"
    model = AutoModel.from_config(config, dtype=torch.float32).eval()
    assert type(model).__name__ == "ParGoModel"
    names = whole.state_dict().keys() - model.state_dict().keys()
    assert names == {"llm.lm_head.weight"}
    assert model.state_dict().keys() <= whole.state_dict().keys()
    model.load_state_dict(whole.state_dict(), strict=False)
    assert model.get_output_embeddings() is None
    assert not model.can_generate()
    batch = processor(text=TEXT, images=[image(), image(1)], return_tensors="pt")
    wanted = whole.base_model(**batch).last_hidden_state
    instances = {0: object()}
    hidden, *_ = model(
        input_ids=None,
        inputs_embeds=model.merge_images(batch["input_ids"], batch["pixel_values"]),
        use_cache=False,
        position_ids=torch.arange(wanted.shape[1])[None],
        attention_instances=instances,
        return_dict=False,
    )
    assert named_attention == [instances] * config.text_config.num_hidden_layers
    # Both roads are SDPA for a single row: no difference was measured.
    torch.testing.assert_close(hidden, wanted, atol=1e-6, rtol=0)


def vllm_name(name: str, model: torch.nn.Module) -> str:
    """Where vLLM looks for a weight of a file: the rules of `_create_hf_to_vllm_mapper` in its
    base.py, one after another."""
    prefix, children = model.base_model_prefix, "|".join(dict(model.named_children()))
    if prefix and prefix != "model":
        name = re.sub(rf"^{prefix}\.(.+)", r"model.\1", name)
    name = re.sub(rf"^(?!model\.)(({children}).*)", r"model.\1", name)
    name = re.sub(rf"^(model\.)((?!{children}).+)", r"\2", name)
    return re.sub(r"^model\.(.+\.)*(lm_head.+)", r"\2", name)


def test_weights_of_an_export_are_where_vllm_looks_for_them(make_model, tmp_path):
    whole = make_model(tied=False)
    whole.save_pretrained(tmp_path)
    model, found = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert set(found["unexpected_keys"]) == {"llm.lm_head.weight"}
    names = {vllm_name(name, model) for name in whole.state_dict()}
    assert names == {f"model.{name}" for name in model.state_dict()} | {"lm_head.weight"}
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, whole.state_dict()[name])


def test_a_tied_export_loads_without_its_head(make_model, tmp_path):
    make_model(tied=True).save_pretrained(tmp_path)
    model, found = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    model.tie_weights()
    assert model.get_output_embeddings() is None


def test_the_plan_of_tensor_parallelism_is_the_llms_and_names_modules_that_are_there(make_config):
    model = AutoModel.from_config(make_config())
    linear = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    plan = [pattern for pattern in model.tp_plan if pattern.startswith("llm.model.layers.")]
    assert len(plan) >= 7  # Llama's four of attention and three of its MLP
    for pattern in plan:
        matched = [name for name in linear if re.match(pattern.replace("*", r"\d+"), name)]
        assert len(matched) == model.config.text_config.num_hidden_layers
    assert model.get_decoder() is model.llm.model


def test_the_encoder_is_found_by_its_modality(make_model):
    model = make_model()
    assert model.get_encoder(modality="image") is model.vision
    assert model.get_encoder() is model


def test_features_of_images_are_visual_tokens_each_image_by_itself(make_model, processor, image):
    model = make_model()
    pixels = processor([image(), image()], return_tensors="pt")["pixel_values"]
    features = model.get_image_features(pixels)
    assert features.shape[:2] == (2, processor.visual_tokens)
    assert features.shape[2] == model.config.text_config.hidden_size
    alone = torch.cat([model.get_image_features(one[None]) for one in pixels])
    torch.testing.assert_close(features, alone, atol=1e-6, rtol=0)  # measured: equal
    # vLLM asks for an output, and takes its rows as those of the images in their order.
    assert torch.equal(model.get_image_features(pixels, return_dict=True).pooler_output, features)


class WatchedTable(torch.nn.Embedding):
    """An embedding that notes the ids that reach it, in the place of vLLM's own."""

    def forward(self, input):
        self.seen = input
        return super().forward(input)


@pytest.mark.parametrize(
    "family", ["llama", "gemma3_text"]
)  # the second scales in a class of its own
def test_image_tokens_outside_of_the_table_are_read_as_word_0(family):
    """vLLM's embed_input_ids gives all ids to `get_input_embeddings()`, then puts images over them."""
    model = AutoModel.from_config(tiny_pargo(AutoConfig.for_model(**architecture(family))))
    table = model.get_input_embeddings()
    rows = table.num_embeddings
    assert model.config.image_token_id >= rows  # else nothing is asked
    ids = torch.tensor([[1, rows - 1, rows, model.config.image_token_id]])
    wanted = model.llm.get_input_embeddings()(torch.tensor([[1, rows - 1, 0, 0]]))
    assert torch.equal(table(ids), wanted)
    assert wanted[0, 0].abs().max() > 0

    # As its replace_embedding_class does with a class derived from nn.Embedding.
    table.__class__ = type("Rebased", (type(table), WatchedTable), {})
    assert torch.equal(table(ids), wanted)
    assert table.seen.tolist() == [[1, rows - 1, 0, 0]]


def test_a_table_that_holds_the_image_token_stays_as_it_is(make_config):
    config = make_config()
    config.text_config.vocab_size = config.image_token_id + 1
    assert type(AutoModel.from_config(config).get_input_embeddings()) is torch.nn.Embedding
