"""The checkpoint asks the optimizer for its states instead of knowing its class."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pargo_ds.checkpoint.engine_state import optimizer_states

OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {}, {"exp_avg", "exp_avg_sq"}, True),
    "amsgrad": (
        torch.optim.AdamW,
        {"amsgrad": True},
        {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
        True,
    ),
    "sgd": (torch.optim.SGD, {"momentum": 0.9}, {"momentum_buffer"}, False),
    "adagrad": (torch.optim.Adagrad, {}, {"sum"}, True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_are_those_that_a_step_makes(name):
    kind, options, names, counts_steps = OPTIMIZERS[name]
    weight = nn.Parameter(torch.randn(3, 5))
    optimizer = kind([weight], lr=0.1, **options)
    found, counts = optimizer_states(optimizer)
    assert (set(found), counts) == (names, counts_steps)
    assert not optimizer.state or name == "adagrad"  # its own states, made at once, stay untouched
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    made = {key for key, value in optimizer.state[weight].items() if value.shape == weight.shape}
    assert made == set(found)
