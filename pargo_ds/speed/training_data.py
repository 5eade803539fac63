"""What trainers are compared on: the demo's questions, and a mix with long conversations of text
only.

In the mix a quarter of the samples has no image and lengths that are log-normal around 250 words,
eight times a question's: as in instruction mixes (plan_mixes.py), rows of one batch differ much.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pargo_ds.config import RunConfig, load_config
from pargo_ds.data.shards.mds import write_shards
from pargo_ds.data.shards.schema import Sample
from pargo_ds.scenes.splits import ScenesPlan, scene_samples

DATA = ("demo", "mix")
SCENES_A_TEXT = 3
MEDIAN_WORDS, SIGMA, WORDS = 250, 0.8, (20, 600)
MIX_PACK = 1024
"""Tokens of a pack of the mix, which hold its longest conversation; the demo's questions have the
run file's own size.
"""
ENDLESS = 10**9


def text_samples(scenes: Iterable[Sample], count: int) -> Iterator[Sample]:
    """Yield `count` conversations without images, made of the scenes' captions; the same ones at
    every call.
    """
    sentences = itertools.cycle(scene.captions["detailed"] for scene in scenes)
    drawn = random.Random(0)
    for number in range(count):
        wanted = drawn.lognormvariate(0, SIGMA) * MEDIAN_WORDS
        wanted = min(max(wanted, WORDS[0]), WORDS[1])
        words: list[str] = []
        while len(words) < wanted:
            words += next(sentences).split()
        turns = [
            {"role": "user", "content": "Tell me about some scenes."},
            {"role": "assistant", "content": " ".join(words[: round(wanted)])},
        ]
        yield Sample(id=f"text-{number:05d}", turns=turns)


def write_data(folder: Path, scenes: int) -> dict[str, list[Path]]:
    """Write the shards below `folder`, unless they are there; return the folders of each data set.

    Raises ValueError for fewer than 2 scenes, GlyphError where the images cannot be had.
    """
    asked, texts = folder / f"scenes_{scenes}", folder / f"texts_{scenes}"
    if not (asked.is_dir() and texts.is_dir()):
        made = list(scene_samples(ScenesPlan(train=scenes, validation=2, concepts=24), "train"))
        write_shards(made, asked, force=True)
        write_shards(text_samples(made, -(-scenes // SCENES_A_TEXT)), texts, force=True)
    return {"demo": [asked], "mix": [asked, texts]}


def run_on(
    run_file: Path,
    data: str,
    shards: list[Path],
    out: Path,
    changes: Sequence[str] = (),
    ranks: int = 1,
) -> RunConfig:
    """Return the run file's run, training for ever on these shards from its published parts; it
    saves nothing and asks no benchmark. `changes` are overrides such as `train.precision=fp32`. A
    step has the run file's packs, or so many more that they divide over the ranks.

    Raises ConfigError as load_config does.
    """
    packs = [f"batch.tokens_per_pack={MIX_PACK}"] if data == "mix" else []
    asked = load_config(run_file).batch.packs_per_step
    if asked % ranks:
        packs.append(f"batch.packs_per_step={-(-asked // ranks) * ranks}")
    return load_config(
        run_file,
        [
            f"name={data}",
            f"output={out}",
            "start_from=null",
            "train.epochs=null",
            f"train.steps={ENDLESS}",
            f"data.train=[{', '.join(str(path) for path in shards)}]",
            "data.validation=null",
            f"checkpoint.every={ENDLESS}",
            "evaluation.benchmarks={}",
            "reporting.wandb=disabled",
            f"survival.watchdog_minutes={24 * 60}",
            *packs,
            *changes,
        ],
    )
