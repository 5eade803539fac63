"""Ask a benchmark's questions: any number of processes that share nothing but a folder.

The units are planned over all questions and rank r of n takes those with number % n == r, so
nothing waits for another rank, a rank that dies loses one unit, and any number of ranks goes on.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from pargo_ds.errors import UserError
from pargo_ds.evaluation.answers import answer_items, read_reference
from pargo_ds.evaluation.benchmark import Answer, Benchmark, ImageRef, Item, Prompt, images_by_name
from pargo_ds.evaluation.captions import derangement
from pargo_ds.evaluation.likelihood import rank_options
from pargo_ds.evaluation.store import Store, digest, item_lines
from pargo_ds.evaluation.units import plan_units, units_of_rank
from pargo_ds.files.sha256sums import HASHES, hash_files, listable_files

GREY = (128, 128, 128)
IMAGES = ("real", "blank", "shuffled")
Load = Callable[[ImageRef], Image.Image]


@dataclass(frozen=True, kw_only=True)
class AskSettings:
    """What besides the model, the questions and the prompt decides an answer."""

    images: str = "real"
    """real; blank: a grey image of the same size; shuffled: another question's image."""
    rows: int = 64
    """Rows of a batch at most."""
    tokens: int = 32768
    """Rows x longest row of a batch at most, answers included."""


def image_loader(items: Sequence[Item], images: str, seed: int = 0) -> Load:
    """Return how an image is shown. Raises UserError for an unknown way or too few images to
    shuffle.
    """
    if images not in IMAGES:
        raise UserError(f"images '{images}': expected one of {', '.join(IMAGES)}")
    if images == "real":
        return read_reference
    if images == "blank":
        return lambda image: Image.new("RGB", read_reference(image).size, GREY)
    distinct = images_by_name(items)
    names = list(distinct)
    if len(names) < 2:
        raise UserError("one image cannot be shuffled; use --images blank")
    order = derangement(len(names), seed)
    other = {name: distinct[names[place]] for name, place in zip(names, order, strict=True)}
    return lambda image: read_reference(other[image.name])


def plan(
    processor: Any, items: Sequence[Item], prompt: Prompt, settings: AskSettings
) -> list[list[int]]:
    """Return the units of positions of items, by the lengths of their prompts in tokens.

    Raises UserError where options are to be ranked and a question has none.
    """
    lengths, height = [], []
    for item in items:
        if prompt.likelihood and not item.options:
            raise UserError(f"question {item.id} has no options whose likelihood could be ranked")
        answer, rows = prompt.max_new_tokens, prompt.beams
        if prompt.likelihood:
            # An option has at most as many tokens as bytes, and a few more end the answer.
            answer = max(len(option.encode()) + 4 for option in item.options)
            rows = len(item.options)
        lengths.append(prompt_tokens(processor, item.prompt) + answer)
        height.append(rows)
    images = [_first_image(item) for item in items]
    return plan_units(lengths, images, rows=settings.rows, tokens=settings.tokens, rows_each=height)


def _first_image(item: Item) -> str:
    """The name of the item's first image, "" where it has none."""
    if not item.images:
        return ""
    return item.images[0].name


def prompt_tokens(processor: Any, prompt: str) -> int:
    """Return the number of tokens that a prompt comes to, visual tokens included."""
    ids, _ = processor.encode_conversation(
        [{"role": "user", "content": prompt}], add_generation_prompt=True
    )
    return len(ids)


def weights_digest(export: Path) -> str:
    """Return SHA-256 of the export's list of hashes, or of its files where it has no list."""
    path = export / HASHES
    if path.is_file():
        return digest(path.read_text(encoding="utf-8"))
    return digest(hash_files(export, listable_files(export), shown=False))


def fingerprint(
    weights: str,
    model: Any,
    processor: Any,
    items: Sequence[Item],
    units: Sequence[Sequence[int]],
    benchmark: Benchmark,
    prompt_name: str,
    settings: AskSettings,
) -> dict[str, Any]:
    """Return everything that decides an answer: what differs in any of it is not mixed."""
    return {
        "benchmark": benchmark.name,
        "weights": weights,
        "processor": processor.fingerprint(),
        "precision": str(model.dtype),
        "prompt": {"name": prompt_name, **asdict(benchmark.prompts[prompt_name])},
        "settings": asdict(settings),
        "questions": digest(item_lines(items)),
        "number": len(items),
        "expected": list(benchmark.questions),
        "units": len(units),
        "plan": digest([list(unit) for unit in units]),
    }


def machine(model: Any) -> dict[str, str]:
    """Return what else may decide a tie between two tokens: versions, device, attention."""
    device = model.device
    name = platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": name,
        "attention": str(model.config.get_text_config()._attn_implementation),
    }


def answers_of(
    model: Any, processor: Any, items: Sequence[Item], prompt: Prompt, load: Load
) -> tuple[list[Answer], int]:
    """Return (answers to a unit, times it was halved because it did not fit into memory).

    Raises torch.OutOfMemoryError when one question alone does not fit.
    """
    try:
        if prompt.likelihood:
            return rank_options(model, processor, items, load=load), 0
        found = answer_items(
            model, processor, items, load=load, max_new_tokens=prompt.max_new_tokens,
            beams=prompt.beams,
        )  # fmt: skip
        return found, 0
    except torch.OutOfMemoryError:
        if len(items) == 1:
            raise
    # Outside of the handler, whose traceback would keep the batch's tensors alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(items) // 2
    first, one = answers_of(model, processor, items[:half], prompt, load)
    second, other = answers_of(model, processor, items[half:], prompt, load)
    return first + second, 1 + one + other


def items_of_unit(items: Sequence[Item], unit: Sequence[int]) -> list[Item]:
    """Return the questions at the positions that a unit holds: one batch."""
    return [items[place] for place in unit]


def ask(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    units: Sequence[Sequence[int]],
    prompt: Prompt,
    store: Store,
    *,
    load: Load = read_reference,
    rank: int = 0,
    ranks: int = 1,
    progress: Callable[[int], object] = lambda done: None,
) -> int:
    """Ask the units of this rank that have no file yet; returns how many these were.

    Raises ValueError for an image that cannot be read, with its name.
    """
    todo = store.missing(units_of_rank(len(units), rank, ranks))
    about = machine(model)
    batches = (items_of_unit(items, units[number]) for number in todo)
    for number, (batch, decoded) in zip(todo, _read_ahead(batches, load), strict=True):
        found, halved = answers_of(model, processor, batch, prompt, decoded)
        store.write(number, {**about, "unit": number, "halved": halved}, found)
        progress(len(batch))
    return len(todo)


def _read_ahead(batches: Iterable[list[Item]], load: Load) -> Iterator[tuple[list[Item], Load]]:
    """Each batch with its images, while a thread reads those of the next one; never more than two
    batches' images are in memory.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: tuple[list[Item], Future[Load]] | None = None
        for batch in batches:
            following = batch, pool.submit(decoded, batch, load)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def decoded(batch: Sequence[Item], load: Load = read_reference) -> Load:
    """Read the images of a batch now. Raises ValueError for one that cannot be read."""
    read = {name: load(image) for name, image in images_by_name(batch).items()}
    return lambda image: read[image.name]
