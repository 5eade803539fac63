"""Shards built by an array job, and merged by the job after it."""

from __future__ import annotations

import json

import pytest
from tiny import COLOURS, draw

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SAMPLES = 30


def test_an_array_of_parts_and_a_merge_make_one_data_set(project):
    from pargo_ds.data.shards.mds import read_samples

    images = project.folder / "images"
    images.mkdir()
    records = []
    for number in range(SAMPLES):
        colour = COLOURS[number % len(COLOURS)]
        (images / f"{number}.png").write_bytes(draw(colour, number % 9, size=32 + number))
        turns = [
            {"from": "human", "value": "<image>\nWhat colour is it?"},
            {"from": "gpt", "value": colour},
        ]
        records.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (project.folder / "llava.json").write_text(json.dumps(records))
    arguments = [
        "3",
        "llava",
        "built",
        "llava.json",
        "--image-folder",
        "images",
        "--max-rejects",
        "0",
        "--workers=1",
    ]
    output = project.cluster.command("slurm/shards.sh", *arguments, cwd=project.folder)
    jobs = [line.split()[-1] for line in output.splitlines()]
    assert project.wait_end(jobs[1], seconds=300) == "COMPLETED", project.explain(
        jobs[0]
    ) + project.explain(jobs[1])
    assert len(list((project.folder / "logs").glob(f"pargo-shards-{jobs[0]}_*.out"))) == 3
    assert (project.folder / "built/index.json").is_file()
    assert sorted(int(sample.id) for sample in read_samples(project.folder / "built")) == list(
        range(SAMPLES)
    )
