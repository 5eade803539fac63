#!/usr/bin/env python3
"""Measure an exported model on held-out shards: loss, and right answers by type of question.

EXPORT is what `tools/convert_checkpoint.py zero-to-hf` wrote. SHARDS is a folder of shards, or one with held_out/ and
train/ in it; the training questions give the baseline that does not look ("blind").

examples:
  python tools/evaluate.py runs/demo_finetune/export runs/demo/shards
  python tools/evaluate.py runs/pretrain/export data/captions/held_out --run runs/pretrain/config.yaml --json loss.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, metavar="EXPORT", help="exported folder")
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="held-out shards, or a folder with held_out/")
    parser.add_argument(
        "--run",
        type=Path,
        metavar="RUN.yaml",
        help="measure the texts that this run trains on (default: conversations)",
    )
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help="at most so many (default 1000)")
    parser.add_argument("--questions", type=int, default=400, metavar="N", help="at most so many (default 400)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="questions at once (default 16)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures; raises ValueError for inputs that do not fit."""
    from tqdm import tqdm

    from pargo_ds.config import load_config
    from pargo_ds.data.shards import read_samples
    from pargo_ds.evaluation.exported import load_exported
    from pargo_ds.evaluation.held_out import held_out_loss, question_figures, split_folders, texts_of

    held_out, train = split_folders(options.shards)
    data = load_config(options.run).data if options.run is not None else None
    samples = list(itertools.islice(read_samples(held_out), options.samples))
    model, processor = load_exported(options.export)
    with tqdm(total=len(samples), desc="held-out loss", disable=None) as bar:
        loss = held_out_loss(
            model, processor, samples, data or texts_of(samples), where=str(held_out), progress=bar.update
        )
    asked = question_figures(model, processor, samples, train, most=options.questions, batch_size=options.batch_size)
    return {"export": str(options.export), "shards": str(held_out), "held_out": loss, "questions": asked}


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        figures = measure(options)
    except ValueError as error:
        print(f"evaluate.py: error: {error}", file=sys.stderr)
        return 2
    from pargo_ds.evaluation.held_out import table

    print(table(figures))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
