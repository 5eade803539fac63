"""The golden curve of the tiny fp32 run holds on every attention backend; switching is one word of
the run file.
"""

import json
import logging
from itertools import islice
from pathlib import Path

import pytest
from tiny import merged, metrics

from pargo_ds import assembly
from pargo_ds.config import parse_config
from pargo_ds.learning.trial import lines, prepare
from pargo_ds.model import attention
from pargo_ds.training.run_folder import open_run_folder

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tiny_fp32.json").read_text())["losses"]
# As in test_runs.py. Measured worst of all backends: 6e-8 relative over 20 steps.
TOLERANCE = 1e-5
WORDS = [
    "partial=dense",
    "partial=fused",
    "partial=flash_window",
    "partial=flash_varlen",
    "cascade=dense",
    "cascade=flash",
    "llm=varlen",
    "llm=sdpa",
]


def worst(losses):
    return max(abs(a - b) / b for a, b in zip(losses, GOLDEN[: len(losses)], strict=True))


def first_losses(run, steps):
    """Losses of the first steps in one process, without DeepSpeed."""
    return [
        line["loss"] for line in islice(lines(prepare(run), every=run.train.steps), 1, steps + 1)
    ]


@pytest.fixture
def tiny_backend_run(tiny_run, tmp_path):
    """Function (word) -> the run of the stored curve with one word of its attention section
    changed.
    """

    def make(word: str):
        key, value = word.split("=")
        changes = {"output": str(tmp_path), "train": {"steps": 20}, "attention": {key: value}}
        return parse_config(merged(tiny_run, changes))

    return make


@pytest.mark.parametrize("word", WORDS)
def test_first_steps_of_the_golden_curve_hold_on_every_backend(word, tiny_backend_run, caplog):
    attention.log_once.cache_clear()
    key, value = word.split("=")
    with caplog.at_level(logging.INFO, "pargo_ds"):
        losses = first_losses(tiny_backend_run(word), 6)
    print(f"{word}: largest relative difference from the golden curve {worst(losses):.1e}")
    assert worst(losses) < TOLERANCE
    subject = {"partial": "partial tokens", "cascade": "cascade", "llm": "packed rows of the LLM"}[
        key
    ]
    assert any(
        r.message.startswith(f"attention: {subject} by {value} on cpu (asked for")
        for r in caplog.records
    )


def test_a_run_may_go_on_with_another_backend(tiny_backend_run):
    """Attention is no part of what is learned: neither the run's settings nor the model's
    fingerprint change.
    """
    fingerprints = set()
    for word in ("partial=dense", "partial=flash_window"):
        run = tiny_backend_run(word)
        open_run_folder(run)
        model = assembly.build_model(run, assembly.build_processor(run), None)
        fingerprints.add(assembly.model_fingerprint(model))
    assert len(fingerprints) == 1


@pytest.mark.slow
def test_golden_curve_holds_under_deepspeed_on_another_backend(launch):
    """One is enough: the fast test computes the same curve on all of them, and what DeepSpeed adds
    touches no attention.
    """
    changes = {"name": "backend", "train": {"steps": 20}, "checkpoint": {"every": 20}}
    process, run_dir = launch(1, changes, "--set", "attention.llm=varlen")
    assert process.returncode == 0, process.stderr[-3000:]
    difference = worst([line["loss"] for line in metrics(run_dir)])
    print(f"largest relative difference from the golden curve {difference:.1e}")
    assert difference < TOLERANCE
