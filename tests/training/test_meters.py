"""FLOP counts against torch's own counter; padding and frozen parts are not counted."""

import pytest
import torch
from tiny import tiny_samples
from torch.utils.flop_counter import FlopCounterMode

from pargo_ds import assembly
from pargo_ds.assembly.freezing import apply_freezing
from pargo_ds.batch import pack
from pargo_ds.config import parse_config
from pargo_ds.data.conversation import encode
from pargo_ds.training.meters import StepMeter, flop_model, imbalance
from pargo_ds.training.recompute import Recompute


@pytest.fixture(scope="module")
def parts(tiny_run):
    run = parse_config(tiny_run)
    processor = assembly.build_processor(run)
    model = assembly.build_model(run, processor, None)
    apply_freezing(model, run.train)
    samples = [encode(s, s.turns, processor, "here") for s in tiny_samples(4)]
    return run, model, pack(samples, processor.image_size), flop_model(model)


def test_forward_and_backward_match_torchs_counter(parts):
    """One sample, because torch counts the masked squares between packed samples too; 10 % for its
    unmasked halves.
    """
    run, model, _, flops = parts
    processor = assembly.build_processor(run)
    (sample,) = tiny_samples(1)
    batch = pack([encode(sample, sample.turns, processor, "here")], processor.image_size)
    with FlopCounterMode(display=False) as forward:
        loss = model(**batch.model_inputs("cpu")).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    counted = forward.get_total_flops(), backward.get_total_flops()
    expected = flops.of_batch(batch, run, training=False)[0], flops.of_batch(batch, run)[0]
    assert expected[0] == pytest.approx(counted[0], rel=0.1)
    assert expected[1] == pytest.approx(sum(counted), rel=0.1)


def test_empty_pack_costs_nothing(parts):
    run, _, _, flops = parts
    assert flops.of_batch(pack([], 64), run) == (0.0, 0.0)


def test_checkpointing_raises_hardware_flops_only_by_the_layers_that_have_it(parts):
    run, _, batch, flops = parts
    once, one, both = (flops.of_batch(batch, run, again=Recompute(n, 2)) for n in range(3))
    assert once[0] == one[0] == both[0] == once[1]
    assert one[1] > once[1]
    assert both[1] - one[1] == pytest.approx(one[1] - once[1])
    every = flops.of_batch(batch, run, again=Recompute(2, 2, projector=True))
    assert every[1] > both[1]


def test_frozen_llm_has_no_weight_gradient(parts, tiny_run):
    run, _, batch, flops = parts
    frozen = parse_config({**tiny_run, "train": {**tiny_run["train"], "llm": "frozen"}})
    saved = flops.of_batch(batch, run)[0] - flops.of_batch(batch, frozen)[0]
    linear = flops.llm_per_token * batch.num_tokens + flops.llm_head_per_target * batch.num_targets
    assert saved == pytest.approx(linear)


def test_imbalance_is_what_ranks_wait_for_in_each_micro_batch():
    """Two ranks, two micro-batches: images (6, 2) and (2, 6) have equal sums and still cost as much
    as (6, 6).
    """
    assert imbalance([6.0, 6.0], [8.0, 8.0], ranks=2) == 1.5
    assert imbalance([4.0, 4.0], [8.0, 8.0], ranks=2) == 1.0
    assert imbalance([0.0], [0.0], ranks=2) == 1.0


def test_figures_of_a_step(parts):
    run, _, batch, flops = parts
    meter = StepMeter(run, flops, torch.device("cpu"))
    meter.start(data_wait_s=0.25)
    meter.add([batch])
    meter.add([pack([], 64)])
    figures = meter.figures(3.0, torch.tensor([meter.own()], dtype=torch.float64))
    assert figures["loss"] == 3.0 / batch.num_targets
    assert figures["fill"] == batch.num_tokens / run.batch.tokens_per_pack
    assert figures["images"] == batch.num_images
    assert figures["image_imbalance"] == figures["token_imbalance"] == 1.0
    assert figures["data_wait_s"] == 0.25
    assert figures["step_s"] >= 0.25
