"""The processor called as Hugging Face's are: options, lists of parts, images of every kind, files
read back.
"""

from __future__ import annotations

import base64
import functools
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

from pargo_ds.model import IGNORE_INDEX, ParGoImageProcessor, ParGoProcessor

QUESTION = [{"role": "user", "content": "<image>What colour is it?"}]
ANSWERED = [*QUESTION, {"role": "assistant", "content": "A red square."}]


def asked(source: dict, text: str = "What colour is it?") -> list[dict]:
    return [
        {"role": "user", "content": [{"type": "image", **source}, {"type": "text", "text": text}]}
    ]


# Images


@pytest.fixture
def png(image, tmp_path) -> Path:
    """A file with transparent pixels, which Hugging Face's load_image would lay onto black."""
    drawn = image().convert("RGBA")
    drawn.putalpha(Image.new("L", drawn.size, 100))
    drawn.save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def address(png):
    """http address of the file."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(png.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{png.name}"
        server.shutdown()


def test_a_image_is_read_from_wherever_a_part_says_and_becomes_the_pixels_of_training(
    processor, png, address
):
    expected = processor.pixels(Image.open(png))
    encoded = base64.b64encode(png.read_bytes()).decode()
    sources = [
        {"path": str(png)}, {"path": png}, {"url": str(png)}, {"url": address}, {"base64": encoded},
        {"image": Image.open(png)}, {"image": str(png)}, {"image": address},
        {"url": f"data:image/png;base64,{encoded}"},
    ]  # fmt: skip
    turns = [asked(source) for source in sources]
    turns.append(
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": address}}]}]
    )
    for conversation in turns:
        batch = processor.apply_chat_template(conversation, tokenize=True, return_tensors="pt")
        assert torch.equal(batch["pixel_values"][0], expected), conversation
    assert (
        len(
            {
                tuple(batch)
                for batch in processor.apply_chat_template(turns[:-1], tokenize=True)["input_ids"]
            }
        )
        == 1
    )


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_numbers_are_images_with_their_channels_first_or_last(processor, image, library):
    rgb = np.array(image())  # (height, width, 3)
    rgba = np.concatenate([rgb, np.full_like(rgb[..., :1], 70)], 2)
    cases = [(rgb, "RGB"), (rgba, "RGBA"), (rgb[..., :1], "L"), (rgb[..., 0], "L")]
    for numbers, mode in cases:
        expected = processor.pixels(Image.fromarray(numbers.squeeze(), mode=None).convert(mode))
        ways = [numbers] if numbers.ndim == 2 else [numbers, numbers.transpose(2, 0, 1)]
        for way in ways:
            way = torch.from_numpy(np.ascontiguousarray(way)) if library == "torch" else way
            for images in (way, [way], [[way]], way[None]):
                batch = processor(images=images, text=["<image>a"], return_tensors="pt")
                assert torch.equal(batch["pixel_values"][0], expected), (mode, way.shape)


def test_numbers_that_may_be_read_in_two_ways_must_say_which(processor):
    numbers = np.arange(3 * 8 * 3, dtype=np.uint8).reshape(3, 8, 3)
    with pytest.raises(ValueError, match=r"shape \(3, 8, 3\) may have its channels first or last"):
        processor(images=numbers, text="<image>")
    last = processor(images=numbers, text="<image>", input_data_format="channels_last")
    first = processor(
        images=numbers, text="<image>", images_kwargs={"input_data_format": "channels_first"}
    )
    assert torch.equal(last["pixel_values"][0], processor.pixels(Image.fromarray(numbers)))
    assert torch.equal(first["pixel_values"][0], processor.pixels(torch.from_numpy(numbers)))


@pytest.mark.parametrize("image, message", [
    (np.zeros((8, 8, 3)), "float64.*0 to 255"),
    (np.zeros((8, 8, 2), np.uint8), "expected 1, 3 or 4 channels"),
    ("nowhere.png", "'nowhere.png' is no image"),
    (7, "an image of type int"),
])  # fmt: skip
def test_what_is_no_image_is_told(processor, image, message):
    with pytest.raises(ValueError, match=message):
        processor(images=[[image]], text="<image>")


def test_the_image_processor_is_the_processors_pixels_and_is_read_back(processor, image, tmp_path):
    processor.image_processor.resize = "pad"
    processor.save_pretrained(tmp_path)
    for read in (
        AutoImageProcessor.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path).image_processor,
    ):
        assert type(read) is ParGoImageProcessor
        assert (read.image_size, read.resize) == (processor.image_size, "pad")
        batch = read([image(1), image(2)], return_tensors="np")
        assert batch["pixel_values"].dtype == np.uint8
        assert np.array_equal(batch["pixel_values"][1], processor.pixels(image(2)).numpy())


@pytest.mark.parametrize(
    "option", [{"do_rescale": True}, {"do_normalize": True}, {"do_resize": False}]
)
def test_options_that_would_make_other_pixels_are_refused(processor, image, option):
    with pytest.raises(ValueError, match="raw uint8 squares"):
        processor(images=image(), text="<image>", **option)
    same = {name: not value for name, value in option.items()}
    assert torch.equal(
        processor(images=image(), text="<image>", **same)["pixel_values"][0],
        processor.pixels(image()),
    )


def test_two_truths_about_the_size_are_refused(tokenizer):
    with pytest.raises(ValueError, match="image_size is 48, but the image processor's is 32"):
        ParGoProcessor(tokenizer, ParGoImageProcessor(32), image_size=48)


# Options of a call


@pytest.mark.parametrize("way", ["flat", "text_kwargs", "common_kwargs"])
def test_options_mean_the_same_wherever_they_stand(processor, way):
    options = {"padding": "max_length", "max_length": 30, "padding_side": "right"}
    batch = processor(
        text=["A", "A red square."],
        return_tensors="pt",
        **(options if way == "flat" else {way: options}),
    )
    assert batch["input_ids"].shape == (2, 30)
    mask = batch["attention_mask"]
    assert mask.tolist() == mask.sort(1, descending=True).values.tolist()


def test_an_option_in_two_places_or_an_unknown_one_is_refused(processor):
    with pytest.raises(ValueError, match="padding: given twice"):
        processor(text="A", padding=True, text_kwargs={"padding": False})
    with pytest.raises(ValueError, match="unknown option paddding"):
        processor(text="A", paddding=True)
    with pytest.raises(ValueError, match="the prompt writes every special token itself"):
        processor(text="A", add_special_tokens=True)


def test_padding_to_a_multiple_and_types_of_tokens(processor, image):
    batch = processor(
        image(),
        "<image>What?",
        pad_to_multiple_of=16,
        return_mm_token_type_ids=True,
        return_tensors="pt",
    )
    assert batch["input_ids"].shape[1] % 16 == 0
    assert int(batch["mm_token_type_ids"].sum()) == processor.visual_tokens
    assert (batch["mm_token_type_ids"] == (batch["input_ids"] == processor.image_token_id)).all()


def test_text_is_cut_only_when_asked_for_and_images_never(processor, image):
    text = "<image>What colour is it?"
    whole = processor(image(), text)["input_ids"][0]
    assert processor(image(), text, max_length=8)["input_ids"][0] == whole
    cut = processor(image(), text, max_length=8, truncation=True)["input_ids"][0]
    assert cut == whole[:8]
    with pytest.raises(
        ValueError, match="max_length 5 would cut 1 of the 6 image tokens of text 1, which has"
    ):
        processor([image()], ["A", text], max_length=5, truncation=True)
    left = processor(
        text="What colour is it?", max_length=3, truncation=True, truncation_side="left"
    )["input_ids"][0]
    assert left == processor(text="What colour is it?")["input_ids"][0][-3:]


def test_images_alone_give_pixels_alone_and_nothing_is_an_error(processor, image):
    assert set(processor(images=[image()], return_tensors="pt")) == {"pixel_values"}
    with pytest.raises(ValueError, match="no image was given"):
        processor()


# Chats


def test_content_may_be_parts_in_every_turn(processor, image):
    parts = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        *asked({"image": image()}),
        {"role": "assistant", "content": [{"type": "text", "text": "A red square."}]},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
    ]
    plain = [
        {"role": "system", "content": "Be brief."},
        *ANSWERED,
        {"role": "user", "content": "Sure?"},
    ]
    batch = processor.apply_chat_template(parts, add_generation_prompt=True, tokenize=True)
    assert (
        batch["input_ids"][0] == processor.encode_conversation(plain, add_generation_prompt=True)[0]
    )


def test_a_chat_gives_a_batch_or_its_ids(processor, image):
    text = [{"role": "user", "content": "Describe."}]
    ids = processor.apply_chat_template(text, tokenize=True, return_dict=False)
    assert ids == [processor.encode_conversation(text)[0]]
    assert set(processor.apply_chat_template(text, tokenize=True)) == {
        "input_ids",
        "attention_mask",
    }
    # Ids alone would lose the image, so they are given only when they are asked for.
    assert "pixel_values" in processor.apply_chat_template(QUESTION, images=image(), tokenize=True)
    ids = processor.apply_chat_template(QUESTION, images=image(), tokenize=True, return_dict=False)
    assert ids == [processor.encode_conversation(QUESTION)[0]]


def test_options_of_the_call_and_variables_of_the_template_are_told_apart(processor):
    template = "{{ mood }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    turns = [{"role": "user", "content": "Describe."}]
    options = {"padding": "max_length", "max_length": 20}
    for given in (options, {"processor_kwargs": options}):
        batch = processor.apply_chat_template(
            turns, chat_template=template, mood="glad ", tokenize=True, **given
        )
        (ids,) = batch["input_ids"]
        assert len(ids) == 20
        assert processor.tokenizer.decode(ids, skip_special_tokens=True) == "glad Describe."


def test_a_last_answer_is_continued_from_its_own_end(processor, image):
    began = [*QUESTION, {"role": "assistant", "content": "A red"}]
    text = processor.apply_chat_template(began, continue_final_message=True)
    assert text == processor.render(QUESTION, add_generation_prompt=True) + "A red"
    with pytest.raises(ValueError, match="the last turn is no answer"):
        processor.apply_chat_template(QUESTION, continue_final_message=True)
    with pytest.raises(ValueError, match="continue_final_message goes with neither"):
        processor.apply_chat_template(
            began, continue_final_message=True, add_generation_prompt=True
        )


def test_masks_of_the_assistants_tokens_are_where_the_labels_are(processor, image):
    batch = processor.apply_chat_template(
        [ANSWERED, [*ANSWERED, *ANSWERED]],
        images=[image()] * 3,
        tokenize=True,
        return_assistant_tokens_mask=True,
    )
    for mask, turns in zip(
        batch["assistant_masks"], (ANSWERED, [*ANSWERED, *ANSWERED]), strict=True
    ):
        _, labels = processor.encode_conversation(turns)
        assert mask[-len(labels) :] == [int(label != IGNORE_INDEX) for label in labels]
        assert not any(mask[: -len(labels)])


def test_images_in_two_places_are_refused(processor, image):
    with pytest.raises(
        ValueError, match="1 images stand in the conversation, and images are given too"
    ):
        processor.apply_chat_template(asked({"image": image()}), images=image(), tokenize=True)


@pytest.mark.parametrize("turns, message", [
    ([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], "turn 0 .user.: a part of type 'video'"),
    ([{"role": "tool", "content": "a"}], "turn 0 has role 'tool'"),
    ([*QUESTION, {"role": "assistant", "content": [{"type": "image"}]}], "turn 1 is an answer with <image> in it"),
])  # fmt: skip
def test_turns_that_are_not_understood_are_named(processor, turns, message):
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(turns)


def test_a_tokenizer_without_a_pad_token_pads_with_its_eos(tokenizer):
    tokenizer.pad_token = None
    processor = ParGoProcessor(tokenizer, visual_tokens=2)
    batch = processor(text=["A", "A red square."])
    assert batch["input_ids"][0][0] == tokenizer.eos_token_id
    assert processor.tokenizer.pad_token_id == tokenizer.eos_token_id  # pipelines ask the tokenizer
    assert processor.tokenizer.padding_side == "left"
