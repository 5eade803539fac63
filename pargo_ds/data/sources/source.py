"""What every source is: chunks of inputs, and one outcome (a sample or a reject) for each input, in order."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pargo_ds.data.schema import Sample
from pargo_ds.data.sources.rejects import Reject, SourceError, shortened

CHUNK_INPUTS = 2000
CHUNK_BYTES = 1 << 26
"""A chunk of lines or rows ends at so many inputs or bytes, whichever comes first."""

Where = dict[str, Any]
"""Where an input stands: file, and line, entry, row or member."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Inputs that one process turns into samples. `payload` goes to it; `weight` (bytes) is for the progress bar."""

    payload: Any
    weight: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one input: `sample`, or None with the kind of reject and its reason."""

    where: Where
    id: str
    sample: Sample | None
    kind: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """Base of the sources: their options, which are part of a build's identity, and the four functions below."""

    files: tuple[str, ...]
    chunk_inputs: int = CHUNK_INPUTS
    threads = 1
    """Inputs of a chunk that are waited for together (downloads)."""

    def __post_init__(self) -> None:
        if self.chunk_inputs < 1:
            raise ValueError(f"chunks of {self.chunk_inputs} inputs; expected at least 1")
        if not self.files:
            raise SourceError("no input files; name at least one")
        for name in self.files:
            if not Path(name).is_file():
                raise SourceError(f"{name} is not a file; give the files to read")

    def weight(self) -> int:
        """Sum of the weights of all chunks, more or less: bytes of the files."""
        return sum(Path(name).stat().st_size for name in self.files)

    @abc.abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """All inputs in order, always cut in the same way. Raises SourceError for a file that cannot be read."""

    @abc.abstractmethod
    def entries(self, payload: Any) -> Iterator[tuple[Where, Any]]:
        """The inputs of a chunk, each with its place; a Reject stands for one that cannot even be taken apart."""

    @abc.abstractmethod
    def identify(self, where: Where, entry: Any) -> str:
        """The id of an input. Raises Reject."""

    @abc.abstractmethod
    def sample(self, entry: Any, sample_id: str) -> Sample:
        """An input as a sample with its pictures as they are stored, not yet checked. Raises Reject."""


def outcomes(source: Source, payload: Any, finish: Callable[[Sample], Sample]) -> Iterator[Outcome]:
    """One outcome for each input of a chunk, in order; `finish` checks a sample and prepares its pictures."""

    def outcome(place: tuple[Where, Any]) -> Outcome:
        return _outcome(source, *place, finish)

    if source.threads == 1:
        yield from map(outcome, source.entries(payload))
        return
    with ThreadPoolExecutor(source.threads) as threads:
        waiting: deque[Future[Outcome]] = deque()
        for place in source.entries(payload):
            waiting.append(threads.submit(outcome, place))
            if len(waiting) > 2 * source.threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _outcome(source: Source, where: Where, entry: Any, finish: Callable[[Sample], Sample]) -> Outcome:
    sample_id = ""
    try:
        if isinstance(entry, Reject):
            raise entry
        sample_id = source.identify(where, entry)
        return Outcome(where, sample_id, finish(source.sample(entry, sample_id)))
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
    """The id that a record gives (text or a number), else `fallback`; 17.0, which pandas makes of 17, is 17.

    Raises Reject for any other kind.
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return fallback
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise Reject("bad id", f"the id is {shortened(value)}; expected text or a number")
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if len(text) > 1000:
        raise Reject("bad id", f"the id has {len(text):,} characters; expected at most 1000")
    return text


def file_stem(path: str) -> str:
    """The name of a file without its endings, that of compression included; ids of inputs without one begin with it."""
    name = Path(path).name
    return Path(name[:-3] if name.lower().endswith(".gz") else name).stem
