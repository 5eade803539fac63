"""Build a fast tokenizer with the ids of InternLM2's tokenizer, without its remote code.

The folder of InternLM2 has a `tokenizer.model` of SentencePiece and a Python class. The file is a
protobuf message (sentencepiece: src/sentencepiece_model.proto), of which this module reads the
necessary fields. It builds the BPE from pieces and scores as InternLM's own converter does
(tokenization_internlm2_fast.py).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from pargo_ds.errors import CheckpointError

SPACE = "\u2581"
BPE_MODEL = 2
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Types of a piece."""
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its place in the vocabulary is its id."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePieceModel:
    """The fields of a tokenizer.model that define a BPE."""

    pieces: list[Piece]
    dummy_prefix: bool
    """Whether a space is added before a text."""
    remove_extra_spaces: bool


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of `folder` from its tokenizer.json, or from its tokenizer.model. It adds
    the bos token before a text.

    Raises:
        CheckpointError: both files are missing, a file cannot be read, or the model is no plain
            BPE.
    """
    settings = read_settings(folder / "tokenizer_config.json")
    whole, model = folder / "tokenizer.json", folder / "tokenizer.model"
    if whole.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(whole))
        except Exception as error:  # tokenizers raises no narrower class
            raise CheckpointError(f"{whole} cannot be read: {error}") from error
    elif model.is_file():
        tokenizer = bpe_tokenizer(read_model(model), added_tokens(settings))
    else:
        raise CheckpointError(
            f"{folder} holds neither tokenizer.json nor tokenizer.model; copy one from the LLM's release"
        )
    special = {name: _text(settings.get(name)) or default for name, default in SPECIAL.items()}
    if missing := sorted(
        {token for token in special.values() if tokenizer.token_to_id(token) is None}
    ):
        raise CheckpointError(f"{folder}: the tokenizer has no {', '.join(missing)}")
    bos = special["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos}:1 $B:1",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    options = dict(special)
    if isinstance(settings.get("chat_template"), str):
        options["chat_template"] = settings["chat_template"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **options
    )


def read_settings(path: Path) -> dict[str, Any]:
    """Read tokenizer_config.json; {} if there is no such file.

    Raises CheckpointError when it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return dict(settings)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def added_tokens(settings: dict[str, Any]) -> dict[int, str]:
    """Return the pieces that the configuration renames, by their ids. In chat versions unused
    pieces become `<|im_start|>` and others.
    """
    decoder = settings.get("added_tokens_decoder", {})
    return {int(number): _text(token) for number, token in decoder.items()}


def _text(token: Any) -> str:
    if isinstance(token, dict):
        return str(token.get("content", ""))
    return token or ""


def bpe_tokenizer(model: SentencePieceModel, renamed: dict[int, str]) -> Tokenizer:
    """Return a BPE of the tokenizers library with the ids of `model`. It treats spaces and bytes as
    SentencePiece does.
    """
    texts = [renamed.get(number, piece.text) for number, piece in enumerate(model.pieces)]
    vocabulary = {text: number for number, text in enumerate(texts)}
    pairs = list(zip(model.pieces, texts, strict=True))
    mergeable = {p.text: p.score for p, text in pairs if text == p.text and p.type == 1}
    unknown = next((text for p, text in pairs if p.type == UNKNOWN), None)
    tokenizer = Tokenizer(
        BPE(
            vocabulary,
            merges_of(mergeable, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    special = {UNKNOWN, CONTROL}
    own = [text for p, text in pairs if p.type in special and text not in renamed]
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False) for text in [*own, *renamed.values()]]
    )
    plain = [p.text for p, text in pairs if p.type == USER_DEFINED and p.text == text]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in plain])
    steps: list[Any] = []
    if model.remove_extra_spaces:
        steps += [
            normalizers.Replace(Regex(r"\A +| +\z"), ""),
            normalizers.Replace(Regex(" +"), " "),
        ]
    if model.dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    after: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.dummy_prefix:
        after.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(after)
    return tokenizer


def merges_of(scores: dict[str, float], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Return all pairs of pieces that form a piece, the best score first, because SentencePiece
    merges in this order.
    """
    found = []
    for text, score in scores.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-score, vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def read_model(path: Path) -> SentencePieceModel:
    """Read the fields of a tokenizer.model that define a BPE.

    Raises CheckpointError when the file is cut or damaged, is no BPE with byte fallback, or has a
    character map for normalisation.
    """
    try:
        message = list(_fields(path.read_bytes()))
        pieces = [_piece(dict(_fields(value))) for number, value in message if number == 1]
        trainer = dict(_fields(b"".join(value for number, value in message if number == 2)))
        normalizer = dict(_fields(b"".join(value for number, value in message if number == 3)))
    except (OSError, ValueError, IndexError, struct.error, TypeError) as error:
        raise CheckpointError(f"{path} is no SentencePiece model: {error}") from error
    if not pieces or trainer.get(3) != BPE_MODEL or not trainer.get(35) or normalizer.get(2):
        raise CheckpointError(
            f"{path}: {len(pieces)} pieces, model type {trainer.get(3, 1)}, byte fallback {bool(trainer.get(35))}, "
            f"character map of {len(normalizer.get(2, b''))} bytes; InternLM2's is a BPE (type {BPE_MODEL}) with byte "
            "fallback and no character map"
        )
    return SentencePieceModel(pieces, bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)))


def _piece(fields: dict[int, Any]) -> Piece:
    (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
    return Piece(fields[1].decode(), score, fields.get(3, 1))


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of each field of a protobuf message; the value is an int for varints
    and bytes for all other types.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind} at byte {at}")
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            size, at = _varint(message, at)
        if at + size > len(message):
            raise ValueError(f"a field at byte {at} is cut")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
