"""Every backend and provider on CUDA against the dense mask in float64; limits and determinism."""

import pytest
import torch
import torch.nn.functional as F

from pargo_ds.model import kernels
from pargo_ds.model.attention import cascade_attention, partial_attention
from pargo_ds.model.flash import PROVIDERS, REFERENCE, flash_varlen
from pargo_ds.model.groups import PatchGroups
from pargo_ds.model.masks import CASCADES, cascade_mask

pytestmark = pytest.mark.gpu

REAL = [provider for provider in PROVIDERS if provider != "auto"]
FLASH_ROADS = [(b, p) for b in ("flash_window", "flash_varlen") for p in REAL]
PARTIAL_ROADS = [("dense", ""), ("fused", ""), *FLASH_ROADS]
CASCADE_ROADS = [("dense", ""), *(("flash", provider) for provider in REAL)]
# Largest difference from the float64 oracle on the same rounded inputs, standard normal. bfloat16
# rounds results of up to 4 by up to 8e-3, and FlashAttention its weights too. Bounds not yet
# measured on CUDA: each test prints its worst.
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 6e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "bfloat16"])
HEADS, HEAD_DIM = 2, 64

GROUPS = {
    "288/576": PatchGroups(288, 576),
    "144/576 block": PatchGroups(144, 576, "block"),
    "5/5": PatchGroups(5, 5),
    "1/7": PatchGroups(1, 7),
    "7/25 uneven": PatchGroups(7, 25),
    "7/25 uneven block": PatchGroups(7, 25, "block"),
}


def draw(device, dtype, rows, tokens, heads=HEADS, head_dim=HEAD_DIM, seed=0):
    """Laid out as the projector does: (rows, heads, tokens, head_dim), strided."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, tokens, heads, head_dim, generator=generator)
    return x.to(device, dtype).transpose(1, 2)


def results(function, q, k, v, dout):
    """[output, dq, dk, dv] of leaves with the values, dtype and device of q, k, v."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def exact(function, *tensors):
    """The same in float64 on the CPU."""
    return results(function, *(x.detach().cpu().double() for x in tensors))


def worst_difference(found, expected):
    differences = {}
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        assert one.shape == other.shape
        assert torch.isfinite(one).all(), f"{name} is not finite"
        differences[name] = (one.cpu().double() - other).abs().max().item()
    return differences


def assert_near(found, expected, dtype, what):
    differences = worst_difference(found, expected)
    print(
        f"{what}, {dtype}: "
        + ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    )
    assert max(differences.values()) <= TOLERANCE[dtype], differences


def skip_unless_taken(provider, dtype):
    if provider in REAL and dtype == torch.float32:
        pytest.skip("FlashAttention takes half precision only")


@DTYPES
@pytest.mark.parametrize("backend, provider", PARTIAL_ROADS)
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
def test_partial_backend_equals_the_float64_oracle(
    groups, backend, provider, dtype, device, need_provider
):
    need_provider(provider)
    skip_unless_taken(provider, dtype)
    if backend == "fused":
        assert kernels.available(), "triton is missing: the kernel would not be tested"
    q = draw(device, dtype, 3, groups.num_partial, seed=1)
    k, v = (draw(device, dtype, 3, groups.num_patches, seed=seed) for seed in (2, 3))
    dout = draw(device, dtype, 3, groups.num_partial, seed=4)
    expected = exact(lambda *x: partial_attention(*x, groups, "dense"), q, k, v, dout)
    found = results(
        lambda *x: partial_attention(*x, groups, backend, provider or "auto"), q, k, v, dout
    )
    assert_near(found, expected, dtype, f"{backend} {provider}")


@DTYPES
def test_fused_takes_a_slice_beside_global_tokens(dtype, device):
    """The projector hands over q[:, :, :n] of a longer row, so strides differ from shapes."""
    groups = GROUPS["288/576"]
    q = draw(device, dtype, 2, 304, seed=1)[:, :, :288]
    k, v = (draw(device, dtype, 2, 576, seed=seed) for seed in (2, 3))
    dout = draw(device, dtype, 2, 288, seed=4)
    expected = exact(lambda *x: partial_attention(*x, groups, "dense"), q, k, v, dout)
    assert_near(
        results(lambda *x: partial_attention(*x, groups, "fused"), q, k, v, dout),
        expected,
        dtype,
        "slice",
    )


def test_fused_runs_on_the_gpu_of_its_tensors_and_not_on_the_current_one():
    """As each rank of tools/evaluate.py, and serve.py --device cuda:1."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU: there is no other one than the current one")
    groups = GROUPS["288/576"]
    q = draw("cpu", torch.float32, 2, 288, seed=1)
    k, v = (draw("cpu", torch.float32, 2, 576, seed=seed) for seed in (2, 3))
    dout = draw("cpu", torch.float32, 2, 288, seed=4)
    expected = exact(lambda *x: partial_attention(*x, groups, "dense"), q, k, v, dout)
    on_second = [x.to("cuda:1") for x in (q, k, v, dout)]
    with torch.cuda.device(0):
        found = results(lambda *x: partial_attention(*x, groups, "fused"), *on_second)
    assert_near(found, expected, torch.float32, "fused on the second GPU")


@DTYPES
@pytest.mark.parametrize("layer", [1, 3, 6])
@pytest.mark.parametrize("cascade", CASCADES)
@pytest.mark.parametrize("backend, provider", CASCADE_ROADS)
def test_cascade_backend_equals_the_float64_oracle(
    backend, provider, cascade, layer, dtype, device, need_provider
):
    need_provider(provider)
    skip_unless_taken(provider, dtype)
    q, k, v, dout = (draw(device, dtype, 2, 288, seed=seed) for seed in range(4))
    mask = cascade_mask(288, layer, 6, cascade)
    expected = exact(lambda *x: F.scaled_dot_product_attention(*x, attn_mask=mask), q, k, v, dout)
    found = results(
        lambda *x: cascade_attention(*x, layer, 6, cascade, backend, provider or "auto"), q, k, v, dout
    )  # fmt: skip
    assert_near(found, expected, dtype, f"{cascade} {backend} {provider}")


@pytest.mark.parametrize(
    "lengths_q, lengths_k", [([7, 1, 130], [7, 5, 200]), ([1, 1, 1], [2, 9, 4])]
)
@pytest.mark.parametrize(
    "window, causal", [(None, False), (None, True), ((3, 0), False), ((2, 5), False)]
)
@pytest.mark.parametrize("key_heads", [8, 2])
@pytest.mark.parametrize("provider", REAL)
def test_provider_follows_the_bottom_right_rule_with_grouped_queries(
    provider, key_heads, window, causal, lengths_q, lengths_k, device, need_provider
):
    need_provider(provider)
    dtype = torch.bfloat16

    def packed(lengths, heads, seed):
        return draw(device, dtype, 1, sum(lengths), heads, seed=seed)[0].transpose(0, 1)

    q, dout = packed(lengths_q, 8, 1), packed(lengths_q, 8, 4)
    k, v = packed(lengths_k, key_heads, 2), packed(lengths_k, key_heads, 3)
    ends = [
        F.pad(torch.tensor(n, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))
        for n in (lengths_q, lengths_k)
    ]

    def attend(source):
        def function(*x):
            cu_q, cu_k = (end.to(x[0].device) for end in ends)
            lengths = (cu_q, cu_k, max(lengths_q), max(lengths_k))
            return flash_varlen(*x, *lengths, source=source, window=window, causal=causal)

        return function

    expected = exact(attend(REFERENCE), q, k, v, dout)
    assert_near(
        results(attend(provider), q, k, v, dout),
        expected,
        dtype,
        f"{provider} {window} causal={causal}",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_two_runs_of_fused_are_bit_equal(dtype, device):
    groups = PatchGroups(144, 576, "block")
    q, dout = (draw(device, dtype, 8, 144, 8, seed=seed) for seed in (1, 4))
    k, v = (draw(device, dtype, 8, 576, 8, seed=seed) for seed in (2, 3))
    runs = [
        results(lambda *x: partial_attention(*x, groups, "fused"), q, k, v, dout) for _ in range(2)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    print(f"fused, {dtype}: output and three gradients bit-equal")


@pytest.mark.parametrize("provider", REAL)
def test_flash_varlen_works_up_to_the_limit_of_the_grid(provider, device, need_provider):
    """255 images of 257 partial tokens are 65,535 sequences, the most that are let through."""
    need_provider(provider)
    groups = PatchGroups(257, 514)
    q, dout = (draw(device, torch.bfloat16, 255, 257, 1, 32, seed=seed) for seed in (1, 4))
    k, v = (draw(device, torch.bfloat16, 255, 514, 1, 32, seed=seed) for seed in (2, 3))
    found = results(
        lambda *x: partial_attention(*x, groups, "flash_varlen", provider), q, k, v, dout
    )
    expected = exact(lambda *x: partial_attention(*x, groups, "fused"), q, k, v, dout)
    assert_near(found, expected, torch.bfloat16, f"65,535 sequences by {provider}")


def test_one_sequence_too_many_stops_before_the_kernel(device):
    groups = PatchGroups(256, 256)
    q = torch.empty(256, 1, 256, 8, device=device, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="65536 here .* Take flash_window or fused"):
        partial_attention(q, q, q, groups, "flash_varlen")
