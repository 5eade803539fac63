#!/usr/bin/env python3
"""Everything of docs/gpu.md on a machine with GPUs and no network, in pieces of at most nine minutes, then a report.

A piece's result is written whole or not at all; the same command goes on with the pieces that have none. Needs what
docs/gpu.md lists. --device cpu runs the same pieces at tiny sizes, which tries the machinery and measures nothing.

examples:
  python tools/gpu_report.py --list
  python tools/gpu_report.py                                  # all that has no result yet (make gpu-report)
  python tools/gpu_report.py --only golden steps_shipped      # these, again where they have one
  python tools/gpu_report.py --report                         # the page of what is there
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pargo_ds.errors import UserError
from pargo_ds.speed.gpu_pieces import Machine, Piece


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/gpu_report"), help="default runs/gpu_report")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes")
    add("--only", nargs="+", default=[], metavar="PIECE", help="these pieces")
    add("--list", action="store_true", help="the pieces, and how each stands")
    add("--report", action="store_true", help="write the report of what is there, run nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """0 when every chosen piece is done; 1 when one failed or ran out of time; 2 for a fault."""
    from pargo_ds.speed import gpu_pieces, gpu_report

    options = parse_arguments(arguments)
    folder = options.out.absolute()
    looking = options.list or options.report
    try:
        machine = look_at_machine(options.device, looking)
        every = gpu_pieces.pieces(machine, folder)
        wanted = gpu_pieces.chosen(every, options.only)
    except (UserError, ValueError) as error:
        print(f"gpu_report.py: error: {error}", file=sys.stderr)
        return 2
    if options.list:
        for piece in wanted:
            state = "has a result" if gpu_report.result_file(folder, piece).is_file() else "to run"
            print(f"{piece.name:<26} {state:<13} {piece.question}")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    bad = 0 if options.report else run_pieces(wanted, folder, machine, again=bool(options.only))
    print(f"report: {gpu_report.write_report(folder, every)}")
    return 1 if bad else 0


def look_at_machine(device: str, looking: bool) -> Machine:
    """Raises ConfigError without a GPU, unless it is only `looking`."""
    import torch

    from pargo_ds.errors import ConfigError
    from pargo_ds.planning.hardware import word_of_gpu

    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    if device == "cpu" or (looking and not torch.cuda.is_available()):
        return Machine("cpu", 1, None, f"CPU, tiny sizes: no measurement; {versions}")
    if not torch.cuda.is_available():
        raise ConfigError(
            "this machine has no GPU that torch can use (torch.cuda.is_available() is False); "
            "--device cpu tries the machinery at tiny sizes"
        )
    name, ranks = torch.cuda.get_device_name(), torch.cuda.device_count()
    word = word_of_gpu(name, torch.cuda.get_device_properties(0).total_memory / 2**30)
    return Machine("cuda", ranks, word, f"{ranks} x {name}, {versions}")


def run_pieces(pieces: list[Piece], folder: Path, machine: Machine, again: bool) -> int:
    """How many of them are not done at the end; those with a result are left as they are unless
    `again`.
    """
    from pargo_ds.speed import gpu_report

    bad = 0
    for piece in pieces:
        if not again and gpu_report.result_file(folder, piece).is_file():
            print(f"{piece.name}: has a result", flush=True)
            continue
        if first := gpu_report.missing(folder, piece):
            print(f"{piece.name}: left out, because {first} is not done", flush=True)
            bad += 1
            continue
        print(f"{piece.name}: {piece.question} ...", flush=True)
        ended = gpu_report.run_piece(piece, folder, machine)
        print(f"{piece.name}: {ended} ({folder / piece.name}.log)", flush=True)
        bad += ended != "done"
    return bad


if __name__ == "__main__":
    raise SystemExit(main())
