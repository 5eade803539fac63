"""Every command line explains itself, fast, and fails clearly on wrong arguments."""

import sys

import pytest
from tiny import ROOT, run_command

TOOLS = sorted((ROOT / "tools").glob("*.py"))


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_tool_explains_itself(tool):
    process = run_command([sys.executable, str(tool), "--help"], timeout=60)
    assert process.returncode == 0, process.stderr
    assert "usage:" in process.stdout
    assert len(process.stdout.splitlines()) > 5


def test_fetch_models_leaves_local_parts_alone(tmp_path, tokenizer_folder):
    command = [
        sys.executable,
        str(ROOT / "tools/fetch_models.py"),
        str(ROOT / "ds_configs/demo_pretrain.yaml"),
    ]
    process = run_command([*command, "--set", f"llm.name={tokenizer_folder}"])
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("nothing to fetch") == 2


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["zero-to-hf", "nowhere", "out"], "nowhere is neither a checkpoint"),
        (["zero-to-hf", ".", "."], "exists; choose another folder or pass --force"),
    ],
)
def test_converter_names_what_is_wrong(tmp_path, arguments, said):
    process = run_command([sys.executable, str(ROOT / "tools/convert_checkpoint.py"), *arguments])
    assert process.returncode == 2
    assert said in process.stderr
