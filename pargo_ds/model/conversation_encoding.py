"""Convert conversations to text and token ids, and find in them what is learnt: one code path for
training and inference.

In text an image is written `<image>`; in ids it is a run of `visual_tokens` image tokens.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase

from .configuration_pargo import IGNORE_INDEX, IMAGE_PLACEHOLDER
from .conversations import Turn, as_text, checked_turns
from .literals import Encoder, Spans, guard, restore
from .prompt_layout import Rendered, lay_out, require_found
from .prompt_properties import PromptProperties, marker_of, properties_of, special_tokens
from .prompts import ChatTemplate, PaperPrompt, wants_parts
from .tokenising import expanded, ids_and_places


class ConversationEncoding:
    """The part of a processor that handles conversations; it uses `tokenizer`, `visual_tokens`,
    `prompt`, `system_prompt` and `chat_template`, and keeps what it learns of them in `_learnt`.
    """

    tokenizer: PreTrainedTokenizerBase
    visual_tokens: int
    prompt: str
    system_prompt: str | None
    chat_template: str | dict[str, str] | None
    _learnt: dict[str, Any]

    @property
    def image_token_id(self) -> int:
        """Id of `<image>`; goes into ParGoConfig.image_token_id. May lie outside the LLM's
        vocabulary.
        """
        return self.tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end an answer: the end-of-turn tokens of the prompt and eos. For
        GenerationConfig.eos_token_id.

        Raises:
            ValueError: the chat template leaves answers without an end, or loses turns.
        """
        ends = self._properties(self._prompt()).ends
        ids = set(self.tokenizer.convert_tokens_to_ids(list(ends)))
        if self.tokenizer.eos_token_id is not None:
            ids.add(self.tokenizer.eos_token_id)
        return sorted(ids)

    @staticmethod
    def num_images(turns: Sequence[Turn]) -> int:
        """Count the images that a conversation refers to: every `<image>` in its turns."""
        return sum(as_text(turn["content"]).count(IMAGE_PLACEHOLDER) for turn in turns)

    def encode_conversation(
        self, turns: Sequence[Turn], add_generation_prompt: bool = False, **template_kwargs: Any
    ) -> tuple[list[int], list[int]]:
        """Turn a conversation into (input_ids, labels) of equal length.

        Labels are the ids of answers and the token that ends their turn, IGNORE_INDEX elsewhere.
        `<image>` becomes a run of `visual_tokens` image tokens. The ids are those of the rendered
        text as a whole, and the ids before an answer are exactly those that generation starts from.
        A control token in the text of a turn is a word, and gets the ids of one.

        Example, 2 visual tokens: "<image>what?" "a cat" -> ids [.. I I what ? .. a cat END], labels
        [-100 .. a cat END]

        Raises:
            ValueError: unknown roles, an image inside an answer, or a template that loses, cuts or
                rewrites turns, or leaves answers without an end; the message names the turn.
        """
        rendered = self._layout(turns, add_generation_prompt, template_kwargs)
        ids, trained = self._marked(rendered, rendered.answers)
        labels = [_label(token, answer) for token, answer in zip(ids, trained, strict=True)]
        return self._expand(ids), self._expand(ids, labels)

    def render(
        self, turns: Sequence[Turn], add_generation_prompt: bool = False, **template_kwargs: Any
    ) -> str:
        """Return the prompt's text of a conversation, with images still written `<image>`. Raises
        ValueError as `encode_conversation`.

        The text says no more which control tokens are words: who tokenises it takes them all for
        the tokens.
        """
        return self._layout(turns, add_generation_prompt, template_kwargs).text

    def _layout(
        self, turns: Sequence[Turn], add_generation_prompt: bool, options: Mapping[str, Any]
    ) -> Rendered:
        prompt = self._prompt(options)
        properties = self._properties(prompt, options)
        turns, stand_ins = guard(self._with_system_prompt(checked_turns(turns)), properties.control)
        return restore(lay_out(prompt, properties, turns, add_generation_prompt), stand_ins)

    def _with_system_prompt(self, turns: list[Turn]) -> list[Turn]:
        if self.system_prompt is None or turns[0]["role"] == "system":
            return turns
        return [{"role": "system", "content": self.system_prompt}, *turns]

    def _prompt(self, options: Mapping[str, Any] | None = None) -> PaperPrompt | ChatTemplate:
        """The processor's own prompt."""
        if self.prompt == "paper":
            return PaperPrompt(self.tokenizer)
        return self._chat_template(None, options)

    def _chat_template(
        self, template: str | None, options: Mapping[str, Any] | None
    ) -> ChatTemplate:
        """The processor's own template, or one given for one call."""
        text, options = self._template_text(template), dict(options or {})
        key = _key("parts", text, options)
        if key not in self._learnt:
            self._learnt[key] = wants_parts(self.tokenizer, text, options)
        return ChatTemplate(self.tokenizer, text, self._learnt[key], options)

    def _template_text(self, template: str | None) -> str:
        own = self.chat_template
        if not isinstance(own, dict):
            if template is not None:
                return template
            assert own is not None  # the constructor asks for a template
            return own
        if template is None:
            template = "default"
        if template not in own and "{" not in template:
            raise ValueError(
                f"no chat template is named '{template}': there are {', '.join(sorted(own))}"
            )
        return own.get(template, template)

    def _properties(
        self, prompt: PaperPrompt | ChatTemplate, options: Mapping[str, Any] | None = None
    ) -> PromptProperties:
        """Learnt once: every conversation is rendered by the same prompt."""
        key = _key("properties", self.prompt, self.chat_template, options or {})
        if key not in self._learnt:
            self._learnt[key] = properties_of(prompt, self.tokenizer)
        return self._learnt[key]

    def _face(
        self,
        turns: Sequence[Turn],
        template: str | None,
        options: dict[str, Any],
        add_prompt: bool,
        go_on: bool,
    ) -> tuple[Rendered, Spans]:
        """(one conversation as text, where its answers lie)."""
        if template is not None:
            prompt = self._chat_template(template, options)
            checked = self._with_system_prompt(checked_turns(turns))
            checked, stand_ins = guard(checked, special_tokens(self.tokenizer))
            text = prompt.render(checked, add_prompt)
            require_found(prompt.name, checked, range(len(checked)), text)
            if go_on:
                last = checked[-1]["content"].strip()
                end = text.rindex(last) + len(last)
                return restore(Rendered(text[:end], (), ()), stand_ins), ()
            whole = restore(Rendered(text, tuple(prompt.generation_spans(checked)), ()), stand_ins)
            return whole, whole.answers
        rendered = self._layout(turns, add_prompt, options)
        if not go_on:
            return rendered, rendered.answers
        if turns[-1]["role"] != "assistant":
            raise ValueError(
                "continue_final_message: the last turn is no answer of the assistant's"
            )
        end = rendered.contents[-1][1]
        literals = tuple(span for span in rendered.literals if span[1] <= end)
        return Rendered(rendered.text[:end], (), (), literals), ()

    # Ids

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The tokens that end turns, begin them or have another role; in the text of a turn they
        are words.

        Raises ValueError as `stop_token_ids`.
        """
        return self._properties(self._prompt()).control

    def _tokenise(self, text: str) -> list[int]:
        """Text -> ids, each `<image>` a run of image tokens."""
        return self._expand(self._marked(Rendered(text, (), ()), ())[0])

    def _marked(self, rendered: Rendered, spans: Spans) -> tuple[list[int], list[bool]]:
        """Ids, images still one token each, and which of them lie in spans of characters."""
        key = _key("marker", self.prompt, self.chat_template)
        if key not in self._learnt:
            self._learnt[key] = marker_of(self._prompt())
        control = self._control() if rendered.literals else ()
        ids, places = ids_and_places(
            self._encoder(control),
            rendered.text,
            self._learnt[key],
            list(chain.from_iterable(spans)),
            rendered.literals,
        )
        marked = [False] * len(ids)
        for start, end in spans:
            marked[places[start] : places[end]] = [True] * (places[end] - places[start])
        return ids, marked

    def _control(self) -> tuple[str, ...]:
        try:
            return self.control_tokens
        except ValueError:  # the own template is no good, but another one is used for this call
            return tuple(sorted(special_tokens(self.tokenizer)))

    def _encoder(self, control: tuple[str, ...]) -> Encoder:
        key = _key("encoder", control)
        if key not in self._learnt:
            self._learnt[key] = Encoder(self.tokenizer, control)
        return self._learnt[key]

    def _expand(self, ids: list[int], values: list[int] | None = None) -> list[int]:
        if values is None:
            values = ids
        return expanded(ids, values, self.image_token_id, self.visual_tokens)


def _label(token: int, is_answer: bool) -> int:
    """The target of a token: itself in an answer, none elsewhere."""
    if is_answer:
        return token
    return IGNORE_INDEX


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True, default=repr)
