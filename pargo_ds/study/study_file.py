"""The study file: which variants are trained from which seeds, on what, and how they are compared.

Settings of a run file are named with dots, as on the command line. Every size of a study is
complete in itself, so that a study on two cores may ask another question of other projectors than
one on a cluster; YAML's anchors say once what several sizes share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from pargo_ds.addresses import LocalPath
from pargo_ds.errors import ConfigError
from pargo_ds.section import Section, faults_of
from pargo_ds.settings_file import read_yaml

EVERY_STAGE = "all"
OF_THE_STUDY = ("name", "output", "seed", "start_from")
"""Settings that the study itself gives to each run."""

Settings = dict[str, Any]
"""Dotted name of a run file's setting -> its value."""
ByStage = dict[str, Settings]
"""Stage, or all -> settings."""
Seconds = Annotated[float, Field(gt=0)]


class Expected(Section):
    """How long things take on the machine that a size is for; measured cells replace it."""

    step: dict[str, Seconds]
    """Seconds of a step, by stage."""
    other: Seconds
    """Seconds of a cell beside its steps: starts, exports, questions."""


class Size(Section):
    """One size of the study."""

    machine: str
    """What it is meant for, in words."""
    road: Literal["trainer", "one_process"]
    """trainer: pargo_ds.train under DeepSpeed's launcher. one_process: the same model, data, loss
    and schedule in one process without DeepSpeed (docs/learning.md); for small models on CPUs.
    """
    at_a_time: int = Field(default=1, ge=1)
    """Cells that run side by side on one machine."""
    stages: dict[str, LocalPath] = Field(min_length=1)
    """Name -> run file; each stage starts from the export of the one before it."""
    settings: ByStage = {}
    """Settings of every variant."""
    reference: str
    """Variant that the others are compared with."""
    variants: dict[str, ByStage] = Field(min_length=1)
    """Name -> what is its own."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(min_length=1)
    evaluation: dict[str, LocalPath] = Field(min_length=1)
    """Benchmark (docs/evaluation.md) -> its files, asked of the last stage's export."""
    held_equal: list[Literal["steps", "data", "tokens", "parameters"]] = ["steps", "data"]
    """What all variants must have in common; a study in which they have not is refused. tokens:
    within 3 %; parameters of the projector: within 10 %.
    """
    claims: list[str] = ["all", "size: small"]
    """Groups of questions about which something is claimed; the report names the groups."""
    expected: Expected

    @field_validator("variants")
    @classmethod
    def _names_are_folders(cls, value: dict[str, ByStage]) -> dict[str, ByStage]:
        for name in value:
            if not name or set(name) & set("/\\") or name.startswith("."):
                raise ValueError(f"'{name}' cannot be a name: it becomes a folder")
        return value

    @field_validator("seeds", "held_equal", "claims")
    @classmethod
    def _each_once(cls, value: list[Any]) -> list[Any]:
        if len(set(value)) < len(value):
            raise ValueError("one of them stands twice")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Size:
        if self.reference not in self.variants:
            raise ValueError(
                f"reference: no variant is named {self.reference}; there are "
                + ", ".join(self.variants)
            )
        for place, settings in self._all_settings():
            for stage, own in settings.items():
                if stage not in (EVERY_STAGE, *self.stages):
                    known = ", ".join([EVERY_STAGE, *self.stages])
                    raise ValueError(f"{place}.{stage}: no such stage; there are {known}")
                if taken := [key for key in own if key.partition(".")[0] in OF_THE_STUDY]:
                    raise ValueError(f"{place}.{stage}.{taken[0]}: the study itself sets it")
        if missing := [stage for stage in self.stages if stage not in self.expected.step]:
            raise ValueError(f"expected.step: nothing is said of {', '.join(missing)}")
        return self

    def _all_settings(self) -> list[tuple[str, ByStage]]:
        own = [(f"variants.{name}", settings) for name, settings in self.variants.items()]
        return [("settings", self.settings), *own]

    def settings_of(self, variant: str, stage: str) -> Settings:
        """Return the variant's settings in a stage: those of all variants first, then its own."""
        own = self.variants[variant]
        found: Settings = {}
        for settings in (self.settings, own):
            found |= settings.get(EVERY_STAGE, {}) | settings.get(stage, {})
        return found


class Study(Section):
    """A study file."""

    title: str
    question: str
    """What the study is to find out, in a sentence."""
    output: LocalPath
    """Folder of the results; each size has its own below it."""
    sizes: dict[Literal["quick", "small", "gpu", "full"], Size] = Field(min_length=1)

    def size(self, name: str) -> Size:
        """Raises ConfigError for a size that the file does not have."""
        if name not in self.sizes:
            raise ConfigError(f"the study has no size {name}; it has {', '.join(self.sizes)}")
        return self.sizes[name]


def load_study(path: Path) -> Study:
    """Read a study file. Raises ConfigError that names file, line and fault."""
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; shipped studies are ds_configs/study_*.yaml")
    settings = read_yaml(path)
    try:
        return Study.model_validate(settings.values)
    except ValidationError as error:
        origins = {place: f"line {line}" for place, line in settings.lines.items()}
        raise ConfigError(faults_of(error, Study, str(path), origins)) from error
