"""Packing: one row, restarting positions, no target across a boundary."""

import pytest
import torch

from pargo_ds.batch import IGNORE_INDEX, Encoded, join, pack, split_into_rows
from pargo_ds.model.configuration_pargo import IGNORE_INDEX as MODEL_IGNORE_INDEX


def encoded(name, ids, labels, images=0):
    return Encoded(
        sample_id=name,
        input_ids=ids,
        labels=labels,
        pixels=torch.zeros(images, 3, 4, 4, dtype=torch.uint8),
    )


def test_positions_restart_and_boundaries_add_up():
    batch = pack(
        [encoded("a", [5, 6, 7], [-100, 6, 7], 1), encoded("b", [8, 9], [-100, 9], 2)], image_size=4
    )
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.cu_seqlens.tolist() == [0, 3, 5]
    assert batch.cu_seqlens.dtype == torch.int32
    assert (batch.max_seqlen, batch.num_images, batch.num_targets, batch.sample_ids) == (
        3,
        3,
        3,
        ("a", "b"),
    )


def test_first_token_of_a_sample_is_never_a_target():
    batch = pack([encoded("a", [5, 6], [5, 6]), encoded("b", [8, 9], [8, 9])], image_size=4)
    assert batch.labels.tolist() == [[IGNORE_INDEX, 6, IGNORE_INDEX, 9]]


def test_empty_pack_counts_nothing():
    batch = pack([], image_size=4)
    assert (batch.num_tokens, batch.num_targets, batch.num_images) == (0, 0, 0)
    assert batch.pixel_values.shape == (0, 3, 4, 4)


def test_data_and_model_ignore_the_same_label():
    assert IGNORE_INDEX == MODEL_IGNORE_INDEX


def fields_of(batch):
    return {
        name: value.tolist() if isinstance(value, torch.Tensor) else value
        for name, value in vars(batch).items()
    }


def test_joined_packs_are_the_pack_of_all_their_samples():
    a, b, c = (
        encoded("a", [5, 6, 7], [5, 6, 7], 1),
        encoded("b", [8, 9], [-100, 9]),
        encoded("c", [1, 2, 3, 4], [-100, -100, 3, 4], 2),
    )
    together = join([pack([a, b], 4), pack([], 4), pack([c], 4)])
    assert fields_of(together) == fields_of(pack([a, b, c], 4))
    assert together.cu_seqlens.dtype == torch.int32
    assert fields_of(join([pack([], 4), pack([], 4)])) == fields_of(pack([], 4))


@pytest.mark.parametrize(
    ("packs", "most", "numbers"),
    [(4, 1, [1, 1, 1, 1]), (5, 2, [2, 2, 1]), (7, 3, [3, 2, 2]), (2, 8, [2])],
)
def test_packs_of_a_step_are_divided_evenly_in_their_order(packs, most, numbers):
    batches = [pack([encoded(str(number), [1, 2], [1, 2])], 4) for number in range(packs)]
    rows = split_into_rows(batches, most)
    assert [len(row) for row in rows] == numbers
    assert [one.sample_ids[0] for row in rows for one in row] == [str(n) for n in range(packs)]
