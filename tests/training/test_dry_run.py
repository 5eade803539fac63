"""--dry-run of every shipped run file: no GPU, no weights, no network."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from tiny import ROOT, run_command
from transformers import AutoConfig

from pargo_ds.config import parse_config
from pargo_ds.data.shards.mds import open_shards
from pargo_ds.errors import ConfigError
from pargo_ds.train import check_inputs, main
from tests.model.llm_families import architecture

FILES = sorted((ROOT / "ds_configs").glob("*.yaml"))
RUN_FILES = [path for path in FILES if not path.stem.startswith("study_")]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Run file -> what --dry-run --ranks 8 printed; one process for all, with an empty hub cache
    and no network.
    """
    script = (
        "import sys; from pargo_ds.train import main\n"
        "for f in sys.argv[1:]: print('@@', f); assert main([f, '--dry-run', '--ranks', '8']) == 0"
    )
    files = [str(path) for path in RUN_FILES if not path.stem.startswith("demo")]
    process = run_command(
        [sys.executable, "-c", script, *files],
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path_factory.mktemp("hub")),
    )
    assert process.returncode == 0, process.stderr
    return {Path(part.split()[0]).stem: part for part in process.stdout.split("@@ ")[1:]}


@pytest.mark.parametrize(
    "run_file", [p for p in RUN_FILES if p.stem.startswith("demo")], ids=lambda path: path.stem
)
def test_demo_run_file_passes_dry_run(run_file, capsys):
    assert main([str(run_file), "--dry-run", "--ranks", "2"]) == 0
    assert "dry run: no fault found" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_full_size_run_file_passes_dry_run_without_weights(outputs, name):
    assert "dry run: no fault found" in outputs[name]
    assert "projector  full" in outputs[name]


def test_full_size_numbers_are_the_papers(outputs):
    text = outputs["pretrain"]
    assert "304 visual tokens of 576 patches (288 partial + 16 global, 6 layers" in text
    assert "24 packs per step = 8 ranks x 3 packs" in text
    assert "-> 3 micro-batches per rank" in text
    assert "6,738,415,616" in text  # Llama-7B


def test_dry_run_writes_nothing(tmp_path):
    options = ["--dry-run", "--set", f"output={tmp_path / 'runs'}", "--ranks", "1"]
    assert main([str(ROOT / "ds_configs/demo_pretrain.yaml"), *options]) == 0
    assert not Path(tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "setting, said",
    [
        ("projector.partial_tokns=3", "did you mean partial_tokens?"),
        ("projector.partial_tokens=600", "600 partial tokens"),
        ("deepspeed=nowhere.json", "nowhere.json does not exist"),
        ("batch.packs_per_step=3", "does not divide over 2 ranks"),
    ],
)
def test_wrong_run_file_has_status_2_and_says_why(capsys, setting, said):
    assert (
        main(
            [str(ROOT / "ds_configs/pretrain.yaml"), "--dry-run", "--ranks", "2", "--set", setting]
        )
        == 2
    )
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "llm, said",
    [
        ("gemma3n_text", "(gemma3n_text) cannot train on packed samples exactly"),
        ("phi3, LongRoPE, beyond its limit", "set batch.tokens_per_pack, now 128, to at most 8"),
        ("jamba", "stay apart on the road 'rows'"),
        ("llama", "stay apart on the road 'packed'"),
    ],
)
def test_dry_run_says_how_packed_samples_stay_apart_or_that_they_cannot(
    tiny_run, tmp_path, capsys, llm, said
):
    run = {
        **tiny_run,
        "llm": {**tiny_run["llm"], "architecture": {**architecture(llm), "vocab_size": 400}},
        "output": str(tmp_path / "runs"),
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    status = main([str(path), "--dry-run", "--ranks", "2"])
    shown = capsys.readouterr()
    assert said in shown.out + shown.err
    assert (status == 0) == ("no fault found" in shown.out) == ("stay apart" in said)


def test_dry_run_says_which_data_is_there_and_refuses_a_folder_without_shards(
    tiny_run, tmp_path, capsys
):
    shards, path = tiny_run["data"]["train"], tmp_path / "run.yaml"
    streams = [shards, "data/nowhere/train", "s3://bucket/folder"]
    path.write_text(yaml.safe_dump({**tiny_run, "data": {**tiny_run["data"], "train": streams}}))
    assert main([str(path), "--dry-run", "--ranks", "1"]) == 0
    shown = capsys.readouterr().out
    assert f"data.train.0: {shards}: {len(open_shards(shards))} samples" in shown
    assert "data.train.1: data/nowhere/train: is not on this machine" in shown
    assert "data.train.2: s3://bucket/folder: in an object store, not looked at" in shown
    assert "data.validation: " in shown
    above = str(Path(shards).parent)  # OUT, where a split of it is meant
    path.write_text(yaml.safe_dump({**tiny_run, "data": {**tiny_run["data"], "train": above}}))
    assert main([str(path), "--dry-run", "--ranks", "1"]) == 2
    assert f"{above} is not a folder of shards: it has no index.json" in capsys.readouterr().err


def test_gradients_in_turns_are_refused_because_no_checkpoint_survives_them(tmp_path, capsys):
    path = tmp_path / "zero2.json"
    path.write_text('{"zero_optimization": {"stage": 2, "round_robin_gradients": true}}')
    assert (
        main([str(ROOT / "ds_configs/pretrain.yaml"), "--dry-run", "--set", f"deepspeed={path}"])
        == 2
    )
    assert "sets round_robin_gradients" in capsys.readouterr().err


def test_a_start_folder_that_keeps_lora_apart_is_refused(tiny_run, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "config.json").write_text("{}")
    run = parse_config({**tiny_run, "start_from": str(tmp_path)}, source="tiny.yaml")
    with pytest.raises(ConfigError, match="keeps LoRA apart in adapter/.*--merge-lora"):
        check_inputs(run)


@pytest.fixture
def unusable(tiny_run, tokenizer_folder, tmp_path):
    """A run file whose LLM has settings with which transformers cannot generate."""
    llm = tmp_path / "llm"
    shutil.copytree(tokenizer_folder, llm)
    AutoConfig.for_model(**tiny_run["llm"]["architecture"]).save_pretrained(llm)
    (llm / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.0}')
    run = {**tiny_run, "llm": {"name": str(llm)}, "output": str(tmp_path / "runs")}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


SAID = "this run would end with weights that cannot be used; tried on a tiny model of the same kind, using its export "


def test_dry_run_tries_the_export_where_the_files_are_there(unusable, capsys):
    settings = unusable.parent / "llm/generation_config.json"
    assert main([str(unusable), "--dry-run", "--ranks", "1"]) == 2
    assert SAID + "fails: ValueError: `temperature`" in capsys.readouterr().err
    settings.write_text('{"temperature": 0.9, "top_p": 0.6}')
    assert main([str(unusable), "--dry-run", "--ranks", "1"]) == 0
    assert "a tiny model of this kind reloaded and asked" in capsys.readouterr().out


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_could_not_be_exported_ends_with_status_2_before_weights_are_loaded(
    unusable, ranks
):
    """The LLM's folder holds no weights at all: to look for them would be another error."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        if ranks > 1
        else []
    )
    process = run_command([sys.executable, *launcher, "-m", "pargo_ds.train", str(unusable)])
    assert SAID in process.stderr
    assert "safetensors" not in process.stderr
    state = json.loads((unusable.parent / "runs/tiny/state.json").read_text())
    assert (state["state"], state["restart"]) == ("failed", False)
    assert process.returncode == (
        2 if ranks == 1 else 1
    )  # launchers report 1 for every status but 0
