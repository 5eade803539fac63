"""What cannot heal ends a run before its weights load, with status 2 and one sentence; in dry run
too.
"""

import json
import os
import shutil

import pytest
import yaml
from tiny import merged
from transformers import AutoConfig, AutoModelForCausalLM

from pargo_ds import assembly
from pargo_ds.assembly.configs import described_config, describing
from pargo_ds.config import load_config, parse_config
from pargo_ds.errors import ConfigError
from pargo_ds.train import check_inputs, main, parse_arguments
from pargo_ds.training.engine import read_deepspeed_json
from pargo_ds.training.preparation import check_warmup
from pargo_ds.training.reporting import drop_lines_after
from pargo_ds.training.run_folder import check_writable


@pytest.fixture
def llm(tiny_run, tokenizer_folder, tmp_path):
    """The folder of a published LLM, weights included."""
    folder = tmp_path / "llm"
    shutil.copytree(tokenizer_folder, folder)
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**tiny_run["llm"]["architecture"])
    ).save_pretrained(folder)
    return folder


def with_llm(tiny_run, folder):
    return parse_config({**tiny_run, "llm": {"name": str(folder)}})


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ({"model_type": "lama"}, "llm.architecture.model_type is 'lama', .* did you mean llama"),
        ({}, "model_type is None, .*, such as llama"),
        (
            {"model_type": "llama", "hiden_size": 64},
            "hiden_size: unknown to llama; did you mean hidden_size",
        ),
        ({"model_type": "llama", "hidden_size": "big"}, "llm.architecture: TypeError"),
    ],
)
def test_an_architecture_that_no_family_has_is_one_sentence(architecture, said):
    with pytest.raises(ConfigError, match=said) as caught:
        described_config("llm", architecture)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_names_that_families_have_besides_their_own_are_known():
    names = {
        "model_type": "gpt2",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "n_head": 4,
        "bos_token_id": 1,
    }
    assert described_config("llm", names).n_embd == 32


def test_what_fails_while_describing_is_the_run_files_fault_but_not_what_the_machine_does():
    with pytest.raises(ConfigError, match="the model: KeyError: 'x'"), describing("the model"):
        raise KeyError("x")
    for error in (OSError("no route"), MemoryError()):
        with pytest.raises(type(error)), describing("the model"):
            raise error


def test_ids_beyond_the_vocabulary_are_refused_in_dry_run(tiny_run, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(
        yaml.safe_dump(merged(tiny_run, {"llm": {"architecture": {"vocab_size": 300}}}))
    )
    assert main([str(path), "--dry-run", "--ranks", "1"]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "tokens of the tokenizer lie beyond the LLM's vocabulary of 300" in said


def test_control_tokens_that_the_prompt_never_writes_may_lie_beyond_the_vocabulary(tiny_run):
    processor = assembly.build_processor(parse_config(tiny_run))
    size = len(processor.tokenizer)
    run = parse_config(merged(tiny_run, {"llm": {"architecture": {"vocab_size": size}}}))
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<unused>"]})
    assembly.check_processor(run, processor)
    processor.tokenizer.add_tokens(["written"])
    with pytest.raises(
        ConfigError, match=f"1 tokens .* vocabulary of {size} .'written' is {size + 1}"
    ):
        assembly.check_processor(run, processor)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("tokenizer.json", "{", "llm.name: the tokenizer of "),
        (
            "chat_template.jinja",
            "{% for m in messages %}{{ m.content }}",
            "llm.prompt: .*TemplateSyntaxError",
        ),
        ("chat_template.jinja", "{{ raise_exception('no') }}", "llm.prompt: .*refuses the turns"),
    ],
)
def test_a_tokenizer_or_template_that_fails_is_the_run_files_fault(tiny_run, llm, file, text, said):
    (llm / file).write_text(text)
    run = with_llm(tiny_run, llm)
    with pytest.raises(ConfigError, match=said):
        assembly.check_processor(run, assembly.build_processor(run))


def cut(llm):
    os.truncate(llm / "model.safetensors", 1000)


def lose(llm):
    (llm / "model.safetensors").unlink()


def reshape(llm):
    body = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps({**body, "intermediate_size": 48}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "are damaged"),
        (lose, "holds no weights"),
        (reshape, "do not belong together"),
    ],
)
def test_weights_that_will_not_heal_are_the_run_files_fault(tiny_run, llm, damage, said):
    damage(llm)
    run = with_llm(tiny_run, llm)
    with pytest.raises(ConfigError, match=f"llm.name: .*{said}"):
        assembly.load_llm(run, assembly.llm_config(run), None)


def test_a_start_folder_that_is_a_plain_llm_is_named(tiny_run, llm):
    run = parse_config({**tiny_run, "start_from": str(llm)})
    with pytest.raises(ValueError, match="describes a model of type llama; expected pargo"):
        check_inputs(run)
    with pytest.raises(ConfigError, match="holds no processor of an exported model"):
        assembly.build_processor(run)


def test_a_prompt_that_start_from_does_not_have_is_refused_where_the_run_file_asks_for_it(
    tiny_run, llm, tmp_path
):
    processor = assembly.build_processor(with_llm(tiny_run, llm))
    start = {**tiny_run, "start_from": str(llm)}
    assembly.check_taken_over(parse_config(start), processor)
    asked = parse_config(
        merged(start, {"llm": {"prompt": "paper"}, "vision": {"resize": "stretch"}})
    )
    with pytest.raises(
        ConfigError, match="own prompt .*: llm.prompt is 'chat' there, 'paper' in the run file. Say"
    ):
        assembly.check_taken_over(asked, processor)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "says None about the ZeRO stage"),
        ('{"zero_optimisation": {"stage": 3}}', "did you mean zero_optimization"),
        (
            '{"gradient_cliping": 1, "zero_optimization": {"stage": 3}}',
            "did you mean gradient_clipping",
        ),
        ('{"zero_optimization": {"stage": 4}}', "says 4 about the ZeRO stage"),
        ('{"zero_optimization": {"stage": true}}', "says True"),
        ('{"zero_optimization": 3}', "says 3"),
        (
            '{"zero_optimization": {"stage": 3, "overlap_com": true}}',
            "zero_optimization: overlap_com: Extra inputs",
        ),
        ('{"zero_optimization": {"stage": 3}, "zero_optimization": {"stage": 2}}', "stands twice"),
    ],
)
def test_a_deepspeed_file_whose_settings_deepspeed_would_pass_over_is_refused(tmp_path, text, said):
    path = tmp_path / "zero.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_deepspeed_json(path)


def test_a_warm_up_that_outlasts_the_epochs_is_refused(tiny_run):
    train = {**tiny_run["train"], "steps": None, "epochs": 1, "warmup_steps": 30}
    run = parse_config({**tiny_run, "train": train})
    check_warmup(run, 31)
    with pytest.raises(ConfigError, match="warmup_steps .30. must be below the run's 30 steps"):
        check_warmup(run, 30)


def test_a_folder_of_shards_without_a_sample_is_named(tiny_run, tmp_path):
    (tmp_path / "index.json").write_text('{"version": 2, "shards": []}')
    run = parse_config(merged(tiny_run, {"data": {"validation": str(tmp_path)}}))
    with pytest.raises(ConfigError, match="without a sample"):
        check_inputs(run)


@pytest.mark.parametrize("option", ["--ranks", "--stop-after", "--profile"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "two"])
def test_counts_of_the_command_line_are_whole_and_at_least_one(option, value, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(["run.yaml", option, value])
    assert f"{value} is no whole number of 1 or more" in capsys.readouterr().err


def test_lines_of_metrics_that_are_none_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1}\n{"loss": 1}\n[1]\nnull\n{"step": "x"}\n\xff\xfe\n{"step": 2}\n{"step": 3}\n{"st'
    )
    drop_lines_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_run_folder_whose_config_is_damaged_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("")
    with pytest.raises(ConfigError, match="config.yaml holds NoneType, expected a mapping"):
        load_config(path)


@pytest.mark.parametrize("name", ["checkpoints", "logs"])
def test_a_file_in_the_place_of_a_folder_of_the_run_is_named_before_it_trains(
    tiny_run, tmp_path, name
):
    run = parse_config({**tiny_run, "output": str(tmp_path)})
    run.run_dir.mkdir()
    (run.run_dir / name).write_text("")
    with pytest.raises(ConfigError, match=f"{name} is a file, where the run makes a folder"):
        check_writable(run)
