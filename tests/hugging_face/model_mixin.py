"""transformers' own tests of a model class, run on a tiny ParGo model: pytest
tests/hugging_face/model_mixin.py

test_mixins.py runs this file in a process of its own for each transformers line;
`transformers_tests` (sources.py) must be in PYTHONPATH.
"""

import unittest

import torch
from transformers import CLIPVisionConfig, LlamaConfig
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor

from pargo_ds.model import (
    ParGoConfig,
    ParGoForConditionalGeneration,
    vision_config_from_transformers,
)

# The tests shrink the vocabulary and keep what is below: a low id stays an image token.
IMAGE_TOKEN, IMAGE_SIZE = 4, 16


class ParGoModelTester:
    """The sizes that the mix-ins ask for, and a batch: seven rows, each with an image of 4 + 1
    visual tokens.
    """

    batch_size, seq_length, is_training = 7, 12, True
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 99, 32, 2, 4
    image_token_id = IMAGE_TOKEN

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent

    def get_config(self) -> ParGoConfig:
        text = LlamaConfig(
            vocab_size=self.vocab_size, hidden_size=self.hidden_size, num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads, num_key_value_heads=2, intermediate_size=37,
            max_position_embeddings=512, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        )  # fmt: skip
        clip = CLIPVisionConfig(
            hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, image_size=IMAGE_SIZE,
            patch_size=4,
        )  # fmt: skip
        return ParGoConfig(
            vision_config=vision_config_from_transformers(clip),
            text_config=text,
            projector_config={
                "partial_tokens": 4,
                "global_tokens": 1,
                "layers": 1,
                "width": 16,
                "heads": 2,
            },
            image_token_id=IMAGE_TOKEN,
        )

    def prepare_config_and_inputs(self) -> tuple[ParGoConfig, torch.Tensor]:
        return self.get_config(), floats_tensor([self.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE])

    def prepare_config_and_inputs_for_common(self) -> tuple[ParGoConfig, dict[str, torch.Tensor]]:
        config, pixel_values = self.prepare_config_and_inputs()
        input_ids = (
            ids_tensor([self.batch_size, self.seq_length], 40) + IMAGE_TOKEN + 1
        )  # no special token
        input_ids[:, 1 : 1 + config.visual_tokens] = IMAGE_TOKEN
        mask = torch.ones_like(input_ids)
        return config, {
            "pixel_values": pixel_values,
            "input_ids": input_ids,
            "attention_mask": mask,
        }


class ParGoModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (ParGoForConditionalGeneration,)
    additional_model_inputs = ["pixel_values"]
    _is_composite = True
    test_pruning = test_head_masking = test_torchscript = test_resize_position_embeddings = False

    def setUp(self) -> None:
        torch.manual_seed(0)
        self.model_tester = ParGoModelTester(self)

    def _prepare_for_class(
        self, inputs_dict: dict, model_class: type, return_labels: bool = False
    ) -> dict:
        """The mix-in knows by transformers' own tables which classes take labels; ParGo is in none
        of them.
        """
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        return inputs | ({"labels": inputs["input_ids"].clone()} if return_labels else {})
