"""Places found beforehand give the numbers of places found in forward, and nothing waits for them."""

import pytest
import torch
import transformers

from pargo_ds.model import IGNORE_INDEX
from tests.model.test_modeling import labels_of, packed, samples  # noqa: F401 (a fixture)
from tests.step_counts import StepCounts


def with_places(model, batch, labels):
    told = ("input_ids", "position_ids", "cu_seqlens", "max_seqlen")
    return {**batch, "places": model.places(labels=labels, **{name: batch[name] for name in told})}


def loss_and_gradients(model, **inputs):
    output = model(**inputs, num_items_in_batch=7.0, return_logits=False)
    weights = [p for p in model.parameters() if p.requires_grad]
    return output, torch.autograd.grad(output.loss, weights)


def test_loss_and_gradients_are_those_of_labels(model, samples):  # noqa: F811
    batch, labels = packed(samples), labels_of(samples)
    expected = loss_and_gradients(model, **batch, labels=labels)
    found = loss_and_gradients(model, **with_places(model, batch, labels))
    assert torch.equal(found[0].loss, expected[0].loss)
    assert found[0].num_targets == expected[0].num_targets > 0
    for one, other in zip(found[1], expected[1], strict=True):
        assert torch.equal(one, other)


def test_a_row_without_target_has_a_loss_of_zero_and_every_gradient(model, samples):  # noqa: F811
    batch, labels = packed(samples), torch.full_like(labels_of(samples), IGNORE_INDEX)
    output, gradients = loss_and_gradients(model, **with_places(model, batch, labels))
    assert output.loss == 0
    assert output.num_targets == 0
    assert all((gradient == 0).all() for gradient in gradients)


def test_with_places_no_operator_waits_for_the_device(model, samples):  # noqa: F811
    batch, labels = packed(samples), labels_of(samples)
    inputs = with_places(model, batch, labels)
    loss_and_gradients(model, **inputs)  # masks and choices are worked out at the first call
    with StepCounts() as counts:
        loss_and_gradients(model, **inputs)
    # transformers 5 looks into the positions once itself, before it leaves the mask to us
    of_transformers = (
        {} if transformers.__version__.startswith("4.") else {"_local_scalar_dense": 1}
    )
    assert counts.waits == of_transformers
    with StepCounts() as counts:
        loss_and_gradients(model, **batch, labels=labels)
    assert counts.waits["nonzero"] == 2  # the guard sees what it is there for


def test_what_forward_would_refuse_is_refused(model, samples):  # noqa: F811
    batch, labels = packed(samples), labels_of(samples)
    with pytest.raises(ValueError, match="must restart at 0 at each boundary"):
        with_places(model, batch | {"position_ids": batch["position_ids"] + 1}, labels)
    with pytest.raises(ValueError, match="the longest sample of cu_seqlens has"):
        with_places(model, batch | {"max_seqlen": 3}, labels)
    inputs = with_places(model, batch, labels)
    fewer = inputs["places"]._replace(images=inputs["places"].images[1:])
    with pytest.raises(ValueError, match="image tokens"):
        model(**inputs | {"places": fewer})
