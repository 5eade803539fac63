#!/usr/bin/env python
"""Fetch what a run file names from the hub into the local cache, on a machine with network (a login node).

Local folders and files are left alone. Revisions of the run file are respected, and printed, so that they
can be pinned.

example:
  python tools/fetch_models.py ds_configs/pretrain.yaml
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DESCRIPTION = ["*.json", "*.model", "*.txt", "*.jinja"]
WEIGHTS = ["*.safetensors", "pytorch_model*.bin"]
"""In the order in which transformers looks for them; the second kind is fetched only where the
first is not there.
"""


def fetch_hub(name: str, revision: str | None) -> str:
    """Download what is read of a hub repository: its description, tokenizer, and weights in one
    format. Return the commit.

    Raises FileNotFoundError for a repository without weights in these formats.
    """
    from huggingface_hub import snapshot_download

    for pattern in WEIGHTS:
        patterns = [*DESCRIPTION, pattern]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        if any(folder.glob(pattern)):
            return folder.name
    raise FileNotFoundError(
        f"{name} at revision {revision or 'main'} has no weights in a format that is read "
        f"({', '.join(WEIGHTS)}); name another repository or a local folder in the run file"
    )


def main() -> int:
    """Fetch the models of a run file into the cache. Return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override one setting"
    )
    options = parser.parse_args()
    from pargo_ds.config import load_config

    try:
        run = load_config(options.run_file, options.set)
        if run.start_from is not None:
            print(f"start_from {run.start_from}: a local folder, nothing to fetch")
            return 0
        if run.llm.weights == "random" or Path(run.llm.name).is_dir():
            print(f"llm {run.llm.name}: local, nothing to fetch")
        else:
            print(f"llm {run.llm.name}: revision {fetch_hub(run.llm.name, run.llm.revision)}")
        if run.vision.weights is not None or Path(run.vision.name).is_dir():
            print(f"vision {run.vision.name}: local, nothing to fetch")
        elif run.vision.library == "timm":
            import timm

            timm.create_model(run.vision.name, pretrained=True, num_classes=0)
            print(f"vision {run.vision.name}: fetched by timm {timm.__version__}")
        else:
            print(
                f"vision {run.vision.name}: revision {fetch_hub(run.vision.name, run.vision.revision)}"
            )
    except (ValueError, OSError) as error:
        print(f"fetch_models: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
