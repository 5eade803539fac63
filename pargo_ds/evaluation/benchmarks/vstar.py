"""V*Bench: small things in large images; the first option is right.

Rule: vstar_bench_eval.py takes the option of the lowest loss a token. Letters would need another
order of the options, for which there is no official one.
"""

from __future__ import annotations

from pathlib import Path

from pargo_ds.errors import SourceError
from pargo_ds.evaluation.benchmark import Answer, Benchmark, Item, Judgement, Prompt
from pargo_ds.evaluation.benchmarks.files import (
    IMAGE_ENDINGS,
    image_file,
    one_folder,
    read_json,
)
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS
from pargo_ds.evaluation.benchmarks.ranking import likeliest

PARTS = ("direct_attributes", "relative_position")


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge an answer as right when no option is likelier than the first one."""
    place = likeliest(answer.losses)
    return Judgement(item.options[place], float(place == 0))


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read the folders direct_attributes/ and relative_position/ with IMAGE and IMAGE.json.

    Raises SourceError for an image without questions or the reverse.
    """
    items = []
    for part in PARTS:
        folder = one_folder(source, part)
        images = [path for path in sorted(folder.iterdir()) if path.suffix in IMAGE_ENDINGS]
        texts = {path.stem for path in folder.glob("*.json")}
        odd = texts ^ {path.stem for path in images}
        if odd:
            raise SourceError(f"{folder}: {sorted(odd)[:3]} lack the image or the .json")
        for path in images:
            entry = read_json(path.with_suffix(".json"))
            items.append(
                Item(
                    id=f"{part}/{path.stem}",
                    prompt=prompt.fill(entry["question"]),
                    images=(image_file(path, source),),
                    truth=entry["options"][0],
                    options=tuple(entry["options"]),
                    cluster=f"{part}/{path.stem}",
                    stratum=part,
                    groups=(part,),
                )
            )
    return items


BENCHMARK = Benchmark(
    name="vstar",
    title="V*Bench",
    files="the folders direct_attributes/ and relative_position/",
    questions=(191,),
    source="hf.co/datasets/craigwu/vstar_bench",
    licence="MIT",
    rule="vstar_bench_eval.py: the option of the lowest loss a token",
    prompts=PROMPTS["vstar"],
    read=read,
    judge=judge,
)
