"""The base of all sources: a source gives chunks of inputs, and each input gives one outcome in
order, a sample or a reject.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pargo_ds.data.shards.schema import Sample
from pargo_ds.data.sources.rejects import Reject, shortened
from pargo_ds.errors import SourceError

CHUNK_INPUTS = 2000
CHUNK_BYTES = 1 << 26
"""A chunk of lines or rows ends when it has this number of inputs or of bytes."""

InputLocation = dict[str, Any]
"""Where an input lies: its file, and its line, entry, row or member."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Inputs that one process turns into samples. `payload` is sent to the process; `weight`, in
    bytes, is for the progress bar.
    """

    payload: Any
    weight: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one input: `sample`, or None with the kind and the reason of a reject."""

    where: InputLocation
    id: str
    sample: Sample | None
    kind: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """Base of the sources. A source has options, which identify a build, and the four abstract
    methods below.
    """

    files: tuple[str, ...]
    chunk_inputs: int = CHUNK_INPUTS
    threads = 1
    """Number of inputs of a chunk that are handled at the same time, while they are downloaded."""

    def __post_init__(self) -> None:
        if self.chunk_inputs < 1:
            raise ValueError(f"chunks of {self.chunk_inputs} inputs; expected at least 1")
        if not self.files:
            raise SourceError("no input files; name at least one")
        for name in self.files:
            if not Path(name).is_file():
                raise SourceError(f"{name} is not a file; give the files to read")

    def weight(self) -> int:
        """Return approximately the sum of the weights of all chunks: the bytes of the files."""
        return sum(Path(name).stat().st_size for name in self.files)

    @abc.abstractmethod
    def chunks(self) -> Generator[Chunk, None, None]:
        """Yield all inputs in order. They are cut into the same chunks each time.

        Raises SourceError for a file that cannot be read.
        """

    @abc.abstractmethod
    def entries(self, payload: Any) -> Iterator[tuple[InputLocation, Any]]:
        """Yield the inputs of a chunk, each with its place. A Reject stands for an input that
        cannot be parsed.
        """

    @abc.abstractmethod
    def identify(self, where: InputLocation, entry: Any) -> str:
        """Return the id of an input. Raises Reject."""

    @abc.abstractmethod
    def sample(self, entry: Any, sample_id: str) -> Sample:
        """Convert an input to a sample that is not yet checked. Raises Reject."""


def outcomes(
    source: Source, payload: Any, transform: Callable[[Sample], Sample]
) -> Iterator[Outcome]:
    """Yield one outcome for each input of a chunk, in order. `transform` checks a sample and
    prepares its images.
    """

    def outcome(located: tuple[InputLocation, Any]) -> Outcome:
        return _outcome(source, *located, transform)

    if source.threads == 1:
        yield from map(outcome, source.entries(payload))
        return
    with ThreadPoolExecutor(source.threads) as threads:
        waiting: deque[Future[Outcome]] = deque()
        for located in source.entries(payload):
            waiting.append(threads.submit(outcome, located))
            if len(waiting) > 2 * source.threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _outcome(
    source: Source, where: InputLocation, entry: Any, transform: Callable[[Sample], Sample]
) -> Outcome:
    sample_id = ""
    try:
        if isinstance(entry, Reject):
            raise entry
        sample_id = source.identify(where, entry)
        return Outcome(where, sample_id, transform(source.sample(entry, sample_id)))
    except Reject as reject:
        return Outcome(where, sample_id, None, reject.kind, reject.reason)
    except RecursionError:
        return Outcome(where, sample_id, None, "does not fit", "it is nested too deeply")
    except OSError:
        raise
    except Exception as error:
        raise RuntimeError(
            f"{where}: a fault of the program, not of the input: {type(error).__name__}: {error}"
        ) from error


def text_id(value: Any, fallback: str) -> str:
    """Return the id that a record gives (a text or a number), or `fallback` if it gives none. The
    number 17.0, which pandas makes of 17, is the id 17.

    Raises Reject for a value of another type.
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return fallback
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise Reject("bad id", f"the id is {shortened(value)}; expected text or a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    if len(text) > 1000:
        raise Reject("bad id", f"the id has {len(text):,} characters; expected at most 1000")
    return text


def file_stem(path: str) -> str:
    """Return the name of a file without its endings, also without .gz. Ids of inputs that have no
    id begin with it.
    """
    name = Path(path).name
    if name.lower().endswith(".gz"):
        name = name[: -len(".gz")]
    return Path(name).stem
