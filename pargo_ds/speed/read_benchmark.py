"""Reading speed: our shards beside WebDataset and LitData on the same images, and our decoding
beside Pillow's.

Loaders take turns, one worker process each; a figure is the median over the turns: images a second
by the clock, and the CPU time of the worker, all its threads, for an image. The first batches are
left out of both. Other work on the machine makes the first unsteady, and changes the second less.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pargo_ds.files.figures_json import figures_json

FORMATS = ("mds", "webdataset", "litdata")
SIDE = 336
"""Of the decoded squares, pixels."""
WARM_BATCHES = 2
FEWEST_IMAGES = 128
"""Four batches, of which two are timed."""
TARGET_OF_FASTEST, TARGET_OF_PILLOW = 0.85, 2.0
NAMES = {"mds": "ours (MDS)", "webdataset": "WebDataset", "litdata": "LitData"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench_data.py read`."""
    add = parser.add_argument
    add(
        "--photographs",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="JPEGs to cut images from",
    )
    add(
        "--images",
        type=int,
        default=1000,
        metavar="N",
        help="distinct images of each size (default 1000)",
    )
    add(
        "--sizes",
        nargs="+",
        default=["640x480", "1600x1200"],
        metavar="WxH",
        help="default 640x480 1600x1200",
    )
    add("--repetitions", type=int, default=5, metavar="N", help="turns (default 5)")
    add("--seed", type=int, default=0, help="of the cuts (default 0)")
    add("--json", type=Path, metavar="FILE", help="write the figures")


def run(options: argparse.Namespace) -> int:
    """Measure, print, write; 0. Raises ValueError for options that cannot be measured."""
    import torch

    from pargo_ds.speed.bench_images import cut_images, find_photographs

    sizes = [parse_size(text) for text in options.sizes]
    if options.images < FEWEST_IMAGES or options.repetitions < 1:
        raise ValueError(
            f"--images must be at least {FEWEST_IMAGES} and --repetitions 1: nothing would be timed"
        )
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise ValueError(f"--json {options.json}: the folder {options.json.parent} does not exist")
    torch.set_num_threads(1)
    photographs = find_photographs(options.photographs)
    result = {
        "machine": platform.processor() or platform.machine(),
        "versions": versions(),
        "photographs": len(photographs),
        "repetitions": options.repetitions,
        "square": SIDE,
        "sizes": {},
    }
    for size in sizes:
        images = cut_images(photographs, options.images, size, options.seed)
        figures = measure(images, options.repetitions)
        result["sizes"][f"{size[0]}x{size[1]}"] = figures
        print_size(size, figures, len(photographs))
    if options.json is not None:
        options.json.write_text(figures_json(result), encoding="utf-8")
    return 0


def parse_size(text: str) -> tuple[int, int]:
    """Return "640x480" -> (640, 480). Raises ValueError for anything else."""
    width, cross, height = text.partition("x")
    if not (cross and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ValueError(f"--sizes {text}: expected width x height in pixels, such as 640x480")
    return int(width), int(height)


def versions() -> dict[str, str]:
    """Return the versions of what is timed, where it is installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "pillow", "simplejpeg", "mosaicml-streaming", "webdataset", "litdata"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# Decoding: bytes -> uint8 (3, SIDE, SIDE)


def ours(data: bytes) -> Any:
    """Decode as training does."""
    from pargo_ds.data.images import read_fast
    from pargo_ds.model.images import to_pixels, to_square

    return to_square(to_pixels(read_fast(data)), SIDE, "stretch")


def pillow(data: bytes) -> Any:
    """Decode and resize by Pillow."""
    import io

    import numpy as np
    import torch
    from PIL import Image

    square = (
        Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    )
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def torchvision(data: bytes) -> Any:
    """Decode and resize by torchvision, what LitData's own decoding of JPEGs uses."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    pixels = decode_jpeg(
        torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB
    )
    return resize(pixels, [SIDE, SIDE], InterpolationMode.BICUBIC, antialias=True)


def raw(data: bytes) -> bytes:
    """Return the bytes as they are."""
    return data


DECODERS: dict[str, Callable[[bytes], Any]] = {
    "raw": raw,
    "ours": ours,
    "pillow": pillow,
    "torchvision": torchvision,
}
CUSTOMARY = {"webdataset": "pillow", "litdata": "torchvision"}
"""How users of the other loaders decode."""


# Measuring


def measure(images: Sequence[bytes], repetitions: int) -> dict[str, Any]:
    """Return the rows of all loaders for one set of images, ratios, and what was skipped with the
    reason.
    """
    from pargo_ds.speed.bench_formats import OPENERS, WRITERS, missing

    skipped = {name: reason for name in FORMATS if (reason := missing(name))}
    with tempfile.TemporaryDirectory(prefix="pargo_ds_bench_") as place:
        starts: dict[str, Callable] = {}
        for name in FORMATS:
            if name not in skipped:
                WRITERS[name](images, Path(place) / name)
                starts[name] = OPENERS[name](Path(place) / name)
        pairs = [*itertools.product(starts, ("raw", "ours")), ("mds", "pillow")]
        pairs += [pair for pair in CUSTOMARY.items() if pair[0] in starts]
        turns = {(name, decode): starts[name] for name, decode in pairs}
        for _, decode in turns:  # what it imports is then there in every worker
            DECODERS[decode](images[0])
        times = _in_turns(turns, len(images), repetitions)
    rows = []
    for (name, decode), taken in times.items():
        rates = [rate for rate, _ in taken]
        rows.append(
            {
                "loader": name,
                "decode": decode,
                "images_per_s": median(rates),
                "cpu_ms_per_image": median(cpu for _, cpu in taken),
                "rates": rates,
            }
        )
    sizes = sorted(map(len, images))
    figures = {
        "images": len(images),
        "median_bytes": sizes[len(sizes) // 2],
        "rows": rows,
        "skipped": skipped,
    }
    return figures | {"ratios": ratios(rows)}


def _in_turns(
    turns: dict[tuple[str, str], Callable], count: int, repetitions: int
) -> dict[Any, list]:
    """What `one_pass` gives for each turn; one turn before does not count."""
    times: dict[Any, list[tuple[float, float]]] = {key: [] for key in turns}
    for turn in range(repetitions + 1):
        for (name, decode), start in turns.items():
            taken = one_pass(start(DECODERS[decode]), count)
            if turn:
                times[name, decode].append(taken)
    return times


def one_pass(loader: Any, count: int) -> tuple[float, float]:
    """Return (images a second, CPU ms of the worker for one) of all images through one worker, the
    first batches left out.

    Raises RuntimeError when the loader does not give every image once.
    """
    seen = warm = 0
    started = warm_cpu = cpu = 0.0
    for number, (_, images, cpu) in enumerate(loader):
        seen += images
        if number < WARM_BATCHES:
            started, warm, warm_cpu = time.perf_counter(), seen, cpu
    seconds = time.perf_counter() - started
    if seen != count:
        raise RuntimeError(f"{loader} gave {seen} of {count} images")
    return (seen - warm) / seconds, (cpu - warm_cpu) / (seen - warm) * 1e3


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return our speed over that of the fastest other loader, decoded and raw alike, and over
    Pillow's pipeline.

    By the clock and by CPU time; None where there is nothing to compare with.
    """
    speeds: dict[str, dict[tuple[str, str], float]] = {"clock": {}, "cpu": {}}
    for row in rows:
        key = (row["loader"], row["decode"])
        speeds["clock"][key] = row["images_per_s"]
        speeds["cpu"][key] = 1e3 / row["cpu_ms_per_image"]
    found: dict[str, dict[str, float | None]] = {}
    for by, speed in speeds.items():
        found[by] = {"of_pillow": speed["mds", "ours"] / speed["mds", "pillow"]}
        for decode, name in (("ours", "of_fastest_decoded"), ("raw", "of_fastest_raw")):
            ours, others = speed["mds", decode], []
            for (loader, how), value in speed.items():
                if how == decode and loader != "mds":
                    others.append(value)
            found[by][name] = ours / max(others) if others else None
    return found


def print_size(size: tuple[int, int], figures: dict[str, Any], photographs: int) -> None:
    """Print one size's part of the table."""
    print(
        f"\n{figures['images']} images of {size[0]} x {size[1]}, cut from {photographs} photographs, median "
        f"{figures['median_bytes'] / 1000:.0f} kB; one worker, squares of {SIDE}"
    )
    print(f"  {'loader':12} {'decoded by':24} {'images/s':>11} {'CPU ms an image':>17}")
    words = {
        "raw": "nobody (bytes)",
        "ours": "simplejpeg + torch",
        "pillow": "Pillow",
        "torchvision": "torchvision",
    }
    for row in sorted(
        figures["rows"], key=lambda row: (row["decode"] != "raw", -row["images_per_s"])
    ):
        print(
            f"  {NAMES[row['loader']]:12} {words[row['decode']]:24} {row['images_per_s']:11.0f} "
            f"{row['cpu_ms_per_image']:17.2f}"
        )
    for name, how in figures["skipped"].items():
        print(f"  {NAMES[name]:12} skipped: {how}")
    for by, found in figures["ratios"].items():
        line = f"ours / Pillow pipeline {found['of_pillow']:.2f} (target {TARGET_OF_PILLOW:.0f})"
        if found["of_fastest_decoded"] is not None:
            line += f"; ours / fastest other loader {found['of_fastest_decoded']:.2f} (target {TARGET_OF_FASTEST})"
            line += f", of bytes alone {found['of_fastest_raw']:.2f}"
        print(f"  {line}, {'by the clock' if by == 'clock' else 'by CPU time'}", flush=True)
