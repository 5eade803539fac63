"""An exported folder in transformers' pipeline: chats with images, alone and in batches, where
pargo_ds is not.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from clean_environment import clean_environment
from tiny import ROOT, draw
from transformers_lines import LINES, line_path

from pargo_ds.convert.hf_folder import finish_folder
from pargo_ds.model import ParGoForConditionalGeneration

ENOUGH = ["torch", "torchvision", "transformers", "timm", "pillow"]
QUESTIONS = ["What colour is it?", "Describe the picture.", "A green square, is it?"]

ASK = """
import copy, json, sys
import torch
from transformers import pipeline
try:
    import pargo_ds
except ImportError:
    pass
else:
    raise SystemExit("pargo_ds can be imported here")
folder, *images = sys.argv[2:]
questions = json.loads(sys.argv[1])
ways = ["path", "url", "image"]
chats = [
    [{"role": "user", "content": [{"type": "image", way: image}, {"type": "text", "text": question}]}]
    for way, image, question in zip(ways, images, questions)
]
pipe = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
assert type(pipe.model).__module__.startswith("transformers_modules"), type(pipe.model)
assert type(pipe.processor.image_processor).__module__.startswith("transformers_modules")
settings = {"max_new_tokens": 8, "return_full_text": False, "generate_kwargs": {"do_sample": False}}

def ask(chats, **more):
    found = pipe(text=copy.deepcopy(chats), **copy.deepcopy(settings), **more)
    return [(entry[0] if isinstance(entry, list) else entry)["generated_text"] for entry in found]

def by_hand(chats):
    batch = pipe.processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    said = pipe.model.generate(**batch, max_new_tokens=8, do_sample=False)
    return pipe.processor.batch_decode(said[:, batch["input_ids"].shape[1]:], skip_special_tokens=True)

print(json.dumps({
    "alone": [ask(chat)[0] for chat in chats],
    "three": ask(chats),
    "batch of three": ask(chats, batch_size=3),
    "by hand": by_hand(chats),
    "by hand, alone": [by_hand([chat])[0] for chat in chats],
}))
"""


@pytest.fixture(scope="module")
def export(make_export, tmp_path_factory) -> Path:
    """A finished export whose answers depend on image and question."""
    folder = make_export(
        tmp_path_factory.mktemp("pipeline") / "export", {"model_type": "qwen3", "head_dim": 16}
    )
    model = ParGoForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.llm.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0 if "embed" in name else 4.0)
    model.save_pretrained(folder)
    finish_folder(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("version", LINES)
def test_a_pipeline_answers_chats_as_generate_does_alone_and_in_batches(export, version, tmp_path):
    python = clean_environment(tmp_path / "clean", ENOUGH, first=line_path(version))
    images = [tmp_path / f"{colour}.png" for colour in ("red", "green", "blue")]
    for place, image in enumerate(images):
        image.write_bytes(draw(image.stem, 4 * place))
    command = [
        str(python),
        "-I",
        "-E",
        "-c",
        ASK,
        json.dumps(QUESTIONS),
        str(export),
        *map(str, images),
    ]
    environment = {
        "PATH": os.environ["PATH"],
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert len(set(said["by hand, alone"])) == 3, said  # else equal answers would say nothing
    for way, answers in said.items():
        assert answers == said["by hand, alone"], way


def test_the_documents_example_of_a_pipeline_runs(export, tmp_path, monkeypatch):
    text = (ROOT / "docs/conversion.md").read_text()
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if "pipeline(" in block
    )
    (tmp_path / "cat.png").write_bytes(draw("red", 4))
    monkeypatch.chdir(tmp_path)
    names = {"folder": str(export)}
    exec(compile(code, "docs/conversion.md", "exec"), names)
    assert len(names["answers"]) == 3
