"""What is saved is what comes back: in a fresh process and in the other transformers lines."""

import ast
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.dynamic_module_utils import get_relative_imports
from transformers_lines import LINES, OTHERS, line_path

from pargo_ds.convert.shipped_code import code_texts
from pargo_ds.model import ParGoForConditionalGeneration, vision_config_from_timm
from pargo_ds.model.configuration_pargo import TESTED_TRANSFORMERS, check_transformers

ROOT = Path(__file__).parents[2]

LOAD_AND_ANSWER = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
import pargo_ds.model
folder, question, out = sys.argv[1:4]
model = AutoModelForImageTextToText.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder)
asked = load_file(question)
turns = [{"role": "user", "content": "<image>What colour is it?"}, {"role": "assistant", "content": "red"}]
ids, labels = processor.encode_conversation(turns)
with torch.no_grad():
    logits = model(**asked).logits
answer = model.generate(**asked, max_new_tokens=6, do_sample=False)
tensors = {"parameter." + k: v for k, v in model.state_dict().items()}
tensors |= {"logits": logits, "answer": answer, "ids": torch.tensor(ids), "labels": torch.tensor(labels)}
save_file({k: v.clone().contiguous() for k, v in tensors.items()}, out, metadata={"module": type(model).__module__})
"""


AND_SAVE = """
model.save_pretrained(sys.argv[4])
processor.save_pretrained(sys.argv[4])
"""


def python(script: str, *arguments, path: str, cwd: Path) -> None:
    """Run a script in a fresh process with `path` as PYTHONPATH, without the network.

    On as many threads as here: sums are split by threads, so another number would change last bits.
    """
    environment = os.environ | {
        "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cwd / "hf_home"),
    }  # fmt: skip
    command = [sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def question_and_truth(model, processor, image, folder: Path) -> dict[str, torch.Tensor]:
    """Write a question as tensors, and answer it here."""
    turns = [{"role": "user", "content": "<image>What colour is it?"}]
    asked = dict(
        processor.apply_chat_template(
            turns, images=image(), add_generation_prompt=True, tokenize=True, return_tensors="pt"
        )
    )
    save_file(asked, folder / "question.safetensors")
    ids, labels = processor.encode_conversation([*turns, {"role": "assistant", "content": "red"}])
    with torch.no_grad():
        logits = model(**asked).logits
    return {f"parameter.{k}": v for k, v in model.state_dict().items()} | {
        "logits": logits,
        "answer": model.generate(**asked, max_new_tokens=6, do_sample=False),
        "ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
    }


def assert_same(
    folder: Path, truth: dict[str, torch.Tensor], logits_tolerance: float = 0.0
) -> None:
    got = load_file(folder / "out.safetensors")
    assert got.keys() == truth.keys()
    different = [k for k in truth if k != "logits" and not torch.equal(got[k], truth[k])]
    assert different == []
    if logits_tolerance == 0:
        assert torch.equal(got["logits"], truth["logits"])
    else:
        torch.testing.assert_close(got["logits"], truth["logits"], rtol=0, atol=logits_tolerance)


@pytest.fixture(params=["clip, tied", "eva02, untied"])
def saved(request, make_model, processor, image, tmp_path):
    """(folder, truth): a model and processor saved under tmp_path/export, with question and truth
    beside.
    """
    if request.param == "clip, tied":
        model = make_model()
    else:  # its rotary tables are not in the checkpoint and must be recomputed
        model = make_model(
            tied=False, vision_config=vision_config_from_timm("eva02_tiny_patch14_224", 56)
        )
        processor.image_size = 56
    model.save_pretrained(tmp_path / "export")
    processor.save_pretrained(tmp_path / "export")
    return tmp_path / "export", question_and_truth(model, processor, image, tmp_path)


def test_round_trip_is_bit_exact_in_a_fresh_process(saved, tmp_path):
    folder, truth = saved
    arguments = (folder, tmp_path / "question.safetensors", tmp_path / "out.safetensors")
    python(
        LOAD_AND_ANSWER,
        *arguments,
        path=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        cwd=tmp_path,
    )
    assert_same(tmp_path, truth)


def test_tied_embeddings_are_saved_once_and_tied_again(model, tmp_path):
    model.save_pretrained(tmp_path)
    keys = load_file(tmp_path / "model.safetensors").keys()
    assert sum(k in ("llm.lm_head.weight", "llm.model.embed_tokens.weight") for k in keys) == 1
    again, report = ParGoForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert again.llm.lm_head.weight is again.llm.model.embed_tokens.weight
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_loading_in_another_dtype_converts_every_part(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = ParGoForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}


def test_saved_tokenizer_names_classes_that_both_versions_know(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(config.get("extra_special_tokens"), list)


@pytest.mark.slow
@pytest.mark.parametrize("version", OTHERS)
def test_export_crosses_transformers_versions_both_ways(saved, version, tmp_path):
    folder, truth = saved
    here = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    there = os.pathsep.join([*line_path(version), str(ROOT)])
    question, out = tmp_path / "question.safetensors", tmp_path / "out.safetensors"
    back = tmp_path / "back"
    python(LOAD_AND_ANSWER + AND_SAVE, folder, question, out, back, path=there, cwd=tmp_path)
    # Measured worst difference of the logits between 4.57.6 and 5.17.0, and 5.24.0: 0.
    assert_same(tmp_path, truth, logits_tolerance=1e-4)
    python(LOAD_AND_ANSWER, back, question, out, path=here, cwd=tmp_path)
    assert_same(tmp_path, truth)


def test_entry_files_of_remote_code_name_all_others_in_lines_that_never_run(tmp_path):
    # transformers 4.57 copies the entry file and the files that its lines import, no more.
    texts = code_texts()
    for entry in (
        "configuration_pargo",
        "modeling_pargo",
        "processing_pargo",
        "image_processing_pargo",
    ):
        path = tmp_path / f"{entry}.py"
        path.write_text(texts[path.name])
        assert set(get_relative_imports(path)) == {
            name.removesuffix(".py") for name in texts if name != path.name
        }
        own = (ROOT / "pargo_ds/model" / path.name).read_text()
        added = texts[path.name].removeprefix(own)
        assert ast.parse(added).body[0].test.value is False


def test_transformers_is_one_of_the_tested_lines_and_each_line_has_tests():
    assert tuple(line.rpartition(".")[0] for line in LINES) == TESTED_TRANSFORMERS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_transformers(transformers.__version__)


@pytest.mark.parametrize("version", ["4.58.0", "5.18.1", "5.25.0.dev0", "6.0.0"])
def test_an_untested_transformers_is_warned_of(version):
    with pytest.warns(
        UserWarning, match=f"never tested with transformers {version} .*4.57, 5.17, 5.24"
    ):
        check_transformers(version)


def test_a_transformers_that_is_too_old_is_refused_with_what_to_do():
    with pytest.raises(
        ImportError, match=r"transformers 4.56.2 is too old .* 4.57 or later .*pip install -U"
    ):
        check_transformers("4.56.2")


def test_an_attention_implementation_reaches_the_encoder_and_the_llm(model, tmp_path):
    model.save_pretrained(tmp_path)

    def implementations(choice):
        loaded = ParGoForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=choice)
        return (
            loaded.vision.backbone.config._attn_implementation,
            loaded.llm.config._attn_implementation,
        )

    assert implementations("eager") == ("eager", "eager")
    assert implementations("sdpa") == ("sdpa", "pargo_packed")
    assert implementations(None) == ("sdpa", "pargo_packed")
    assert implementations({"vision_config": "eager", "text_config": "sdpa"}) == (
        "eager",
        "pargo_packed",
    )
    assert implementations({"vision_config": "sdpa", "text_config": "eager"}) == ("sdpa", "eager")
    for choice, expected in {"eager": ("eager", "eager"), "sdpa": ("sdpa", "pargo_packed")}.items():
        model.set_attn_implementation(choice)
        with pytest.raises(
            ValueError, match='attn_implementation="foo"` is not supported for vision_config'
        ):
            model.set_attn_implementation({"vision_config": "foo"})
        assert model.vision.backbone.config._attn_implementation == expected[0]
        assert model.llm.config._attn_implementation == expected[1]
