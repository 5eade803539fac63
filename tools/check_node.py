#!/usr/bin/env python3
"""Say whether this node can train: its GPUs are seen and give memory, its scratch folder takes files and has room.

One line, `node NAME: good`, or `node NAME:` and all that is wrong; exit status 1 then. slurm/ runs it on each node
before a training and leaves bad ones out.

example:
  srun --ntasks-per-node=1 python tools/check_node.py --gpus 8 --scratch /scratch --free-gb 20
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

GPU_BYTES = 1 << 30


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gpus", type=int, default=0, metavar="N", help="GPUs that must be there (default 0)"
    )
    parser.add_argument(
        "--scratch", type=Path, metavar="FOLDER", help="folder on the node's own disk"
    )
    parser.add_argument(
        "--free-gb",
        type=float,
        default=0.0,
        metavar="GB",
        help="room that it must have (default 0)",
    )
    return parser.parse_args()


def gpu_faults(wanted: int) -> Iterator[str]:
    """Yield the faults of the GPUs. Each of them must give memory and compute the right sum."""
    import torch

    found = torch.cuda.device_count()
    if found < wanted:
        yield f"{found} GPUs of {wanted} are seen"
    for number in range(found):
        try:
            ones = torch.ones(GPU_BYTES // 4, device=f"cuda:{number}")
            total = float(ones.double().sum())
            if total != ones.numel():
                yield f"GPU {number} adds up to {total:.0f} instead of {ones.numel()}"
            del ones
            torch.cuda.empty_cache()
        except RuntimeError as error:
            yield f"GPU {number}: {str(error).splitlines()[0]}"


def scratch_faults(folder: Path, free_gb: float) -> Iterator[str]:
    """Yield the faults of the scratch folder."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        yield f"{folder} takes no file: {error}"
        return
    if free < free_gb:
        yield f"{folder} has {free:.1f} GB free, {free_gb:g} are needed"


def main() -> int:
    """Print the faults of this node. Return 1 if there are some, else 0."""
    options = parse_arguments()
    faults: list[str] = []
    if options.gpus:
        faults += gpu_faults(options.gpus)
    if options.scratch is not None:
        faults += scratch_faults(options.scratch, options.free_gb)
    # Slurm's own name of the node, which its lists use.
    name = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
    print(f"node {name}: {'; '.join(faults) or 'good'}", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
