"""Every backend equals the dense mask, forward and backward; what is allocated; what is said."""

import logging
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import seeing
from torch.utils._python_dispatch import TorchDispatchMode

from pargo_ds.model import ParGoProjectorConfig, attention, build_projector, flash, partial_backends
from pargo_ds.model.attention import AttentionChoice, cascade_attention, partial_attention
from pargo_ds.model.groups import PatchGroups
from pargo_ds.model.masks import CASCADES, cascade_mask, partial_global_mask

BACKENDS = ["fused", "flash_window", "flash_varlen", "dense"]
# Largest difference over 400 drawn cases of this file: float64 3e-15; float32 1.5e-6 against the
# float64 oracle.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
quick = settings(deadline=None, max_examples=60)


@st.composite
def drawn_groups(draw):
    if draw(st.booleans()):
        num_partial = draw(st.integers(1, 12))
        return PatchGroups(num_partial, num_partial * draw(st.integers(1, 5)))
    grid = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    num_partial = draw(st.integers(1, grid[0] * grid[1]))
    grouping = draw(st.sampled_from(["raster", "block"]))
    return PatchGroups(num_partial, grid[0] * grid[1], grouping, grid)


def random_qkv(images, heads, queries, keys, head_dim, seed):
    """Laid out as the projector does, in float64 on a grid that float32 holds exactly."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tokens):
        x = torch.randn(images, tokens, heads, head_dim, generator=generator)
        return x.double().transpose(1, 2)

    return draw(queries), draw(keys), draw(keys), draw(queries)


def run(function, q, k, v, dout, dtype=torch.float64):
    """Output and gradients of q, k and v, as float64."""
    q, k, v = (x.to(dtype).requires_grad_() for x in (q, k, v))
    out = function(q, k, v)
    gradients = torch.autograd.grad(out, (q, k, v), dout.to(dtype), allow_unused=True)
    return [out.detach().double(), *(g.double() for g in gradients)]


def assert_same(found, expected, dtype):
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(
            one, other, rtol=0, atol=TOLERANCE[dtype], msg=lambda m, name=name: f"{name}: {m}"
        )


def under_mask(mask):
    """Attention under a boolean mask, written out: what SDPA, too, has to compute."""

    def function(q, k, v):
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v

    return function


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("backend", BACKENDS)
@quick
@given(
    groups=drawn_groups(),
    images=st.integers(1, 3),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([1, 4, 12]),
    seed=st.integers(0, 2**20),
)
def test_partial_backend_equals_the_mask(backend, dtype, groups, images, heads, head_dim, seed):
    sizes = (groups.num_partial, groups.num_patches)
    tensors = random_qkv(images, heads, *sizes, head_dim, seed)
    mask = partial_global_mask(sizes[0], 0, sizes[1], groups.grouping, groups.grid)
    expected = run(under_mask(mask), *tensors)
    attend = partial(partial_attention, groups=groups, backend=backend)
    assert_same(run(attend, *tensors, dtype=dtype), expected, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_partial_token_sees_only_its_group_in_every_backend(backend):
    """4 tokens on 4 x 4 patches: changing the patches of block 1 changes token 1 and nothing else."""
    groups = PatchGroups(4, 16, "block")
    q, k, v, _ = random_qkv(1, 2, 4, 16, 4, 0)
    before = partial_attention(q, k, v, groups, backend)
    k, v = k.clone(), v.clone()
    for x in (k, v):
        x[:, :, [2, 3, 6, 7]] += 1
    differs = (partial_attention(q, k, v, groups, backend) != before).any(-1).any(1)[0]
    assert differs.tolist() == [False, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("backend", ["flash", "dense"])
@quick
@given(
    cascade=st.sampled_from(CASCADES),
    num_partial=st.integers(1, 24),
    depth=st.integers(1, 7),
    images=st.integers(1, 3),
    seed=st.integers(0, 2**20),
    data=st.data(),
)
def test_cascade_backend_equals_the_mask(
    backend,
    dtype,
    cascade,
    num_partial,
    depth,
    images,
    seed,
    data,
):
    layer = data.draw(st.integers(1, depth))
    tensors = random_qkv(images, 2, num_partial, num_partial, 4, seed)
    expected = run(under_mask(cascade_mask(num_partial, layer, depth, cascade)), *tensors)
    place = {"layer": layer, "depth": depth, "cascade": cascade}
    found = run(partial(cascade_attention, backend=backend, **place), *tensors, dtype=dtype)
    assert_same(found, expected, dtype)


@pytest.mark.parametrize("layer", range(1, 7))
def test_shifted_window_of_the_papers_size_is_three_flash_calls(layer):
    tensors = random_qkv(1, 1, 288, 288, 4, layer)
    expected = run(under_mask(cascade_mask(288, layer, 6)), *tensors)
    found = run(partial(cascade_attention, layer=layer, depth=6, backend="flash"), *tensors)
    assert_same(found, expected, torch.float64)


class Allocations(TorchDispatchMode):
    """Shapes of every tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.shapes, self.bools = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.shapes.add(tuple(x.shape))
                if x.dtype == torch.bool:
                    self.bools.add(tuple(x.shape))
        return out


@pytest.mark.parametrize("num_patches", [48, 50], ids=["even", "uneven"])
def test_default_road_allocates_no_partial_global_mask_and_no_padding(num_patches):
    config = ParGoProjectorConfig(
        partial_tokens=24, global_tokens=3, layers=2, width=16, heads=2, cascade="release"
    )
    projector = seeing(build_projector(config, 12, 20, num_patches))
    with Allocations() as seen:
        projector(torch.randn(2, num_patches, 12)).sum().backward()
    assert not [
        shape for shape in seen.shapes if shape[-2:] in ((24, num_patches), (27, num_patches))
    ]
    assert not [shape for shape in seen.bools if num_patches in shape]
    # Uneven groups padded to the longest would hold 24 x 3 = 72 patches.
    assert not [shape for shape in seen.shapes if 72 in shape or shape[1:3] == (24, 3)]


def test_uneven_groups_leave_flash_window_by_rule_and_say_so_once(caplog):
    attention.log_once.cache_clear()
    groups = PatchGroups(3, 8)
    q, k, v, _ = random_qkv(1, 1, 3, 8, 4, 4)
    with caplog.at_level(logging.INFO, "pargo_ds"):
        for _ in range(2):
            partial_attention(q, k, v, groups, "flash_window")
    said = [r.message for r in caplog.records]
    assert said == [
        "attention: partial tokens by fused on cpu (flash_window needs groups of one length, these are uneven)"
    ]


def test_auto_is_one_rule_for_every_device_and_gives_its_reason_once(caplog):
    attention.log_once.cache_clear()
    q, k, v, _ = random_qkv(1, 1, 3, 8, 4, 4)
    with caplog.at_level(logging.INFO, "pargo_ds"):
        for _ in range(2):
            partial_attention(q, k, v, PatchGroups(3, 8))
            cascade_attention(q, q, q, 1, 2)
    one = "by fused on cpu (auto: it reads each patch once, without a mask)"
    other = "by dense on cpu (auto: one call, which every device and dtype can compute)"
    assert caplog.messages == [f"attention: partial tokens {one}", f"attention: cascade {other}"]
    for device in (torch.device("cuda", 0), torch.device("meta")):
        assert attention.choose_partial("auto", "auto", False, device).backend == "fused"
        assert attention.choose_cascade("auto", "auto", device).backend == "dense"


def test_flash_words_on_a_cpu_are_plain_torch_and_say_so_once(caplog):
    attention.log_once.cache_clear()
    q, k, v, _ = random_qkv(1, 1, 4, 8, 4, 4)
    with caplog.at_level(logging.INFO, "pargo_ds"):
        for _ in range(2):
            partial_attention(q, k, v, PatchGroups(4, 8), "flash_window")
            cascade_attention(q, q, q, 1, 2, backend="flash")
    why = "provider varlen_reference: plain torch, because no FlashAttention runs on cpu"
    assert caplog.messages == [
        f"attention: partial tokens by flash_window on cpu (asked for; {why})",
        f"attention: cascade by flash on cpu (asked for; {why})",
    ]


def test_a_choice_is_made_once_and_not_in_every_call(monkeypatch):
    asked = []

    def resolve(provider, device):
        asked.append(provider)
        return flash.resolve_provider(provider, device)

    monkeypatch.setattr(attention, "resolve_provider", resolve)
    attention.choose_partial.cache_clear()
    q, k, v, _ = random_qkv(1, 1, 4, 8, 4, 4)
    for _ in range(3):
        partial_attention(q, k, v, PatchGroups(4, 8), "flash_window")
    assert asked == ["auto"]


def test_varlen_limits_are_errors_with_the_numbers():
    with pytest.raises(ValueError, match=r"73728 here .* grid of FlashAttention holds 65535"):
        partial_backends.check_varlen_limits(256 * 288, heads=8, head_dim=64, training=False)
    with pytest.raises(
        ValueError, match=r"18432 sequences .* 16 heads of 64 needs .* 9.1 GiB .* more than 4 GiB"
    ):
        partial_backends.check_varlen_limits(64 * 288, heads=16, head_dim=64, training=True)
    partial_backends.check_varlen_limits(64 * 288, heads=16, head_dim=64, training=False)


def test_too_many_groups_for_flash_varlen_stop_before_the_kernel():
    groups = PatchGroups(256, 256)
    q = k = torch.empty(256, 1, 256, 8, device="meta")
    with pytest.raises(ValueError, match="65536 here .* Take flash_window or fused"):
        partial_backends.BACKENDS["flash_varlen"](q, k, k, groups, flash.REFERENCE)


@pytest.mark.parametrize(
    "call, said",
    [
        (
            lambda q, g: partial_attention(q, q, q, g, "fast"),
            "auto, dense, fused, flash_window, flash_varlen",
        ),
        (
            lambda q, g: cascade_attention(q, q, q, 1, 2, "shifted", "fused"),
            "choose one of auto, flash, dense",
        ),
        (
            lambda q, g: cascade_attention(q, q, q, 1, 2, "wide", "flash"),
            "shifted, centered, each_side, none, release",
        ),
        (lambda q, g: cascade_attention(q, q, q, 3, 2, "shifted", "flash"), "layers count from 1"),
        (lambda q, g: partial_attention(q[:, :, :3], q, q, g), "do not fit the groups: expected"),
        (lambda q, g: PatchGroups(3, 8, "block"), "8 patches and no grid, and they fill no square"),
        (lambda q, g: PatchGroups(3, 8, "block", (2, 3)), "8 patches but a grid of 2 x 3"),
        (lambda q, g: PatchGroups(3, 8, "rings"), "unknown grouping 'rings'"),
        (lambda q, g: PatchGroups(5, 4), "5 partial tokens but only 4 patches"),
        (
            lambda q, g: AttentionChoice(provider="emulated"),
            "attention.provider is 'emulated': choose one of auto, torch",
        ),
        (
            lambda q, g: AttentionChoice(partial="varlen"),
            "attention.partial is 'varlen': choose one of",
        ),
    ],
)
def test_wrong_words_and_shapes_are_errors(call, said):
    with pytest.raises(ValueError, match=said):
        call(torch.randn(1, 1, 4, 4), PatchGroups(4, 4))


@pytest.mark.parametrize("grouping", ["raster", "block"])
@pytest.mark.parametrize("partial", BACKENDS)
def test_projector_gives_the_same_tokens_and_gradients_on_every_backend(partial, grouping):
    torch.manual_seed(0)
    config = ParGoProjectorConfig(
        partial_tokens=8,
        global_tokens=2,
        layers=4,
        width=16,
        heads=2,
        grouping=grouping,
        cascade="shifted",
    )
    projector = seeing(build_projector(config, 12, 20, 16)).double()
    patches = torch.randn(2, 16, 12, dtype=torch.float64)
    results = []
    for choice in (AttentionChoice("dense", "dense"), AttentionChoice(partial, "flash")):
        projector.set_attention(choice)
        tokens = projector(patches)
        results.append(
            [tokens, *torch.autograd.grad(tokens.square().sum(), list(projector.parameters()))]
        )
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_projector_runs_on_the_meta_device():
    config = ParGoProjectorConfig(partial_tokens=7, global_tokens=2, layers=2, width=16, heads=2)
    with torch.device("meta"):
        projector = seeing(build_projector(config, 12, 20, 16))
    assert projector(torch.empty(1, 16, 12, device="meta")).shape == (1, 9, 20)
