#!/usr/bin/env python3
"""Draw who sees whom in a run's projector: the paper's figure 2(b) for any run file.

One panel per layer for the cascade, one for the partial and global tokens over the patches; with --image also the
photograph, as the encoder gets it, with the region of each partial token in raster and in block grouping. Needs no
weights and no network; matplotlib comes with the extras `demo` and `dev`.

examples:
  python tools/show_masks.py ds_configs/pretrain.yaml masks.png
  python tools/show_masks.py ds_configs/pretrain.yaml masks.png --image photo.jpg --set projector.partial_tokens=72
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
        "run_file", type=Path, metavar="RUN.yaml", help="run file, such as those in ds_configs/"
    )
    parser.add_argument("out", type=Path, metavar="OUT.png", help="image to write")
    parser.add_argument(
        "--image", type=Path, metavar="PHOTO", help="PNG, JPEG, WEBP, ... to lay the regions over"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        help="override one setting (repeat for more)",
    )
    return parser.parse_args(arguments)


def square_image(path: Path, size: int, resize: str) -> Any:
    """Return the photograph as the encoder gets it. Raises ValueError naming the file and the
    reason.
    """
    from PIL import Image

    from pargo_ds.data.images import read_fast
    from pargo_ds.model.images import to_pixels, to_square

    if not path.is_file():
        raise ValueError(f"{path}: no such image file")
    try:
        pixels = to_square(to_pixels(read_fast(path.read_bytes())), size, resize)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())  # (height, width, 3)


def draw(options: argparse.Namespace) -> str:
    """Write the image; returns one line about it. Raises ValueError for whatever cannot be
    drawn.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            "matplotlib is missing; install an extra that has it: pip install -e .[demo]"
        ) from None
    # imported late: torch and transformers take seconds, --help should not
    from pargo_ds.assembly.configs import model_config
    from pargo_ds.config import load_config
    from pargo_ds.evaluation.figures import to_png
    from pargo_ds.inspection.mask_figure import attention_figure

    if not options.out.absolute().parent.is_dir():
        raise ValueError(f"{options.out}: the folder {options.out.parent} does not exist")
    run = load_config(options.run_file, options.set)
    config = model_config(run, None, offline=True)
    image = None
    if options.image is not None:
        image = square_image(options.image, run.vision.image_size, run.vision.resize)
    options.out.write_bytes(to_png(attention_figure(config, image)))
    return f"{options.out}: {config.projector_config.describe(config.vision_config.num_patches)}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 0, or 2 with one clear line for a fault in the run file or the
    image.
    """
    try:
        print(draw(parse_arguments(arguments)))
    except ValueError as error:
        print(f"show_masks.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
