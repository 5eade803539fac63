#!/usr/bin/env python3
"""Host CPU time of a micro-step, ZeRO-3 and ZeRO-2 as they were and as they are, on a twin with tiny widths.

Needs no GPU and no weights: OMP_NUM_THREADS=1 python tools/bench_step.py
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from pargo_ds.speed.step_benchmark import SYSTEMS, measure


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 0 when done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--layers", type=int, default=32, help="decoder layers of the twin (default 32)"
    )
    parser.add_argument(
        "--llm", choices=("frozen", "full"), default="frozen", help="how the LLM trains"
    )
    parser.add_argument("--turns", type=int, default=7, help="turns of each system (default 7)")
    parser.add_argument("--steps", type=int, default=4, help="micro-steps of a turn (default 4)")
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="default: all"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args(arguments)
    found = measure(options.layers, options.llm, options.turns, options.steps, options.systems)
    first = options.systems[0]
    print(
        f"{options.layers} layers, LLM {options.llm}: CPU ms of a micro-step, median [least, most]"
    )
    for name, taken in found.items():
        print(
            f"{name:<24} {taken.median:7.1f} [{taken.least:.1f}, {taken.most:.1f}]"
            f"  {taken.median / found[first].median:.2f} of {first}"
        )
    if options.json:
        options.json.write_text(
            json.dumps({n: asdict(t) for n, t in found.items()}, indent=2) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
