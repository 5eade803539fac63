"""Pictures and conversations -> pixels and token ids: one code path for training and inference.

In text a picture is written `<image>`; in ids it is a run of `visual_tokens` image tokens.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AddedToken, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from .configuration_pargo import IGNORE_INDEX, IMAGE_PLACEHOLDER
from .masks import CASCADES  # noqa: F401  (configuration_pargo needs the file: see modeling_pargo)
from .pictures import PIXEL_VERSION, RESIZES, match_pictures, open_picture, to_pixels, to_square

PROMPTS = ("chat", "paper")
PAPER_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
Turn = dict[str, Any]


class ParGoProcessor(ProcessorMixin):
    """Tokenizer + picture preparation + prompt of a ParGo model.

    Args:
        tokenizer: the LLM's tokenizer; gets one added token, `<image>`, when it has none of that name.
        image_size: side of the square that the encoder takes, pixels.
        visual_tokens: tokens per picture (partial + global).
        resize: stretch the picture to the square, crop its middle, or pad it with grey.
        prompt: "chat" (the tokenizer's template) or "paper" (bytedance/ParGo: `USER: <Img>...</Img> q ASSISTANT: `).
        system_prompt: put first when a conversation has no system turn. None: the template's or the paper's own.
        chat_template: replaces the tokenizer's.

    Raises:
        ValueError: an unknown resize or prompt, sizes below 1, no chat template for "chat", no eos token for "paper".
    """

    attributes = ["tokenizer"]
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_size: int = 336,
        visual_tokens: int = 304,
        resize: str = "stretch",
        prompt: str = "chat",
        system_prompt: str | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        if resize not in RESIZES or prompt not in PROMPTS:
            raise ValueError(
                f"resize '{resize}', prompt '{prompt}': expected one of {', '.join(RESIZES)} and {', '.join(PROMPTS)}"
            )
        if image_size < 1 or visual_tokens < 1:
            raise ValueError(f"image_size {image_size}, visual_tokens {visual_tokens}: both must be at least 1")
        self.image_size = image_size
        self.visual_tokens = visual_tokens
        self.resize = resize
        self.prompt = prompt
        self.system_prompt = system_prompt
        if IMAGE_PLACEHOLDER not in tokenizer.get_vocab():
            tokenizer.add_tokens([AddedToken(IMAGE_PLACEHOLDER, special=True, normalized=False)], special_tokens=True)
        super().__init__(tokenizer, chat_template=chat_template or tokenizer.chat_template, **kwargs)
        if prompt == "chat" and not self.chat_template:
            raise ValueError(
                "the tokenizer has no chat template: use prompt 'paper', or give chat_template (an instruct model's "
                "tokenizer brings one)"
            )
        if prompt == "paper" and tokenizer.eos_token is None:
            raise ValueError("prompt 'paper' ends each answer with the eos token, but the tokenizer has none")

    @property
    def image_token_id(self) -> int:
        """Id of `<image>`; goes into ParGoConfig.image_token_id. May lie outside the LLM's vocabulary."""
        return self.tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end an answer: the end-of-turn token of the prompt and eos. For GenerationConfig.eos_token_id."""
        _, labels = self.encode_conversation([_turn("user", "a"), _turn("assistant", "b")])
        eos = self.tokenizer.eos_token_id
        return sorted({labels[-1]} | ({eos} if eos is not None else set()))

    # Pictures

    def pixels(self, picture: Image.Image | torch.Tensor) -> torch.Tensor:
        """PIL picture of any mode, or uint8 RGB `(3, height, width)` -> uint8 `(3, image_size, image_size)`.

        Of a PIL picture the EXIF rotation is applied, transparent pixels are laid onto white, grey and palettes become
        RGB. Both are resized by the same code: bicubic, antialiased.

        Raises:
            ValueError: a tensor of another type or shape.
        """
        return to_square(to_pixels(picture), self.image_size, self.resize)

    # Conversations

    @staticmethod
    def num_images(turns: Sequence[Turn]) -> int:
        """Pictures that a conversation refers to: the count of `<image>` in its turns."""
        return sum(_as_text(turn["content"]).count(IMAGE_PLACEHOLDER) for turn in turns)

    def encode_conversation(
        self, turns: Sequence[Turn], add_generation_prompt: bool = False
    ) -> tuple[list[int], list[int]]:
        """Turns -> (input_ids, labels) of equal length.

        Labels are the ids of answers and their end-of-turn token, IGNORE_INDEX elsewhere. `<image>` becomes a run of
        `visual_tokens` image tokens. Prompt and answer are tokenised apart, so the ids before an answer are exactly
        those that generation starts from.

        Example, 2 visual tokens: "<image>what?" "a cat" -> ids [.. I I what ? .. a cat END], labels [-100 .. a cat END]

        Raises:
            ValueError: unknown roles, a picture inside an answer, or a template that cannot be split at the answers.
        """
        ids: list[int] = []
        labels: list[int] = []
        for text, is_answer in self._segments(turns, add_generation_prompt):
            segment = self._tokenise(text)
            ids += segment
            labels += segment if is_answer else [IGNORE_INDEX] * len(segment)
        return ids, labels

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        """Turns -> prompt text, pictures still written `<image>`."""
        return "".join(text for text, _ in self._segments(turns, add_generation_prompt))

    def _segments(self, turns: Sequence[Turn], add_generation_prompt: bool) -> list[tuple[str, bool]]:
        """(text, is an answer) pieces of the rendered conversation; joined they are the whole prompt."""
        turns = self._with_system_prompt(_checked_turns(turns))
        segments: list[tuple[str, bool]] = []
        done = ""
        for i, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            prompt = self._template(turns[:i], add_generation_prompt=True)
            full = self._template(turns[: i + 1], add_generation_prompt=False)
            _require_prefix(done, prompt, i, "the turns before it")
            _require_prefix(prompt, full, i, "its own generation prompt")
            answer = full[len(prompt) :].rstrip()
            if len(answer) <= len(turn["content"].strip()):
                raise ValueError(
                    f"the chat template writes nothing after the answer of turn {i}: the model could not learn to "
                    "stop. Use a template with an end-of-turn token"
                )
            # What follows the end of turn (a newline) belongs to the next prompt.
            segments += [(prompt[len(done) :], False), (answer, True)]
            done = prompt + answer
        if turns[-1]["role"] != "assistant" or add_generation_prompt:
            rest = self._template(turns, add_generation_prompt)
            _require_prefix(done, rest, len(turns), "the turns before it")
            segments.append((rest[len(done) :], False))
        return segments

    def _with_system_prompt(self, turns: list[Turn]) -> list[Turn]:
        if self.system_prompt is None or turns[0]["role"] == "system":
            return turns
        return [_turn("system", self.system_prompt), *turns]

    def _template(self, turns: list[Turn], add_generation_prompt: bool) -> str:
        if self.prompt == "paper":
            return self._paper_prompt(turns, add_generation_prompt)
        return self.tokenizer.apply_chat_template(
            turns, chat_template=self.chat_template, add_generation_prompt=add_generation_prompt, tokenize=False
        )

    def _paper_prompt(self, turns: list[Turn], add_generation_prompt: bool) -> str:
        """The prompt of bytedance/ParGo, Vicuna style: each answer ends with the eos token."""
        system = PAPER_SYSTEM_PROMPT
        if turns and turns[0]["role"] == "system":
            system, turns = turns[0]["content"], turns[1:]
        text = _opening_token(self.tokenizer) + system
        for turn in turns:
            if turn["role"] == "user":
                text += " USER: " + _paper_pictures(turn["content"])
            elif turn["role"] == "assistant":
                text += f" ASSISTANT: {turn['content']}{self.tokenizer.eos_token}"
            else:
                raise ValueError("prompt 'paper' takes a system turn only as the first turn")
        return text + (" ASSISTANT: " if add_generation_prompt else "")

    def _tokenise(self, text: str) -> list[int]:
        image_token, ids = self.image_token_id, []
        for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]:
            ids += [token] * (self.visual_tokens if token == image_token else 1)
        return ids

    # The Hugging Face face

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = None,
        padding: bool = True,
    ) -> BatchFeature:
        """Rendered prompts and their pictures -> input_ids, attention_mask (left-padded) and uint8 pixel_values.

        `images` is one picture, a list in order of appearance, or a list of lists, one per text. Nothing is ever cut.

        Raises:
            ValueError: pictures and placeholders do not match, or no text.
        """
        if text is None:
            raise ValueError("give text; for pixels alone use processor.pixels(picture)")
        texts = [text] if isinstance(text, str) else list(text)
        pictures = match_pictures(images, [t.count(IMAGE_PLACEHOLDER) for t in texts])
        return self._batch([self._tokenise(t) for t in texts], pictures, return_tensors, padding)

    def apply_chat_template(
        self,
        conversation: Sequence[Turn] | Sequence[Sequence[Turn]],
        images: Any = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = True,
        return_tensors: str | None = None,
        padding: bool = True,
    ) -> Any:
        """One conversation or a list of them -> text, or with `tokenize=True` a batch as `__call__` makes it.

        Content is a string with `<image>`, or Hugging Face's list of `{"type": "text", "text": ...}` and
        `{"type": "image"}`; pictures may stand there (`"image": picture or path`) or come in `images`.

        Raises:
            ValueError: as `encode_conversation` and `__call__`.
        """
        single = bool(conversation) and isinstance(conversation[0], dict)
        conversations = [conversation] if single else list(conversation)
        if not tokenize:
            rendered = [self.render(turns, add_generation_prompt) for turns in conversations]
            return rendered[0] if single else rendered
        ids = [self.encode_conversation(turns, add_generation_prompt)[0] for turns in conversations]
        if images is None:
            images = [picture for turns in conversations for picture in _pictures_inside(turns)]
        pictures = match_pictures(images, [self.num_images(turns) for turns in conversations])
        batch = self._batch(ids, pictures, return_tensors, padding)
        return batch if return_dict else batch["input_ids"]

    def _batch(
        self, rows: list[list[int]], pictures: list[Any], return_tensors: str | None, padding: bool
    ) -> BatchFeature:
        longest = max(len(row) for row in rows) if padding else 0
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        short = [max(longest - len(row), 0) for row in rows]
        if any(short) and pad is None:
            raise ValueError("the tokenizer has neither a pad nor an eos token: texts of unequal length need one")
        data: dict[str, Any] = {
            "input_ids": [[pad] * gap + row for gap, row in zip(short, rows, strict=True)],
            "attention_mask": [[0] * gap + [1] * len(row) for gap, row in zip(short, rows, strict=True)],
        }
        if pictures:
            data["pixel_values"] = torch.stack([self.pixels(open_picture(picture)) for picture in pictures])
        return BatchFeature(data, tensor_type=return_tensors)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's batch_decode."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """The tokenizer's decode."""
        return self.tokenizer.decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def fingerprint(self) -> str:
        """SHA-256 over everything that changes ids or pixels; equal fingerprints mean interchangeable processors."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        body = json.loads(backend.to_str()) if backend is not None else self.tokenizer.get_vocab()
        # Padding and truncation are leftovers of the last call, not properties of the tokenizer.
        body = {key: value for key, value in body.items() if key not in ("padding", "truncation")}
        settings = [PIXEL_VERSION, self.image_size, self.visual_tokens, self.resize, self.prompt, self.system_prompt]
        whole = json.dumps([body, settings, self.chat_template, self.tokenizer.eos_token], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Save the processor; the tokenizer's files can be read by transformers 4.57 and 5."""
        result = super().save_pretrained(save_directory, *args, **kwargs)
        _make_portable(Path(save_directory) / "tokenizer_config.json")
        return result


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _as_text(content: str | Sequence[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(IMAGE_PLACEHOLDER if part["type"] == "image" else part["text"] for part in content)


def _checked_turns(turns: Sequence[Turn]) -> list[Turn]:
    if not turns:
        raise ValueError("the conversation has no turns")
    checked = []
    for i, turn in enumerate(turns):
        role, content = turn.get("role"), _as_text(turn.get("content", ""))
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"turn {i} has role {role!r}: expected 'system', 'user' or 'assistant'")
        if role == "assistant" and IMAGE_PLACEHOLDER in content:
            raise ValueError(f"turn {i} is an answer with {IMAGE_PLACEHOLDER} in it: pictures belong to user turns")
        checked.append(_turn(role, content))
    return checked


def _require_prefix(prefix: str, text: str, turn: int, what: str) -> None:
    if not text.startswith(prefix):
        raise ValueError(
            f"the chat template renders turn {turn} so that it does not start with {what}: answers cannot be "
            f"found in it. Expected a start ending in {prefix[-60:]!r}, got {text[max(len(prefix) - 60, 0) :][:80]!r}. "
            "Use another chat_template (one that keeps earlier turns unchanged), or prompt 'paper'"
        )


def _paper_pictures(content: str) -> str:
    head, *rest = content.split(IMAGE_PLACEHOLDER)
    return head + "".join(f"<Img>{IMAGE_PLACEHOLDER}</Img> {part.lstrip()}" for part in rest)


def _opening_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """The beginning-of-sequence token, if this tokenizer puts one before a text by itself."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else ""


def _pictures_inside(turns: Sequence[Turn]) -> list[Any]:
    parts = [part for turn in turns if not isinstance(turn["content"], str) for part in turn["content"]]
    return [part["image"] for part in parts if part["type"] == "image" and part.get("image") is not None]


def _make_portable(path: Path) -> None:
    """Give tokenizer_config.json names that transformers 4.57 knows; version 5 reads them too."""
    if not path.exists():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
