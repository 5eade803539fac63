"""Hugging Face's Trainer with DeepSpeed around the same model, as a user of LLaVA writes it: a lazy
dataset, rows padded to the longest of a batch, LLaVA's ZeRO settings.

Source of the settings: haotian-liu/LLaVA, scripts/zero2.json, zero3.json and v1_5/finetune_lora.sh.
Unlike there, activations are recomputed only where our own run would do so.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from pargo_ds import distributed
from pargo_ds.assembly.zero import zero_stage
from pargo_ds.batch import IGNORE_INDEX, ConversationEncoder
from pargo_ds.config import RunConfig
from pargo_ds.data.conversation import Turns as Conversation
from pargo_ds.data.conversation import conversations_of, encode
from pargo_ds.data.shards.mds import read_samples
from pargo_ds.data.shards.schema import Sample
from pargo_ds.model import ParGoProcessor
from pargo_ds.speed.our_trainer import prepare
from pargo_ds.speed.training_turns import Turns

ENDLESS_EPOCHS = 100_000
ZERO3 = {
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": True,
}


class Conversations(torch.utils.data.Dataset):
    """The conversations of all streams of a run, encoded when they are asked for.

    Raises ValueError for a mixture by weight or with repeats.
    """

    def __init__(self, run: RunConfig, processor: ConversationEncoder) -> None:
        self.processor = processor
        self.items: list[tuple[Sample, Conversation]] = []
        for stream in run.data.train:
            if stream.weight is not None or stream.repeat is not None:
                raise ValueError(
                    f"data.train: {stream.path} has a weight or a repeat; expected neither, because Hugging Face's "
                    "trainer takes every sample once: remove it"
                )
            texts = run.data.of_stream(stream)
            for sample in read_samples(stream.path):
                for turns in conversations_of(sample, texts, stream.path):
                    self.items.append((sample, turns))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """ids and labels, lists; pixels uint8 (images, 3, height, width); the sample's id."""
        one = encode(*self.items[number], self.processor)
        return {
            "input_ids": one.input_ids,
            "labels": one.labels,
            "pixels": one.pixels,
            "sample_id": one.sample_id,
        }


@dataclasses.dataclass(frozen=True)
class PaddingCollator:
    """Rows padded on the right to the longest of the batch, as LLaVA's collator makes them."""

    pad_token_id: int

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """ids, labels and mask (rows, tokens) int64; pixels of all images in order; the samples'
        ids and their tokens without padding.
        """
        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        return {
            "input_ids": _padded([s["input_ids"] for s in samples], self.pad_token_id),
            "labels": _padded([s["labels"] for s in samples], IGNORE_INDEX),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "pixel_values": torch.cat([sample["pixels"] for sample in samples]),
            "sample_ids": [sample["sample_id"] for sample in samples],
            "useful_tokens": int(lengths.sum()),
        }


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=value
    )


def train(
    run: RunConfig, device: torch.device, settings: dict[str, Any], turns: Turns, grouped: bool
) -> None:
    """Train until nobody asks for turns any more (EOFError); `grouped`: batches of like lengths."""
    processor, model, loader, _ = prepare(run, device, settings, None)
    conversations = Conversations(run, processor)
    packs = loader.steps_per_epoch() * run.batch.packs_per_step
    rows = rows_per_batch(len(conversations), packs)
    trainer = MeasuredTrainer(
        model,
        arguments(run, settings, rows, grouped),
        data_collator=PaddingCollator(pad_token(processor)),
        train_dataset=conversations,
    )
    trainer.turns = turns
    trainer.add_callback(TurnCallback(trainer, turns))
    turns.pipe.send("ready")
    trainer.train()


def rows_per_batch(samples: int, packs: int) -> int:
    """Return the samples of a micro-batch, so that steps are as large as ours, which have `packs`
    packs for `samples` samples.
    """
    return max(1, round(samples / packs))


def pad_token(processor: ParGoProcessor) -> int:
    """Return what fills rows; any token will do, because it is masked."""
    return int(processor.tokenizer.pad_token_id or 0)


def arguments(
    run: RunConfig, settings: dict[str, Any], rows: int, grouped: bool
) -> TrainingArguments:
    """Return what a user of LLaVA passes to the Trainer; the numbers are those of the run file."""
    rates = [part.lr for part in (run.train.llm, run.train.projector) if part.lr is not None]
    options: dict[str, Any] = {
        "output_dir": str(run.run_dir / "hf"),
        "deepspeed": zero_settings(zero_stage(settings)),
        "num_train_epochs": ENDLESS_EPOCHS,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": run.check_ranks(distributed.world_size()),
        "learning_rate": max(rates),
        "lr_scheduler_type": "cosine",
        "adam_beta1": run.train.betas[0],
        "adam_beta2": run.train.betas[1],
        "adam_epsilon": run.train.eps,
        "max_grad_norm": run.train.clip_norm,
        "bf16": run.train.precision == "bf16",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "dataloader_num_workers": run.data.workers,
        "remove_unused_columns": False,
        "seed": run.seed,
        "use_cpu": not torch.cuda.is_available(),
    }
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    if grouped and "group_by_length" in known:
        options["group_by_length"] = True
    elif grouped:  # its name in transformers 5
        options["train_sampling_strategy"] = "group_by_length"
    return TrainingArguments(**options)


def zero_settings(stage: int) -> dict[str, Any]:
    """Return LLaVA's DeepSpeed JSON of this ZeRO stage."""
    zero = {
        "stage": stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
    }
    if stage == 3:
        zero |= ZERO3
    return {
        "bf16": {"enabled": "auto"},
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": zero,
    }


class MeasuredTrainer(Trainer):
    """The Trainer, which tells what it waits for and what it computes."""

    turns: Turns

    def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
        """Return the micro-batches of a step."""
        with self.turns.waiting():
            return super().get_batch_samples(*arguments, **options)

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        """Take one micro-batch."""
        ids, useful = inputs.pop("sample_ids"), inputs.pop("useful_tokens")
        self.turns.computed(ids, useful, inputs["attention_mask"].numel())
        return super().training_step(model, inputs, *rest)


class TurnCallback(TrainerCallback):
    """Cuts the training into turns."""

    def __init__(self, trainer: MeasuredTrainer, turns: Turns) -> None:
        self.trainer, self.turns = trainer, turns
        self.watched = False

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Begin a turn; an epoch is one."""
        if not self.watched:
            self.turns.parts.watch(self.trainer.deepspeed)
            self.watched = True
        self.turns.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the epoch with the last step of the turn."""
        if self.turns.step_ended():
            control.should_epoch_stop = True

    def on_log(self, args: Any, state: Any, control: Any, **told: Any) -> None:
        """Note the loss of a step."""
        if "loss" in told["logs"]:
            self.turns.loss(float(told["logs"]["loss"]))

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """End the turn."""
        self.turns.end()
