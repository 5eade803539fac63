"""What lmms-eval and the plug-in do in one process: EXPORT TASKS KEPT SAID -> a line of JSON."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path

from datasets import load_dataset
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from lmms_eval.tasks.mme.utils import mme_aggregate_results, mme_process_results

from pargo_ds.errors import UserError
from pargo_ds.evaluation import ask
from pargo_ds.evaluation.benchmark import Answer, Item
from pargo_ds.evaluation.benchmarks import BENCHMARKS
from pargo_ds.evaluation.exported import load_exported
from pargo_ds.evaluation.likelihood import option_losses
from pargo_ds.evaluation.lmms_adapter import ParGoForLmmsEval, settings_of
from pargo_ds.evaluation.score import score
from pargo_ds.files.sha256sums import write_hashes

export, tasks, kept = map(Path, sys.argv[1:4])
said = json.loads(sys.argv[4])


def answers(folder: Path, batch: int, export: Path = export) -> list[str]:
    """lmms-eval's answers to its own task, in the order of the documents."""
    result = simple_evaluate(
        model="pargo", model_args=f"pretrained={export},answers={folder}", tasks=["mme_local"],
        batch_size=batch, task_manager=TaskManager(include_path=str(tasks)), log_samples=True,
    )  # fmt: skip
    rows = sorted(result["samples"]["mme_local"], key=lambda row: row["doc_id"])
    return [row["resps"][0][0] for row in rows]


def refusal(action, *arguments) -> str:
    try:
        action(*arguments)
    except UserError as error:
        return str(error)
    return ""


class Request:
    """What the plug-in reads of lmms-eval's Instance."""

    def __init__(self, *args) -> None:
        self.args = args


def losses() -> tuple[list[float], list[float]]:
    """(the plug-in's, the likelihood runner's) of options to the first document's image."""
    model, processor = load_exported(export)
    plug_in = ParGoForLmmsEval(str(export), batch_size=3)
    docs = load_dataset("parquet", data_files={"test": str(tasks / "mme.parquet")})
    plug_in.task_dict["mme_local"] = docs
    options = ("Yes", "No", "A red square.")
    requests = [
        Request("Is it red?", f" {text}", lambda doc: [doc["image"]], 0, "mme_local", "test")
        for text in options
    ]
    item = Item(id="q", prompt="<image>\nIs it red?", images=(), truth=None, options=options)
    image = docs["test"][0]["image"]
    expected = option_losses(model, processor, [item], [[image]])[0]
    return [loss for loss, _ in plug_in.loglikelihood(requests)], [a / b for a, b in expected]


def scores() -> tuple[float, float]:
    """(ours, lmms-eval's) MME score of answers that both rules read alike."""
    items, texts, theirs = [], itertools.cycle(said), []
    answers = []
    for task, image, truth in itertools.product(("color", "count"), range(9), ("yes", "no")):
        cluster = f"{task}/{image}"
        items.append(Item(id=f"{cluster}/{truth}", prompt="", images=(), truth=truth,
                          cluster=cluster, stratum=task, groups=(task,)))  # fmt: skip
        text = truth if image % 3 == 0 else next(texts)
        answers.append(Answer(id=items[-1].id, text=text))
        doc = {"question_id": cluster, "category": task, "answer": truth}
        theirs.append(mme_process_results(doc, [text])["mme_perception_score"])
    own = score(BENCHMARKS["mme"], items, answers, draws=10)
    return own["figures"]["perception"]["value"], mme_aggregate_results(theirs)


found: dict[str, object] = {"batch_of_four": answers(kept, 4)}
times = []
real = ask.answers_of
ask.answers_of = lambda *arguments: times.append(1) or real(*arguments)
found |= {"kept": answers(kept, 4), "asked_again": len(times)}
other = kept.parent / "other"
shutil.copytree(export, other)
(other / "note.txt").write_text("another export")
write_hashes(other)
found["other_weights"] = refusal(answers, kept, 4, other)
found["unknown_setting"] = refusal(settings_of, {"typical_p": 0.5})
found["sampling"] = refusal(settings_of, {"temperature": 0.7})
found["losses"], found["expected_losses"] = losses()
found["score"], found["their_score"] = scores()
print(json.dumps(found))
