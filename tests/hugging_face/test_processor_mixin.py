"""transformers' own tests of processors, run on ParGoProcessor with every line of transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT, draw
from transformers import AutoTokenizer
from transformers_lines import LINES, line_path

from pargo_ds.model import ParGoProcessor

RAW = (
    "the mix-in rescales images by -1 to see whether do_rescale arrives; ParGo's pixels are raw uint8, as training "
    "sees them, and the model normalises: do_rescale is refused"
)
BATCH = (
    "tokenize=True gives a batch by default, as tokenizers of transformers 5 do; the mix-in expects ids alone, which "
    "would lose the images of a chat"
)
TEMPLATES = {"test_apply_chat_template_image_0": BATCH, "test_apply_chat_template_image_1": BATCH}
EXPLAINED = TEMPLATES | {
    "test_image_processor_defaults_preserved_by_image_kwargs": RAW,
    "test_kwargs_overrides_default_image_processor_kwargs": RAW,
    "test_structured_kwargs_nested": RAW,
    "test_structured_kwargs_nested_from_dict": RAW,
    "test_unstructured_kwargs": RAW,
    "test_unstructured_kwargs_batched": RAW,
}
SUBPROCESSOR = TEMPLATES | {
    "test_kwargs_overrides_default_subprocessor_kwargs_0_images": RAW,
    "test_structured_kwargs_nested_from_dict_0_images": RAW,
    "test_subprocessor_defaults_preserved_by_kwargs_0_images": RAW,
    "test_unstructured_kwargs_0_images": RAW,
    "test_unstructured_kwargs_batched_0_images": RAW,
}
FAILURES: dict[str, dict[str, str]] = {
    "4.57.6": EXPLAINED,
    "5.17.0": SUBPROCESSOR,
    "5.24.0": SUBPROCESSOR
    | {
        "test_chat_template_message_objects": "turns are mappings here; its template prints the address of an image, "
        "and ParGo's templates see <image>",
        "test_init_arguments_not_in_class_attributes": "image_size and resize are properties: the image processor "
        "keeps them, and __init__ makes one from them",
    },
}
"""Line of transformers -> test that fails -> why it may.

A listed test that passes is an error too.
"""
FEWEST_PASSED = {"4.57.6": 12, "5.17.0": 18, "5.24.0": 26}


@pytest.fixture(scope="module")
def processor_folder(tokenizer_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processor")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    ParGoProcessor(tokenizer, image_size=32, visual_tokens=6).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("version", LINES)
def test_transformers_own_tests_of_processors_fail_only_where_it_is_explained(
    version, processor_folder, tmp_path
):
    pytest.importorskip(
        "parameterized", reason="transformers' tests need it: pip install -e .[dev]"
    )
    from hugging_face.sources import transformers_tests

    image = tmp_path / "image.png"
    image.write_bytes(draw("red", 4))
    first = [
        *line_path(version),
        str(ROOT),
        str(transformers_tests(version)),
        *filter(None, sys.path),
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(first),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
    }
    worker = Path(__file__).with_name("processor_mixin.py")
    done = subprocess.run(
        [sys.executable, str(worker), str(processor_folder), str(image)],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    failed = {name: message for name, message in outcomes.items() if message}
    assert failed.keys() == FAILURES[version].keys(), failed
    assert sum(message == "" for message in outcomes.values()) >= FEWEST_PASSED[version]
