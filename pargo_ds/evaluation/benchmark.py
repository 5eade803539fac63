"""What a benchmark is: how its files are read, what is asked, and how answers become figures.

A benchmark is a record of pure functions in one file of `benchmarks/`. The runner asks without
knowing the rule, and scoring needs no model: it reads the questions and answers that the runner
wrote. This module imports no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pargo_ds.data.shards.schema import IMAGE_PLACEHOLDER
from pargo_ds.errors import UserError


@dataclass(frozen=True)
class ImageRef:
    """One image of a benchmark, read only when it is asked about.

    `name` is its identity: equal names are the same image. `size` in bytes goes into the
    fingerprint of the questions, so that another image under the same name is noticed.
    """

    name: str
    size: int
    read: Callable[[], bytes] = field(compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question."""

    id: str
    prompt: str
    """The user's turn, with `<image>` where each image goes."""
    images: tuple[ImageRef, ...]
    truth: Any
    """What the rule compares with; a JSON value."""
    options: tuple[str, ...] = ()
    """The texts that a question offers, in the order of their letters."""
    cluster: str = ""
    """What is drawn independently: the image, or a set of images that belong together."""
    stratum: str = ""
    """Clusters are drawn within their stratum, where a benchmark fixes how many each part has."""
    groups: tuple[str, ...] = ()
    """Parts of the benchmark that the question belongs to; each becomes a row of the table."""
    meta: Mapping[str, Any] = field(default_factory=dict)


def images_of(items: Iterable[Item]) -> Iterator[ImageRef]:
    """Yield all images that the items show, in their order; one that several items show comes
    again.
    """
    for item in items:
        yield from item.images


def images_by_name(items: Iterable[Item]) -> dict[str, ImageRef]:
    """Return the images that the items show by their names, each once, in the order of the items."""
    return {image.name: image for image in images_of(items)}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said to one item."""

    id: str
    text: str = ""
    tokens: int = 0
    """Generated tokens before the one that ends an answer."""
    cut: bool = False
    """No token ended the answer: it stopped at the limit."""
    margin: float | None = None
    """Best minus second logit of the first token, in units of the spacing of numbers at the best
    one in the model's dtype. Up to one, another batch or kernel may give another answer."""
    losses: tuple[tuple[float, int], ...] = ()
    """Likelihood scoring: for each option its summed loss (nats) and its tokens, the ending one
    included."""


@dataclass(frozen=True)
class Judgement:
    """What a rule makes of an answer: what it read in it (None: nothing, unparsed), and the share
    of the point, 0 to 1.
    """

    said: str | None
    right: float


@dataclass(frozen=True)
class Mark:
    """One number that a figure is made of: `value` (0 to 1) counted under `name`."""

    name: str
    value: float
    item: Item
    """Says in which cluster and stratum it is drawn."""


@dataclass(frozen=True)
class Totals:
    """Sums and numbers of marks by name; each an array over draws of clusters, shape `(draws,)`."""

    sums: Mapping[str, np.ndarray]
    counts: Mapping[str, np.ndarray]

    @property
    def names(self) -> list[str]:
        """The names under which marks were counted."""
        return list(self.sums)

    def mean(self, name: str) -> np.ndarray:
        """Return the mean value of the marks, NaN in a draw without any."""
        return ratio(self.sums[name], self.counts[name])


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return the quotient, NaN where nothing was counted."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below != 0)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """How a question is put; `template` has `{question}`, `{options}` (each on its line) and
    `{hint}`.
    """

    template: str = "{question}"
    option: str = "{letter}. {text}"
    hint: str = "{hint}\n"
    """How a hint is written where there is one."""
    without: str = ""
    """Taken out of the question first."""
    max_new_tokens: int = 16
    beams: int = 1
    likelihood: bool = False
    """The option of the lowest loss is the answer; nothing is generated."""
    source: str = ""
    """Where this wording is from."""

    def fill(
        self, question: str, options: Sequence[str] = (), hint: str = "", images: int = 1
    ) -> str:
        """Return the user's turn: the images first, as in training, then the text."""
        lines = []
        for place, option in enumerate(options):
            lines.append(self.option.format(letter=letter_of(place), text=option))
        if self.without:
            question = question.replace(self.without, "")
        if hint:
            hint = self.hint.format(hint=hint)
        text = self.template.format(question=question, options="\n".join(lines), hint=hint)
        if not images:
            return text
        return f"{IMAGE_PLACEHOLDER * images}\n{text}"


def letter_of(place: int) -> str:
    """Return the capital letter of the option at a place: A for 0, B for 1."""
    return chr(ord("A") + place)


@dataclass(frozen=True, kw_only=True)
class Grading:
    """How another model grades answers: what it is asked, and what its reply means.

    `evaluation/judge.py` keeps the replies, and names model and prompt in the table.
    """

    name: str
    """The prompt's name and origin."""
    text: str
    """What is asked of each answer, with {question}, {truth} and {answer} in it."""
    system: str = ""
    title: str
    """The benchmark's title when it is graded."""
    truth: Callable[[Item], str]
    """What stands for {truth}."""
    read: Callable[[Item, str], Judgement]
    """What a reply grants; `said` is None where it cannot be understood, which counts 0."""


def accuracy_marks(items: Sequence[Item], judged: Sequence[Judgement]) -> Iterable[Mark]:
    """Yield a mark for each item, under `overall` and under each of its groups."""
    for item, judgement in zip(items, judged, strict=True):
        for name in ("overall", *item.groups):
            yield Mark(name, judgement.right, item)


def group_marks(items: Sequence[Item], judged: Sequence[Judgement]) -> Iterable[Mark]:
    """Yield a mark for each item under each of its groups."""
    return (mark for mark in accuracy_marks(items, judged) if mark.name != "overall")


def all_right_marks(
    items: Sequence[Item],
    judged: Sequence[Judgement],
    key: Callable[[Item], Any],
    names: Callable[[Item], Iterable[str]],
) -> Iterable[Mark]:
    """Yield a mark for each set of items with the same key: 1 when all of them are right.

    `names` of the set's first item say what it counts for; all of a set lie in one cluster.
    """
    sets: dict[Any, list[tuple[Item, Judgement]]] = {}
    for item, judgement in zip(items, judged, strict=True):
        sets.setdefault(key(item), []).append((item, judgement))
    for members in sets.values():
        right = float(all(judgement.right == 1 for _, judgement in members))
        for name in names(members[0][0]):
            yield Mark(name, right, members[0][0])


def percentages(totals: Totals) -> dict[str, np.ndarray]:
    """Return each name's mean in percent."""
    return {name: 100 * totals.mean(name) for name in totals.names}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """All that the runner and the scorer need to know of one benchmark.

    `read(source, prompt)` reads the official files; it raises SourceError for whatever is not as
    it should be. `judge(item, answer)` is the rule; `marks(items, judged)` and `figures(totals)`
    make numbers of the judgements, the first of which is the headline. All but `read` are pure.
    """

    name: str
    title: str
    files: str
    """What the folder or file given on the command line holds, one line."""
    questions: tuple[int, ...]
    """Numbers of questions that the official files have, one for each release; () for any."""
    source: str
    """Where people get it."""
    licence: str
    rule: str
    """The rule's name and origin, one line."""
    prompts: Mapping[str, Prompt]
    """By name; the first one is the default."""
    read: Callable[[Path, Prompt], list[Item]]
    judge: Callable[[Item, Answer], Judgement]
    marks: Callable[[Sequence[Item], Sequence[Judgement]], Iterable[Mark]] = accuracy_marks
    figures: Callable[[Totals], dict[str, np.ndarray]] = percentages
    headline: str = "overall"
    unit: str = "%"
    needs: str = ""
    """What figures need beside answers and truths: "judge" (another model's grades), "server"
    (truths that its authors keep), "boxes" (a model that answers with boxes). Without it no figure
    is made."""
    grading: Grading | None = None
    """How a judge grades the answers; it takes the place of `judge` once all have their verdict."""
    other_rules: Mapping[str, Callable[[Item, Answer], Judgement]] = field(default_factory=dict)
    """Rules of other publications by name; their headlines are printed beside the official one."""


def read_items(benchmark: Benchmark, source: Path, prompt: Prompt, subset: bool) -> list[Item]:
    """Read the benchmark's questions from its files.

    Raises UserError when there are none, or not as many as the official files have (unless
    `subset`), or two have the same id.
    """
    items = benchmark.read(source, prompt)
    expected = " or ".join(f"{number:,}" for number in benchmark.questions)
    if not items:
        raise UserError(f"{source} holds no questions of {benchmark.title}")
    if benchmark.questions and len(items) not in benchmark.questions and not subset:
        raise UserError(
            f"{source} holds {len(items):,} questions; {benchmark.title} has {expected}. Copy the "
            "files anew, or say --subset, which marks the table"
        )
    times = Counter(item.id for item in items)
    twice = [name for name in times if times[name] > 1]
    if twice:
        raise UserError(f"{source}: {len(twice)} questions stand twice: {', '.join(twice[:3])}")
    return items
