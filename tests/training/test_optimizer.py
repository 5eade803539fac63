"""Schedule and parameter groups."""

import math

import pytest
import torch
from tiny import merged
from torch import nn

from pargo_ds.config import parse_config
from pargo_ds.model.projector_pargo import ScaledLinear
from pargo_ds.training.optimizer import lr_at, parameter_groups, set_learning_rates


def test_warm_up_is_linear_and_cosine_ends_at_the_floor():
    rates = [lr_at(step, 10, 2, peak=1.0, floor=0.1) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[9] == pytest.approx(0.1)
    middle = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 3 / 7))
    assert rates[5] == pytest.approx(middle)
    assert all(a >= b for a, b in zip(rates[1:], rates[2:], strict=False))


def test_one_step_run_uses_the_peak():
    assert lr_at(0, 1, 0, peak=1.0, floor=0.1) == 1.0


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision, self.projector, self.llm = (nn.Linear(2, 2) for _ in range(3))


def test_groups_follow_parts_and_vectors_do_not_decay(tiny_run):
    run, model = parse_config(tiny_run), Parts()
    model.vision.requires_grad_(False)
    groups = parameter_groups(model, run)
    assert [g["name"] for g in groups] == [
        "projector.matrices",
        "projector.vectors",
        "llm.matrices",
        "llm.vectors",
    ]
    assert [g["weight_decay"] for g in groups] == [0.0, 0.0, 0.01, 0.0]
    rates = set_learning_rates(groups, run, step=0, total_steps=4)
    assert rates == {"projector": 3e-3, "llm": 1e-3}
    assert [g["lr"] for g in groups] == [3e-3, 3e-3, 1e-3, 1e-3]


class WithOutput(Parts):
    def __init__(self):
        super().__init__()
        self.projector = nn.Sequential(nn.Linear(2, 2), ScaledLinear(2, 2, output_std=0.1))


@pytest.mark.parametrize("word, factor", [("scaled", 0.1), ("same", 1.0)])
def test_the_layer_that_writes_visual_tokens_has_the_rate_of_its_scale(tiny_run, word, factor):
    run = parse_config(merged(tiny_run, {"train": {"projector": {"output_lr": word}}}))
    model = WithOutput()
    model.vision.requires_grad_(False)
    groups = parameter_groups(model, run)
    assert set_learning_rates(groups, run, step=0, total_steps=4)["projector"] == 3e-3
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {id(p) for p in model.parameters() if p.requires_grad} == set(rates)
    assert [rates[id(p)] for p in model.projector[0].parameters()] == [3e-3, 3e-3]
    assert [rates[id(p)] for p in model.projector[1].parameters()] == pytest.approx([factor * 3e-3] * 2)


def test_a_scaled_rate_trains_as_a_layer_of_unit_scale_under_a_factor_would():
    """The oracle is Adam itself on y = s * linear(x), whose weights are of unit scale."""
    torch.manual_seed(0)
    scale, x, wanted = 0.05, torch.randn(64, 8).double(), torch.randn(64, 4).double()
    unit = nn.Linear(8, 4).double()
    small = ScaledLinear(8, 4, output_std=scale).double()
    with torch.no_grad():
        small.weight.copy_(scale * unit.weight)
        small.bias.copy_(scale * unit.bias)
    options = {"eps": 0.0, "weight_decay": 0.0}
    steps = [
        (torch.optim.AdamW(unit.parameters(), lr=1e-2, **options), lambda: scale * unit(x)),
        (torch.optim.AdamW(small.parameters(), lr=1e-2 * scale, **options), lambda: small(x)),
    ]
    for optimizer, forward in steps:
        for _ in range(30):
            optimizer.zero_grad()
            (forward() - wanted).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(small.weight, scale * unit.weight, rtol=0, atol=1e-12)  # measured: 1e-16
