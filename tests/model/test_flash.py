"""One rule for every FlashAttention: plain torch beside a loop, the real ones as stand-ins."""

import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pargo_ds.model import flash
from pargo_ds.model.flash import REFERENCE, flash_varlen, resolve_provider, source_on_gpu
from pargo_ds.model.varlen_reference import VarlenCall, varlen_reference

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def by_loop(q, k, v, ends_q, ends_k, left, right, scale):
    """Row by row and head by head, from the sentence in flash.py."""
    out = torch.zeros_like(q)
    repeat = q.shape[1] // k.shape[1]
    for n in range(len(ends_q) - 1):
        sq, sk = ends_q[n + 1] - ends_q[n], ends_k[n + 1] - ends_k[n]
        for i in range(sq):
            low = 0 if left < 0 else max(0, i + sk - sq - left)
            high = sk - 1 if right < 0 else min(sk - 1, i + sk - sq + right)
            if low > high:
                continue
            keys = slice(ends_k[n] + low, ends_k[n] + high + 1)
            for head in range(q.shape[1]):
                scores = (k[keys, head // repeat] @ q[ends_q[n] + i, head]) * scale
                out[ends_q[n] + i, head] = torch.softmax(scores, 0) @ v[keys, head // repeat]
    return out


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=4),
    window=st.tuples(st.sampled_from([-1, None, 0, 1, 3]), st.sampled_from([-1, None, 0, 2])),
    causal=st.booleans(),
    key_heads=st.sampled_from([1, 2, 4]),
)
def test_reference_follows_the_bottom_right_rule_and_its_gradient(
    sizes,
    window,
    causal,
    key_heads,
):
    torch.manual_seed(0)
    ends = [
        torch.tensor([0, *column]).cumsum(0).to(torch.int32) for column in zip(*sizes, strict=True)
    ]
    q = torch.randn(int(ends[0][-1]), 4, 3, dtype=torch.float64, requires_grad=True)
    k, v = (
        torch.randn(int(ends[1][-1]), key_heads, 3, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    )
    longest = [max(column) for column in zip(*sizes, strict=True)]
    rule = {"window": window, "causal": causal, "scale": 0.7}
    out = flash_varlen(q, k, v, *ends, *longest, source=REFERENCE, **rule)
    left, right = (-1 if side is None else side for side in window)
    expected = by_loop(q, k, v, *(e.tolist() for e in ends), left, 0 if causal else right, 0.7)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)  # measured 2e-15
    dout = torch.randn_like(out)
    gradients = [
        torch.autograd.grad((x * dout).sum(), (q, k, v), allow_unused=True)
        if x.requires_grad
        else (None,) * 3
        for x in (out, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        found = torch.zeros(()) if one is None else one
        wanted = torch.zeros_like(found) if other is None else other
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12, check_dtype=False)


class Recorder:
    """Stands for a FlashAttention function: keeps its arguments, computes in plain torch."""

    def __init__(self, unbounded, returns_tuple, names):
        self.unbounded, self.returns_tuple, self.names, self.seen = (
            unbounded,
            returns_tuple,
            names,
            {},
        )

    def __call__(self, q, k, v, *places, **options):
        self.seen = {**dict(zip(self.names, places, strict=False)), **options}
        window = tuple(-1 if side is self.unbounded else side for side in options["window_size"])
        starts = [self.seen[name] for name in self.names[:2]]
        scale = self.seen.get("softmax_scale", self.seen.get("scale"))
        out = varlen_reference(VarlenCall(q, k, v, *starts, 0, 0, *window, scale))
        return (out, None) if self.returns_tuple else out


FLASH_ATTN = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
PROVIDERS = {
    "flash_attn_2": (-1, False, FLASH_ATTN),
    "flash_attn_3": (-1, True, FLASH_ATTN),
    "flash_attn_4": (None, True, FLASH_ATTN),
    "torch": (-1, False, ("cu_seq_q", "cu_seq_k", "max_q", "max_k")),
}


@pytest.fixture(params=sorted(PROVIDERS))
def stand_in(request, monkeypatch):
    """(source, recorder)."""
    recorder = Recorder(*PROVIDERS[request.param])
    monkeypatch.setattr(flash, "installed", lambda: {request.param: recorder})
    return request.param, recorder


@pytest.mark.parametrize("window", [None, (2, 0), (-1, 0), (1, 2)])
def test_every_provider_gets_its_own_keywords_and_gives_one_tensor(stand_in, window):
    provider, recorder = stand_in
    torch.manual_seed(0)
    ends = torch.tensor([0, 5, 8], dtype=torch.int32)
    q, k, v = torch.randn(8, 4, 8), torch.randn(8, 2, 8), torch.randn(8, 2, 8)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    out = flash_varlen(q, k, v, ends, ends, 5, 5, window=window, source=provider)
    sides = window or (-1, -1)
    expected = varlen_reference(VarlenCall(q, k, v, ends, ends, 5, 5, *sides, 8**-0.5))
    assert torch.equal(out, expected)
    unbounded = recorder.unbounded
    assert recorder.seen["window_size"] == tuple(unbounded if side < 0 else side for side in sides)
    assert [recorder.seen[name] for name in recorder.names[2:]] == [5, 5]
    if provider != "torch":
        assert recorder.seen["causal"] == (window is not None and window[1] == 0)


def test_causal_is_a_right_bound_of_zero(stand_in):
    provider, recorder = stand_in
    ends = torch.tensor([0, 3], dtype=torch.int32)
    x = torch.randn(3, 2, 8).half()
    flash_varlen(x, x, x, ends, ends, 3, 3, causal=True, source=provider)
    assert recorder.seen["window_size"] == (recorder.unbounded, 0)


def test_grouped_queries_need_a_keyword_from_torch_2_12_and_repeated_keys_before(monkeypatch):
    ends = torch.tensor([0, 3], dtype=torch.int32)
    q, k = torch.randn(3, 4, 8).half(), torch.randn(3, 2, 8).half()
    seen = []

    def torch_2_11(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)
    ):
        seen.append(key.shape[1])
        return query

    def torch_2_12(
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        *,
        scale=None,
        window_size=(-1, -1),
        enable_gqa=False,
    ):
        seen.append((key.shape[1], enable_gqa))
        return query

    for function in (torch_2_11, torch_2_12):
        monkeypatch.setattr(flash, "installed", lambda function=function: {"torch": function})
        flash_varlen(q, k, k, ends, ends, 3, 3, source="torch")
    assert seen == [4, (2, True)]


def test_installed_torch_has_the_signature_that_is_called():
    varlen = flash._torch_varlen()
    if varlen is None:
        pytest.skip("this torch has no varlen_attn with windows (2.11 has)")
    ends, x = (
        torch.tensor([0, 3], dtype=torch.int32, device="meta"),
        torch.empty(3, 2, 8, device="meta").half(),
    )
    out = flash_varlen(x, x[:, :1], x[:, :1], ends, ends, 3, 3, source="torch", window=(1, 0))
    assert out.shape == x.shape


@pytest.mark.parametrize("version, found", [("2.8.3", True), ("1.0.9", False)])
def test_flash_attn_of_another_major_version_is_not_number_2(monkeypatch, version, found):
    module = ModuleType("flash_attn")
    module.__version__, module.flash_attn_varlen_func = version, lambda: None
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    assert (flash._flash_attn_2() is not None) == found


@pytest.mark.parametrize(
    "present, major, chosen",
    [
        ({"torch", "flash_attn_2", "flash_attn_3"}, 9, "flash_attn_3"),
        ({"torch", "flash_attn_2", "flash_attn_3"}, 8, "flash_attn_2"),
        ({"torch", "flash_attn_2"}, 9, "flash_attn_2"),
        ({"torch", "flash_attn_4"}, 10, "torch"),
    ],
)
def test_auto_takes_the_first_provider_of_the_rules_on_a_gpu(monkeypatch, present, major, chosen):
    monkeypatch.setattr(flash, "installed", lambda: dict.fromkeys(present, print))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert resolve_provider("auto", GPU)[0] == chosen


def test_auto_is_plain_torch_where_no_flash_attention_runs():
    why = "plain torch, because no FlashAttention runs on cpu"
    assert resolve_provider("auto", CPU) == (REFERENCE, why)


def test_a_caller_with_another_way_learns_what_a_gpu_can_compute(monkeypatch):
    monkeypatch.setattr(flash, "installed", lambda: {"flash_attn_2": print})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert source_on_gpu("auto", GPU, torch.bfloat16, 64) == "flash_attn_2"
    assert source_on_gpu("torch", GPU, torch.bfloat16, 64) is None  # not installed
    assert source_on_gpu("auto", GPU, torch.float32, 64) is None
    assert source_on_gpu("auto", GPU, torch.bfloat16, 20) is None
    assert source_on_gpu("auto", CPU, torch.bfloat16, 64) is None


def test_missing_provider_names_what_is_there_and_how_to_get_it(monkeypatch):
    monkeypatch.setattr(flash, "installed", lambda: {"torch": print})
    for device in (CPU, GPU):
        with pytest.raises(
            ValueError,
            match=r"flash_attn_2 is not installed \(installed: torch\).*pip install flash-attn",
        ):
            resolve_provider("flash_attn_2", device)
    with pytest.raises(ValueError, match="torch runs on CUDA only, the tensors are on cpu; set"):
        resolve_provider("torch", CPU)
    with pytest.raises(
        ValueError, match="unknown attention provider 'flash': choose one of auto, torch"
    ):
        resolve_provider("flash", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.raises(
        ValueError, match=r"no FlashAttention for compute capability 7.x \(installed: torch\)"
    ):
        resolve_provider("auto", GPU)


def test_float32_and_odd_heads_are_refused_with_a_way_out(stand_in):
    provider, _ = stand_in
    ends, x = torch.tensor([0, 3], dtype=torch.int32), torch.randn(3, 2, 8)
    with pytest.raises(
        ValueError,
        match="found float32 and head_dim 8. Set train.precision: bf16, or attention.partial",
    ):
        flash_varlen(x, x, x, ends, ends, 3, 3, source=provider)
    with pytest.raises(ValueError, match="3 query heads are not a multiple of 2 key heads"):
        flash_varlen(torch.randn(3, 3, 8), x, x, ends, ends, 3, 3, source=provider)
