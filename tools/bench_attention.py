#!/usr/bin/env python3
"""Time every attention backend of the projector in one run: forward, forward + backward, memory, ratio to the floor.

Backends take turns; a figure is the median over the turns, in process CPU time on a CPU and by CUDA events on a GPU.
The floor is the time that the bytes of q, k, v, the output and their gradients need at the copy bandwidth measured in
the same run. What cannot run here is listed with the reason. --quick compares the default backend of the partial tokens
with the dense mask, alone and within a whole step of the full-size projector.

On a CPU freed memory is kept in the process, as a long run of one shape keeps it; --default-allocator leaves glibc as
it is, and then page faults are charged to whichever call comes after a release.

examples:
  python tools/bench_attention.py --quick
  python tools/bench_attention.py --json attention.json --png attention.png
  python tools/bench_attention.py --images 8 --sizes 288/576 --dtype fp32
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from pargo_ds.files.figures_json import figures_json

SIZES = ("288/576", "144/576", "288/2304")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--quick",
        action="store_true",
        help="B=8, h=8, n=288/576, d=64 on a CPU, and a whole projector; half a minute",
    )
    add("--device", help="cpu or cuda (default: cuda if there is one)")
    add("--dtype", choices=("fp32", "bf16", "fp16"), help="default: bf16 on cuda, fp32 on cpu")
    add_shapes(add)
    add("--repetitions", type=int, default=21, metavar="N", help="turns at most (default 21)")
    add(
        "--seconds",
        type=float,
        default=20.0,
        metavar="S",
        help="per shape and direction, but >= 3 turns (default 20)",
    )
    add("--threads", type=int, default=1, metavar="N", help="of torch on a CPU (default 1)")
    add("--default-allocator", action="store_true", help="do not keep freed memory in the process")
    add(
        "--width",
        type=int,
        default=1024,
        metavar="W",
        help="--quick: width of the projector (default 1024)",
    )
    add(
        "--projector-images",
        type=int,
        default=1,
        metavar="B",
        help="--quick: images through the projector (default 1)",
    )
    add("--json", type=Path, metavar="FILE", help="write the figures")
    add("--png", type=Path, metavar="FILE", help="draw the figures (matplotlib)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.device, options.dtype = "cpu", "fp32"
        options.images, options.heads, options.head_dims = [8], [8], [64]
        options.sizes = ["288/576"]
    return options


def add_shapes(add: Callable[..., Any]) -> None:
    """Add the options that choose the shapes."""
    add(
        "--images",
        type=int,
        nargs="+",
        default=[1, 8, 64],
        metavar="B",
        help="images (default 1 8 64)",
    )
    add("--heads", type=int, nargs="+", default=[8, 16], metavar="H", help="default 8 16")
    add("--head-dims", type=int, nargs="+", default=[64], metavar="D", help="default 64")
    add(
        "--sizes",
        nargs="+",
        default=SIZES,
        metavar="P/N",
        help=f"partial / patches (default {' '.join(SIZES)})",
    )


def cases_of(options: argparse.Namespace) -> list[Any]:
    """Return partial cases in every size, then a cascade for each number of partial tokens.

    Raises ValueError for bad sizes.
    """
    from pargo_ds.speed.attention_cases import Case

    sizes = [size_of(text) for text in options.sizes]
    shapes = list(product(options.images, options.heads, options.head_dims))
    cases = []
    for (partial, patches), (images, heads, dim) in product(sizes, shapes):
        cases.append(Case("partial", images, heads, partial, patches, dim))
    if not options.quick:
        numbers = dict.fromkeys(partial for partial, _ in sizes)
        for partial, (images, heads, dim) in product(numbers, shapes):
            cases.append(Case("cascade", images, heads, partial, 0, dim))
    return cases


def size_of(text: str) -> tuple[int, int]:
    """Return (partial tokens, patches) of a word such as 288/576."""
    partial, slash, patches = text.partition("/")
    if not (partial.isdigit() and slash and patches.isdigit()):
        raise ValueError(f"--sizes {text}: expected partial tokens / patches, such as 288/576")
    return int(partial), int(patches)


def measure(
    case: Any,
    combinations: list[tuple[str, str]],
    options: argparse.Namespace,
    tensors: list[Any],
) -> tuple[list[dict], list[dict]]:
    """Measure one shape. Return (rows, skipped); the rows lack figures that need the bandwidth."""
    from pargo_ds.speed import timing
    from pargo_ds.speed.attention_cases import unsupported_reason

    device = tensors[0].device
    forward, both, peaks, skipped = {}, {}, {}, []
    for one in combinations:
        reason = unsupported_reason(case, *one, tensors)
        if reason is None:
            calls = case.calls(one[0], one[1] or "auto", tensors)
            try:
                calls[1]()  # the first call compiles, and raises if the device refuses it
                peaks[one] = timing.peak_mib(calls[1], device)
                forward[one], both[one] = calls
            except (RuntimeError, NotImplementedError, ValueError) as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if reason is not None:
            names = {"backend": one[0], "provider": one[1]}
            skipped.append({**names, "shape": case.shape, "reason": reason})
    limits = {"repetitions": options.repetitions, "seconds": options.seconds}
    forward_ms = timing.interleaved_medians(forward, device, **limits)
    both_ms = timing.interleaved_medians(both, device, **limits)
    dense = both_ms.get(("dense", ""))
    rows = []
    for (backend, provider), ms in both_ms.items():
        rows.append(
            {
                "backend": backend,
                "provider": provider,
                "shape": case.shape,
                "forward_ms": forward_ms[backend, provider],
                "forward_backward_ms": ms,
                "speedup_over_dense": dense / ms if dense else None,
                "peak_mib": peaks[backend, provider],
            }
        )
    return rows, skipped


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all figures.

    Raises ValueError for a device that does not exist and for sizes that do not fit.
    """
    import torch

    from pargo_ds.model.attention import choose_partial
    from pargo_ds.speed import timing
    from pargo_ds.speed.attention_cases import combinations, floor_bytes
    from pargo_ds.speed.projector_share import projector_share

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU; see docs/gpu.md")
    name = options.dtype or ("bf16" if device.type == "cuda" else "fp32")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    torch.set_num_threads(options.threads)
    if device.type == "cpu" and not options.default_allocator:
        timing.keep_freed_memory()
    bandwidth = timing.copy_bandwidth(device)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": name,
        "threads": options.threads,
        "torch": torch.__version__,
        "copy_gb_per_s": bandwidth / 1e9,
        "default_allocator": options.default_allocator,
        "rows": [],
        "skipped": [],
    }
    for case in cases_of(options):
        wanted = combinations(case.kind, device)
        if options.quick:
            chosen = choose_partial("auto", "auto", case.groups.even, device).backend
            wanted = [one for one in wanted if one[0] in ("dense", chosen)]
            result["default_backend"] = chosen
        tensors = case.tensors(device, dtype)
        rows, skipped = measure(case, wanted, options, tensors)
        floor_ms = floor_bytes(tensors) / bandwidth * 1e3
        for row in rows:
            row |= {"floor_ms": floor_ms, "times_floor": row["forward_backward_ms"] / floor_ms}
        result["rows"] += rows
        result["skipped"] += skipped
        print_rows(rows, skipped)
    if options.quick:
        backends = ("dense", result["default_backend"])
        result["projector"] = projector_share(
            backends, options.width, options.projector_images, device
        )
    return result


def print_rows(rows: list[dict], skipped: list[dict]) -> None:
    """Print the part of the table for one shape."""
    shape = (rows or skipped)[0]["shape"]
    print(f"\n{shape}")
    print(
        f"  {'backend':30} {'fwd ms':>10} {'fwd+bwd ms':>11} {'x dense':>8} {'x floor':>8} {'peak MiB':>9}"
    )
    for row in rows:
        label, speedup = row["backend"], "-"
        if row["provider"]:
            label += f" ({row['provider']})"
        if row["speedup_over_dense"]:
            speedup = f"{row['speedup_over_dense']:.2f}"
        print(
            f"  {label:30} {row['forward_ms']:10.3f} {row['forward_backward_ms']:11.3f} {speedup:>8} "
            f"{row['times_floor']:8.2f} {row['peak_mib']:9.1f}"
        )
    for row in skipped:
        print(
            f"  {row['backend'] + ' (' + row['provider'] + ')':30} skipped: {row['reason']}",
            flush=True,
        )


def print_quick(result: dict[str, Any]) -> None:
    """Print the result of --quick: the speedup, and the share of attention in a projector step."""
    default = next(row for row in result["rows"] if row["backend"] == result["default_backend"])
    print(
        f"\ndefault backend of the partial tokens: {default['backend']}, {default['speedup_over_dense']:.1f} x faster "
        "than the dense mask, forward + backward (target: at least 5)"
    )
    projector = result["projector"]
    print(f"one projector step, forward + backward: {projector['shape']}")
    for row in projector["rows"]:
        print(
            f"  partial tokens by {row['backend']:8} projector {row['projector_ms']:8.1f} ms, of it attention "
            f"{row['attention_ms']:7.1f} ms = {row['attention_share']:.1%} "
            f"(partial tokens {row['partial_ms']:.1f} ms = {row['partial_share']:.1%})"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 0, or 2 after one line that says what is wrong."""
    options = parse_arguments(arguments)
    try:
        result = run(options)
        machine = result["device"]
        if machine == "cpu":
            machine += f", {result['threads']} thread(s)"
        print(f"\n{machine}, torch {result['torch']}, {result['dtype']}", end=", ")
        print(f"copy {result['copy_gb_per_s']:.1f} GB/s")
        if options.quick:
            print_quick(result)
        if options.json:
            options.json.write_text(figures_json(result), encoding="utf-8")
        if options.png:
            from pargo_ds.evaluation.figures import backend_figure, to_png

            options.png.write_bytes(to_png(backend_figure(result["rows"])))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError):
            hint = "; matplotlib comes with pip install -e .[demo]"
        print(f"bench_attention.py: error: {error}{hint}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
