"""Images and conversations to pixels and ids."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pargo_ds.model import IGNORE_INDEX, ParGoProcessor

BICUBIC = Image.Resampling.BICUBIC
QUESTION = [{"role": "user", "content": "<image>What colour is it?"}]
ANSWERED = [*QUESTION, {"role": "assistant", "content": "A red square."}]
TWO_TURNS = [
    *ANSWERED,
    {"role": "user", "content": "Describe <image> the picture."},
    {"role": "assistant", "content": "green"},
]


@pytest.fixture(params=["chat", "paper"])
def any_processor(request, tokenizer):
    return ParGoProcessor(tokenizer, image_size=32, visual_tokens=6, prompt=request.param)


def test_labels_are_the_answers_and_their_end_of_turn_only(any_processor):
    ids, labels = any_processor.encode_conversation(TWO_TURNS)
    assert len(ids) == len(labels)
    targets = [label for label in labels if label != IGNORE_INDEX]
    assert any_processor.decode(targets) == "A red square.<|im_end|>green<|im_end|>"
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(ids, labels, strict=True))


def test_each_image_is_one_run_of_visual_tokens(any_processor):
    ids, _ = any_processor.encode_conversation(TWO_TURNS)
    runs = "".join("I" if i == any_processor.image_token_id else "." for i in ids).split(".")
    assert [len(run) for run in runs if run] == [6, 6]
    assert any_processor.num_images(TWO_TURNS) == 2


def test_training_ids_before_an_answer_are_the_ids_that_generation_starts_from(any_processor):
    ids, labels = any_processor.encode_conversation(TWO_TURNS)
    for answer in (1, 3):
        prompt, none = any_processor.encode_conversation(
            TWO_TURNS[:answer], add_generation_prompt=True
        )
        assert ids[: len(prompt)] == prompt
        assert labels[len(prompt)] != IGNORE_INDEX
        assert labels[len(prompt) - 1] == IGNORE_INDEX
        assert none[-1] == IGNORE_INDEX


def test_call_on_rendered_text_gives_the_same_ids(any_processor, image):
    text = any_processor.render(QUESTION, add_generation_prompt=True)
    assert text == any_processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    batch = any_processor(images=image(), text=text, return_tensors="pt", padding=True)
    assert batch["input_ids"][0].tolist() == any_processor.encode_conversation(QUESTION, True)[0]
    assert batch["pixel_values"].shape == (1, 3, 32, 32)
    assert batch["pixel_values"].dtype == torch.uint8


def test_chat_ids_are_those_of_the_tokenizers_own_template(processor):
    turns = [{"role": "user", "content": "Describe the picture."}]
    own = processor.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert (
        processor.encode_conversation(turns, True)[0]
        == processor.tokenizer(own, add_special_tokens=False)["input_ids"]
    )


def test_paper_prompt_is_the_release_word_for_word(tokenizer):
    processor = ParGoProcessor(tokenizer, prompt="paper")
    assert processor.render(TWO_TURNS[:3], add_generation_prompt=True) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <Img><image></Img> What colour is it? "
        "ASSISTANT: A red square.<|im_end|> USER: Describe <Img><image></Img> the picture. ASSISTANT: "
    )


def test_system_prompt_goes_first_unless_there_is_one(tokenizer):
    processor = ParGoProcessor(tokenizer, system_prompt="Be brief.")
    assert processor.render(QUESTION).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    own = [{"role": "system", "content": "Be long."}, *QUESTION]
    assert "Be brief" not in processor.render(own)


def test_left_padding(processor, image):
    texts = ["<image>A square.", "A"]
    batch = processor(images=[image()], text=texts, return_tensors="pt", padding=True)
    mask = batch["attention_mask"]
    assert mask[0].all()
    assert mask[1].tolist() == sorted(mask[1].tolist())
    assert (batch["input_ids"][mask == 0] == processor.tokenizer.pad_token_id).all()


def test_hugging_face_content_lists_are_understood(processor, image, tmp_path):
    image().save(tmp_path / "a.png")
    content = [
        {"type": "image", "image": str(tmp_path / "a.png")},
        {"type": "text", "text": "What colour is it?"},
    ]
    batch = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_tensors="pt"
    )
    assert batch["input_ids"][0].tolist() == processor.encode_conversation(QUESTION)[0]
    assert torch.equal(batch["pixel_values"][0], processor.pixels(image()))


def test_stop_tokens_end_a_turn(any_processor):
    assert any_processor.tokenizer.eos_token_id in any_processor.stop_token_ids


# Images


def in_pillow(image: Image.Image, resize: str, size: int) -> np.ndarray:
    """(3, size, size): Pillow's pixels, rows resized before columns; a crop starts at a whole
    pixel, as ours.
    """
    width, height = image.size
    if resize == "pad":
        return np.asarray(
            ImageOps.pad(image, (size, size), BICUBIC, color=(127, 127, 127))
        ).transpose(2, 0, 1)
    if resize == "crop":
        side = min(image.size)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(
        image.resize((size, image.height), BICUBIC).resize((size, size), BICUBIC)
    ).transpose(2, 0, 1)


@pytest.fixture
def photograph() -> Image.Image:
    """A real photograph, 512 x 600; comes with matplotlib."""
    matplotlib = pytest.importorskip(
        "matplotlib", reason="its sample photograph is needed: pip install -e .[dev]"
    )
    return Image.open(
        Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    ).convert("RGB")


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [64, 336])
def test_pixels_are_those_of_pillow_up_to_two_steps_of_255(tokenizer, photograph, resize, size):
    # Worst of 125 photographs, drawings and screenshots, 64 to 1024 pixels: mean 0.02, largest 2.
    # Both count in whole numbers, torch with 16-bit and Pillow with 22-bit weights, and round after
    # the rows and after the columns.
    wide = photograph.resize((611, 402))
    processor = ParGoProcessor(tokenizer, image_size=size, resize=resize)
    difference = np.abs(processor.pixels(wide).numpy().astype(int) - in_pillow(wide, resize, size))
    assert difference.max() <= 2
    assert difference.mean() < 0.05


def test_upright_images_stay_close_to_pillow_which_may_take_the_columns_first(
    processor, photograph
):
    # Pillow chooses the order of rows and columns, by version and shape; between the two it rounds
    # and clips. Worst of the same 125 images: mean 0.21, largest 13 of 255, where a sharp edge
    # overshoots.
    processor.image_size = 448
    expected = np.asarray(photograph.resize((448, 448), BICUBIC)).transpose(2, 0, 1)
    difference = np.abs(processor.pixels(photograph).numpy().astype(int) - expected)
    assert difference.max() <= 20
    assert difference.mean() < 0.3


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(33, 50), (50, 33), (5, 5), (1, 300), (300, 1)])
def test_a_image_and_its_pixels_give_the_same(tokenizer, image, resize, size):
    processor = ParGoProcessor(tokenizer, image_size=32, resize=resize)
    drawn = image(size=size)
    rows = torch.from_numpy(np.array(drawn))  # (height, width, 3)
    expected = processor.pixels(drawn)
    assert expected.shape == (3, 32, 32)
    assert expected.is_contiguous()
    for pixels in (rows.permute(2, 0, 1), rows.permute(2, 0, 1).contiguous()):
        assert torch.equal(processor.pixels(pixels), expected)


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        torch.zeros(3, 0, 8, dtype=torch.uint8),
    ],
)
def test_pixels_of_another_kind_are_an_error(processor, pixels):
    with pytest.raises(ValueError, match="expected torch.uint8"):
        processor.pixels(pixels)


def test_call_takes_pixels_like_images(processor, image):
    pixels = torch.from_numpy(np.array(image())).permute(2, 0, 1)
    for images in (pixels, [pixels], [[pixels]]):
        batch = processor(images=images, text=["<image>a"], return_tensors="pt")
        assert torch.equal(batch["pixel_values"][0], processor.pixels(image()))


def test_transparency_is_laid_onto_white(processor):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    palette = Image.new("P", (8, 8), 0)
    palette.info["transparency"] = 0
    assert (processor.pixels(clear) == 255).all()
    assert (processor.pixels(half) == 127).all()
    assert (processor.pixels(palette) == 255).all()


@pytest.mark.parametrize(
    "mode, value, grey",
    [("L", 90, 90), ("1", 1, 255), ("I;16", 90 * 256, 90), ("LA", (90, 255), 90)],
)
def test_grey_images_become_rgb(processor, mode, value, grey):
    assert (processor.pixels(Image.new(mode, (8, 8), value)) == grey).all()


def test_exif_rotation_is_applied(processor, tmp_path):
    upright = Image.new("RGB", (32, 32))
    upright.paste((255, 255, 255), (0, 0, 32, 16))  # white above black
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise for viewing
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(
        processor.pixels(Image.open(tmp_path / "turned.png")), processor.pixels(upright)
    )


def test_crop_keeps_the_middle_and_pad_keeps_everything(tokenizer):
    wide = Image.new("RGB", (64, 32))
    wide.paste((255, 255, 255), (16, 0, 48, 32))
    crop, pad = (
        ParGoProcessor(tokenizer, image_size=32, resize=r).pixels(wide) for r in ("crop", "pad")
    )
    assert (crop == 255).all()
    assert (pad[:, [0, 7, 24, 31]] == 127).all()
    assert (pad[:, 16, 0] == 0).all()


# Bad input


@pytest.mark.parametrize("text, images, message", [
    ("<image>a", 0, "1 <image> placeholders but 0 images"),
    ("<image>a", 2, "1 <image> placeholders but 2 images"),
    ("a", 1, "0 <image> placeholders but 1 images"),
])  # fmt: skip
def test_images_and_placeholders_must_match(processor, image, text, images, message):
    with pytest.raises(ValueError, match=message):
        processor(images=[image()] * images, text=text)


def test_the_text_with_the_wrong_count_is_named(processor, image):
    with pytest.raises(ValueError, match="text 1: 1 <image> placeholders but 2 images"):
        processor(images=[[image()], [image()] * 2], text=["<image>a", "<image>b"])


def test_a_image_inside_an_answer_is_an_error(processor):
    with pytest.raises(ValueError, match="turn 1 is an answer with <image> in it"):
        processor.encode_conversation([*QUESTION, {"role": "assistant", "content": "<image>"}])


def test_a_template_that_rewrites_earlier_turns_is_an_error(tokenizer):
    template = (
        "{{ messages | length }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    with pytest.raises(
        ValueError, match="turn 1 so that it does not start with its own generation prompt"
    ):
        ParGoProcessor(tokenizer, chat_template=template).encode_conversation(ANSWERED)


def test_a_template_without_end_of_turn_is_an_error(tokenizer):
    template = "{% for m in messages %}{% if m['role'] == 'user' %}U:{% else %}A:{% endif %}"
    template += "{{ m['content'] }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}A:{% endif %}"
    with pytest.raises(ValueError, match="writes nothing after the answer"):
        ParGoProcessor(tokenizer, chat_template=template).encode_conversation(ANSWERED)


def test_unknown_role_and_empty_conversation_are_errors(processor):
    with pytest.raises(ValueError, match="turn 0 has role 'human'"):
        processor.encode_conversation([{"role": "human", "content": "a"}])
    with pytest.raises(ValueError, match="no turns"):
        processor.encode_conversation([])


def test_unknown_settings_are_errors(tokenizer):
    with pytest.raises(ValueError, match="resize 'tile'.*stretch, crop, pad"):
        ParGoProcessor(tokenizer, resize="tile")


# Saving


@pytest.mark.parametrize("prompt", ["chat", "paper"])
def test_saved_processor_is_the_same(tokenizer, tmp_path, prompt):
    settings = {
        "image_size": 48,
        "visual_tokens": 5,
        "resize": "pad",
        "prompt": prompt,
        "system_prompt": "Be brief.",
    }
    processor = ParGoProcessor(tokenizer, **settings)
    processor.save_pretrained(tmp_path)
    again = ParGoProcessor.from_pretrained(tmp_path)
    assert {k: getattr(again, k) for k in settings} == settings
    assert again.fingerprint() == processor.fingerprint()
    assert again.encode_conversation(TWO_TURNS) == processor.encode_conversation(TWO_TURNS)


def test_fingerprint_changes_with_the_code_that_makes_pixels(processor, monkeypatch):
    before = processor.fingerprint()
    monkeypatch.setattr("pargo_ds.model.processing_pargo.PIXEL_VERSION", "another")
    assert processor.fingerprint() != before


def test_fingerprint_does_not_depend_on_earlier_calls_but_on_settings(tokenizer):
    processor = ParGoProcessor(tokenizer, image_size=32)
    before = processor.fingerprint()
    tokenizer("a b", padding="max_length", max_length=50, truncation=True)
    assert processor.fingerprint() == before
    assert ParGoProcessor(tokenizer, image_size=32, resize="pad").fingerprint() != before
    assert ParGoProcessor(tokenizer, image_size=32, system_prompt="x").fingerprint() != before
