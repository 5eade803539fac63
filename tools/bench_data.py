#!/usr/bin/env python3
"""Time and measure the data path on this machine: how packs are planned, and how fast images are read.

`plan` shows how full packs are and how even ranks, beside next-fit, first-fit and padding. `read` shows images a
second from our shards beside WebDataset and LitData (optional; missing ones are listed with the pip line) and beside a
Pillow pipeline, on the same images, cut at random from photographs. Neither needs a GPU or a model.

examples:
  python tools/bench_data.py plan --json plan.json
  python tools/bench_data.py read --json read.json
  PYTHONPATH=/tmp/bench python tools/bench_data.py read --photographs ~/Images --sizes 640x480 --repetitions 9
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from types import ModuleType

COMMANDS = {"plan": "fill and evenness of packs", "read": "images a second"}


def command_module(name: str) -> ModuleType:
    """Return the module of a subcommand, which has `add_arguments(parser)` and `run(options)`."""
    return importlib.import_module(f"pargo_ds.speed.{name}_benchmark")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subcommands = parser.add_subparsers(dest="command", required=True, metavar="{plan,read}")
    for name, what in COMMANDS.items():
        command_module(name).add_arguments(
            subcommands.add_parser(name, help=what, description=what)
        )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return the status of the subcommand, or 2 after one line that says what
    is wrong.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options = parse_arguments(arguments)
    try:
        return command_module(options.command).run(options) or 0
    except (ValueError, OSError) as error:
        print(f"bench_data.py: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
