#!/usr/bin/env python3
"""Print what the Slurm scripts need to know of a run file, a line each, or say what is wrong with it (status 2).

run folder; packs per step; start_from; held-out shards (an empty line where there is none)
"""

from __future__ import annotations

import argparse
import sys

from pargo_ds.config import load_config


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_file")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    options, _ = parser.parse_known_args()  # the others are for training alone
    try:
        run = load_config(options.run_file, options.set)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        run.run_dir,
        run.batch.packs_per_step,
        run.start_from or "",
        run.data.validation or "",
        sep="\n",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
