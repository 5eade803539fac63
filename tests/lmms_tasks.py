"""lmms-eval's MME on local files: its own task, with our images and questions as Parquet."""

from __future__ import annotations

from pathlib import Path

TASK = """include: {mme}
task: mme_local
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {file}
"""


def write_mme_task(folder: Path, mme: Path, lmms_eval: Path) -> Path:
    """A folder for --include_path with the task `mme_local` over an MME folder.

    `lmms_eval` is the package's own folder, whose task is included.
    """
    from datasets import Dataset, Features, Image, Value

    from pargo_ds.evaluation.benchmark import Prompt
    from pargo_ds.evaluation.benchmarks import BENCHMARKS

    rows = [
        {
            "question_id": item.cluster,
            "image": {"bytes": item.images[0].read(), "path": None},
            "question": item.prompt.removeprefix("<image>\n"),
            "answer": str(item.truth).capitalize(),
            "category": item.stratum,
        }
        for item in BENCHMARKS["mme"].read(mme, Prompt())
    ]
    texts = dict.fromkeys(("question_id", "question", "answer", "category"), Value("string"))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "mme.parquet"
    Dataset.from_list(rows, features=Features({**texts, "image": Image()})).to_parquet(file)
    task = TASK.format(mme=lmms_eval / "tasks/mme/mme.yaml", file=file)
    (folder / "mme_local.yaml").write_text(task)
    return folder
