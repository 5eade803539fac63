"""lmms-eval's tasks on an exported model: the class behind the plug-in of lmms_plugin.py.

    python -m lmms_eval --model pargo --model_args pretrained=EXPORT,answers=OUT --tasks mme

Only lmms-eval imports this module (it is no requirement, see requirements/lmms-eval.txt). Questions
are asked by the same engine as our own benchmarks: batches are planned over all questions of a
task, each question with its own images and settings, and answers are kept batch by batch in
`answers`, where the fingerprint refuses those of other weights, questions or images.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image

from pargo_ds.data.shards.schema import IMAGE_PLACEHOLDER
from pargo_ds.errors import UserError
from pargo_ds.evaluation.ask import AskSettings, ask, machine, plan, weights_digest
from pargo_ds.evaluation.benchmark import Answer, ImageRef, Item, Prompt
from pargo_ds.evaluation.exported import load_exported
from pargo_ds.evaluation.store import Store, digest, item_lines

MAX_NEW_TOKENS = 1024
"""Where a task gives no number; lmms-eval's own models take the same."""
WITHOUT_SAMPLING = {"temperature", "top_p", "do_sample"}
OF_OTHER_MODELS = {"image_aspect_ratio"}
"""What tasks set for LLaVA's own way with images."""


def settings_of(wishes: Mapping[str, Any]) -> tuple[Prompt, tuple[str, ...]]:
    """Return (how a question is answered, texts that end an answer) of a task's generation_kwargs.

    Raises UserError for sampling and for a setting that is not known: passing over it would give
    other figures than the task's.
    """
    known = {"max_new_tokens", "num_beams", "until"} | WITHOUT_SAMPLING | OF_OTHER_MODELS
    unknown = sorted(set(wishes) - known)
    if unknown:
        raise UserError(
            f"generation_kwargs {', '.join(unknown)}: not known; expected some of {', '.join(sorted(known))}"
        )
    warm = (wishes.get("temperature") or 0) > 0
    if wishes.get("do_sample", warm):
        raise UserError("generation_kwargs ask for sampling; answers are taken greedily here")
    until = wishes.get("until") or ()
    prompt = Prompt(
        max_new_tokens=int(wishes.get("max_new_tokens") or MAX_NEW_TOKENS),
        beams=int(wishes.get("num_beams") or 1),
    )
    if isinstance(until, str):
        until = (until,)
    return prompt, tuple(until)


def cut(text: str, until: Sequence[str]) -> str:
    """Return the text before the first of the endings."""
    for ending in filter(None, until):
        text = text.split(ending)[0]
    return text


def prompt_of(context: str, images: int) -> str:
    """Return the user's turn: images before the text, unless the text has a place for each.

    Raises UserError when it has places for another number of images.
    """
    places = context.count(IMAGE_PLACEHOLDER)
    if places == images:
        return context
    if places:
        raise UserError(f"{images} images for {places} {IMAGE_PLACEHOLDER} in: {context[:200]!r}")
    return f"{IMAGE_PLACEHOLDER * images}\n{context}"


class ParGoForLmmsEval(lmms):
    """An exported ParGo model as lmms-eval's "simple" models are: the processor knows the template,
    so the task's text and images are all that is needed.

    Args of --model_args:
        pretrained: the exported folder.
        answers: where answers are kept, so that a killed run goes on; nowhere if left out.
        batch_tokens: rows x longest of a batch at most.

    Raises UserError for an argument that is not known.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        *,
        answers: str | None = None,
        batch_tokens: int = 32768,
        batch_size: int | str = 1,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise UserError(
                f"--model_args {', '.join(unknown)}: not known; expected pretrained, answers or batch_tokens"
            )
        if device is None and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.model, self.processor = load_exported(pretrained, device)
        self.weights = weights_digest(Path(pretrained))
        self.settings = AskSettings(rows=int(batch_size), tokens=int(batch_tokens))
        if answers is None:
            self._kept_nowhere = tempfile.TemporaryDirectory()
            answers = self._kept_nowhere.name
        self.answers = Path(answers)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @property
    def batch_size(self) -> int:
        """Rows of a batch at most."""
        return self.settings.rows

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Return the answers in the order of the requests, cut at the task's `until`.

        Raises UserError for settings that are not known, and whatever asking raises: an error
        never becomes an empty, wrong answer.
        """
        asked = [settings_of(request.args[1]) for request in requests]
        answers = self._ask(requests, [prompt for prompt, _ in asked])
        return [cut(one.text, until) for one, (_, until) in zip(answers, asked, strict=True)]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Return for each request the mean loss a token of its continuation, the end of the answer
        included.

        The loss, not its negative: lmms-eval's tasks with options take the smallest, whatever its
        base class says. Whether greedy decoding would say the same is not computed (False).
        """
        found = []
        for answer in self._ask(requests, [Prompt(likelihood=True)] * len(requests)):
            ((total, tokens),) = answer.losses
            found.append((total / tokens, False))
        return found

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Raises UserError: answers that decide the next question are not asked here."""
        raise UserError("ParGo's plug-in answers single questions, no tasks of several rounds")

    def _ask(self, requests: Sequence[Instance], prompts: Sequence[Prompt]) -> list[Answer]:
        """Ask all, one task and kind of answer after the other."""
        alike: dict[tuple[str, str, Prompt], list[int]] = {}
        for place, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            *_, task, split = request.args
            alike.setdefault((task, split, prompt), []).append(place)
        found: dict[int, Answer] = {}
        for (task, split, prompt), places in alike.items():
            own = [requests[place] for place in places]
            folder = self.answers / _name(task, split, prompt) / f"{self.rank}_of_{self.world_size}"
            found |= zip(places, self._ask_alike(own, prompt, Store(folder)), strict=True)
        return [found[place] for place in range(len(requests))]

    def _ask_alike(
        self, requests: Sequence[Instance], prompt: Prompt, store: Store
    ) -> list[Answer]:
        items, shown = [], {}
        for number, request in enumerate(requests):
            images = []
            for place, image in enumerate(self._images(request)):
                name = digest_of(image)
                shown[name] = request, place
                images.append(ImageRef(name, image.width * image.height, bytes))
            items.append(_item(number, request, prompt, tuple(images)))
        units = plan(self.processor, items, prompt, self.settings)
        store.open(
            {
                "weights": self.weights,
                "processor": self.processor.fingerprint(),
                "precision": str(self.model.dtype),
                "questions": digest(item_lines(items)),
                "plan": digest(units),
                "units": len(units),
                **machine(self.model),
            },
            items,
        )

        def load(image: ImageRef) -> Image.Image:
            request, place = shown[image.name]
            return self._images(request)[place]

        ask(self.model, self.processor, items, units, prompt, store, load=load)
        return store.answers(items)[0]

    def _images(self, request: Instance) -> list[Image.Image]:
        """Raises UserError for what is no image."""
        _, _, doc_to_visual, doc_id, task, split = request.args
        found = doc_to_visual(self.task_dict[task][split][doc_id])
        for one in found:
            if not isinstance(one, Image.Image):
                raise UserError(f"task {task}, document {doc_id}: {type(one).__name__} is no image")
        return list(found)


def digest_of(image: Image.Image) -> str:
    """Return SHA-256 of an image's pixels: the name by which equal images are known."""
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


def _name(task: str, split: str, prompt: Prompt) -> str:
    if prompt.likelihood:
        return f"{task}-{split}-likelihood"
    return f"{task}-{split}-{prompt.max_new_tokens}x{prompt.beams}"


def _item(number: int, request: Instance, prompt: Prompt, images: tuple[ImageRef, ...]) -> Item:
    context, second, _, doc_id, task, _ = request.args
    if prompt.likelihood and not isinstance(second, str):
        raise UserError(f"task {task}: only likelihoods of options are known (multiple_choice)")
    return Item(
        id=f"{number}/{doc_id}",
        prompt=prompt_of(context, len(images)),
        images=images,
        truth=None,
        options=(second.strip(),) if prompt.likelihood else (),
    )
