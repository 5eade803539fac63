"""What the tests share and is no fixture: drawn samples, commands, metrics."""

import atexit
import functools
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from warm_python import WarmPython

ROOT = Path(__file__).parents[1]
ON_CPU = {
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}
COLOURS = ("red", "green", "blue", "yellow", "black", "white")


def draw(colour: str, place: int, size: int = 64) -> bytes:
    """PNG of a square of one colour at one of nine places on grey."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (size, size), "grey")
    x, y = (place % 3) * size // 3, (place // 3) * size // 3
    ImageDraw.Draw(image).rectangle([x, y, x + size // 3, y + size // 3], fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def tiny_samples(count: int, first: int = 0) -> list:
    """Samples of one or two images, and every seventh without any."""
    from pargo_ds.data.shards.schema import Sample

    samples = []
    for i in range(first, first + count):
        colours = [COLOURS[(i + k) % 6] for k in range(0 if i % 7 == 3 else 1 + (i % 5 == 0))]
        images = "<image>" * len(colours)
        answer = " and ".join(colours) or "nothing"
        samples.append(
            Sample(
                id=f"{i:05d}",
                images=[draw(colour, (i + k) % 9) for k, colour in enumerate(colours)],
                turns=[
                    {"role": "user", "content": f"{images}What colour is it?"},
                    {"role": "assistant", "content": answer},
                ],
                captions={
                    "coarse": f"A {answer} square.",
                    "detailed": f"A {answer} square on grey.",
                }
                if colours
                else {},
            )
        )
    return samples


def merged(base: dict, changes: dict) -> dict:
    """Nested mapping with `changes` written over `base`."""
    result = dict(base)
    for key, value in changes.items():
        below = base.get(key)
        result[key] = (
            merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
        )
    return result


@functools.cache
def warm_python() -> WarmPython:
    """One for all commands of this process; it ends with it."""
    folder = tempfile.TemporaryDirectory(prefix="warm-python-")
    warm = WarmPython(Path(folder.name), {**os.environ, **ON_CPU})
    warm.start()
    atexit.register(folder.cleanup)
    atexit.register(warm.close)
    return warm


def run_command(
    command: list[str], timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess:
    """Run a command of the project on the CPU with one thread per process; output is captured.

    `python -m` and `python SCRIPT` run in a Python that has its imports behind it (warm_python.py);
    `python -c` is the ordinary one, for tests of what is imported and of memory.
    """
    env = {**os.environ, **ON_CPU, **environment}
    if command[0] == sys.executable and command[1] != "-c":
        command = [str(warm_python().path), *command[1:]]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=env, cwd=ROOT
    )


def read_state(run_dir: Path) -> dict:
    """Read a run's state.json; {} when there is none."""
    path = run_dir / "state.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def metrics(run_dir: Path) -> list[dict]:
    """The run's metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def seeing(projector):
    """Give a new projector's zero weights values, so that what it looks at shows in its output."""
    import torch

    from pargo_ds.model.token_output import ZeroLinear

    for module in projector.modules():
        if isinstance(module, ZeroLinear):
            torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return projector
