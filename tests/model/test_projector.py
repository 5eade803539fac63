"""The projector against a dense float64 rewriting in plain torch operations."""

import math

import pytest
import torch
from tiny import seeing

from pargo_ds.model import ParGoConfig, ParGoProjectorConfig, build_projector
from pargo_ds.model.masks import CASCADES, cascade_mask, partial_global_mask
from pargo_ds.model.projector_pargo import QUERY_STD

VISION_DIM, LLM_DIM = 12, 20


def make(num_patches: int = 10, **fields):
    torch.manual_seed(0)
    config = ParGoProjectorConfig(
        **{"partial_tokens": 4, "global_tokens": 3, "layers": 3, "width": 16, "heads": 2, **fields}
    )
    projector = seeing(build_projector(config, VISION_DIM, LLM_DIM, num_patches)).double()
    for p in projector.parameters():  # leave the neutral values of norms and biases
        p.data += 0.1 * torch.randn_like(p)
    return projector, config


def layer_norm(x, w, name, eps=1e-5):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def masked_attention(x, source, mask, w, name, heads):
    """Attention written out row by row and head by head."""
    q, k, v = (
        linear(x, w, f"{name}.query"),
        linear(source, w, f"{name}.key"),
        linear(source, w, f"{name}.value"),
    )
    dim = q.shape[-1] // heads
    out = torch.zeros_like(q)
    for head in range(heads):
        part = slice(head * dim, (head + 1) * dim)
        for row in range(q.shape[1]):
            sees = mask[row].nonzero().flatten()
            scores = (q[:, row, None, part] * k[:, sees, part]).sum(-1) / math.sqrt(dim)
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            out[:, row, part] = (weights[..., None] * v[:, sees, part]).sum(1)
    return linear(out, w, f"{name}.output")


def reference(patches, w, config):
    n, heads = config.partial_tokens, config.heads
    patches = layer_norm(patches, w, "patch_norm")
    x = w["tokens.weight"].expand(patches.shape[0], -1, -1)
    pgp_mask = partial_global_mask(n, config.global_tokens, patches.shape[1])
    for layer in range(config.layers):
        at = f"layers.{layer}"
        if config.cascade != "none":
            normed = layer_norm(x, w, f"{at}.cascade_norm")
            mask = cascade_mask(n, layer + 1, config.layers, config.cascade)
            parts = [
                masked_attention(normed[:, :n], normed[:, :n], mask, w, f"{at}.cascade", heads)
            ]
            if config.cascade == "release":
                full = torch.ones(config.global_tokens, config.global_tokens, dtype=torch.bool)
                parts.append(
                    masked_attention(normed[:, n:], normed[:, n:], full, w, f"{at}.cascade", heads)
                )
            else:
                parts.append(torch.zeros_like(x[:, n:]))
            x = x + torch.cat(parts, 1)
        normed = layer_norm(x, w, f"{at}.perception_norm")
        x = x + masked_attention(normed, patches, pgp_mask, w, f"{at}.perception", heads)
        hidden = linear(layer_norm(x, w, f"{at}.ffn_norm"), w, f"{at}.ffn.0")
        x = x + linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), w, f"{at}.ffn.2")
    return linear(layer_norm(x, w, "final_norm"), w, "output")


def post_norm_reference(patches, w, config):
    """BERT's order; what bypasses the cascade bypasses its norm."""
    n, heads, eps = config.partial_tokens, config.heads, config.norm_eps
    x = w["tokens.weight"] + w.get("positions.weight", 0)
    x = layer_norm(x, w, "token_norm", eps).expand(patches.shape[0], -1, -1)
    mask = partial_global_mask(n, config.global_tokens, patches.shape[1])
    full = torch.ones(config.global_tokens, config.global_tokens, dtype=torch.bool)
    for layer in range(config.layers):
        at = f"layers.{layer}"
        if config.cascade != "none":
            seen = cascade_mask(n, layer + 1, config.layers, config.cascade)
            parts = [x[:, :n], x[:, n:]]
            for i, own in enumerate((seen, full)):
                if i == 0 or config.cascade == "release":
                    attended = masked_attention(parts[i], parts[i], own, w, f"{at}.cascade", heads)
                    parts[i] = layer_norm(parts[i] + attended, w, f"{at}.cascade_norm", eps)
            x = torch.cat(parts, 1)
        x = x + masked_attention(x, patches, mask, w, f"{at}.perception", heads)
        x = layer_norm(x, w, f"{at}.perception_norm", eps)
        hidden = linear(x, w, f"{at}.ffn.0")
        x = x + linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), w, f"{at}.ffn.2")
        x = layer_norm(x, w, f"{at}.ffn_norm", eps)
    return linear(x, w, "output")


@pytest.mark.parametrize("num_patches", [8, 10])
@pytest.mark.parametrize("cascade", CASCADES)
def test_projector_equals_a_dense_rewriting_in_float64(cascade, num_patches):
    projector, config = make(num_patches, cascade=cascade)
    patches = torch.randn(2, num_patches, VISION_DIM, dtype=torch.float64)
    expected = reference(patches, dict(projector.named_parameters()), config)
    # Measured worst difference: 2e-15.
    torch.testing.assert_close(projector(patches), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("query_positions, norm_eps", [(True, 1e-12), (False, 1e-2)])
@pytest.mark.parametrize("cascade", CASCADES)
def test_post_norm_projector_equals_a_dense_rewriting_in_float64(
    cascade, query_positions, norm_eps
):
    projector, config = make(
        cascade=cascade,
        norm="post",
        patch_norm=False,
        query_positions=query_positions,
        norm_eps=norm_eps,
    )
    patches = torch.randn(2, 10, VISION_DIM, dtype=torch.float64)
    weights = dict(projector.named_parameters())
    assert ("positions.weight" in weights) == query_positions
    expected, seed = (
        post_norm_reference(patches, weights, config),
        torch.randn(2, 7, LLM_DIM, dtype=torch.float64),
    )
    found = projector(patches)
    # Measured worst differences: 2e-15 (values) and 9e-15 (gradients).
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    ours = torch.autograd.grad((found * seed).sum(), list(weights.values()))
    theirs = torch.autograd.grad((expected * seed).sum(), list(weights.values()))
    for name, a, b in zip(weights, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11, msg=name)


def test_pre_norm_takes_positions_and_epsilon_too():
    projector, config = make(query_positions=True, norm_eps=1e-2)
    patches = torch.randn(2, 10, VISION_DIM, dtype=torch.float64)
    plain, _ = make(norm_eps=1e-2)
    weights = dict(projector.named_parameters())
    plain.load_state_dict({name: p for name, p in weights.items() if name != "positions.weight"})
    plain.tokens.weight.data += weights["positions.weight"]
    torch.testing.assert_close(projector(patches), plain(patches), rtol=0, atol=1e-12)
    assert {
        module.eps for module in projector.modules() if isinstance(module, torch.nn.LayerNorm)
    } == {1e-2}


def test_defaults_have_the_names_and_draws_of_before_the_options():
    """Old checkpoints load, and the same seed gives the same projector."""
    torch.manual_seed(0)
    config = ParGoProjectorConfig(partial_tokens=4, global_tokens=3, layers=1, width=16, heads=2)
    projector = build_projector(config, VISION_DIM, LLM_DIM, 10)
    inside = ["cascade_norm", "cascade", "perception_norm", "perception", "ffn_norm", "ffn"]
    assert [name for name, _ in projector.named_children()] == [
        "patch_norm",
        "tokens",
        "layers",
        "final_norm",
        "output",
    ]
    assert [name for name, _ in projector.layers[0].named_children()][:6] == inside
    torch.manual_seed(0)
    assert torch.equal(
        projector.tokens.weight, torch.nn.init.normal_(torch.empty(7, 16), std=QUERY_STD)
    )
    assert torch.equal(projector.layers[0].cascade.query.weight, torch.nn.Linear(16, 16).weight)


def test_gradients_equal_those_of_the_rewriting():
    projector, config = make()
    patches = torch.randn(2, 10, VISION_DIM, dtype=torch.float64)
    weights = dict(projector.named_parameters())
    seed = torch.randn(2, 7, LLM_DIM, dtype=torch.float64)
    ours = torch.autograd.grad((projector(patches) * seed).sum(), list(weights.values()))
    theirs = torch.autograd.grad(
        (reference(patches, weights, config) * seed).sum(), list(weights.values())
    )
    for name, a, b in zip(weights, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11, msg=name)


def test_partial_token_sees_only_its_group():
    projector, config = make(num_patches=8, cascade="none")
    patches = torch.randn(1, 8, VISION_DIM, dtype=torch.float64)
    changed = patches.clone()
    changed[:, 2:4] += 1  # the group of partial token 1
    differs = (projector(patches) != projector(changed)).any(-1)[0]
    assert differs.tolist() == [False, True, False, False, True, True, True]


def test_global_tokens_bypass_the_cascade():
    projector, config = make()
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    assert (projector.layers[0].cascade(x)[:, 4:] == 0).all()


@pytest.mark.parametrize(
    "fields",
    [{"global_tokens": 0}, {"partial_tokens": 0}, {"partial_tokens": 0, "cascade": "release"}],
)
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_projector_works_without_partial_or_without_global_tokens(fields, norm):
    projector, config = make(norm=norm, **fields)
    tokens = projector(torch.randn(2, 10, VISION_DIM, dtype=torch.float64))
    assert tokens.shape == (2, config.tokens, LLM_DIM)
    tokens.sum().backward()


def test_visual_tokens_start_at_the_asked_scale():
    config = ParGoProjectorConfig(
        partial_tokens=16, global_tokens=4, layers=2, width=128, heads=4, output_std=0.136
    )
    torch.manual_seed(0)
    tokens = build_projector(config, 64, 256, 32)(torch.randn(4, 32, 64))
    assert tokens.std().item() == pytest.approx(0.136, rel=0.1)


def test_gradient_checkpointing_changes_no_gradient():
    projector, _ = make()
    patches = torch.randn(2, 10, VISION_DIM, dtype=torch.float64)
    plain = torch.autograd.grad(projector(patches).square().sum(), list(projector.parameters()))
    for layer in projector.layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = lambda f, *a: torch.utils.checkpoint.checkpoint(
            f, *a, use_reentrant=False
        )
    projector.train()
    again = torch.autograd.grad(projector(patches).square().sum(), list(projector.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_masks_built_in_inference_mode_can_be_trained_with_later():
    projector, _ = make(num_patches=9)
    patches = torch.randn(1, 9, VISION_DIM, dtype=torch.float64)
    with torch.inference_mode():
        projector(patches)
    projector(patches).sum().backward()


def test_unknown_projector_names_the_known_ones():
    with pytest.raises(
        ValueError, match="unknown projector type 'linaer': known types are .*pargo"
    ):
        ParGoConfig(projector_config={"type": "linaer"})


def test_more_partial_tokens_than_patches_is_an_error_at_construction():
    with pytest.raises(ValueError, match="11 partial tokens but only 10 patches"):
        make(partial_tokens=11)


def test_unknown_norm_names_the_known_ones():
    with pytest.raises(
        ValueError, match=r"unknown projector.norm 'layer': choose one of pre, post"
    ):
        ParGoProjectorConfig(norm="layer")


def test_width_must_be_divisible_by_heads():
    with pytest.raises(ValueError, match="width 16 is not a multiple of projector.heads 3"):
        make(heads=3)


def test_other_number_of_patches_than_built_for_is_an_error():
    projector, _ = make(num_patches=10)
    with pytest.raises(
        ValueError, match="gave 9 patches per image but the projector was built for 10"
    ):
        projector(torch.randn(1, 9, VISION_DIM, dtype=torch.float64))
