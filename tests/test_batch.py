"""Packing: one row, restarting positions, no target across a boundary."""

import torch

from pargo_ds.batch import IGNORE_INDEX, Encoded, pack
from pargo_ds.model.configuration_pargo import IGNORE_INDEX as MODEL_IGNORE_INDEX


def encoded(name, ids, labels, images=0):
    return Encoded(sample_id=name, input_ids=ids, labels=labels, pixels=torch.zeros(images, 3, 4, 4, dtype=torch.uint8))


def test_positions_restart_and_boundaries_add_up():
    batch = pack([encoded("a", [5, 6, 7], [-100, 6, 7], 1), encoded("b", [8, 9], [-100, 9], 2)], image_size=4)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.cu_seqlens.tolist() == [0, 3, 5]
    assert batch.cu_seqlens.dtype == torch.int32
    assert (batch.max_seqlen, batch.num_images, batch.num_targets, batch.sample_ids) == (3, 3, 3, ("a", "b"))


def test_first_token_of_a_sample_is_never_a_target():
    batch = pack([encoded("a", [5, 6], [5, 6]), encoded("b", [8, 9], [8, 9])], image_size=4)
    assert batch.labels.tolist() == [[IGNORE_INDEX, 6, IGNORE_INDEX, 9]]


def test_empty_pack_counts_nothing():
    batch = pack([], image_size=4)
    assert (batch.num_tokens, batch.num_targets, batch.num_images) == (0, 0, 0)
    assert batch.pixel_values.shape == (0, 3, 4, 4)


def test_data_and_model_ignore_the_same_label():
    assert IGNORE_INDEX == MODEL_IGNORE_INDEX
