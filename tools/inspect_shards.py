#!/usr/bin/env python3
"""Look at a folder of shards before a GPU does: what it holds, and what training would make of it.

Prints statistics and warnings. With --run also tokens, what is trained on, and what fits into a pack; with --html a
page of sample images and their texts in which every token is coloured by whether it is trained on. Nothing is
changed, and no weights are needed.

examples:
  python tools/inspect_shards.py runs/demo/shards/train
  python tools/inspect_shards.py runs/demo/shards/train --run ds_configs/demo_pretrain.yaml --html shards.html
  python tools/inspect_shards.py s3://bucket/shards/train --run ds_configs/finetune.yaml --limit 2000 --html shards.html
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "path", metavar="PATH", help="folder of shards (one split), or s3://bucket/folder"
    )
    parser.add_argument(
        "--run", type=Path, metavar="RUN.yaml", help="run file: its tokenizer, template and texts"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override a run setting"
    )
    parser.add_argument("--html", type=Path, metavar="OUT.html", help="write the page")
    parser.add_argument(
        "--samples", type=_count, default=8, metavar="N", help="samples on the page (default 8)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of samples (default 0)")
    parser.add_argument(
        "--limit",
        type=_count,
        metavar="N",
        help="look at N samples, drawn by chance (default: all)",
    )
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="place for shards of an object store"
    )
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected at least 1")
    return value


def encoding_of(options: argparse.Namespace) -> Any:
    """Return the run's processor and settings for this folder.

    Raises ConfigError (ValueError) for a faulty run file.
    """
    from pargo_ds.assembly.processor import build_processor
    from pargo_ds.config import load_config
    from pargo_ds.inspection.inspect import Encoding

    run = load_config(options.run, options.set)
    data = run.data
    for stream in run.data.train:
        if _same_place(stream.path, options.path):
            data = run.data.of_stream(stream)
            break
    return Encoding(build_processor(run), data, run.batch)


def _same_place(one: str, other: str) -> bool:
    if "://" in one or "://" in other:
        return one.rstrip("/") == other.rstrip("/")
    return Path(one).absolute() == Path(other).absolute()


def look(options: argparse.Namespace) -> None:
    """Inspect, print and write. Raises ValueError and OSError for what the user can put right."""
    if options.html is not None and not options.html.absolute().parent.is_dir():
        raise ValueError(f"{options.html}: the folder {options.html.parent} does not exist")
    # imported late: torch and transformers take seconds, --help should not
    from pargo_ds.errors import ShardError
    from pargo_ds.inspection.inspect import inspect
    from pargo_ds.inspection.page import render_page
    from pargo_ds.inspection.tables import as_text, warnings_as_text

    encoding = None
    if options.run is not None:
        encoding = encoding_of(options)
    choice = {
        "samples": options.samples,
        "seed": options.seed,
        "limit": options.limit,
        "cache": options.cache,
    }
    try:
        inspection = inspect(options.path, encoding, **choice)
    except ShardError as error:
        raise ValueError(str(error)) from error
    print(
        f"{inspection.path}: {inspection.looked_at:,} of {inspection.samples:,} samples looked at"
    )
    for block in inspection.blocks:
        print(f"\n{as_text(block)}")
    print(f"\n{warnings_as_text(inspection.warnings)}")
    if options.html is not None:
        options.html.write_text(render_page(inspection, encoding), encoding="utf-8")
        print(f"\nwritten: {options.html}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 0, or 2 after one line about a fault of the folder or the run
    file.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options = parse_arguments(arguments)
    try:
        look(options)
    except (ValueError, OSError) as error:
        print(f"inspect_shards.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
