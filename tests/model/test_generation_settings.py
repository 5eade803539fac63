"""What published LLMs say about generation, taken over by a model that can be saved and asked."""

import json

import pytest
import torch
from transformers import GenerationConfig

from pargo_ds.model import ParGoForConditionalGeneration
from pargo_ds.model.generation_settings import taken_over

UNUSED = "not used when transformers generates"
ODD = {
    "vicuna-7b-v1.5: sampling without do_sample": (
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "pad_token_id": 0,
         "temperature": 0.9, "top_p": 0.6},
        {"bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "pad_token_id": 0}, UNUSED,
    ),
    "temperature 0": ({"temperature": 0.0}, {}, UNUSED),
    "other words of sampling": (
        {"typical_p": 0.9, "min_p": 0.1, "epsilon_cutoff": 3e-4, "eta_cutoff": 3e-4, "top_k": 7}, {}, UNUSED,
    ),
    "beams that are none": ({"early_stopping": True, "length_penalty": 2.0}, {}, UNUSED),
    "no padding as -1": ({"pad_token_id": -1, "eos_token_id": [2, 3]}, {"eos_token_id": [2, 3]}, UNUSED),
    "a cache that is off": ({"use_cache": False, "cache_implementation": "static"}, {"use_cache": False}, UNUSED),
    "an output that is no tensor": ({"return_dict_in_generate": True, "output_scores": True}, {}, "no plain tensor"),
    "texts that stop": ({"stop_strings": ["USER:"], "token_healing": True}, {}, "ask for a tokenizer"),
    "contrastive search": ({"penalty_alpha": 0.6, "eos_token_id": 2}, {"eos_token_id": 2}, "would fetch code"),
    "groups of beams": (
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, {"num_beams": 4}, "would fetch code",
    ),
}  # fmt: skip
SOUND = [
    {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
    {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0, "num_return_sequences": 2},
    {
        "eos_token_id": [151645, 151643],
        "pad_token_id": 151643,
        "suppress_tokens": [5],
        "forced_bos_token_id": 3,
    },
    {"cache_implementation": "hybrid"},  # Gemma 2 and 3
    {
        "do_sample": True,
        "chat_format": "chatml",
        "max_window_size": 24000,
        "user_token_id": 195,
    },  # Qwen 1
    {"auto_map": {"AutoConfig": "configuration.Config"}, "trust_remote_code": True},
]


def published(folder, settings: dict) -> GenerationConfig:
    """As from_pretrained reads it with a model."""
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return GenerationConfig.from_pretrained(folder)


def said_by(settings: GenerationConfig) -> dict:
    return {
        name: value
        for name, value in settings.to_diff_dict().items()
        if name != "transformers_version"
    }


@pytest.mark.parametrize("kind", ODD)
def test_odd_settings_are_left_out_by_name_and_the_rest_stays(tmp_path, caplog, kind):
    odd, kept, reason = ODD[kind]
    settings = published(tmp_path, odd)
    found = taken_over(settings)
    assert said_by(found) == kept
    for name in odd.keys() - kept.keys() - {"_from_model_config"}:
        assert f"{name} {odd[name]!r}" in caplog.text
    assert reason in caplog.text
    found.save_pretrained(tmp_path / "saved")
    caplog.clear()
    assert said_by(taken_over(GenerationConfig.from_pretrained(tmp_path / "saved"))) == kept
    assert caplog.text == ""


@pytest.mark.parametrize("sound", SOUND, ids=lambda settings: next(iter(settings)))
def test_sound_settings_are_taken_over_as_they_are(tmp_path, caplog, sound):
    settings = published(tmp_path, sound)
    assert said_by(taken_over(settings)) == sound
    assert "left out" not in caplog.text


def test_a_model_made_of_such_an_llm_can_be_saved_and_decodes_as_the_llm_does(make_model, tmp_path):
    llm = make_model().llm
    llm.generation_config = published(
        tmp_path, ODD["vicuna-7b-v1.5: sampling without do_sample"][0]
    )
    llm.generation_config.eos_token_id = None
    model = ParGoForConditionalGeneration(make_model().config, llm=llm).eval()
    model.save_pretrained(tmp_path / "saved")
    ids = torch.tensor([[3, 4, 5]])
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 8}
    assert torch.equal(model.generate(**asked), llm.generate(**asked))
