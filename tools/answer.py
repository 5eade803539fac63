#!/usr/bin/env python3
"""Ask an exported model about an image; without a question, chat about it.

examples:
  python tools/answer.py runs/demo_finetune/export image.png "What is the large object?"
  python tools/answer.py runs/demo_finetune/export image.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", type=Path, help="exported folder (tools/convert_checkpoint.py zero-to-hf)"
    )
    parser.add_argument("image", type=Path, help="PNG, JPEG, WEBP, ...")
    parser.add_argument(
        "question", nargs="?", help="left out: a chat, one question a line, until end of input"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="longest answer (default 128)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    return parser.parse_args(arguments)


def open_image(path: Path) -> Any:
    """Return the decoded image. Raises ValueError naming the file and the reason."""
    from pargo_ds.data.images import read_image

    if not path.is_file():
        raise ValueError(f"{path}: no such image file")
    try:
        return read_image(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def load(folder: Path, device: str | None) -> tuple[Any, Any]:
    """Return (model, processor) of an exported folder. Raises ValueError when it holds no model."""
    from pargo_ds.evaluation.exported import load_exported

    return load_exported(folder, device)


def chat(model: Any, processor: Any, image: Any, max_new_tokens: int) -> None:
    """Answer questions until the end of the input. The model gets the image and the conversation so
    far.
    """
    from pargo_ds.data.shards.schema import IMAGE_PLACEHOLDER
    from pargo_ds.evaluation.answers import generate_answers

    turns: list[dict[str, str]] = []
    print("Ask about the image; an empty line or Ctrl-D ends.")
    while True:
        try:
            question = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not question:
            return
        mark = "" if turns else f"{IMAGE_PLACEHOLDER}\n"
        turns.append({"role": "user", "content": mark + question})
        (answer,) = generate_answers(
            model, processor, [turns], [[image]], max_new_tokens=max_new_tokens
        )
        turns.append({"role": "assistant", "content": answer or "(nothing)"})
        print(answer)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 0, or 1 after one line about a model or image that cannot be
    used.
    """
    options = parse_arguments(arguments)
    try:
        image = open_image(options.image)
        model, processor = load(options.model, options.device)
        if options.question is None:
            chat(model, processor, image, options.max_new_tokens)
            return 0
        from pargo_ds.data.shards.schema import IMAGE_PLACEHOLDER
        from pargo_ds.evaluation.answers import generate_answers

        turns = [{"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n{options.question}"}]
        print(
            generate_answers(
                model, processor, [turns], [[image]], max_new_tokens=options.max_new_tokens
            )[0]
        )
    except ValueError as error:
        print(f"answer.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
