"""Build the processor of a run, and check that it fits the run: the prompt, the vocabulary, and the
settings that `start_from` decides.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from pargo_ds import distributed
from pargo_ds.assembly.configs import (
    check_start,
    describing,
    llm_config,
    visual_tokens,
)
from pargo_ds.assembly.templates import run_template
from pargo_ds.config import RunConfig
from pargo_ds.errors import ConfigError
from pargo_ds.files.sha256sums import check_hashes
from pargo_ds.model import ParGoProcessor

TRIED = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A hat."}]
"""A conversation that every prompt must accept."""


def build_processor(run: RunConfig) -> ParGoProcessor:
    """Return the processor, which has tokenizer, template and image preparation. With `start_from`
    it is the processor of that folder.
    """
    if run.start_from is not None:
        folder = Path(run.start_from)
        distributed.run_on_all_ranks(
            lambda: distributed.is_main() and check_hashes(folder, weights=False)
        )
        try:
            with describing(f"start_from: the processor of {folder}"):
                processor = ParGoProcessor.from_pretrained(run.start_from)
                processor.chat_template = run_template(run.llm, processor.chat_template)
                return processor
        except OSError as error:
            if error.errno is not None:
                raise
            said = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"start_from: {folder} holds no processor of an exported model ({said})"
            ) from error
    try:
        with describing(f"llm.name: the tokenizer of {run.llm.name}"):
            tokenizer = AutoTokenizer.from_pretrained(run.llm.name, revision=run.llm.revision)
    except OSError as error:
        raise ConfigError(f"llm.name: no tokenizer at {run.llm.name} ({error})") from error
    tokens = visual_tokens(run)
    with describing(f"llm.name: {run.llm.name}"):
        return ParGoProcessor(
            tokenizer,
            image_size=run.vision.image_size,
            visual_tokens=tokens,
            resize=run.vision.resize,
            prompt=run.llm.prompt,
            system_prompt=run.llm.system_prompt,
            chat_template=run_template(run.llm, tokenizer.chat_template),
        )


def check_processor(run: RunConfig, processor: ParGoProcessor) -> None:
    """Raise ConfigError unless the prompt accepts a conversation, the LLM has an embedding for
    every id of the tokenizer, and model and processor in `start_from` fit the run file.
    """
    if run.start_from is not None:
        check_start(run)
        check_taken_over(run, processor)
        run.check_pack(processor.visual_tokens)
    with describing("llm.prompt"):
        ids, _ = processor.encode_conversation(TRIED)
    vocabulary = llm_config(run).get_text_config().vocab_size
    added = processor.tokenizer.added_tokens_decoder
    control = {token for token, said in added.items() if said.special}
    reached = (
        {*ids, *processor.tokenizer.get_vocab().values()}
        - (control - set(ids))
        - {processor.image_token_id}
    )
    if beyond := sorted(token for token in reached if token >= vocabulary):
        tokens = processor.tokenizer.convert_ids_to_tokens(beyond[:3])
        pairs = zip(tokens, beyond[:3], strict=True)
        shown = ", ".join(f"{said!r} is {token}" for said, token in pairs)
        raise ConfigError(
            f"llm.name: {len(beyond)} tokens of the tokenizer lie beyond the LLM's vocabulary of {vocabulary} "
            f"({shown}): tokenizer and weights are not of one model; name a folder where both are"
        )


def check_taken_over(run: RunConfig, processor: ParGoProcessor) -> None:
    """Raise ConfigError when the run file contradicts a setting that `start_from` decides."""
    wrong = []
    for name, key in (("vision", "resize"), ("llm", "prompt"), ("llm", "system_prompt")):
        section = getattr(run, name)
        here, there = getattr(section, key), getattr(processor, key)
        if key in section.model_fields_set and here != there:
            wrong.append(f"{name}.{key} is {there!r} there, {here!r} in the run file")
    if wrong:
        raise ConfigError(
            f"start_from: {run.start_from} brings its own prompt and resizing: {', '.join(wrong)}. Say the same in the "
            "run file, or leave the key out"
        )
