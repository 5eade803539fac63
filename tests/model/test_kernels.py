"""The Triton kernel: its numbers through the interpreter on a CPU, and that it compiles for the
GPUs of a cluster.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pargo_ds.model import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason="triton is not installed")
ROOT = Path(__file__).parents[2]

# Largest difference from the float64 oracle, outputs and gradients of standard normal inputs, of
# one case. Measured: float32 4e-7, float16 1e-3, bfloat16 2e-2 (their rounding of results up to 4).
INTERPRETED = """
import torch
import torch.nn.functional as F
from pargo_ds.model.groups import PatchGroups
from pargo_ds.model.kernels import fused_partial

TOLERANCE = {torch.float32: 3e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}
CASES = [
    # groups, rows, heads, head_dim
    (PatchGroups(6, 12), 2, 2, 8),
    (PatchGroups(5, 5), 1, 1, 3),
    (PatchGroups(1, 7), 2, 1, 16),
    (PatchGroups(7, 25), 1, 2, 12),
    (PatchGroups(7, 25, "block"), 1, 2, 12),
    (PatchGroups(40, 83), 1, 1, 80),
    (PatchGroups(5, 12, "block", (3, 4)), 1, 3, 24),
]
torch.manual_seed(0)
worst = dict.fromkeys(TOLERANCE, 0.0)
for groups, rows, heads, head_dim in CASES:
    for dtype in TOLERANCE:
        def draw(tokens):
            return torch.randn(rows, tokens, heads, head_dim, dtype=dtype).transpose(1, 2).requires_grad_()
        q = draw(groups.num_partial + 2)[:, :, :-2]  # a slice, as beside global tokens
        k, v = draw(groups.num_patches), draw(groups.num_patches)
        dout = draw(groups.num_partial).detach()
        order = groups.order(q.device)
        results = []
        for _ in range(2):
            out = fused_partial(q, k, v, groups.bounds(q.device), order, groups.longest)
            results.append([out, *torch.autograd.grad(out, (q, k, v), dout)])
        assert all(torch.equal(a, b) for a, b in zip(*results)), "two runs differ"
        exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
        out = F.scaled_dot_product_attention(*exact, attn_mask=groups.mask(q.device))
        expected = [out, *torch.autograd.grad(out, exact, dout.double())]
        for found, wanted in zip(results[0], expected):
            assert found.dtype == dtype and found.shape == wanted.shape
            worst[dtype] = max(worst[dtype], (found.double() - wanted).abs().max().item())
print({str(k): f"{v:.1e}" for k, v in worst.items()})
assert all(worst[dtype] <= TOLERANCE[dtype] for dtype in worst), worst
"""

# Compiles both kernels as for a GPU of each generation; needs no GPU.
COMPILED = """
import re

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pargo_ds.model import kernels

for capability in (80, 90, 100):
    for kernel in (kernels._forward, kernels._backward):
        for has_order in (False, True):
            for element in ("*bf16", "*fp32"):
                constants = {"HAS_ORDER": has_order, "BLOCK": 32, "DIM": 64} | ({} if has_order else {"order": None})
                types = {"bounds": "*i32", "order": "*i64", "scale": "fp32"}
                types |= dict.fromkeys(("q", "k", "v", "out", "dout", "dq", "dk", "dv"), element)
                signature = {name: types.get(name, "i32") for name in kernel.arg_names}
                signature |= dict.fromkeys(constants, "constexpr")
                source = ASTSource(kernel, signature, constants)
                ptx = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]
                assert not re.search(r"\\b(atom|red)\\.", ptx)
"""


def run(script: str, tmp_path: Path, **environment: str) -> str:
    # The interpreter is chosen when triton is imported, hence a process of its own.
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    settings = os.environ | {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "TRITON_CACHE_DIR": str(tmp_path),
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=settings
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def test_fused_kernel_equals_the_dense_mask_in_the_interpreter(tmp_path):
    print(run(INTERPRETED, tmp_path, TRITON_INTERPRET="1"))


@pytest.mark.slow
def test_fused_kernel_compiles_for_three_gpu_generations_without_atomics(tmp_path):
    run(COMPILED, tmp_path)


def test_fused_kernel_refuses_float64():
    import torch

    q = torch.randn(1, 1, 2, 4, dtype=torch.float64)
    with pytest.raises(
        ValueError, match="takes float32, float16 and bfloat16, found torch.float64"
    ):
        kernels.fused_partial(q, q, q, torch.tensor([0, 1, 2]), None, 1)
