"""Pictures and conversations -> pixels and token ids: one code path for training and inference.

In text a picture is written `<image>`; in ids it is a run of `visual_tokens` image tokens.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AddedToken,
    AutoTokenizer,
    BatchFeature,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.processing_utils import ProcessingKwargs, Unpack

from .call_options import CALL_OPTIONS, gather_options, make_batch
from .configuration_pargo import IGNORE_INDEX, IMAGE_PLACEHOLDER
from .conversations import Turn, as_text, checked_turns, image_sources
from .image_processing_pargo import ParGoImageProcessor
from .literals import Encoder, Spans, guard, restore
from .masks import CASCADES  # noqa: F401  (configuration_pargo needs the file: see modeling_pargo)
from .pictures import PIXEL_VERSION, match_pictures
from .prompts import (
    PAPER_SYSTEM_PROMPT,  # noqa: F401
    PROMPT_VERSION,
    ChatTemplate,
    Habits,
    PaperPrompt,
    Rendered,
    habits_of,
    lay_out,
    marker_of,
    require_found,
    special_tokens,
    wants_parts,
)
from .tokenising import expanded, ids_and_places

PROMPTS = ("chat", "paper")


class ParGoProcessor(ProcessorMixin):
    """Tokenizer + picture preparation + prompt of a ParGo model.

    Args:
        tokenizer: the LLM's tokenizer; gets one added token, `<image>`, when it has none of that name, and pads left.
        image_processor: prepares the pictures; made of image_size and resize when None.
        image_size: side of the square that the encoder takes, pixels; 336 when None.
        visual_tokens: tokens per picture (partial + global).
        resize: stretch the picture to the square (None: this), crop its middle, or pad it with grey.
        prompt: "chat" (the tokenizer's template) or "paper" (bytedance/ParGo: `USER: <Img>...</Img> q ASSISTANT: `).
        system_prompt: put first when a conversation has no system turn. None: the template's or the paper's own.
        chat_template: replaces the tokenizer's. Of named templates `default` is taken.

    Raises:
        ValueError: an unknown resize or prompt, sizes below 1, an image_size or resize that differs from the
            image_processor's, no chat template for "chat", no eos token for "paper".
    """

    attributes = ["tokenizer", "image_processor"]
    tokenizer_class = "AutoTokenizer"
    image_processor_class = "AutoImageProcessor"  # read by transformers 4.57

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_processor: ParGoImageProcessor | None = None,
        image_size: int | None = None,
        visual_tokens: int = 304,
        resize: str | None = None,
        prompt: str = "chat",
        system_prompt: str | None = None,
        chat_template: str | dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        if prompt not in PROMPTS:
            raise ValueError(f"prompt '{prompt}': expected one of {', '.join(PROMPTS)}")
        if visual_tokens < 1:
            raise ValueError(f"visual_tokens {visual_tokens}: must be at least 1")
        self.visual_tokens = visual_tokens
        self.prompt = prompt
        self.system_prompt = system_prompt
        self._learnt: dict[str, Any] = {}
        if IMAGE_PLACEHOLDER not in tokenizer.get_vocab():
            tokenizer.add_tokens([AddedToken(IMAGE_PLACEHOLDER, special=True, normalized=False)], special_tokens=True)
        tokenizer.padding_side = "left"  # as generation needs it
        if tokenizer.pad_token is None:  # padding is never looked at, but pipelines refuse to do without
            tokenizer.pad_token = tokenizer.eos_token
        super().__init__(
            tokenizer,
            _image_processor(image_processor, image_size, resize),
            chat_template=chat_template or tokenizer.chat_template,
            **kwargs,
        )
        if prompt == "chat" and not self.chat_template:
            raise ValueError(
                "the tokenizer has no chat template: use prompt 'paper', or give chat_template (an instruct model's "
                "tokenizer brings one)"
            )
        if prompt == "paper" and tokenizer.eos_token is None:
            raise ValueError("prompt 'paper' ends each answer with the eos token, but the tokenizer has none")

    @property
    def image_token(self) -> str:
        return IMAGE_PLACEHOLDER

    @property
    def image_token_id(self) -> int:
        """Id of `<image>`; goes into ParGoConfig.image_token_id. May lie outside the LLM's vocabulary."""
        return self.tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end an answer: the end-of-turn tokens of the prompt and eos. For GenerationConfig.eos_token_id.

        Raises:
            ValueError: the chat template leaves answers without an end, or loses turns.
        """
        ends = self._habits(self._prompt()).ends
        eos = self.tokenizer.eos_token_id
        return sorted({*self.tokenizer.convert_tokens_to_ids(list(ends))} | ({eos} if eos is not None else set()))

    # Pictures

    @property
    def image_size(self) -> int:
        """Side of the square that the encoder takes, pixels; the image processor's."""
        return self.image_processor.image_size

    @image_size.setter
    def image_size(self, value: int) -> None:
        self.image_processor.image_size = value

    @property
    def resize(self) -> str:
        """How a picture becomes a square; the image processor's."""
        return self.image_processor.resize

    def pixels(self, picture: Image.Image | torch.Tensor) -> torch.Tensor:
        """PIL picture of any mode, or uint8 RGB `(3, height, width)` -> uint8 `(3, image_size, image_size)`.

        The same as `image_processor.pixels`. Raises ValueError for a tensor of another type or shape.
        """
        return self.image_processor.pixels(picture)

    # Conversations

    @staticmethod
    def num_images(turns: Sequence[Turn]) -> int:
        """Pictures that a conversation refers to: the count of `<image>` in its turns."""
        return sum(as_text(turn["content"]).count(IMAGE_PLACEHOLDER) for turn in turns)

    def encode_conversation(
        self, turns: Sequence[Turn], add_generation_prompt: bool = False, **template_kwargs: Any
    ) -> tuple[list[int], list[int]]:
        """Turns -> (input_ids, labels) of equal length.

        Labels are the ids of answers and the token that ends their turn, IGNORE_INDEX elsewhere. `<image>` becomes a
        run of `visual_tokens` image tokens. The ids are those of the rendered text as a whole, and the ids before an
        answer are exactly those that generation starts from. A control token in the text of a turn is a word, and gets
        the ids of one.

        Example, 2 visual tokens: "<image>what?" "a cat" -> ids [.. I I what ? .. a cat END], labels [-100 .. a cat END]

        Raises:
            ValueError: unknown roles, a picture inside an answer, or a template that loses, cuts or rewrites turns, or
                leaves answers without an end; the message names the turn.
        """
        rendered = self._layout(turns, add_generation_prompt, template_kwargs)
        ids, trained = self._marked(rendered, rendered.answers)
        labels = [token if answer else IGNORE_INDEX for token, answer in zip(ids, trained, strict=True)]
        return self._expand(ids), self._expand(ids, labels)

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool = False, **template_kwargs: Any) -> str:
        """Turns -> prompt text, pictures still written `<image>`. Raises ValueError as `encode_conversation`.

        The text says no more which control tokens are words: who tokenises it takes them all for the tokens.
        """
        return self._layout(turns, add_generation_prompt, template_kwargs).text

    def _layout(self, turns: Sequence[Turn], add_generation_prompt: bool, options: Mapping[str, Any]) -> Rendered:
        prompt = self._prompt(None, options)
        habits = self._habits(prompt, options)
        turns, stand_ins = guard(self._with_system_prompt(checked_turns(turns)), habits.control)
        return restore(lay_out(prompt, habits, turns, add_generation_prompt), stand_ins)

    def _with_system_prompt(self, turns: list[Turn]) -> list[Turn]:
        if self.system_prompt is None or turns[0]["role"] == "system":
            return turns
        return [{"role": "system", "content": self.system_prompt}, *turns]

    def _prompt(
        self, template: str | None = None, options: Mapping[str, Any] | None = None
    ) -> PaperPrompt | ChatTemplate:
        """The processor's own prompt, or a template given for one call."""
        if template is None and self.prompt == "paper":
            return PaperPrompt(self.tokenizer)
        text, options = self._template_text(template), dict(options or {})
        key = _key("parts", text, options)
        if key not in self._learnt:
            self._learnt[key] = wants_parts(self.tokenizer, text, options)
        return ChatTemplate(self.tokenizer, text, self._learnt[key], options)

    def _template_text(self, template: str | None) -> str:
        named = self.chat_template if isinstance(self.chat_template, dict) else {}
        if template is None:
            template = "default" if named else self.chat_template
        if named and template not in named and "{" not in template:
            raise ValueError(f"no chat template is named '{template}': there are {', '.join(sorted(named))}")
        return named.get(template, template)

    def _habits(self, prompt: PaperPrompt | ChatTemplate, options: Mapping[str, Any] | None = None) -> Habits:
        """Learnt once: every conversation is rendered by the same prompt."""
        key = _key("habits", self.prompt, self.chat_template, options or {})
        if key not in self._learnt:
            self._learnt[key] = habits_of(prompt, self.tokenizer)
        return self._learnt[key]

    # Ids

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The tokens that end turns, begin them or have another role; in the text of a turn they are words.

        Raises ValueError as `stop_token_ids`.
        """
        return self._habits(self._prompt()).control

    def _tokenise(self, text: str) -> list[int]:
        """Text -> ids, each `<image>` a run of image tokens."""
        return self._expand(self._marked(Rendered(text, (), ()), ())[0])

    def _marked(self, rendered: Rendered, spans: Spans) -> tuple[list[int], list[bool]]:
        """Ids, pictures still one token each, and which of them lie in spans of characters."""
        key = _key("marker", self.prompt, self.chat_template)
        if key not in self._learnt:
            self._learnt[key] = marker_of(self._prompt())
        control = self._control() if rendered.literals else ()
        ids, places = ids_and_places(
            self._encoder(control),
            rendered.text,
            self._learnt[key],
            [place for span in spans for place in span],
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
        return expanded(ids, ids if values is None else values, self.image_token_id, self.visual_tokens)

    # The Hugging Face face

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Unpack[ProcessingKwargs]
    ) -> BatchFeature:
        """Rendered prompts and their pictures -> input_ids, attention_mask (left-padded) and uint8 pixel_values.

        Args:
            images: one picture, a list in order of appearance, or a list of lists, one per text. A picture is what
                `pictures.open_picture` takes: PIL, path, address, base64, uint8 of numpy or torch.
            text: one text or several. Without text only pixel_values are made.
            kwargs: the options of `call_options.CALL_OPTIONS`, by themselves or inside text_kwargs, images_kwargs and
                common_kwargs. Rows are padded to the longest, and cut only by truncation=True with max_length.

        Raises:
            ValueError: pictures and placeholders do not match, a cut through a picture, an unknown option.
        """
        if text is None:
            _, of_pictures = gather_options(kwargs, self.tokenizer)
            return self.image_processor([] if images is None else images, **of_pictures)
        texts = [text] if isinstance(text, str) else list(text)
        pictures = match_pictures(images, [t.count(IMAGE_PLACEHOLDER) for t in texts])
        return self._batch([self._tokenise(t) for t in texts], {}, pictures, kwargs)

    def apply_chat_template(
        self,
        conversation: Sequence[Turn] | Sequence[Sequence[Turn]],
        chat_template: str | None = None,
        images: Any = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool | None = True,
        return_tensors: str | None = None,
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """One conversation or a list of them -> text, or with `tokenize=True` a batch as `__call__` makes it.

        Content is a string with `<image>`, or Hugging Face's list of `{"type": "text", "text": ...}` and
        `{"type": "image"}`; pictures may stand there (under image, url, path or base64) or come in `images`.

        Args:
            chat_template: another template, or the name of one, for this call; its text is taken as it is.
            continue_final_message: end within the last answer, so that the model goes on with it.
            return_dict: a batch, or with False its ids alone. Other processors default to False, and lose pictures.
            return_assistant_tokens_mask: add `assistant_masks`, 1 where `encode_conversation` has labels; of another
                chat_template its {% generation %} blocks.
            processor_kwargs: options of `__call__`; they may also stand in kwargs.
            kwargs: whatever is no option of `__call__` is a variable of the template, such as enable_thinking.

        Raises:
            ValueError: as `encode_conversation` and `__call__`.
        """
        single = bool(conversation) and isinstance(conversation[0], Mapping)
        conversations = [conversation] if single else list(conversation)
        if continue_final_message and (add_generation_prompt or return_assistant_tokens_mask):
            raise ValueError("continue_final_message goes with neither add_generation_prompt nor assistant masks")
        options = {name: value for name, value in kwargs.items() if name not in CALL_OPTIONS}
        given = {name: value for name, value in kwargs.items() if name in CALL_OPTIONS} | dict(processor_kwargs or {})
        rendered = [
            self._face(turns, chat_template, options, add_generation_prompt, continue_final_message)
            for turns in conversations
        ]
        if not tokenize:
            texts = [whole.text for whole, _ in rendered]
            return texts[0] if single else texts
        pictures = image_sources(conversations, images)
        pictures = match_pictures(pictures, [self.num_images(turns) for turns in conversations])
        marked = [self._marked(whole, spans) for whole, spans in rendered]
        rows = [self._expand(ids) for ids, _ in marked]
        masks = [self._expand(ids, [int(value) for value in mask]) for ids, mask in marked]
        extra = {"assistant_masks": masks} if return_assistant_tokens_mask else {}
        batch = self._batch(rows, extra, pictures, {"return_tensors": return_tensors} | given)
        whole = return_dict is None or return_dict
        return batch if whole else batch["input_ids"]

    def _face(
        self, turns: Sequence[Turn], template: str | None, options: dict[str, Any], add_prompt: bool, go_on: bool
    ) -> tuple[Rendered, Spans]:
        """(one conversation as text, where its answers lie)."""
        if template is not None:
            prompt = self._prompt(template, options)
            checked = self._with_system_prompt(checked_turns(turns))
            checked, stand_ins = guard(checked, special_tokens(self.tokenizer))
            text = prompt.render(checked, add_prompt)
            require_found(prompt.name, checked, range(len(checked)), text)
            if go_on:
                end = text.rindex(checked[-1]["content"].strip()) + len(checked[-1]["content"].strip())
                return restore(Rendered(text[:end], (), ()), stand_ins), ()
            whole = restore(Rendered(text, tuple(prompt.generation_spans(checked)), ()), stand_ins)
            return whole, whole.answers
        rendered = self._layout(turns, add_prompt, options)
        if not go_on:
            return rendered, rendered.answers
        if turns[-1]["role"] != "assistant":
            raise ValueError("continue_final_message: the last turn is no answer of the assistant's")
        end = rendered.contents[-1][1]
        return Rendered(rendered.text[:end], (), (), tuple(span for span in rendered.literals if span[1] <= end)), ()

    def _batch(
        self, rows: list[list[int]], extra: dict[str, list[list[int]]], pictures: list[Any], given: Mapping[str, Any]
    ) -> BatchFeature:
        options, of_pictures = gather_options(given, self.tokenizer)
        data: dict[str, Any] = make_batch(rows, extra, options, self.tokenizer.pad_token_id, self.image_token_id)
        if pictures:
            data |= self.image_processor(pictures, **of_pictures)
        return BatchFeature(data, tensor_type=options.return_tensors)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's batch_decode."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """The tokenizer's decode."""
        return self.tokenizer.decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def fingerprint(self, pictures: bool = True) -> str:
        """SHA-256 over everything that changes ids or pixels; equal fingerprints mean interchangeable processors.

        Without `pictures`: over what changes the ids of text, a picture being one of them.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        body = json.loads(backend.to_str()) if backend is not None else self.tokenizer.get_vocab()
        # Padding and truncation are leftovers of the last call, not properties of the tokenizer.
        body = {key: value for key, value in body.items() if key not in ("padding", "truncation")}
        of_pictures = [PIXEL_VERSION, self.image_size, self.visual_tokens, self.resize] if pictures else []
        settings = [PROMPT_VERSION, self.prompt, self.system_prompt, self.chat_template, self.tokenizer.eos_token]
        whole = json.dumps([body, of_pictures, settings], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    # Saving and loading

    @classmethod
    def _get_arguments_from_pretrained(cls, folder: str | Path, *args: Any, **kwargs: Any) -> list[Any]:
        # Private in transformers 4.57 to 5.24, and the one place that decides the parts' classes: folders from before
        # there was an image processor keep its settings in processor_config.json, and Auto classes would ask whether
        # to run the code that is running already.
        tokenizer = AutoTokenizer.from_pretrained(folder, **kwargs)
        description, _ = cls.get_processor_dict(folder, **kwargs)
        old = "image_size" in description
        return [tokenizer, None if old else ParGoImageProcessor.from_pretrained(folder, **kwargs)]

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Save the processor in files that transformers 4.57 and 5 can read, whichever writes them."""
        if self._auto_class is not None:  # loaded as remote code, which goes with it; the parts are not Auto's
            self.image_processor.register_for_auto_class()
        result = super().save_pretrained(save_directory, *args, **kwargs)
        _make_portable(Path(save_directory), self.image_processor)
        return result


def _image_processor(
    given: ParGoImageProcessor | None, image_size: int | None, resize: str | None
) -> ParGoImageProcessor:
    wanted = {"image_size": image_size, "resize": resize}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    if given is None:
        return ParGoImageProcessor(**wanted)
    for name, value in wanted.items():
        if getattr(given, name) != value:
            raise ValueError(f"{name} is {value!r}, but the image processor's is {getattr(given, name)!r}: give one")
    return given


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True, default=repr)


def _make_portable(folder: Path, image_processor: ParGoImageProcessor) -> None:
    """Give the files the names and the layout that transformers 4.57 knows; version 5 reads them too."""
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    _write_json(folder / "tokenizer_config.json", tokenizer)
    path = folder / "processor_config.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    if description.pop("image_processor", None) is not None:
        _write_json(path, description)
    image_processor.save_pretrained(folder)


def _write_json(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
