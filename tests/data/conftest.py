"""Tiny real objects: a processor with a byte-level tokenizer, drawn images, small shard folders."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loading import reading
from object_store import ObjectStore
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pargo_ds.config import BatchSection, DataSection
from pargo_ds.data.shards import s3
from pargo_ds.data.shards.mds import write_shards
from pargo_ds.data.shards.schema import Sample
from pargo_ds.model.processing_pargo import ParGoProcessor

CHAT_TEMPLATE = (
    "{% for turn in messages %}<|start|>{{ turn.role }}\n{{ turn.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte; nothing is unknown."""
    vocabulary = {
        letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def draw(number: int, size: tuple[int, int] = (20, 12)) -> bytes:
    """A PNG that differs for each number."""
    image = Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, 60))
    ImageDraw.Draw(image).ellipse((2, 2, 4 + number % 12, 9), fill=(255, 255, number % 256))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def draw_sample(number: int) -> Sample:
    """Sample `number`: 0, 1 or 2 images, an answer of a length of its own; both captions where
    there are images.
    """
    images = (1, 1, 0, 2, 1)[number % 5]
    turns = [
        {"role": "user", "content": "<image>\n" * images + f"what is {number}?"},
        {"role": "assistant", "content": "it is " + "so " * (number * 7 % 23) + f"{number}"},
    ]
    captions = {"coarse": f"a {number}", "detailed": "a disc " * (1 + number % 4) + f"{number}"}
    return Sample(
        id=f"{number:05}",
        images=[draw(number + 100 * extra) for extra in range(images)],
        turns=turns,
        captions=captions if images else {},
    )


@pytest.fixture(scope="session")
def processor() -> ParGoProcessor:
    return ParGoProcessor(build_tokenizer(), image_size=8, visual_tokens=5)


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """67 samples in several shards."""
    folder = tmp_path_factory.mktemp("shards") / "train"
    write_shards((draw_sample(number) for number in range(67)), folder, shard_bytes=1 << 12)
    return folder


@pytest.fixture
def turns_data() -> DataSection:
    return DataSection(train="unused", text="turns", workers=0)


@pytest.fixture
def small_packs() -> BatchSection:
    return BatchSection(tokens_per_pack=300, images_per_pack=6, packs_per_step=4)


@pytest.fixture
def options(
    shard_folder: Path,
    turns_data: DataSection,
    small_packs: BatchSection,
    processor: Any,
    tmp_path: Path,
) -> dict[str, Any]:
    """Arguments of a PackLoader that is alone and reads the shard folder."""
    return {
        "data": reading(turns_data, shard_folder),
        "batch": small_packs,
        "processor": processor,
        "seed": 5,
        "cache_dir": tmp_path / "cache",
        "rank": 0,
        "world_size": 1,
    }


@pytest.fixture(scope="session")
def _store_process() -> Iterator[ObjectStore]:
    store = ObjectStore()
    yield store
    store.kill()


_buckets = itertools.count()


@pytest.fixture
def object_store(
    _store_process: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ObjectStore]:
    """A running S3 server with an empty bucket; the environment leads to it. Tests may kill and
    hang it.
    """
    pytest.importorskip("moto")
    for name, value in _store_process.environment.items():
        monkeypatch.setenv(name, value)
    _store_process.start()
    _store_process.new_bucket(f"bucket-{next(_buckets)}")
    yield _store_process
    if _store_process.process.poll() is None:
        _store_process.go_on()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store that is down is given up after about two seconds."""
    monkeypatch.setattr(s3, "PATIENCE_S", 1)
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 1)
    s3._make_client.cache_clear()
    yield
    s3._make_client.cache_clear()
