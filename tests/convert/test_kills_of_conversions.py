"""A conversion that is killed leaves nothing that looks finished, and the next one to the same
place works.
"""

from __future__ import annotations

import functools
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pargo_ds.convert.hf_folder import HFFolder
from pargo_ds.convert.megatron.hf_to_megatron import to_megatron
from pargo_ds.convert.megatron.megatron_to_hf import megatron_to_hf
from pargo_ds.convert.verify import compare, open_weights
from pargo_ds.convert.zero import zero_to_hf
from pargo_ds.convert.zero.checkpoint_weights import CheckpointWeights

Conversion = Callable[..., object]
KILLS = 8


def export_checkpoint(run: Path, out: Path, force: bool) -> None:
    zero_to_hf.convert(run, out, merge_lora=True, force=force)


def checkpoint_to_megatron(run: Path, out: Path, force: bool) -> None:
    to_megatron(CheckpointWeights(run), out, force=force)


def export_to_megatron(export: Path, out: Path, force: bool) -> None:
    to_megatron(HFFolder(export), out, force=force)


def export_from_megatron(checkpoint: Path, out: Path, force: bool) -> None:
    megatron_to_hf(checkpoint, out, force=force)


@pytest.fixture(params=["zero-to-hf", "zero-to-megatron", "hf-to-megatron", "megatron-to-hf"])
def conversion(request, lora_run, export, checkpoint) -> tuple[Conversion, Path]:
    """What is called, and what it reads."""
    return {
        "zero-to-hf": (export_checkpoint, lora_run),
        "zero-to-megatron": (checkpoint_to_megatron, lora_run),
        "hf-to-megatron": (export_to_megatron, export),
        "megatron-to-hf": (export_from_megatron, checkpoint),
    }[request.param]


def killed_after(seconds: float, work: Callable[[], object]) -> bool:
    """Run `work` in a process of its own and kill it; whether it was still at work."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(seconds)
    was_alive = process.is_alive()
    process.kill()
    process.join()
    return was_alive


def test_a_killed_conversion_leaves_nothing_or_all_and_the_next_one_works(conversion, tmp_path):
    convert, source = conversion
    expected = tmp_path / "expected"
    convert(source, expected, force=False)
    started = (
        time.perf_counter()
    )  # of the second one, which has its imports behind it as the killed ones
    convert(source, expected, force=True)
    duration = time.perf_counter() - started
    out = tmp_path / "place" / "out"
    alive = 0
    for turn in range(KILLS):
        moment = random.Random(turn).uniform(0.1, 1.1) * duration
        alive += killed_after(moment, functools.partial(convert, source, out, force=True))
        if out.exists():
            assert compare(open_weights(expected), open_weights(out)).fits()
        if (
            turn == KILLS // 2
        ):  # until here nothing was there before; from here on something is replaced
            shutil.rmtree(out, ignore_errors=True)
            convert(source, out, force=True)
    assert alive, "every conversion had ended before it was to be killed"
    convert(source, out, force=True)
    assert compare(open_weights(expected), open_weights(out)).fits()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    missing = {path.name for path in expected.rglob("*")} ^ {path.name for path in out.rglob("*")}
    assert not missing
