"""The pooled MLP: what torch's own modules give, and errors that name a number that works."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pargo_ds.model import ProjectorConfig, build_projector, projector_config


def config(tokens: int = 9) -> ProjectorConfig:
    return projector_config({"type": "adaptive_pool", "tokens": tokens, "output_std": 0.1})


def test_it_is_llavas_mlp_over_adaptively_pooled_patches():
    torch.manual_seed(0)
    projector = build_projector(config(), 12, 20, 64).double()
    oracle = nn.Sequential(
        nn.LayerNorm(12), nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 20)
    ).double()
    oracle.load_state_dict(
        {f"{place}.{k}": v for place, name in ((0, "patch_norm"), (1, "hidden"), (3, "output"))
         for k, v in projector.get_submodule(name).state_dict().items()}
    )  # fmt: skip
    patches = torch.randn(2, 64, 12, dtype=torch.float64)
    pool = nn.AdaptiveAvgPool2d(3)
    pooled = torch.stack([pool(image.T.reshape(12, 8, 8)).reshape(12, 9).T for image in patches])
    torch.testing.assert_close(
        projector(patches), oracle(pooled), rtol=0, atol=1e-14
    )  # measured: 4e-17


def test_tokens_start_at_the_scale_of_the_words():
    torch.manual_seed(0)
    tokens = build_projector(config(), 256, 512, 64)(torch.randn(8, 64, 256))
    assert tokens.shape == (8, 9, 512)
    # The GELU of linear outputs of pooled noise has a small second moment: below the words' 0.1,
    # never above.
    assert 0.001 < float(tokens.detach().std()) < 0.1


@pytest.mark.parametrize(
    ("tokens", "patches", "message"),
    [
        (9, 60, "found 60 patches of the encoder, which fill no square; the nearest is 64"),
        (10, 64, "found 10 visual tokens .*nearest is 9"),
    ],
)
def test_what_fills_no_square_is_an_error_that_names_the_nearest_number(tokens, patches, message):
    with pytest.raises(ValueError, match=message):
        build_projector(config(tokens), 12, 20, patches)
