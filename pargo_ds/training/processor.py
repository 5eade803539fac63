"""The run's processor, and whether it fits the run: prompt, vocabulary, and what `start_from` decides."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from pargo_ds import distributed
from pargo_ds.checkpoint.folder_hashes import check_hashes
from pargo_ds.config import ConfigError, RunConfig
from pargo_ds.model import ParGoProcessor
from pargo_ds.training.descriptions import check_start, describing, llm_config
from pargo_ds.training.templates import run_template

TRIED = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A hat."}]
"""A conversation that every prompt must take."""


def build_processor(run: RunConfig) -> ParGoProcessor:
    """Tokenizer, template and picture preparation; taken over from `start_from` where the run has one."""
    if run.start_from is not None:
        folder = Path(run.start_from)
        distributed.together(lambda: distributed.is_main() and check_hashes(folder, weights=False))
        try:
            with describing(f"start_from: the processor of {folder}"):
                processor = ParGoProcessor.from_pretrained(run.start_from)
                processor.chat_template = run_template(run.llm, processor.chat_template)
                return processor
        except OSError as error:
            if error.errno is not None:
                raise
            said = " ".join(str(error).split())[:300]
            raise ConfigError(f"start_from: {folder} holds no processor of an exported model ({said})") from error
    try:
        with describing(f"llm.name: the tokenizer of {run.llm.name}"):
            tokenizer = AutoTokenizer.from_pretrained(run.llm.name, revision=run.llm.revision)
    except OSError as error:
        raise ConfigError(f"llm.name: no tokenizer at {run.llm.name} ({error})") from error
    with describing(f"llm.name: {run.llm.name}"):
        return ParGoProcessor(
            tokenizer,
            image_size=run.vision.image_size,
            visual_tokens=run.projector.visual_tokens,
            resize=run.vision.resize,
            prompt=run.llm.prompt,
            system_prompt=run.llm.system_prompt,
            chat_template=run_template(run.llm, tokenizer.chat_template),
        )


def check_processor(run: RunConfig, processor: ParGoProcessor) -> None:
    """ConfigError unless the prompt takes a conversation, the LLM has an embedding of every id that text may become,
    and the model and the processor in `start_from` are those that the run file asks for."""
    if run.start_from is not None:
        check_start(run)
        check_taken_over(run, processor)
    with describing("llm.prompt"):
        ids, _ = processor.encode_conversation(TRIED)
    vocabulary = llm_config(run).get_text_config().vocab_size
    control = {token for token, said in processor.tokenizer.added_tokens_decoder.items() if said.special}
    reached = {*ids, *processor.tokenizer.get_vocab().values()} - (control - set(ids)) - {processor.image_token_id}
    if beyond := sorted(token for token in reached if token >= vocabulary):
        tokens = processor.tokenizer.convert_ids_to_tokens(beyond[:3])
        shown = ", ".join(f"{said!r} is {token}" for said, token in zip(tokens, beyond[:3], strict=True))
        raise ConfigError(
            f"llm.name: {len(beyond)} tokens of the tokenizer lie beyond the LLM's vocabulary of {vocabulary} "
            f"({shown}): tokenizer and weights are not of one model; name a folder where both are"
        )


def check_taken_over(run: RunConfig, processor: ParGoProcessor) -> None:
    """ConfigError where the run file says something that `start_from` decides, and says it differently."""
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
