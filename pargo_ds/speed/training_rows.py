"""The figures of a comparison of trainers, from the clocks of its turns."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from pargo_ds.speed.training_turns import Turn

SYSTEMS = ("ours", "hf_trainer", "hf_trainer_grouped")


@dataclass(frozen=True)
class Spread:
    """The median of the turns, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the spread of these turns."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One system on one data set."""

    data: str
    system: str
    samples_per_s: float
    """Median of the turns."""
    ratio: float
    """Samples a second of ours over its own: median of the turns, each beside ours of that turn."""
    cpu_ratio: float
    """Its CPU seconds a sample over ours, likewise."""
    samples_per_step: float
    samples_per_s_of_turns: Spread
    ratio_of_turns: Spread
    cpu_ratio_of_turns: Spread
    useful_tokens_per_s: Spread
    cpu_s_per_sample: Spread
    data_wait: Spread
    """Share of the time."""
    computed_per_useful: Spread
    """Tokens computed, padding included, for each token of a sample."""
    memory_gib: float
    """Most that a rank has held."""
    turns: int
    ms_per_sample_by_part: dict[str, float] = field(default_factory=dict)


def rows_of(data: str, found: dict[str, list[Turn]], parts: dict[str, Turn]) -> list[Row]:
    """Return the rows of one data set, from the turns (all ranks) of each system and its turn by
    part.
    """
    ours = found["ours"]
    return [row_of(data, system, turns, ours, parts[system]) for system, turns in found.items()]


def row_of(data: str, system: str, turns: list[Turn], ours: list[Turn], by_part: Turn) -> Row:
    """Return the row of one system. Its turns are epochs, as ours are, so each has our turn's
    samples: what fills up a last batch does not count.
    """
    samples = [len(turn.sample_ids) for turn in ours]
    pairs = list(zip(turns, ours, strict=True))
    speeds = [count / turn.seconds for count, turn in zip(samples, turns, strict=True)]
    ratios = Spread.of([turn.seconds / our.seconds for turn, our in pairs])
    cpu_ratios = Spread.of([turn.cpu_s / our.cpu_s for turn, our in pairs])
    useful = [our.useful_tokens / turn.seconds for turn, our in pairs]
    cpu = [turn.cpu_s / count for count, turn in zip(samples, turns, strict=True)]
    return Row(
        data=data,
        system=system,
        samples_per_s=statistics.median(speeds),
        ratio=ratios.median,
        cpu_ratio=cpu_ratios.median,
        samples_per_step=sum(samples) / sum(turn.steps for turn in turns),
        samples_per_s_of_turns=Spread.of(speeds),
        ratio_of_turns=ratios,
        cpu_ratio_of_turns=cpu_ratios,
        useful_tokens_per_s=Spread.of(useful),
        cpu_s_per_sample=Spread.of(cpu),
        data_wait=Spread.of([turn.data_wait_s / turn.seconds for turn in turns]),
        computed_per_useful=Spread.of([t.computed_tokens / t.useful_tokens for t in turns]),
        memory_gib=max(turn.memory_gib for turn in turns),
        turns=len(turns),
        ms_per_sample_by_part=milliseconds_by_part(by_part),
    )


def milliseconds_by_part(turn: Turn) -> dict[str, float]:
    """Return the milliseconds a sample of each part of a turn's steps."""
    samples = len(turn.sample_ids)
    return {name: 1e3 * seconds / samples for name, seconds in turn.parts.items()}


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    """Return the rows as JSON values."""
    return [asdict(row) for row in rows]
