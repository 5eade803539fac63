"""The processor: images and conversations become pixels and token ids, with the interface of Hugging
Face's processors. Training and inference both use this class.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from transformers import (
    AddedToken,
    AutoTokenizer,
    BatchFeature,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.processing_utils import MultiModalData, ProcessingKwargs, Unpack

from .call_options import CALL_OPTIONS, gather_options, make_batch
from .configuration_pargo import IMAGE_PLACEHOLDER
from .conversation_encoding import ConversationEncoding
from .conversations import Turn, image_sources
from .image_processing_pargo import ParGoImageProcessor
from .images import PIXEL_VERSION, match_images
from .literals import Spans
from .prompt_layout import Rendered
from .prompts import PROMPT_VERSION
from .tokenising import replacements

PROMPTS = ("chat", "paper")


class ParGoProcessor(ProcessorMixin, ConversationEncoding):
    """Tokenizer + image preparation + prompt of a ParGo model.

    Args:
        tokenizer: the LLM's tokenizer; gets one added token, `<image>`, when it has none of that
            name, and pads left.
        image_processor: prepares the images; made of image_size and resize when None.
        image_size: side of the square that the encoder takes, pixels; 336 when None.
        visual_tokens: tokens per image, those of the projector.
        resize: stretch the image to the square (None: this), crop its middle, or pad it with grey.
        prompt: "chat" (the tokenizer's template) or "paper" (bytedance/ParGo: `USER: <Img>...</Img>
            q ASSISTANT: `).
        system_prompt: put first when a conversation has no system turn. None: the template's or the
            paper's own.
        chat_template: replaces the tokenizer's. Of named templates `default` is taken.

    Raises:
        ValueError: an unknown resize or prompt, sizes below 1, an image_size or resize that differs
            from the image_processor's, no chat template for "chat", no eos token for "paper".
    """

    tokenizer: PreTrainedTokenizerBase
    image_processor: ParGoImageProcessor
    chat_template: str | dict[str, str] | None

    attributes = ["tokenizer", "image_processor"]
    tokenizer_class = "AutoTokenizer"  # type: ignore[assignment]  # transformers says None here
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
        assert tokenizer is not None  # None is a default for transformers only
        if IMAGE_PLACEHOLDER not in tokenizer.get_vocab():
            tokenizer.add_tokens(
                [AddedToken(IMAGE_PLACEHOLDER, special=True, normalized=False)], special_tokens=True
            )
        tokenizer.padding_side = "left"  # as generation needs it
        if (
            tokenizer.pad_token is None
        ):  # padding is never looked at, but pipelines refuse to do without
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
            raise ValueError(
                "prompt 'paper' ends each answer with the eos token, but the tokenizer has none"
            )

    @property
    def image_token(self) -> str:
        """The word for an image in a text."""
        return IMAGE_PLACEHOLDER

    # Images

    @property
    def image_size(self) -> int:
        """Side of the square that the encoder takes, pixels; the image processor's."""
        return self.image_processor.image_size

    @image_size.setter
    def image_size(self, value: int) -> None:
        self.image_processor.image_size = value

    @property
    def resize(self) -> str:
        """How an image becomes a square; the image processor's."""
        return self.image_processor.resize

    def pixels(self, image: Image.Image | torch.Tensor) -> torch.Tensor:
        """Make pixels, uint8 `(3, image_size, image_size)`, of a PIL image of any mode, or of uint8
        RGB `(3, height, width)`.

        The same as `image_processor.pixels`. Raises ValueError for a tensor of another type or
        shape.
        """
        return self.image_processor.pixels(image)

    # The Hugging Face face

    def __call__(  # type: ignore[override]  # neither films nor sound
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        **kwargs: Unpack[ProcessingKwargs],  # type: ignore[valid-type]  # transformers reads it
    ) -> BatchFeature:
        """Make input_ids, attention_mask (left-padded) and uint8 pixel_values of rendered prompts
        and their images.

        Args:
            images: one image, a list in order of appearance, or a list of lists, one per text. An
                image is what `images.open_image` takes: PIL, path, address, base64, uint8 of numpy
                or torch.
            text: one text or several. Without text only pixel_values are made.
            kwargs: the options of `call_options.CALL_OPTIONS`, by themselves or inside text_kwargs,
                images_kwargs and common_kwargs. Rows are padded to the longest, and cut only by
                truncation=True with max_length.

        Raises:
            ValueError: images and placeholders do not match, a cut through an image, an unknown
                option.
        """
        if text is None:
            _, of_images = gather_options(kwargs, self.tokenizer)
            if images is None:
                images = []
            return self.image_processor(images, **of_images)
        texts = [text] if isinstance(text, str) else list(text)
        matched = match_images(images, [t.count(IMAGE_PLACEHOLDER) for t in texts])
        return self._batch(texts, [self._tokenise(t) for t in texts], {}, matched, kwargs)

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
        """Render one conversation or a list of them as text, or with `tokenize=True` as a batch
        like that of `__call__`.

        Content is a string with `<image>`, or Hugging Face's list of `{"type": "text", "text":
        ...}` and `{"type": "image"}`; images may stand there (under image, url, path or base64) or
        come in `images`.

        Args:
            chat_template: another template, or the name of one, for this call; its text is taken as
                it is.
            continue_final_message: end within the last answer, so that the model goes on with it.
            return_dict: a batch, or with False its ids alone. Other processors default to False,
                and lose images.
            return_assistant_tokens_mask: add `assistant_masks`, 1 where `encode_conversation` has
                labels; of another chat_template its {% generation %} blocks.
            processor_kwargs: options of `__call__`; they may also stand in kwargs.
            kwargs: whatever is no option of `__call__` is a variable of the template, such as
                enable_thinking.

        Raises:
            ValueError: as `encode_conversation` and `__call__`.
        """
        single = bool(conversation) and isinstance(conversation[0], Mapping)
        conversations = cast("list[Sequence[Turn]]", list(conversation))
        if single:
            conversations = [cast("Sequence[Turn]", conversation)]
        if continue_final_message and (add_generation_prompt or return_assistant_tokens_mask):
            raise ValueError(
                "continue_final_message goes with neither add_generation_prompt nor assistant masks"
            )
        options = {name: value for name, value in kwargs.items() if name not in CALL_OPTIONS}
        given = {name: value for name, value in kwargs.items() if name in CALL_OPTIONS}
        given = {"return_tensors": return_tensors} | given | dict(processor_kwargs or {})
        ways = (chat_template, options, add_generation_prompt, continue_final_message)
        rendered = [self._face(turns, *ways) for turns in conversations]
        if tokenize:
            sources = image_sources(conversations, images)
            matched = match_images(sources, [self.num_images(turns) for turns in conversations])
            batch = self._rendered_batch(rendered, matched, given, return_assistant_tokens_mask)
            if return_dict is None or return_dict:
                return batch
            return batch["input_ids"]
        texts = [whole.text for whole, _ in rendered]
        if single:
            return texts[0]
        return texts

    def _rendered_batch(
        self,
        rendered: list[tuple[Rendered, Spans]],
        images: list[Any],
        given: Mapping[str, Any],
        with_masks: bool,
    ) -> BatchFeature:
        """A batch of what `_face` gave for each conversation."""
        marked = [self._marked(whole, spans) for whole, spans in rendered]
        rows = [self._expand(ids) for ids, _ in marked]
        extra = {}
        if with_masks:
            masks = [self._expand(ids, list(map(int, mask))) for ids, mask in marked]
            extra["assistant_masks"] = masks
        return self._batch([whole.text for whole, _ in rendered], rows, extra, images, given)

    def _batch(
        self,
        texts: list[str],
        rows: list[list[int]],
        extra: dict[str, list[list[int]]],
        images: list[Any],
        given: Mapping[str, Any],
    ) -> BatchFeature:
        options, of_images = gather_options(given, self.tokenizer)
        data: dict[str, Any] = make_batch(
            rows, extra, options, self.tokenizer.pad_token_id, self.image_token_id
        )
        if images:
            data |= self.image_processor(images, **of_images)
        batch = BatchFeature(data, tensor_type=options.return_tensors)
        if options.return_text_replacement_offsets:  # no numbers that could become a tensor
            length = self.visual_tokens
            offsets = [replacements(text, IMAGE_PLACEHOLDER, length) for text in texts]
            batch["text_replacement_offsets"] = offsets
        return batch

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[Sequence[int]] | None = None, **kwargs: Any
    ) -> MultiModalData:
        """How many visual tokens and rows of pixels each image of (height, width) becomes: the same
        for all. vLLM asks for it by this name, as transformers' own processors answer it.
        """
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(
            num_image_tokens=[self.visual_tokens] * count, num_image_patches=[1] * count
        )

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Call the tokenizer's batch_decode."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Call the tokenizer's decode."""
        return self.tokenizer.decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """What a batch may hold, by the names of the model's arguments."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def text_fingerprint(self) -> str:
        """Return a SHA-256 over all that changes the ids of text, an image being one of them."""
        return self._hash_with([])

    def fingerprint(self) -> str:
        """Return a SHA-256 over all that changes ids or pixels; equal ones mean interchangeable
        processors.
        """
        return self._hash_with([PIXEL_VERSION, self.image_size, self.visual_tokens, self.resize])

    def _hash_with(self, of_images: list[Any]) -> str:
        body: dict[str, Any] = self.tokenizer.get_vocab()
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            body = json.loads(backend.to_str())
        # Padding and truncation are leftovers of the last call, not properties of the tokenizer.
        body = {key: value for key, value in body.items() if key not in ("padding", "truncation")}
        settings = [
            PROMPT_VERSION,
            self.prompt,
            self.system_prompt,
            self.chat_template,
            self.tokenizer.eos_token,
        ]
        whole = json.dumps([body, of_images, settings], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    # Saving and loading

    @classmethod
    def _get_arguments_from_pretrained(  # type: ignore[override]  # any, as they differ by version
        cls, folder: str | Path, *args: Any, **kwargs: Any
    ) -> list[Any]:
        # Private in transformers 4.57 to 5.24, and the one place that decides the parts' classes:
        # Auto classes would ask whether to run the code that is running already.
        tokenizer = AutoTokenizer.from_pretrained(folder, **kwargs)
        return [tokenizer, ParGoImageProcessor.from_pretrained(folder, **kwargs)]

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Save the processor in files that transformers 4.57 and 5 can read, whichever writes
        them.
        """
        if (
            self._auto_class is not None
        ):  # loaded as remote code, which goes with it; the parts are not Auto's
            self.image_processor.register_for_auto_class()
        result = super().save_pretrained(save_directory, *args, **kwargs)
        _make_portable(Path(save_directory), self.image_processor)
        return result


def _image_processor(
    given: ParGoImageProcessor | None, image_size: int | None, resize: str | None
) -> ParGoImageProcessor:
    given_here = {"image_size": image_size, "resize": resize}
    wanted: dict[str, Any] = {k: value for k, value in given_here.items() if value is not None}
    if given is None:
        return ParGoImageProcessor(**wanted)
    for name, value in wanted.items():
        if getattr(given, name) != value:
            raise ValueError(
                f"{name} is {value!r}, but the image processor's is {getattr(given, name)!r}: give one"
            )
    return given


def _make_portable(folder: Path, image_processor: ParGoImageProcessor) -> None:
    """Give the files the names and the layout that transformers 4.57 knows; version 5 reads them
    too.
    """
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
