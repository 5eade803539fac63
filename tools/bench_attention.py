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
  python tools/bench_attention.py --images 8 --sizes 288/576 ragged --dtype fp32 --emulated
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

SIZES = ("288/576", "144/576", "288/2304", "288/ragged")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="B=8, h=8, n=288/576, d=64 on a CPU, and a whole projector; half a minute")
    add("--device", help="cpu or cuda (default: cuda if there is one)")
    add("--dtype", choices=("fp32", "bf16", "fp16"), help="default: bf16 on cuda, fp32 on cpu")
    add("--images", type=int, nargs="+", default=[1, 8, 64], metavar="B", help="pictures (default 1 8 64)")
    add("--heads", type=int, nargs="+", default=[8, 16], metavar="H", help="default 8 16")
    add("--head-dims", type=int, nargs="+", default=[64], metavar="D", help="default 64")
    add("--sizes", nargs="+", default=SIZES, metavar="P/N", help=f"partial / patches (default {' '.join(SIZES)})")
    add("--repetitions", type=int, default=21, metavar="N", help="turns at most (default 21)")
    add("--seconds", type=float, default=20.0, metavar="S", help="per shape and direction, but >= 3 turns (default 20)")
    add("--threads", type=int, default=1, metavar="N", help="of torch on a CPU (default 1)")
    add("--emulated", action="store_true", help="time the emulated FlashAttention too; it is made for tests, not speed")
    add("--default-allocator", action="store_true", help="do not keep freed memory in the process")
    add("--width", type=int, default=1024, metavar="W", help="--quick: width of the projector (default 1024)")
    add("--pictures", type=int, default=1, metavar="B", help="--quick: pictures through the projector (default 1)")
    add("--json", type=Path, metavar="FILE", help="write the figures")
    add("--png", type=Path, metavar="FILE", help="draw the figures (matplotlib)")
    add("--write-table", action="store_true", help="put the fastest backends into pargo_ds/model/attention_table.py")
    options = parser.parse_args(arguments)
    if options.quick:
        options.device, options.dtype = "cpu", "fp32"
        options.images, options.heads, options.head_dims, options.sizes = [8], [8], [64], ["288/576"]
    return options


def cases_of(options: argparse.Namespace) -> list[Any]:
    """Partial cases in every size, then a cascade for each number of partial tokens. ValueError for bad sizes."""
    from pargo_ds.training.attention_cases import Case

    cases: dict[Any, None] = {}
    for size in options.sizes:
        partial, slash, patches = size.partition("/")
        if not (partial.isdigit() and slash and (patches.isdigit() or patches == "ragged")):
            raise ValueError(f"--sizes {size}: expected partial tokens / patches, such as 288/576 or 288/ragged")
        count = None if patches == "ragged" else int(patches)
        for images in options.images:
            for heads in options.heads:
                for dim in options.head_dims:
                    cases[Case("partial", images, heads, int(partial), count, dim)] = None
                    if not options.quick:
                        cases[Case("cascade", images, heads, int(partial), None, dim)] = None
    return sorted(cases, key=lambda case: case.kind != "partial")


def measure(case: Any, roads: list[tuple[str, str]], options: argparse.Namespace, device: Any, dtype: Any) -> tuple:
    """(rows, skipped) of one shape; the rows lack what needs the bandwidth."""
    from pargo_ds.training import timing
    from pargo_ds.training.attention_cases import why_not

    tensors = case.tensors(device, dtype)
    forward, both, peaks, skipped = {}, {}, {}, []
    for road in roads:
        reason = why_not(case, *road, tensors, options.emulated)
        if reason is None and road[0] == "flash_window" and not case.groups.even:
            reason = "groups are uneven: the rule takes fused"
        if reason is None:
            calls = case.calls(road[0], road[1] or "auto", tensors)
            try:
                calls[1]()  # the first call compiles, and shows what the device refuses
                peaks[road] = timing.peak_mib(calls[1], device)
                forward[road], both[road] = calls
            except (RuntimeError, NotImplementedError, ValueError) as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if reason is not None:
            skipped.append({"backend": road[0], "provider": road[1], "shape": case.shape, "reason": reason})
    limits = {"repetitions": options.repetitions, "seconds": options.seconds}
    forward_ms = timing.interleaved_medians(forward, device, **limits)
    both_ms = timing.interleaved_medians(both, device, **limits)
    dense = both_ms.get(("dense", ""))
    rows = [
        {
            "backend": road[0],
            "provider": road[1],
            "shape": case.shape,
            "forward_ms": forward_ms[road],
            "forward_backward_ms": both_ms[road],
            "speedup_over_dense": dense / both_ms[road] if dense else None,
            "peak_mib": peaks[road],
        }
        for road in both_ms
    ]
    return rows, skipped


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All figures. Raises ValueError for a device that is not there and for sizes that do not fit."""
    import torch

    from pargo_ds.model.attention import choose_partial, device_kind
    from pargo_ds.training import timing
    from pargo_ds.training.attention_cases import roads
    from pargo_ds.training.attention_table_writer import fastest, write_table
    from pargo_ds.training.projector_share import projector_share

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
        "device": device_kind(device), "dtype": name, "threads": options.threads, "torch": torch.__version__,
        "copy_gb_per_s": bandwidth / 1e9, "default_allocator": options.default_allocator, "rows": [], "skipped": [],
    }  # fmt: skip
    measured = []
    for case in cases_of(options):
        wanted = roads(case.kind, device, options.emulated)
        if options.quick:
            chosen = choose_partial("auto", "auto", case.groups, case.head_dim, device)
            wanted = [road for road in wanted if road[0] in ("dense", chosen)]
            result["default_backend"] = chosen
        rows, skipped = measure(case, wanted, options, device, dtype)
        floor = [size / bandwidth * 1e3 for size in case.floor_bytes(dtype)]
        for row in rows:
            row |= {"floor_ms": floor[1], "times_floor": row["forward_backward_ms"] / floor[1]}
            measured.append((case, row))
        result["rows"] += rows
        result["skipped"] += skipped
        print_rows(rows, skipped)
    if options.quick:
        backends = ("dense", result["default_backend"])
        result["projector"] = projector_share(backends, options.width, options.pictures, device)
    if options.write_table:
        write_table(*fastest(measured, device))
    return result


def print_rows(rows: list[dict], skipped: list[dict]) -> None:
    """One shape's part of the table."""
    shape = (rows or skipped)[0]["shape"]
    print(f"\n{shape}")
    print(f"  {'backend':30} {'fwd ms':>10} {'fwd+bwd ms':>11} {'x dense':>8} {'x floor':>8} {'peak MiB':>9}")
    for row in rows:
        label = row["backend"] + (f" ({row['provider']})" if row["provider"] else "")
        speedup = f"{row['speedup_over_dense']:.2f}" if row["speedup_over_dense"] else "-"
        print(
            f"  {label:30} {row['forward_ms']:10.3f} {row['forward_backward_ms']:11.3f} {speedup:>8} "
            f"{row['times_floor']:8.2f} {row['peak_mib']:9.1f}"
        )
    for row in skipped:
        print(f"  {row['backend'] + ' (' + row['provider'] + ')':30} skipped: {row['reason']}", flush=True)


def print_quick(result: dict[str, Any]) -> None:
    """The answer of --quick: the speedup, and what attention costs within a whole projector step."""
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
    """Command line; 0, or 2 with one clear line."""
    options = parse_arguments(arguments)
    try:
        result = run(options)
        threads = f", {result['threads']} thread(s)" if result["device"] == "cpu" else ""
        print(f"\n{result['device']}{threads}, torch {result['torch']}, {result['dtype']}", end=", ")
        print(f"copy {result['copy_gb_per_s']:.1f} GB/s")
        if options.quick:
            print_quick(result)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")
        if options.png:
            from pargo_ds.evaluation.figures import backend_figure, to_png

            options.png.write_bytes(to_png(backend_figure(result["rows"])))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        hint = "; matplotlib comes with pip install -e .[demo]" if isinstance(error, ModuleNotFoundError) else ""
        print(f"bench_attention.py: error: {error}{hint}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
