#!/usr/bin/env python3
"""Ask an exported model about a picture; without a question, chat about it.

examples:
  python tools/answer.py runs/demo_finetune/export picture.png "What is the large object?"
  python tools/answer.py runs/demo_finetune/export picture.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="exported folder (tools/convert_checkpoint.py zero-to-hf)")
    parser.add_argument("picture", type=Path, help="PNG, JPEG, WEBP, ...")
    parser.add_argument("question", nargs="?", help="left out: a chat, one question a line, until end of input")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="longest answer (default 128)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    return parser.parse_args(arguments)


def open_picture(path: Path) -> Any:
    """The decoded picture. Raises ValueError naming the file and the reason."""
    from pargo_ds.data.images import read_picture

    if not path.is_file():
        raise ValueError(f"{path}: no such picture file")
    try:
        return read_picture(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def load(folder: Path, device: str | None) -> tuple[Any, Any]:
    """(model, processor) of an exported folder. Raises ValueError when it holds no such model."""
    from pargo_ds.evaluation.exported import load_exported

    return load_exported(folder, device)


def chat(model: Any, processor: Any, picture: Any, max_new_tokens: int) -> None:
    """Read questions until end of input; each sees the picture and the conversation so far."""
    from pargo_ds.data.schema import IMAGE_PLACEHOLDER
    from pargo_ds.evaluation.answers import generate_answers

    turns: list[dict[str, str]] = []
    print("Ask about the picture; an empty line or Ctrl-D ends.")
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
        (answer,) = generate_answers(model, processor, [turns], [[picture]], max_new_tokens=max_new_tokens)
        turns.append({"role": "assistant", "content": answer or "(nothing)"})
        print(answer)


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0, or 1 with one clear line for a model or picture that cannot be used."""
    options = parse_arguments(arguments)
    try:
        picture = open_picture(options.picture)
        model, processor = load(options.model, options.device)
        if options.question is None:
            chat(model, processor, picture, options.max_new_tokens)
            return 0
        from pargo_ds.data.schema import IMAGE_PLACEHOLDER
        from pargo_ds.evaluation.answers import generate_answers

        turns = [{"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n{options.question}"}]
        print(generate_answers(model, processor, [turns], [[picture]], max_new_tokens=options.max_new_tokens)[0])
    except ValueError as error:
        print(f"answer.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
