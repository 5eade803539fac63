"""The study file is strict, and its cells are what it says."""

from __future__ import annotations

import pytest
import yaml
from tiny import ROOT, merged
from tiny_study import write_study

from pargo_ds.errors import ConfigError
from pargo_ds.study.cells import cells_of, check_equal, sizes_of
from pargo_ds.study.study_file import load_study

SHIPPED = sorted((ROOT / "ds_configs").glob("study_*.yaml"))


@pytest.fixture
def study_file(tiny_run, tmp_path):
    return write_study(tmp_path, tiny_run, seeds=[3, 1])


def change(path, **changes):
    """The study with other values of its size."""
    values = yaml.safe_load(path.read_text())
    values["sizes"]["quick"] = merged(values["sizes"]["quick"], changes)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_a_cell_is_a_variant_and_a_seed_through_all_stages(study_file):
    cells = cells_of(load_study(study_file), "quick")
    assert [str(cell) for cell in cells] == [
        "ParGo, seed 3", "pooled, seed 3", "ParGo, seed 1", "pooled, seed 1"
    ]  # fmt: skip
    first, second = cells[1].stages
    assert second.run.start_from == str(first.export)
    assert second.run.projector.type == first.run.projector.type == "adaptive_pool"
    assert {stage.run.seed for cell in cells[:2] for stage in cell.stages} == {3}
    assert len({stage.run.run_dir for cell in cells for stage in cell.stages}) == 8
    assert cells[0].steps == 12


def test_settings_of_one_stage_and_of_all_reach_the_runs_they_are_meant_for(study_file):
    change(
        study_file,
        settings={"all": {"train.steps": 4}, "first": {"train.steps": 5}},
        variants={"pooled": {"second": {"train.eps": 1e-7}}},
    )
    pargo, pooled = cells_of(load_study(study_file), "quick")[:2]
    assert [stage.run.train.steps for stage in pargo.stages] == [5, 4]
    assert [stage.run.train.eps for stage in pooled.stages] == [1e-6, 1e-7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "nobody"}, "no variant is named nobody; there are ParGo, pooled"),
        ({"variants": {"a/b": {}}}, "'a/b' cannot be a name"),
        ({"seeds": [1, 1]}, "seeds: one of them stands twice"),
        ({"variants": {"pooled": {"third": {}}}}, "variants.pooled.third: no such stage"),
        ({"settings": {"all": {"seed": 3}}}, "settings.all.seed: the study itself sets it"),
        ({"expected": {"step": {"fist": 1.0}}}, None),
        ({"rode": "trainer"}, "rode: unknown key; did you mean road?"),
        ({"variants": {"pooled": {"all": {"train.projector.rate": 1}}}}, "variant pooled, stage first"),
    ],
)  # fmt: skip
def test_a_wrong_study_file_is_one_error_that_names_its_fault(study_file, changes, message):
    change(study_file, **changes)
    if message is None:  # more is said than needed
        load_study(study_file)
        return
    with pytest.raises(ConfigError, match=message):
        cells_of(load_study(study_file), "quick")


def test_what_is_held_equal_is_checked_and_named(study_file):
    change(study_file, held_equal=["steps", "data", "tokens"])
    change(study_file, variants={"pooled": {"first": {"train.steps": 9, "data.workers": 1}}})
    study = load_study(study_file)
    cells = cells_of(study, "quick")
    with pytest.raises(ConfigError) as caught:
        check_equal(study.size("quick"), cells, sizes_of(cells))
    said = str(caught.value)
    assert "pooled, first: steps is 9 instead of 6" in said
    assert "pooled: 9 tokens, 10 of ParGo" in said
    assert "workers" not in said  # how many processes read the data changes nothing of it


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("size", ["quick", "small", "gpu", "full"])
def test_shipped_studies_hold_equal_what_they_say(path, size):
    study = load_study(path)
    # The projectors do not depend on the seed; the whole of it would build each of them anew.
    cells = cells_of(study, size)[: len(study.size(size).variants)]
    check_equal(study.size(size), cells, sizes_of(cells))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_fit_the_time_they_are_for(path, tmp_path):
    from pargo_ds.study.runner import seconds_left

    # In a folder without results, whose times would count instead of the expected ones.
    study = load_study(path).model_copy(update={"output": str(tmp_path)})
    for size, most in {"quick": 15, "small": 180, "gpu": 60}.items():
        cells = cells_of(study, size)
        assert seconds_left(cells, cells, study.size(size)) < 60 * most
