#!/usr/bin/env python3
"""Question an exported model about held-out scenes and write report.json, report.html and report.png.

SHARDS is what `tools/build_shards.py scenes` wrote (train/, validation/, split.json). Beside each --metrics file
the run's config.yaml is read, if it is there.

example:
  python tools/demo_report.py runs/demo_finetune/export runs/demo/shards runs/demo \\
      --metrics runs/demo_pretrain/metrics.jsonl runs/demo_finetune/metrics.jsonl \\
      --caption-model runs/demo_pretrain/export
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="exported folder that answers the questions")
    parser.add_argument("shards", type=Path, help="folder with train/, validation/ and split.json")
    parser.add_argument("out", type=Path, help="folder for the report")
    parser.add_argument(
        "--metrics", type=Path, nargs="+", required=True, help="metrics.jsonl of each stage"
    )
    parser.add_argument(
        "--caption-model", type=Path, help="exported folder for the caption loss (default: MODEL)"
    )
    parser.add_argument(
        "--questions",
        type=int,
        default=500,
        metavar="N",
        help="held-out questions asked (default 500)",
    )
    parser.add_argument(
        "--caption-scenes",
        type=int,
        default=100,
        metavar="N",
        help="scenes for the caption loss (default 100)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=32,
        metavar="N",
        help="questions answered together (default 32)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the wrong images and the bootstrap (default 0)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 0, or 1 after one line that says what is wrong."""
    options = parse_arguments(arguments)
    # Imported here, because torch and transformers take seconds and --help should not.
    from pargo_ds.demo.evaluate import DemoEvaluation, build_report
    from pargo_ds.demo.report import summary, write_report

    wanted = {name: value for name, value in vars(options).items() if name != "out"}
    try:
        report = build_report(DemoEvaluation(**wanted))
        paths = write_report(report, options.out)
    except ValueError as error:
        print(f"demo_report.py: error: {error}", file=sys.stderr)
        return 1
    print(summary(report))
    print("written: " + ", ".join(map(str, paths)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
