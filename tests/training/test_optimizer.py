"""Schedule and parameter groups."""

import math

import pytest
from tiny import merged
from torch import nn

from pargo_ds.config import parse_config
from pargo_ds.model import ParGoProjectorConfig, build_projector
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
        config = ParGoProjectorConfig(
            partial_tokens=4, global_tokens=1, layers=1, width=8, heads=2, soft_prompt=True
        )
        self.projector = build_projector(config, 6, 10, 9)


@pytest.mark.parametrize(
    ("rates", "output", "soft_prompt"),
    [
        ({}, 3e-3, 3e-3),
        ({"output_lr": 6e-3}, 6e-3, 3e-3),
        ({"output_lr": 1e-3, "soft_prompt_lr": 0.03}, 1e-3, 0.03),
    ],
)
def test_what_adds_up_to_a_visual_token_has_rates_of_its_own(tiny_run, rates, output, soft_prompt):
    run = parse_config(merged(tiny_run, {"train": {"projector": {**rates, "min_lr": 3e-4}}}))
    model = WithOutput()
    model.vision.requires_grad_(False)
    groups = parameter_groups(model, run)
    assert {id(p) for g in groups for p in g["params"]} == {
        id(p) for p in model.parameters() if p.requires_grad
    }
    for step, share in ((0, 1.0), (3, 0.1)):  # the peak and the last step: one schedule for all
        assert set_learning_rates(groups, run, step=step, total_steps=4)[
            "projector"
        ] == pytest.approx(share * 3e-3)
        found = {id(p): group["lr"] for group in groups for p in group["params"]}
        assert found[id(model.projector.output.linear.weight)] == pytest.approx(share * output)
        assert found[id(model.projector.output.soft_prompt.weight)] == pytest.approx(
            share * soft_prompt
        )
        assert found[id(model.projector.layers[0].perception.output.weight)] == pytest.approx(
            share * 3e-3
        )


def test_rates_of_a_frozen_projector_are_an_error(tiny_run):
    with pytest.raises(ValueError, match="takes neither output_lr nor soft_prompt_lr"):
        parse_config(
            {
                **tiny_run,
                "train": {**tiny_run["train"], "projector": {"mode": "frozen", "output_lr": 1e-3}},
            }
        )
