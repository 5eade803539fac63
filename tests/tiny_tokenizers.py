"""Small tokenizers with published templates: byte-level, or of Llama 2's kind, trained on a few
lines.
"""

from __future__ import annotations

from published_templates import Published
from tokenizers import (
    ByteLevelBPETokenizer,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AddedToken, PreTrainedTokenizerFast

from pargo_ds.model import ParGoProcessor

VISUAL_TOKENS = 3
TEXTS = [
    "Which colour has it? Red. Are you sure about that? USER: ASSISTANT: User: Assistant: model\nuser\n"
] * 20


def tokenizer_of(published: Published, kind: str = "bytes") -> PreTrainedTokenizerFast:
    """A small tokenizer with a template and its control tokens: byte-level, or of Llama 2's kind."""
    eos, *others = (token.removeprefix("bos:") for token in published.tokens)
    bos = next((token[4:] for token in published.tokens if token.startswith("bos:")), None)
    core = ByteLevelBPETokenizer()._tokenizer if kind == "bytes" else llama_2_kind()
    if kind == "bytes":
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, bos_token=bos)
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in others], special_tokens=True
    )
    tokenizer.chat_template = published.template
    return tokenizer


def llama_2_kind() -> Tokenizer:
    """Blanks become marks, one is put in front of every piece, and unknown letters are bytes."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    letters = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", *letters], show_progress=False
    )
    words = [
        piece for text in TEXTS for piece in text.split(" ")
    ]  # sentencepiece never joins words
    core.train_from_iterator(words, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A $B", special_tokens=[]
    )
    return core


def processor_of(published: Published, kind: str = "bytes") -> ParGoProcessor:
    return ParGoProcessor(tokenizer_of(published, kind), image_size=32, visual_tokens=VISUAL_TOKENS)
