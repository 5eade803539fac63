"""The start of a new projector: channels of the patches come to mean 0 and deviation 1, whatever
the encoder gives.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import merged

from pargo_ds import assembly
from pargo_ds.assembly.calibration import FLOOR, calibrate
from pargo_ds.batch import Batch, pack
from pargo_ds.config import parse_config


def batch_of(pixels: torch.Tensor) -> Batch:
    empty = pack([], pixels.shape[-1])
    return Batch(**{**vars(empty), "pixel_values": pixels})


@pytest.fixture
def model(tiny_run):
    run = parse_config(merged(tiny_run, {"train": {"llm": "frozen"}}))
    return assembly.build_model(run, assembly.build_processor(run), None)


def test_each_channel_has_mean_0_and_deviation_1_over_the_images(model):
    pixels = torch.randint(
        0, 256, (24, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        plain = model.projector.patch_norm(model.vision(pixels)).double().flatten(0, 1).numpy()
        calibrate(
            model, [batch_of(pixels[:10]), batch_of(pixels[10:10]), batch_of(pixels[10:])], "cpu"
        )
        found = model.projector.patch_norm(model.vision(pixels)).double().flatten(0, 1).numpy()
    deviation = plain.std(axis=0)
    expected = (plain - plain.mean(axis=0)) / (deviation + FLOOR * np.median(deviation))
    # torch takes the lower of two middle values for a median; the bound leaves room for that and
    # for float32.
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=2e-3)
    assert abs(found.mean(axis=0)).max() < 1e-4
    assert found.std(axis=0).min() > 0.5
    assert found.std(axis=0).max() < 1.0


def test_without_an_image_it_says_what_to_do(model):
    with pytest.raises(
        ValueError,
        match="calibration_images: the first samples of data.train hold no image; set it",
    ):
        calibrate(model, [batch_of(torch.zeros(0, 3, 64, 64, dtype=torch.uint8))], "cpu")


def test_a_projector_without_a_norm_of_the_patches_stays_as_it_is(tiny_run):
    run = parse_config(merged(tiny_run, {"projector": {"patch_norm": False}}))
    model = assembly.build_model(run, assembly.build_processor(run), None)
    before = {name: p.clone() for name, p in model.projector.named_parameters()}
    calibrate(model, [], "cpu")
    assert all(torch.equal(before[name], p) for name, p in model.projector.named_parameters())
