#!/usr/bin/env python
"""Convert checkpoints between formats.

  zero-to-hf CHECKPOINT OUT   a training checkpoint -> a Hugging Face folder that from_pretrained loads

CHECKPOINT is a step folder (runs/NAME/checkpoints/step_00000500) or a run's folder (then its newest checkpoint).

examples:
  python tools/convert_checkpoint.py zero-to-hf runs/pretrain runs/pretrain/export
  python tools/convert_checkpoint.py zero-to-hf runs/finetune runs/finetune/export --merge-lora
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    zero = commands.add_parser("zero-to-hf", help="training checkpoint -> Hugging Face folder")
    zero.add_argument("checkpoint", type=Path, help="step folder, or a run's folder (its newest checkpoint)")
    zero.add_argument("out", type=Path, help="folder to write; must not exist without --force")
    zero.add_argument("--merge-lora", action="store_true", help="add LoRA into the LLM's weights; else adapter/ beside")
    zero.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # conversion is work for the CPU
    from pargo_ds.convert.zero_to_hf import convert

    try:
        counts = convert(options.checkpoint, options.out, merge_lora=options.merge_lora, force=options.force)
    except (ValueError, OSError) as error:
        print(f"convert_checkpoint: error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {counts['trained']:,} trained and {counts['frozen']:,} frozen parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
