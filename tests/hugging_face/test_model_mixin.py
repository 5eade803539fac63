"""transformers' own tests of a model class hold for ParGo's, on each transformers line."""

import pytest
from outcomes import compare, outcomes
from transformers_lines import LINES, MIDDLE, NEWEST, OLDEST

BACKBONE = "base_model is the whole model without the LLM's head, so that trainers see images; it is never saved alone"
PACKED = "where sdpa is asked for, the LLM computes with pargo_packed, which is sdpa for rows that are not packed"
FEATURES = (
    "get_image_features gives the visual tokens themselves, as every caller here needs them, "
    "unless return_dict=True"
)
ENCODER = (
    "the encoder's hidden states and attentions are not returned: it runs only up to feature_layer"
)
NAMES = "past_key_values and cache are both names for good, so the older one gives no warning"

# Test -> why it fails. A listed test that passes is a fault too, so that the list stays true.
KNOWN = {
    OLDEST: {
        "test_correct_missing_keys": BACKBONE,
        "test_can_set_attention_dynamically": PACKED,
        "test_sdpa_can_dispatch_composite_models": PACKED,
    },
    MIDDLE: {
        "test_correct_missing_keys": BACKBONE,
        "test_can_set_attention_dynamically": PACKED,
        "test_get_image_features_output_0": FEATURES,
        "test_get_image_features_output_1": FEATURES,
        "test_get_image_features_output_2": FEATURES,
        "test_get_image_features_hidden_states": ENCODER,
        "test_get_image_features_attentions": ENCODER,
    },
}
KNOWN[NEWEST] = KNOWN[MIDDLE] | {
    "test_can_set_attention_dynamically_composite_model": PACKED,
    "test_multimodal_outputs_are_returned": ENCODER,
    "test_bc_cache_name_forward": NAMES,
}


@pytest.mark.slow
@pytest.mark.parametrize("version", LINES)
def test_transformers_own_tests_of_models_hold(version, tmp_path):
    found = outcomes("model_mixin.py", version, tmp_path)
    assert sum(outcome == "passed" for outcome in found.values()) > 60  # measured: 65, 96, 102
    compare(found, KNOWN[version])


def test_an_unexplained_failure_and_a_mended_one_are_told():
    with pytest.raises(AssertionError, match=r"without a known reason: \['b'\]"):
        compare({"a": "passed", "b": "failed"}, {})
    with pytest.raises(AssertionError, match=r"take them off the list: \['a'\]"):
        compare({"a": "passed", "b": "failed"}, {"a": "", "b": "", "c": ""})
