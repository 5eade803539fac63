"""Stages of tools/caption.py as arrays: the same files as one process makes, though a part was ended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from caption_runs import captioned, numbers_of, selected_run, squares, write_clip

from pargo_ds.captioning.ask.captions import jobs_of, write_captions
from pargo_ds.captioning.ask.ledger import Ledger
from pargo_ds.captioning.ask.prompt import read_prompt
from pargo_ds.captioning.ask.request import Parameters
from pargo_ds.captioning.run_files import RunFolder, read_lines
from pargo_ds.captioning.score.score import score
from pargo_ds.captioning.score.scorers import make_scorer
from pargo_ds.data.shards.mds import write_shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def submitted(project, *words: str) -> list[str]:
    """Ids of the jobs that slurm/caption.sh submits."""
    output = project.cluster.command("slurm/caption.sh", *words, cwd=project.folder)
    return [line.split()[-1] for line in output.splitlines() if ": job " in line]


def test_an_array_scores_a_part_goes_back_into_the_queue_and_jobs_behind_it_decide_and_report(
    project, tokenizer_folder, tmp_path
):
    clip = write_clip(project.folder / "clip", tokenizer_folder)
    run = captioned(project.folder / "captions")
    words = ("score", str(run.path), "--scorers", f"clip:{clip}", "--plants", "40")
    parts, decided, reported = submitted(project, "2", *words)
    project.send_back_early(parts, "caption")
    assert project.cluster.field(decided, "JobState") == "PENDING"
    assert project.wait_end(f"{parts}_0") == "COMPLETED", project.explain(parts)
    assert project.wait_end(reported, seconds=480) == "COMPLETED", project.explain(reported)
    assert "captions kept" in project.log(decided)
    assert (run.path / "report.html").is_file()
    files = {path.name for path in (run.scores / "clip").iterdir()}
    assert files == {"about.json", "captions-00000.jsonl", "planted-00000.jsonl"}
    alone = RunFolder(tmp_path / "alone")
    shutil.copytree(run.path, alone.path, ignore=shutil.ignore_patterns("scores"))
    score(alone, [make_scorer(f"clip:{clip}")], plants=40)
    # Measured: the same with as many threads, the last digit (1e-5) with another number of them.
    together, expected = numbers_of(run, "clip"), numbers_of(alone, "clip")
    assert list(together) == list(expected)
    for row, numbers in expected.items():
        assert together[row] == pytest.approx(numbers, abs=1e-4)


def test_an_array_selects_what_one_process_selects(project, tmp_path):
    write_shards(squares(60), project.folder / "squares")
    options = ("--shortest-side", "16", "--near", "-1", "--workers", "1")
    words = ("select", "shards", "selected", str(project.folder / "squares"), *options)
    parts, chosen = submitted(project, "2", *words)
    assert project.wait_end(chosen, seconds=480) == "COMPLETED", project.explain(chosen)
    assert len(list((project.folder / "logs").glob(f"pargo-caption-{parts}_*.out"))) == 2
    alone = selected_run(tmp_path, 60)
    selected = [
        [(row["id"], row["draw"]) for row in read_lines(run.selected)]
        for run in (RunFolder(project.folder / "selected"), alone)
    ]
    assert selected[0] == selected[1]


ANSWERS = """\
import argparse, json, pathlib
parser = argparse.ArgumentParser()
for name in ("-i", "-o", "--model"):
    parser.add_argument(name, required=True)
options = parser.parse_args()
with open(options.o, "w") as out:
    for line in open(options.i):
        request = json.loads(line)
        assert request["body"]["model"] == options.model
        text = json.dumps({"global": "A square stands on grey ground.", "parts": []})
        body = {"model": options.model, "usage": {"prompt_tokens": 9, "completion_tokens": 9},
                "choices": [{"finish_reason": "stop", "message": {"content": text}}]}
        response = {"status_code": 200, "request_id": "x", "body": body}
        out.write(json.dumps({"custom_id": request["custom_id"], "response": response}) + "\\n")
"""


def test_batch_files_are_answered_on_nodes_and_read_back(project):
    """With a stand-in of vLLM that takes its arguments and writes its form of results."""
    from pargo_ds.captioning.ask.batch_files import read_results, write_batches
    from pargo_ds.captioning.ask.budget import Price

    module = project.folder / "vllm/entrypoints/openai/run_batch.py"
    module.parent.mkdir(parents=True)
    module.write_text(ANSWERS)
    run = selected_run(project.folder / "batches", 7)
    folder: Path = project.folder / "asked"
    prompt, parameters, free = read_prompt(), Parameters("tiny"), Price(0, 0)
    with Ledger(run.ledger) as ledger:
        written = write_batches(jobs_of(run), folder, ledger, prompt, parameters,
                                price=free, limit=0.0, file_requests=3)  # fmt: skip
        assert len(written) == 3
        (job,) = submitted(project, "batches", "asked", "--model", "tiny")
        for number in (1, 2, 3):
            assert project.wait_end(f"{job}_{number}") == "COMPLETED", project.explain(job)
        assert not list(folder.glob("*.unfinished"))
        results = sorted(folder.glob("results-*.jsonl"))
        assert read_results(results, ledger, free)["ok"] == 7
        assert write_captions(run, ledger, prompt, parameters)["ok"] == 7
    assert json.loads(run.money.read_text())["answers"] == 7
    assert submitted(project, "batches", "asked", "--model", "tiny") == []
