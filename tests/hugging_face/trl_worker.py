"""Trains an exported folder with TRL's SFTTrainer on chats about coloured squares; prints what it saw as JSON.

    python trl_worker.py FOLDER OUT KIND

KIND: "completion" (prompt and completion apart), or "assistant" (whole chats, of which the answers are learnt).
"""

import io
import json
import sys

from datasets import Dataset
from PIL import Image
from tiny import COLOURS, draw
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed
from trl import SFTConfig, SFTTrainer

import pargo_ds.model  # noqa: F401  (tells the Auto classes of ParGo's)

QUESTION = [{"role": "user", "content": "What colour is it?"}]
STEPS = 150
# TRL learns the answers of whole chats only with a template that marks them.
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n{% generation %}{{ m['content'] }}"
    "<|im_end|>{% endgeneration %}{% else %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def rows(kind: str) -> list[dict]:
    """One chat for each of six colours, its square at another place each time."""
    found = []
    for number in range(24):
        colour = COLOURS[number % 6]
        image = Image.open(io.BytesIO(draw(colour, number % 9, size=32)))
        answer = [{"role": "assistant", "content": f"{colour}."}]
        chat = (
            {"prompt": QUESTION, "completion": answer}
            if kind == "completion"
            else {"messages": QUESTION + answer}
        )
        found.append({"images": [image], **chat})
    return found


def ask(folder: str, images: list) -> list[str]:
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    text = {"type": "text", "text": QUESTION[0]["content"]}
    content = [[{"type": "image", "image": image}, text] for image in images]
    batch = processor.apply_chat_template(
        [[{"role": "user", "content": parts}] for parts in content],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    stop = processor.stop_token_ids
    said = model.generate(**batch, max_new_tokens=12, do_sample=False, eos_token_id=stop)
    return processor.batch_decode(said[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def main(folder: str, out: str, kind: str) -> None:
    set_seed(0)
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    if kind == "assistant":
        processor.chat_template = MARKED
    settings = SFTConfig(
        output_dir=out, max_steps=STEPS, per_device_train_batch_size=6, learning_rate=5e-3, logging_steps=10,
        assistant_only_loss=kind == "assistant", max_length=None, gradient_checkpointing=False, bf16=False,
        report_to=[], save_strategy="no", use_cpu=True,
    )  # fmt: skip
    data = Dataset.from_list(rows(kind))
    trainer = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=processor)
    batch = next(iter(trainer.get_train_dataloader()))
    learnt = [processor.decode(row[row != -100]) for row in batch["labels"]]
    trainer.train()
    trainer.save_model(out)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    answers = ask(out, [row["images"][0] for row in rows(kind)])
    print(json.dumps({"learnt": learnt, "losses": losses, "answers": answers}))


main(*sys.argv[1:])
