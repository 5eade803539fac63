"""lmms-eval's tasks on an exported model: the answers of our own runner, and its rules as oracles.

lmms-eval lies in the environment or in the folder that PARGO_LMMS_EVAL names (`make lmms-eval`
fills it, `make test-slow` sets it); without it these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import official_layouts as layouts
import pytest
from lmms_tasks import write_mme_task
from tiny import ROOT, run_command
from tiny_export import write_export

from pargo_ds.evaluation.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WORKER = ROOT / "tests/evaluation/lmms_worker.py"
SAID = ("Yes", "No", "yes, it is", "no.", "The dog", "Not a dog", "Unknown thing", "nothing")
"""Answers that lmms-eval and the official rule read alike."""


@pytest.fixture(scope="module")
def package() -> Path:
    """The folder of the package lmms_eval."""
    folder = Path(os.environ.get("PARGO_LMMS_EVAL", "nowhere"))
    if (folder / "lmms_eval").is_dir():
        return folder / "lmms_eval"
    found = importlib.util.find_spec("lmms_eval")
    if found is None or found.origin is None:
        pytest.skip("lmms-eval is not installed, and PARGO_LMMS_EVAL does not name it")
    return Path(found.origin).parent


@pytest.fixture(scope="module")
def environment(package, tmp_path_factory) -> dict[str, str]:
    """What lets Python find lmms-eval, and lmms-eval the entry point of setup.py."""
    folder = tmp_path_factory.mktemp("entry_point")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, folder, package.parent)))}


@pytest.fixture(scope="module")
def export(tokenizer_folder, tmp_path_factory) -> Path:
    return write_export(tmp_path_factory.mktemp("export"), tokenizer_folder)


@pytest.fixture(scope="module")
def asked(package, export, tmp_path_factory) -> tuple[Path, Path, dict[str, str]]:
    """(MME folder, folder of lmms-eval's task over it, our runner's answers at batch 1 by id)."""
    folder = tmp_path_factory.mktemp("asked")
    mme = layouts.mme(folder / "MME", pairs=5)
    tasks = write_mme_task(folder / "tasks", mme, package)
    native = [sys.executable, str(ROOT / "tools/evaluate.py"), str(export), "--subset"]
    native += ["--benchmark", f"mme:llava={mme}", "--batch", "1", "--out", str(folder / "out")]
    process = run_command(native)
    assert process.returncode == 0, process.stderr
    store = Store(folder / "out/mme")
    answers, _ = store.answers(store.items())
    return mme, tasks, {answer.id: answer.text for answer in answers}


def test_its_command_finds_the_plug_in_and_gives_the_runners_answers(
    environment, export, asked, tmp_path
):
    _, tasks, native = asked
    command = [sys.executable, "-m", "lmms_eval", "--model", "pargo", "--tasks", "mme_local"]
    command += ["--model_args", f"pretrained={export},answers={tmp_path / 'kept'}"]
    command += ["--include_path", str(tasks), "--batch_size", "1", "--log_samples"]
    process = run_command([*command, "--output_path", str(tmp_path / "out")], 600, **environment)
    assert process.returncode == 0, process.stderr[-3000:]
    (samples,) = (tmp_path / "out").rglob("*_samples_mme_local.jsonl")
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    said = [row["filtered_resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
    # lmms-eval ends every answer at a blank line.
    assert said == [text.split("\n\n")[0].strip() for text in native.values()]
    assert len(set(said)) > 2  # they depend on the image or the question


def test_batches_ranks_options_and_refusals(environment, export, asked, tmp_path):
    """In one process, because lmms-eval takes long to start; see the worker."""
    _, tasks, native = asked
    arguments = [str(export), str(tasks), str(tmp_path / "kept"), json.dumps(SAID)]
    process = run_command([sys.executable, str(WORKER), *arguments], 600, **environment)
    assert process.returncode == 0, process.stderr[-3000:]
    found = json.loads(process.stdout.splitlines()[-1])
    texts = [text.split("\n\n")[0] for text in native.values()]
    assert found["batch_of_four"] == texts  # fp32: a batch gives the answers of single questions
    assert found["kept"] == texts
    assert found["asked_again"] == 0
    assert "holds answers of another kind: weights" in found["other_weights"]
    assert "generation_kwargs typical_p: not known" in found["unknown_setting"]
    assert "ask for sampling" in found["sampling"]
    # The options' losses are those of the likelihood runner; the smallest is the answer.
    for own, theirs in zip(found["losses"], found["expected_losses"], strict=True):
        assert own == pytest.approx(theirs, abs=1e-5)
    # Where the rules agree, so do the scores: lmms-eval's program against ours.
    assert found["score"] == pytest.approx(found["their_score"])
    assert 0 < found["score"] < 400
