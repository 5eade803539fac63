"""A projector beside an oracle: the same weights, forward and gradients, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from tiny import seeing
from torch import Tensor, nn

from pargo_ds.model import Projector, build_projector, projector_config

VISION_DIM, LLM_DIM = 12, 20
BOUND = 1e-12
"""Of a difference. Measured over all projectors: 1.2e-15 in visual tokens, 5e-14 in gradients."""


def made(type: str, num_patches: int = 16, **options: object) -> Projector:
    """A projector in float64, in its published form unless `options` say otherwise, with weights
    away from their neutral values.
    """
    torch.manual_seed(0)
    config = projector_config({"type": type, "patch_norm": False, **options})
    projector = seeing(build_projector(config, VISION_DIM, LLM_DIM, num_patches)).double()
    for parameter in projector.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return projector


def compare_modules(
    projector: Projector, oracle: nn.Module, names: Mapping[str, str], bound: float
) -> None:
    """`names`: each of our parameters -> the oracle's that takes its values."""
    ours, theirs = dict(projector.named_parameters()), dict(oracle.double().named_parameters())
    assert names.keys() == ours.keys()
    with torch.no_grad():
        for name, other in names.items():
            theirs[other].copy_(ours[name].view_as(theirs[other]))
    _compare(projector, oracle, list(ours.values()), [theirs[n] for n in names.values()], bound)


def compare_function(
    projector: Projector, oracle: Callable[[Tensor, dict[str, Tensor]], Tensor], bound: float
) -> None:
    """`oracle`: (patches, our parameters by name) -> visual tokens."""
    weights = dict(projector.named_parameters())
    values = list(weights.values())
    _compare(projector, lambda patches: oracle(patches, weights), values, values, bound)


def _compare(
    projector: Projector,
    oracle: Callable[[Tensor], Tensor],
    ours: list[Tensor],
    theirs: list[Tensor],
    bound: float,
) -> None:
    patches = torch.randn(
        2, projector.num_patches, VISION_DIM, dtype=torch.float64, requires_grad=True
    )
    found, expected = projector(patches), oracle(patches)
    assert found.shape == (2, projector.num_tokens, LLM_DIM)
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)
    seed = torch.randn_like(found)
    ours, theirs = [patches, *ours], [patches, *theirs]
    mine = torch.autograd.grad((found * seed).sum(), ours)
    other = torch.autograd.grad((expected * seed).sum(), theirs)
    for number, (a, b) in enumerate(zip(mine, other, strict=True)):
        assert a.abs().max() > 0, number
        torch.testing.assert_close(a, b.view_as(a), rtol=0, atol=bound, msg=str(number))


def by_prefix(pairs: Mapping[str, str], projector: Projector) -> dict[str, str]:
    """Names of parameters from names of modules: `hidden.0` -> `linear_1` for weight and bias."""
    names = {}
    for name, _ in projector.named_parameters():
        module, _, kind = name.rpartition(".")
        names[name] = f"{pairs[module]}.{kind}"
    return names
