"""Every backend equals the dense mask, forward and backward; what is allocated; what is said."""

import logging

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import seeing
from torch.utils._python_dispatch import TorchDispatchMode

from pargo_ds.model import ParGoProjectorConfig, attention, build_projector, partial_backends
from pargo_ds.model.attention import AttentionChoice, cascade_attention, global_attention, partial_attention
from pargo_ds.model.groups import PatchGroups
from pargo_ds.model.masks import CASCADES, cascade_mask

BACKENDS = ["fused", "flash_window", "flash_varlen", "dense"]
# Largest difference over 400 drawn cases of this file: float64 3e-15; float32 1.5e-6 against the float64 oracle.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
quick = settings(deadline=None, max_examples=60)


@st.composite
def uniform_groups(draw):
    if draw(st.booleans()):
        num_partial = draw(st.integers(1, 12))
        return PatchGroups.uniform(num_partial, num_partial * draw(st.integers(1, 5)))
    grid = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    num_partial = draw(st.integers(1, grid[0] * grid[1]))
    return PatchGroups.uniform(num_partial, grid[0] * grid[1], draw(st.sampled_from(["raster", "block"])), grid)


@st.composite
def ragged_groups(draw):
    grids = draw(st.lists(st.tuples(st.integers(2, 6), st.integers(2, 6)), min_size=1, max_size=4))
    ends = [0]
    for rows, columns in grids:
        ends.append(ends[-1] + rows * columns)
    cu_patches = torch.tensor(ends, dtype=torch.int32)
    return PatchGroups.packed(draw(st.integers(1, 4)), cu_patches, draw(st.sampled_from(["raster", "block"])), grids)


def random_qkv(images, heads, queries, rows, keys, head_dim, seed):
    """Laid out as the projector does, in float64 on a grid that float32 holds exactly."""
    generator = torch.Generator().manual_seed(seed)

    def draw(batch, tokens):
        x = torch.randn(batch, tokens, heads, head_dim, generator=generator)
        return x.double().transpose(1, 2)

    return draw(images, queries), draw(rows, keys), draw(rows, keys), draw(images, queries)


def run(function, q, k, v, dout, dtype=torch.float64):
    """Output and gradients of q, k and v, as float64."""
    q, k, v = (x.to(dtype).requires_grad_() for x in (q, k, v))
    out = function(q, k, v)
    gradients = torch.autograd.grad(out, (q, k, v), dout.to(dtype), allow_unused=True)
    return [out.detach().double(), *(g.double() for g in gradients)]


def assert_same(found, expected, dtype):
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE[dtype], msg=lambda m, name=name: f"{name}: {m}")


def oracle(groups):
    """Masked SDPA over one row of all groups."""

    def function(q, k, v):
        images = q.shape[0]
        if groups.ragged:
            q = q.transpose(0, 1).flatten(1, 2).unsqueeze(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=groups.mask(q.device))
        return out[0].unflatten(1, (images, groups.num_partial)).transpose(0, 1) if groups.ragged else out

    return function


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("backend", BACKENDS)
@quick
@given(
    groups=st.one_of(uniform_groups(), ragged_groups()),
    images=st.integers(1, 3),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([1, 4, 12]),
    seed=st.integers(0, 2**20),
)
def test_partial_backend_equals_the_dense_mask(backend, dtype, groups, images, heads, head_dim, seed):
    rows = 1 if groups.ragged else images
    images = groups.num_images if groups.ragged else images
    tensors = random_qkv(images, heads, groups.num_partial, rows, groups.patches_per_row, head_dim, seed)
    expected = run(oracle(groups), *tensors)
    found = run(lambda q, k, v: partial_attention(q, k, v, groups, backend), *tensors, dtype=dtype)
    assert_same(found, expected, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_partial_token_sees_only_its_group_in_every_backend(backend):
    """4 tokens on 4 x 4 patches: changing the patches of block 1 changes token 1 and nothing else."""
    groups = PatchGroups.uniform(4, 16, "block")
    q, k, v, _ = random_qkv(1, 2, 4, 1, 16, 4, 0)
    before = partial_attention(q, k, v, groups, backend)
    k, v = k.clone(), v.clone()
    for x in (k, v):
        x[:, :, [2, 3, 6, 7]] += 1
    differs = (partial_attention(q, k, v, groups, backend) != before).any(-1).any(1)[0]
    assert differs.tolist() == [False, True, False, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ragged_pictures_equal_the_same_pictures_alone(backend):
    sizes = [6, 9, 4]
    groups = PatchGroups.packed(3, torch.tensor([0, 6, 15, 19], dtype=torch.int32))
    q, k, v, _ = random_qkv(3, 2, 3, 1, 19, 4, 1)
    together = partial_attention(q, k, v, groups, backend)
    for i, (start, size) in enumerate(zip((0, 6, 15), sizes, strict=True)):
        part = slice(start, start + size)
        alone = partial_attention(q[i : i + 1], k[:, :, part], v[:, :, part], PatchGroups.uniform(3, size), "dense")
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-14)


def test_global_tokens_over_ragged_pictures_see_all_patches_of_their_own():
    groups = PatchGroups.packed(2, [0, 6, 15, 19])
    q, k, v, _ = random_qkv(3, 2, 5, 1, 19, 4, 2)
    found = global_attention(q, k, v, groups)
    for i, part in enumerate((slice(0, 6), slice(6, 15), slice(15, 19))):
        alone = global_attention(q[i : i + 1], k[:, :, part], v[:, :, part])
        torch.testing.assert_close(found[i : i + 1], alone, rtol=0, atol=1e-14)


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
def test_cascade_backend_equals_the_dense_mask(backend, dtype, cascade, num_partial, depth, images, seed, data):
    layer = data.draw(st.integers(1, depth))
    tensors = random_qkv(images, 2, num_partial, images, num_partial, 4, seed)
    mask = cascade_mask(num_partial, layer, depth, cascade)
    expected = run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), *tensors)
    found = run(lambda q, k, v: cascade_attention(q, k, v, layer, depth, cascade, backend), *tensors, dtype=dtype)
    assert_same(found, expected, dtype)


@pytest.mark.parametrize("layer", range(1, 7))
def test_shifted_window_of_the_papers_size_is_three_flash_calls(layer):
    tensors = random_qkv(1, 1, 288, 1, 288, 4, layer)
    mask = cascade_mask(288, layer, 6)
    expected = run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), *tensors)
    found = run(lambda q, k, v: cascade_attention(q, k, v, layer, 6, "shifted", "flash"), *tensors)
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
    config = ParGoProjectorConfig(partial_tokens=24, global_tokens=3, layers=2, width=16, heads=2, cascade="release")
    projector = seeing(build_projector(config, 12, 20, num_patches))
    with Allocations() as seen:
        projector(torch.randn(2, num_patches, 12)).sum().backward()
    assert not [shape for shape in seen.shapes if shape[-2:] in ((24, num_patches), (27, num_patches))]
    assert not [shape for shape in seen.bools if num_patches in shape]
    # Uneven groups padded to the longest would hold 24 x 3 = 72 patches.
    assert not [shape for shape in seen.shapes if 72 in shape or shape[1:3] == (24, 3)]


def test_default_road_over_ragged_pictures_allocates_no_mask_and_no_padded_batch():
    groups = PatchGroups.packed(4, [0, 8, 57, 66])
    q, k, v, dout = random_qkv(3, 2, 4, 1, 66, 4, 3)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    with Allocations() as seen:
        partial_attention(q, k, v, groups).backward(dout)
    assert not seen.bools
    largest = max(torch.Size(shape).numel() for shape in seen.shapes)
    assert largest == k.numel()  # nothing larger than the patches themselves


def test_uneven_groups_leave_flash_window_by_rule_and_say_so_once(caplog):
    attention.say_once.cache_clear()
    groups = PatchGroups.uniform(3, 8)
    q, k, v, _ = random_qkv(1, 1, 3, 1, 8, 4, 4)
    with caplog.at_level(logging.INFO, "pargo_ds"):
        for _ in range(2):
            partial_attention(q, k, v, groups, "flash_window")
    said = [r.message for r in caplog.records]
    assert said == [
        "attention: partial tokens by fused on cpu (flash_window needs groups of one length, these are uneven)"
    ]


def test_auto_reads_the_measured_table_and_gives_its_reason(monkeypatch, caplog):
    attention.say_once.cache_clear()
    groups, device = PatchGroups.uniform(4, 8), torch.device("cpu")
    monkeypatch.setitem(attention.PARTIAL, ("cpu", 48, 2), "dense")
    with caplog.at_level(logging.INFO, "pargo_ds"):
        assert attention.choose_partial("auto", "auto", groups, 48, device) == "dense"
        assert attention.choose_partial("auto", "auto", groups, 49, device) == "fused"
    said = [r.message for r in caplog.records]
    assert "dense on cpu (measured fastest: cpu, head_dim 48, 2 patches per group)" in said[0]
    assert "fused on cpu (default, not measured: cpu, head_dim 49, 2 patches per group)" in said[1]


def test_every_row_of_the_table_names_a_backend():
    assert set(attention.PARTIAL.values()) <= set(partial_backends.BACKENDS)
    assert set(attention.CASCADE.values()) <= {"flash", "dense"}


def test_varlen_limits_are_errors_with_the_numbers():
    with pytest.raises(ValueError, match=r"73728 here .* grid of FlashAttention holds 65535"):
        partial_backends.check_varlen_limits(256 * 288, heads=8, head_dim=64, training=False)
    with pytest.raises(ValueError, match=r"18432 sequences .* 16 heads of 64 needs .* 9.1 GiB .* more than 4 GiB"):
        partial_backends.check_varlen_limits(64 * 288, heads=16, head_dim=64, training=True)
    partial_backends.check_varlen_limits(64 * 288, heads=16, head_dim=64, training=False)


def test_too_many_groups_for_flash_varlen_stop_before_the_kernel():
    groups = PatchGroups.uniform(256, 256)
    q = k = torch.empty(256, 1, 256, 8, device="meta")
    with pytest.raises(ValueError, match="65536 here .* Take flash_window or fused"):
        partial_backends.BACKENDS["flash_varlen"](q, k, k, groups, "emulated")


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda q, g: partial_attention(q, q, q, g, "fast"), "auto, dense, fused, flash_window, flash_varlen"),
        (lambda q, g: cascade_attention(q, q, q, 1, 2, "shifted", "fused"), "choose one of auto, flash, dense"),
        (lambda q, g: cascade_attention(q, q, q, 1, 2, "wide", "flash"), "shifted, centered, each_side, none, release"),
        (lambda q, g: cascade_attention(q, q, q, 3, 2, "shifted", "flash"), "layers count from 1"),
        (lambda q, g: partial_attention(q[:, :, :3], q, q, g), "do not fit the groups: expected"),
        (lambda q, g: PatchGroups.uniform(3, 8, "block"), "8 patches and no grid, and they fill no square"),
        (lambda q, g: PatchGroups.uniform(3, 8, "block", (2, 3)), "8 patches but a grid of 2 x 3"),
        (lambda q, g: PatchGroups.uniform(3, 8, "rings"), "unknown grouping 'rings'"),
        (lambda q, g: PatchGroups.packed(5, [0, 6, 10]), "5 partial tokens but only 4 patches"),
        (lambda q, g: AttentionChoice(partial="varlen"), "attention.partial is 'varlen': choose one of"),
    ],
)
def test_wrong_words_and_shapes_are_errors(call, said):
    with pytest.raises(ValueError, match=said):
        call(torch.randn(1, 1, 4, 4), PatchGroups.uniform(4, 4))


@pytest.mark.parametrize("grouping", ["raster", "block"])
@pytest.mark.parametrize("partial", BACKENDS)
def test_projector_gives_the_same_tokens_and_gradients_on_every_backend(partial, grouping):
    torch.manual_seed(0)
    config = ParGoProjectorConfig(
        partial_tokens=8, global_tokens=2, layers=4, width=16, heads=2, grouping=grouping, cascade="shifted"
    )
    projector = seeing(build_projector(config, 12, 20, 16)).double()
    patches = torch.randn(2, 16, 12, dtype=torch.float64)
    results = []
    for choice in (AttentionChoice("dense", "dense"), AttentionChoice(partial, "flash")):
        projector.set_attention(choice)
        tokens = projector(patches)
        results.append([tokens, *torch.autograd.grad(tokens.square().sum(), list(projector.parameters()))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_projector_runs_on_the_meta_device():
    config = ParGoProjectorConfig(partial_tokens=7, global_tokens=2, layers=2, width=16, heads=2)
    with torch.device("meta"):
        projector = seeing(build_projector(config, 12, 20, 16))
    assert projector(torch.empty(1, 16, 12, device="meta")).shape == (1, 9, 20)
