"""Cells of a study: a variant trained from one seed through all stages, and its questions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pargo_ds.config import RunConfig, load_config
from pargo_ds.errors import ConfigError
from pargo_ds.study.costs import ProjectorSize, projector_size
from pargo_ds.study.study_file import Size, Study
from pargo_ds.training.run_folder import differences

RESULT = "result.json"
EXPORT = "export"
ALIKE = {"tokens": 0.03, "parameters": 0.10}
"""Relative differences from the reference that still count as equal: C- and D-Abstractor have 289
tokens beside 288 + 16, widths come in multiples of heads.
"""


@dataclass(frozen=True)
class Stage:
    """One training of a cell."""

    name: str
    run_file: Path
    overrides: tuple[str, ...]
    run: RunConfig

    @property
    def export(self) -> Path:
        """Where its export goes."""
        return self.run.run_dir / EXPORT

    @property
    def steps(self) -> int:
        """Optimizer steps; cells_of refuses a run that counts epochs instead."""
        assert self.run.train.steps is not None
        return self.run.train.steps


@dataclass(frozen=True)
class Cell:
    """One variant and seed; its result lies in `folder`."""

    variant: str
    seed: int
    folder: Path
    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"

    @property
    def result(self) -> Path:
        """The file that holds the numbers, when the cell is finished."""
        return self.folder / RESULT

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def settings(self) -> dict[str, Any]:
        """Return all that decides its numbers, by stage; where its files lie does not."""
        return {stage.name: _plain(stage.run) for stage in self.stages}


def size_folder(study: Study, size: str) -> Path:
    """Return the folder of all results of one size."""
    return Path(study.output) / size


def cells_of(study: Study, size: str) -> list[Cell]:
    """Return every cell, seeds outermost, so that all variants have a first result early.

    Raises ConfigError for settings that a run file does not take, with the variant's name.
    """
    chosen, folder = study.size(size), size_folder(study, size)
    cells = []
    for seed in chosen.seeds:
        cells += [_cell(chosen, folder, variant, seed) for variant in chosen.variants]
    return cells


def _cell(size: Size, folder: Path, variant: str, seed: int) -> Cell:
    own = folder / variant / f"seed_{seed}"
    stages: list[Stage] = []
    start_from = None
    for name, run_file in size.stages.items():
        settings = {
            **size.settings_of(variant, name),
            "name": name,
            "output": str(own),
            "seed": seed,
            "start_from": start_from,
        }
        overrides = tuple(f"{key}={json.dumps(value)}" for key, value in settings.items())
        try:
            run = load_config(run_file, overrides)
        except ConfigError as error:
            raise ConfigError(f"variant {variant}, stage {name}: {error}") from error
        if run.train.steps is None:
            raise ConfigError(
                f"variant {variant}, stage {name}: {run_file} counts epochs; a study holds steps "
                "equal, so give train.steps and train.epochs: null"
            )
        stages.append(Stage(name, Path(run_file), overrides, run))
        start_from = str(stages[-1].export)
    return Cell(variant, seed, own, tuple(stages))


def sizes_of(cells: list[Cell]) -> dict[str, ProjectorSize]:
    """Return variant -> tokens and parameters of its projector. Raises ConfigError naming the
    variant.
    """
    found: dict[str, ProjectorSize] = {}
    for cell in cells:
        if cell.variant not in found:
            try:
                found[cell.variant] = projector_size(cell.stages[0].run)
            except ValueError as error:
                raise ConfigError(f"variant {cell.variant}: {error}") from error
    return found


def check_equal(size: Size, cells: list[Cell], sizes: dict[str, ProjectorSize]) -> None:
    """Raise ConfigError naming every variant that lacks what the study holds equal."""
    first = {cell.variant: cell for cell in reversed(cells)}
    reference = first[size.reference]
    faults = []
    for name, cell in first.items():
        for stage, other in zip(cell.stages, reference.stages, strict=True):
            for what in ("steps", "data"):
                if what in size.held_equal and (
                    changed := differences(_part(other.run, what), _part(stage.run, what))
                ):
                    faults.append(f"{name}, {stage.name}: {_said(changed)}")
        for what in ALIKE.keys() & set(size.held_equal):
            if not alike(sizes[name], sizes[size.reference], what):
                here, there = getattr(sizes[name], what), getattr(sizes[size.reference], what)
                faults.append(f"{name}: {here:,} {what}, {there:,} of {size.reference}")
    if faults:
        raise ConfigError(
            "the study holds " + ", ".join(size.held_equal) + " equal, and these do not:\n  - "
            + "\n  - ".join(faults)
        )  # fmt: skip


def alike(one: ProjectorSize, other: ProjectorSize, what: str) -> bool:
    """Whether tokens or parameters count as equal."""
    here, there = getattr(one, what), getattr(other, what)
    return abs(here - there) <= ALIKE[what] * there


def _part(run: RunConfig, what: str) -> dict[str, Any]:
    if what == "data":
        return {"data": run.data.model_dump(mode="json")}
    return {"steps": run.train.steps, "packs_per_step": run.batch.packs_per_step}


def _said(changed: dict[str, tuple[Any, Any]]) -> str:
    said = [f"{key} is {now!r} instead of {before!r}" for key, (before, now) in changed.items()]
    return "; ".join(said)


def _plain(run: RunConfig) -> dict[str, Any]:
    aside = {"output", "start_from", "reporting", "checkpoint", "survival", "validation"}
    return run.model_dump(mode="json", exclude=aside | {"evaluation"})


def changed_since(cell: Cell, settings: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings of a result that are no longer the cell's."""
    return differences(settings, json.loads(json.dumps(cell.settings())))
