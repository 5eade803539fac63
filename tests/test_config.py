"""The run file: strict, and clear about what is wrong."""

import pytest
import yaml

from pargo_ds.config import load_config, parse_config
from pargo_ds.errors import ConfigError


def broken(tiny_run, place, value):
    raw = yaml.safe_load(yaml.safe_dump(tiny_run))
    *parents, last = place.split(".")
    node = raw
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    return str(caught.value)


@pytest.mark.parametrize(
    "place, value, said",
    [
        ("held_out", {}, "held_out: unknown key; did you mean validation?"),
        ("projecter", {}, "projecter: unknown key; did you mean projector?"),
        (
            "projector.partial_token",
            3,
            "projector.partial_token: unknown key; did you mean partial_tokens?",
        ),
        ("batch.packs_per_step", 0, "batch.packs_per_step"),
        ("projector", {"type": "adaptive_pol"}, "projector.type: unknown type 'adaptive_pol'; did"),
        (
            "projector",
            {"type": "qformer", "token": 16},
            "projector.token: unknown key; did you mean tokens?",
        ),
        (
            "projector",
            {"type": "linear", "partial_tokens": 3},
            "projector.partial_tokens: unknown key; known keys here: patch_norm, soft_prompt, type",
        ),
        ("projector", {"type": "mlp", "depth": 0}, "projector.depth: Input should be greater"),
        ("projector.heads", 5, "heads (5) must divide width (32)"),
        ("train.projector", {"mode": "full"}, "mode full needs lr"),
        (
            "train.projector",
            {"mode": "frozen", "lr": 1.0},
            "a frozen part takes neither lr nor lora",
        ),
        ("train.epochs", 1, "exactly one of steps and epochs"),
        ("train.warmup_steps", 4, "warmup_steps (4) must be below steps (4)"),
        ("batch.tokens_per_pack", 10, "cannot hold one image of 10 visual tokens"),
        ("name", "a/b", "plain folder name"),
        ("vision.image_size", "big", "vision.image_size"),
        (
            "train.projector.lr",
            True,
            "train.projector.lr: Input should be a valid number (found True)",
        ),
        (
            "train.projector.lr",
            "1e-3",
            "valid number (found '1e-3'); write the number alone, without quotes or a unit",
        ),
        (
            "vision.image_size",
            "336px",
            "valid integer (found '336px'); write the number alone, without quotes or a unit",
        ),
        ("survival.watchdog_minutes", "30m", "(found '30m'); write the number alone"),
        (
            "data.workers",
            "2",
            "(found '2'); write the number alone, without quotes or a unit",
        ),
        ("train.activation_checkpointing", "all", "'auto', 'none' or 'full' (found 'all')"),
        ("train.activation_checkpointing", 0, "greater than or equal to 1 (found 0)"),
        (
            "data.cache_limit",
            "10Gx",
            "data.cache_limit: '10Gx' is no size; expected one such as 200gb or 500mb",
        ),
        ("train.projector.lr", float("inf"), "Input should be a finite number (found inf)"),
        ("train.projector.weight_decay", float("nan"), "finite number"),
        ("train.steps", 4.0, "train.steps: Input should be a valid integer (found 4.0)"),
        ("train.steps", True, "valid integer"),
        ("vision.feature_norm", 1, "valid boolean (found 1)"),
        ("vision.feature_norm", "true", "(found 'true'); write true or false, without quotes"),
        ("train.betas", [0.9, 1.0], "train.betas.1: Input should be less than 1"),
        ("train.betas", [True, 0.9], "train.betas.0"),
        ("train.llm.output_lr", 1e-3, "train.llm.output_lr: unknown key"),
        ("name", "x" * 201, "plain folder name"),
        ("name", 2026, "put it in quotes if it is meant as a text"),
        ("name", "a\nb", "plain folder name"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**64, "less than 4294967296"),
        ("output", "$NO_SUCH_VARIABLE/runs", "output: the variable $NO_SUCH_VARIABLE"),
        ("data.validation", "", "the path is empty"),
        ("vision.revision", "main", "timm's encoders take no revision"),
    ],
)
def test_fault_is_named_with_its_place(tiny_run, place, value, said):
    assert said in broken(tiny_run, place, value)


def test_every_fault_is_listed_at_once(tiny_run):
    raw = {**tiny_run, "nam": 1, "sed": 2}
    with pytest.raises(ConfigError, match="2 fault"):
        parse_config(raw)


def test_nothing_trains_is_refused(tiny_run):
    message = broken(tiny_run, "train", {"projector": "frozen", "steps": 4})
    assert "nothing would train" in message


def test_override_wins_and_reaches_through_short_forms(tiny_run, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**tiny_run, "train": {**tiny_run["train"], "llm": "frozen"}}))
    run = load_config(path, ["train.steps=7", "train.llm.mode=full", "train.llm.lr=1e-3"])
    assert run.train.steps == 7
    assert run.train.llm.lr == 1e-3


@pytest.mark.parametrize("text, said", [("a: [", "not valid YAML"), ("- 1", "expected a mapping")])
def test_unreadable_file_is_one_clear_error(tmp_path, text, said):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(path)


def test_ranks_must_divide_packs(tiny_run):
    run = parse_config(tiny_run)
    assert run.check_ranks(2) == 2
    with pytest.raises(
        ConfigError, match="packs_per_step = 4 does not divide over 3 ranks; .*for example 6"
    ):
        run.check_ranks(3)


def test_resolved_config_reads_back_as_itself(tiny_run):
    run = parse_config(tiny_run)
    assert parse_config(yaml.safe_load(yaml.safe_dump(run.model_dump(mode="json")))) == run


@pytest.mark.parametrize(
    "name", ["timm/test_vit", "hf-hub:timm/test_vit", "https://huggingface.co/timm/test_vit"]
)
def test_timm_s_name_on_the_hub_is_its_own_name(tiny_run, name):
    assert (
        parse_config({**tiny_run, "vision": {**tiny_run["vision"], "name": name}}).vision.name
        == "test_vit"
    )


def test_paths_are_expanded_wherever_they_stand(tiny_run, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    data = {
        **tiny_run["data"],
        "train": ["~/a", {"path": "~/b"}],
        "validation": "~/c",
        "cache": "~/d",
    }
    changes = {"output": "~/e", "start_from": "~/f", "deepspeed": "~/g", "data": data}
    changes |= {
        "vision": {**tiny_run["vision"], "weights": "~/h"},
        "llm": {**tiny_run["llm"], "name": "~/i"},
    }
    assert "~" not in str(parse_config({**tiny_run, **changes}).model_dump())


TEXT = """\
name: x
train:
  projector:
    mode: full
    lr: true
  stepz: 4
data:
  train: shards
  train_on: captions
"""


def test_every_fault_has_its_line_or_says_that_it_came_from_the_command_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["train.projector.min_lr=high"])
    said = str(caught.value)
    assert "line 5, train.projector.lr: Input should be a valid number (found True)" in said
    assert "--set, train.projector.min_lr: Input should be a valid number (found 'high')" in said
    assert "line 6, train.stepz: unknown key; did you mean steps?" in said
    assert "line 9, data.train_on: unknown key" in said
    assert "line 7, data.text: missing" in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("name=[x", "--set 'name=[x', line 1: not valid YAML"),
        ("train.steps=010", "an octal number or a decimal one"),
        ("name=a #b", "#b would be dropped"),
        ("train..steps=1", "expected a.b=value"),
        ("=1", "expected a.b=value"),
        ("name.x=1", "name is not a section"),
    ],
)
def test_an_override_that_cannot_be_read_is_one_clear_error(tiny_run, tmp_path, override, said):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_run))
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert said in str(caught.value)


def test_an_override_reaches_through_the_short_form_of_data(tiny_run, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_run))
    assert load_config(path, ["data.train.repeat=2.0"]).data.train[0].repeat == 2


def test_an_override_changes_one_place_where_an_alias_puts_one_mapping_into_two(tiny_run, tmp_path):
    path = tmp_path / "run.yaml"
    shared = {"mode": "full", "lr": 1e-3}
    path.write_text(
        yaml.safe_dump({**tiny_run, "train": {"steps": 4, "projector": shared, "llm": shared}})
    )
    assert "*id001" in path.read_text()
    train = load_config(path, ["train.llm.lr=2e-5"]).train
    assert (train.projector.lr, train.llm.lr) == (1e-3, 2e-5)


def test_a_run_file_that_is_a_folder_or_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.yaml"):
        with pytest.raises(ConfigError, match=str(path)):
            load_config(path)
