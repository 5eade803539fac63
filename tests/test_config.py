"""The run file: strict, and clear about what is wrong."""

import pytest
import yaml

from pargo_ds.config import ConfigError, load_config, parse_config


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
        ("projecter", {}, "projecter: unknown key; did you mean projector?"),
        ("projector.partial_token", 3, "projector.partial_token: unknown key; did you mean partial_tokens?"),
        ("batch.packs_per_step", 0, "batch.packs_per_step"),
        ("projector.heads", 5, "heads (5) must divide width (32)"),
        ("train.projector", {"mode": "full"}, "mode full needs lr"),
        ("train.projector", {"mode": "frozen", "lr": 1.0}, "a frozen part takes neither lr nor lora"),
        ("train.epochs", 1, "exactly one of steps and epochs"),
        ("train.warmup_steps", 4, "warmup_steps (4) must be below steps (4)"),
        ("batch.tokens_per_pack", 10, "cannot hold one picture of 10 visual tokens"),
        ("name", "a/b", "plain folder name"),
        ("vision.image_size", "big", "vision.image_size"),
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
    with pytest.raises(ConfigError, match="packs_per_step = 4 does not divide over 3 ranks; .*for example 6"):
        run.check_ranks(3)


def test_resolved_config_reads_back_as_itself(tiny_run):
    run = parse_config(tiny_run)
    assert parse_config(yaml.safe_load(yaml.safe_dump(run.model_dump(mode="json")))) == run
