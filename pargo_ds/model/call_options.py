"""The options of Hugging Face's processor calls, collected from the places where they may be given.

Rows are lists of token ids; a batch pads them, and cuts them only where it was told to and no image
is lost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TEXT_OPTIONS = (
    "padding", "padding_side", "pad_to_multiple_of", "max_length", "truncation", "truncation_side",
    "add_special_tokens", "return_tensors", "return_attention_mask", "return_mm_token_type_ids",
    "return_text_replacement_offsets",
)  # fmt: skip
IMAGE_OPTIONS = (
    "do_resize", "do_convert_rgb", "do_rescale", "do_normalize", "rescale_factor", "image_mean", "image_std",
    "data_format", "input_data_format", "device",
)  # fmt: skip
GROUPS = ("text_kwargs", "images_kwargs", "common_kwargs")
# Options for videos and sound have no effect here; callers that do not know the model pass them to
# all processors.
NOT_OURS = (
    "videos_kwargs",
    "audio_kwargs",
    "num_frames",
    "fps",
    "do_sample_frames",
    "load_audio_from_video",
)
CALL_OPTIONS = (*TEXT_OPTIONS, *IMAGE_OPTIONS, *GROUPS, *NOT_OURS)
# Padding of a tokenizer that was made with it; a length to cut at is never taken from there.
OF_THE_TOKENIZER = ("padding", "max_length")
CUTTING = (True, "longest_first")
NO_LIMIT = 10**6
"""A larger limit means no limit; tokenizers without a limit have one of 1e30 tokens."""


@dataclass(frozen=True)
class TextOptions:
    """How rows become a batch, with the option names of Hugging Face's tokenizers."""

    padding: Any = True
    padding_side: str = "left"
    pad_to_multiple_of: int | None = None
    max_length: int | None = None
    truncation: Any = False
    truncation_side: str = "right"
    add_special_tokens: bool = False
    return_tensors: Any = None
    return_attention_mask: bool = True
    return_mm_token_type_ids: bool = False
    return_text_replacement_offsets: bool = False


def gather_options(given: Mapping[str, Any], tokenizer: Any) -> tuple[TextOptions, dict[str, Any]]:
    """Return (options of the text, options of the images), gathered from flat keywords,
    text_kwargs, images_kwargs and common_kwargs.

    Raises:
        ValueError: an unknown option, or one that stands in two places.
    """
    given = {k: v for k, v in given.items() if v is not None and k not in NOT_OURS}
    groups = {name: dict(given.pop(name, {})) for name in GROUPS}
    text, images, common = (groups[name] for name in GROUPS)
    flat = common | given
    twice = sorted(
        (common.keys() & given.keys()) | (flat.keys() & text.keys()) | (flat.keys() & images.keys())
    )
    said = flat.get("return_tensors")
    if "return_tensors" in twice and text.get("return_tensors", said) == said:
        twice.remove("return_tensors")  # it belongs to both texts and images
    if twice:
        raise ValueError(
            f"{', '.join(twice)}: given twice, by itself and in one of {', '.join(GROUPS)}"
        )
    unknown = sorted(flat.keys() - {*TEXT_OPTIONS, *IMAGE_OPTIONS}) + sorted(
        text.keys() - {*TEXT_OPTIONS}
    )
    if unknown:
        known = ", ".join([*TEXT_OPTIONS, *IMAGE_OPTIONS, *GROUPS])
        raise ValueError(f"unknown option {', '.join(unknown)}: expected one of {known}")
    made_with = tokenizer.init_kwargs
    own = {name: made_with[name] for name in OF_THE_TOKENIZER if made_with.get(name)}
    own |= {name: getattr(tokenizer, name) for name in ("padding_side", "truncation_side")}
    text = own | _of_these(flat, TEXT_OPTIONS) | text
    images |= _of_these(flat, (*IMAGE_OPTIONS, "return_tensors"))
    needs_length = (
        _word(text.get("padding")) == "max_length" or _word(text.get("truncation")) in CUTTING
    )
    if needs_length and text.get("max_length") is None and tokenizer.model_max_length < NO_LIMIT:
        text["max_length"] = tokenizer.model_max_length
    return _checked(TextOptions(**text)), images


def _of_these(options: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in names}


def _checked(options: TextOptions) -> TextOptions:
    padding, truncation = _word(options.padding), _word(options.truncation)
    if padding not in (True, False, "longest", "max_length", "do_not_pad"):
        raise ValueError(
            f"padding is {padding!r}: expected True, False, 'longest', 'max_length' or 'do_not_pad'"
        )
    if truncation not in (*CUTTING, False, "do_not_truncate"):
        raise ValueError(
            f"truncation is {truncation!r}: expected True, False, 'longest_first' or 'do_not_truncate'"
        )
    if {options.padding_side, options.truncation_side} - {"left", "right"}:
        raise ValueError("padding_side and truncation_side: expected 'left' or 'right'")
    if options.add_special_tokens:
        raise ValueError(
            "add_special_tokens is True, but the prompt writes every special token itself: leave it out"
        )
    if options.max_length is None and padding == "max_length":
        raise ValueError(
            "padding is 'max_length', but neither max_length is given nor has the tokenizer a limit"
        )
    return options


def make_batch(
    rows: Sequence[Sequence[int]],
    extra: dict[str, list[list[int]]],
    options: TextOptions,
    pad: int | None,
    image: int,
) -> dict[str, list[list[int]]]:
    """Make input_ids, attention_mask and the rows of `extra` of the token ids of several texts, all
    cut and padded alike.

    Args:
        extra: further rows as long as the first, padded with 0.
        pad: the token to pad with, None when there is none.
        image: the image token, which is never cut.

    Raises:
        ValueError: a cut through an image's tokens, or rows to pad without a pad token.
    """
    cut = [list(row) for row in rows]
    extra = {name: list(values) for name, values in extra.items()}
    if _word(options.truncation) in CUTTING and options.max_length is not None:
        for i, row in enumerate(cut):
            kept = _kept(row, options.max_length, options.truncation_side, image, i)
            cut[i] = row[kept]
            extra = {n: [*v[:i], v[i][kept], *v[i + 1 :]] for n, v in extra.items()}
    gaps = _gaps([len(row) for row in cut], options)
    if any(gaps) and pad is None:
        raise ValueError(
            "the tokenizer has neither a pad nor an eos token: texts of unequal length need one"
        )
    columns = {"input_ids": (cut, pad or 0)}  # without a pad token nothing is padded
    if options.return_attention_mask:
        columns["attention_mask"] = ([[1] * len(row) for row in cut], 0)
    if options.return_mm_token_type_ids:
        columns["mm_token_type_ids"] = ([_token_types(row, image) for row in cut], 0)
    columns |= {name: (values, 0) for name, values in extra.items()}
    left = options.padding_side == "left"
    return {name: _padded(values, filler, gaps, left) for name, (values, filler) in columns.items()}


def _token_types(row: list[int], image: int) -> list[int]:
    """Return 1 for each image token and 0 for each word."""
    return [int(token == image) for token in row]


def _padded(rows: list[list[int]], filler: int, gaps: list[int], left: bool) -> list[list[int]]:
    padded = []
    for gap, row in zip(gaps, rows, strict=True):
        filling = [filler] * gap
        if left:
            padded.append(filling + row)
        else:
            padded.append(row + filling)
    return padded


def _kept(row: list[int], most: int, side: str, image: int, number: int) -> slice:
    if len(row) <= most:
        return slice(None)
    kept = slice(None, most)
    if side == "left":
        kept = slice(len(row) - most, None)
    lost = row.count(image) - row[kept].count(image)
    if lost:
        raise ValueError(
            f"truncation to max_length {most} would cut {lost} of the {row.count(image)} image tokens of text "
            f"{number}, which has {len(row)} tokens: give a larger max_length, or leave truncation out"
        )
    return kept


def _gaps(lengths: list[int], options: TextOptions) -> list[int]:
    """Return the number of padding tokens for each row."""
    padding = _word(options.padding)
    if padding in (False, "do_not_pad"):
        return [0] * len(lengths)
    target = max(lengths)
    if padding == "max_length" and options.max_length is not None:
        target = options.max_length
    if options.pad_to_multiple_of:
        target = -(-target // options.pad_to_multiple_of) * options.pad_to_multiple_of
    return [max(target - length, 0) for length in lengths]


def _word(value: Any) -> Any:
    """Return the value of an enumeration of transformers as a plain word."""
    return getattr(value, "value", value)
