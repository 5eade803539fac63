"""InternLM2's tokenizer is rebuilt from its SentencePiece file with the same ids, without its code."""

from __future__ import annotations

import json

import pytest
import tiny_release as tiny

from pargo_ds.convert.release.tokenizer import bpe_tokenizer, load_tokenizer, read_model
from pargo_ds.errors import CheckpointError

TEXTS = [
    "What colour is the hat?",
    "</Img>  Is it the\u00e9e? ASSISTANT: ",
    " a  b",
    "na\u00efve \u4f60\u597d\n",
]
# Ids of sentencepiece 0.2.3 for TEXTS, by (dummy prefix, extra spaces removed).
IDS = {
    (True, True): [
        [287, 329, 284, 275, 279, 281, 261, 287, 284, 345],
        [287, 286, 270, 349, 287, 321, 306, 287, 296, 307, 261, 198, 172, 292, 345, 287, 314, 326, 326, 321, 326, 327,
         314, 323, 327, 343],
        [266, 287, 289],
        [287, 301, 288, 198, 178, 309, 292, 287, 231, 192, 163, 232, 168, 192, 353],
    ],
    (True, False): [
        [287, 329, 284, 275, 279, 281, 261, 287, 284, 345],
        [287, 286, 270, 349, 277, 321, 306, 287, 296, 307, 261, 198, 172, 292, 345, 287, 314, 326, 326, 321, 326, 327,
         314, 323, 327, 343, 287],
        [287, 266, 277, 289],
        [287, 301, 288, 198, 178, 309, 292, 287, 231, 192, 163, 232, 168, 192, 353],
    ],
    (False, True): [
        [329, 284, 275, 279, 281, 261, 287, 284, 345],
        [286, 270, 349, 287, 321, 306, 287, 296, 307, 261, 198, 172, 292, 345, 287, 314, 326, 326, 321, 326, 327, 314,
         323, 327, 343],
        [288, 287, 289],
        [301, 288, 198, 178, 309, 292, 287, 231, 192, 163, 232, 168, 192, 353],
    ],
    (False, False): [
        [329, 284, 275, 279, 281, 261, 287, 284, 345],
        [286, 270, 349, 277, 321, 306, 287, 296, 307, 261, 198, 172, 292, 345, 287, 314, 326, 326, 321, 326, 327, 314,
         323, 327, 343, 287],
        [266, 277, 289],
        [301, 288, 198, 178, 309, 292, 287, 231, 192, 163, 232, 168, 192, 353],
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return tiny.write_llm_folder(tmp_path / "llm", tiny.llm_config(tiny.VOCABULARY), None)


@pytest.mark.parametrize("dummy_prefix, remove_extra", list(IDS))
def test_ids_are_those_of_sentencepiece(dummy_prefix, remove_extra, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tiny.tokenizer_model(dummy_prefix, remove_extra))
    tokenizer = bpe_tokenizer(read_model(path), {})
    assert [tokenizer.encode(text).ids for text in TEXTS] == IDS[dummy_prefix, remove_extra]
    if not remove_extra:
        assert [tokenizer.decode(tokenizer.encode(text).ids) for text in TEXTS] == TEXTS


def test_special_tokens_are_whole_and_a_text_begins_with_bos(folder):
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == tiny.VOCABULARY
    assert tokenizer("a")["input_ids"] == [1, 266]
    assert tokenizer("<s>a</s>", add_special_tokens=False)["input_ids"] == [1, 266, 2]
    assert (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
    ) == (
        1,
        2,
        2,
        0,
    )


def test_a_renamed_piece_has_its_new_name(folder):
    """Chat versions call unused pieces `<|im_start|>` and so on, in tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    renamed = {
        "added_tokens_decoder": {
            str(tiny.VOCABULARY - 1): {"content": "<|im_end|>", "special": True}
        }
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | renamed))
    tokenizer = load_tokenizer(folder)
    assert tokenizer("a<|im_end|>", add_special_tokens=False)["input_ids"] == [
        266,
        tiny.VOCABULARY - 1,
    ]
    assert len(tokenizer) == tiny.VOCABULARY


def test_a_tokenizer_json_is_taken_where_there_is_one(folder, tmp_path):
    wanted = load_tokenizer(folder)
    wanted.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer.model").unlink()
    found = load_tokenizer(folder)
    assert [found(text)["input_ids"] for text in TEXTS] == [
        wanted(text)["input_ids"] for text in TEXTS
    ]


@pytest.mark.parametrize("bytes_left", [0, 9, 1000, -3])
def test_a_cut_model_is_named(bytes_left, folder):
    path = folder / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:bytes_left])
    with pytest.raises(CheckpointError, match="tokenizer.model"):
        load_tokenizer(folder)


def test_a_folder_without_a_tokenizer_is_refused(folder):
    (folder / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"neither tokenizer.json nor tokenizer.model"):
        load_tokenizer(folder)
