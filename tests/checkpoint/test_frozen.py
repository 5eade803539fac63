"""Hashes of frozen weights: the same however they are cut, and different for any other weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pargo_ds.checkpoint.frozen import check_frozen, describe, frozen_hashes, partial_hash
from pargo_ds.errors import CheckpointError

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool]


def values(dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 100).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_add_up_to_the_hash_of_the_whole(dtype):
    tensor = values(dtype)
    whole = int(partial_hash(tensor))
    for parts in (2, 3, 7):
        chunks = tensor.chunk(parts)
        starts = [sum(len(c) for c in chunks[:i]) for i in range(len(chunks))]
        total = sum(int(partial_hash(c, start)) for c, start in zip(chunks, starts, strict=True))
        assert describe(tensor, total) == describe(tensor, whole)


def test_every_single_bit_and_every_swap_changes_the_hash():
    tensor = values(torch.float32)
    before = int(partial_hash(tensor))
    for place in (0, 1, 499, 999):
        for bit in range(32):
            changed = tensor.view(torch.int32).clone()
            changed[place] ^= torch.tensor(1 << bit, dtype=torch.int64).to(torch.int32)
            assert int(partial_hash(changed.view(torch.float32))) != before
    swapped = tensor.clone()
    swapped[[3, 4]] = tensor[[4, 3]]
    assert int(partial_hash(swapped)) != before
    assert int(partial_hash(torch.cat([tensor, torch.zeros(1)]))) != before


def test_frozen_parameters_and_saved_buffers_are_hashed_and_trained_ones_are_not():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[0].bias.requires_grad_(False)
    model.register_buffer("scratch", torch.zeros(3), persistent=False)
    names = {"0.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    before = frozen_hashes(model)
    assert before.keys() == names
    check_frozen(frozen_hashes(model), before, "here")
    model[1].running_mean[2] = 1e-3
    with pytest.raises(CheckpointError, match=r"1 of 4 differ \(1.running_mean\)"):
        check_frozen(frozen_hashes(model), before, "here")
