"""Asking: batches equal single questions, ranks and kills change nothing, other answers are refused."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import numpy as np
import official_layouts as layouts
import pytest
import torch
import torch.nn.functional as F

from pargo_ds.errors import UserError
from pargo_ds.evaluation import ask
from pargo_ds.evaluation.answers import generate, length_of, read_reference
from pargo_ds.evaluation.benchmark import Answer, ImageRef, Item, Prompt, read_items
from pargo_ds.evaluation.benchmarks import BENCHMARKS
from pargo_ds.evaluation.likelihood import rank_options
from pargo_ds.evaluation.score import report, score_folder, unscored
from pargo_ds.evaluation.store import MissingAnswersError, OtherAnswersError, Store

WEIGHTS = "0" * 64
SMALL = ask.AskSettings(rows=3, tokens=2000)
OPTIONS = ("red", "A red square.", "green and blue and black")


def asked_in(
    folder, model, processor, name, source, *, settings=SMALL, rank=0, ranks=1, weights=WEIGHTS
):
    """Ask a benchmark's questions into a folder; returns its store."""
    benchmark = BENCHMARKS[name]
    prompt_name, prompt = next(iter(benchmark.prompts.items()))
    prompt = dataclasses.replace(prompt, max_new_tokens=5)
    benchmark = dataclasses.replace(benchmark, prompts={prompt_name: prompt})
    items = read_items(benchmark, source, prompt, subset=True)
    units = ask.plan(processor, items, prompt, settings)
    store = Store(folder / name)
    marks = ask.fingerprint(
        weights, model, processor, items, units, benchmark, prompt_name, settings
    )
    store.open(marks, items)
    load = ask.image_loader(items, settings.images)
    ask.ask(model, processor, items, units, prompt, store, load=load, rank=rank, ranks=ranks)
    return store


def tree(folder) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_tiny_model_is_asked_and_scored(name, model, processor, tmp_path):
    source = layouts.WRITERS[name](tmp_path / "files")
    store = asked_in(tmp_path / "out", model, processor, name, source)
    if BENCHMARKS[name].needs:
        assert score_folder(tmp_path / "out") == {}
        (line,) = unscored(tmp_path / "out")
        assert f"({name}): {layouts.NUMBERS[name]} questions, not scored" in line
        assert (name != "refcoco") or line.endswith("trained to answer with boxes")
        return
    scores = score_folder(tmp_path / "out")[name]
    assert scores["asked"] == layouts.NUMBERS[name] == len(store.items())
    figures = scores["figures"][scores["headline"]]
    assert figures["low"] <= figures["value"] <= figures["high"] or math.isnan(figures["low"])
    assert not scores["complete"] or name == "scenes"
    assert BENCHMARKS[name].title in report({name: scores})


def test_batched_answers_equal_single_ones(model, processor, tmp_path):
    """Prompts of very unequal length share a batch."""
    source = layouts.mme(tmp_path / "files", pairs=3)
    for path in (source / "color").glob("*.txt"):
        path.write_text(path.read_text().replace("orange", "orange, " * 40 + "orange"))
    found = {}
    for rows in (1, 12):
        settings = ask.AskSettings(rows=rows, tokens=100_000)
        store = asked_in(tmp_path / str(rows), model, processor, "mme", source, settings=settings)
        found[rows], heads = store.answers(store.items())
        assert len(heads) == 12 // rows
    texts = {rows: [answer.text for answer in answers] for rows, answers in found.items()}
    assert texts[1] == texts[12]
    assert len(set(texts[1])) > 1, "a model that always says the same would hide a mistake"


def test_right_padding_would_change_answers_and_a_tokenizer_set_to_it_does_not(model, processor):
    """The canary: what other programs did wrong for months would be seen here, and is not done."""
    asked = ["<image>\nWhat is it?", "<image>\n" + "What colour is it? " * 12, "Describe."]
    turns = [[{"role": "user", "content": text}] for text in asked]
    image = read_reference(ImageRef("one", 0, lambda: layouts.draw("red", 4)))
    shown = [[image] * text.count("<image>") for text in asked]

    def texts(rows, images):
        found = generate(model, processor, rows, images, max_new_tokens=5)
        return [answer.text for answer in found]

    single = [texts([turn], [own])[0] for turn, own in zip(turns, shown, strict=True)]
    assert texts(turns, shown) == single
    processor.tokenizer.padding_side = "right"
    assert texts(turns, shown) == single
    inputs = processor.apply_chat_template(
        turns, images=shown, add_generation_prompt=True, tokenize=True, return_tensors="pt"
    )
    assert (inputs["attention_mask"][:, -1] == 0).any()
    output = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    assert processor.batch_decode(new, skip_special_tokens=True) != single


def test_ranks_and_kills_do_not_change_a_byte(model, processor, tmp_path):
    source = layouts.pope(tmp_path / "files")
    asked_in(tmp_path / "one", model, processor, "pope", source)
    for rank in (2, 0, 1):
        store = asked_in(tmp_path / "three", model, processor, "pope", source, rank=rank, ranks=3)
        if rank == 2:
            with pytest.raises(MissingAnswersError, match="of 4 units have no answers yet: 0, 1"):
                score_folder(tmp_path / "three")
            # what a kill leaves behind: a unit half written, beside its name
            (store.folder / "units" / ".00000.jsonl.aside").write_text('{"unit": 0')
            store.unit_file(2).unlink()
    assert store.missing(range(4)) == [2]
    asked_in(tmp_path / "three", model, processor, "pope", source, rank=0, ranks=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "three")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": "1" * 64}, "weights 000000000000 instead of 111111111111"),
        ({"settings": dataclasses.replace(SMALL, images="blank")}, "settings"),
        ({"settings": dataclasses.replace(SMALL, rows=2)}, "settings .*; plan|units"),
    ],
)
def test_answers_of_another_kind_are_refused_by_name(change, said, model, processor, tmp_path):
    source = layouts.pope(tmp_path / "files")
    asked_in(tmp_path, model, processor, "pope", source)
    with pytest.raises(OtherAnswersError, match=said):
        asked_in(tmp_path, model, processor, "pope", source, **change)


def test_altered_questions_images_and_processors_are_refused(model, processor, tmp_path):
    source = layouts.pope(tmp_path / "files")
    asked_in(tmp_path, model, processor, "pope", source)
    path = source / "coco_pope_random.json"
    before = path.read_text()
    path.write_text(before.replace("random square", "small square"))
    with pytest.raises(OtherAnswersError, match="pope holds answers of another kind: questions"):
        asked_in(tmp_path, model, processor, "pope", source)
    path.write_text(before)
    image = next((source / "val2014").iterdir())
    image.write_bytes(image.read_bytes() + b"x")
    with pytest.raises(OtherAnswersError, match="kind: questions"):
        asked_in(tmp_path, model, processor, "pope", source)
    image.write_bytes(image.read_bytes()[:-1])
    processor.system_prompt = "Be short."
    with pytest.raises(OtherAnswersError, match="kind: processor"):
        asked_in(tmp_path, model, processor, "pope", source)


@pytest.mark.parametrize(
    "prompt",
    [
        {"official": Prompt(max_new_tokens=6)},
        {"official": Prompt(max_new_tokens=5, beams=2)},
        {"llava": Prompt(template="{question}\nShort.", max_new_tokens=5)},
    ],
)
def test_another_prompt_is_refused_by_name(prompt, model, processor, tmp_path):
    source = layouts.pope(tmp_path / "files")
    store = asked_in(tmp_path, model, processor, "pope", source)
    benchmark = dataclasses.replace(BENCHMARKS["pope"], prompts=prompt)
    (name,) = prompt
    items = read_items(benchmark, source, prompt[name], subset=True)
    units = ask.plan(processor, items, prompt[name], SMALL)
    marks = ask.fingerprint(WEIGHTS, model, processor, items, units, benchmark, name, SMALL)
    with pytest.raises(OtherAnswersError, match="pope holds answers of another kind: prompt "):
        store.open(marks, items)


def test_altered_weights_of_an_export_have_another_digest(tmp_path):
    """With the export's list of hashes, and without one."""
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = ask.weights_digest(tmp_path)
    assert ask.weights_digest(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert ask.weights_digest(tmp_path) != before
    (tmp_path / "SHA256SUMS").write_text("0" * 64 + "  model.safetensors\n")
    listed = ask.weights_digest(tmp_path)
    (tmp_path / "SHA256SUMS").write_text("1" * 64 + "  model.safetensors\n")
    assert len({before, listed, ask.weights_digest(tmp_path)}) == 3


def test_altered_items_are_not_scored(model, processor, tmp_path):
    store = asked_in(tmp_path, model, processor, "gqa", layouts.gqa(tmp_path / "files"))
    path = store.folder / "items.jsonl"
    path.write_text(path.read_text().replace('"truth": "red"', '"truth": "blue"'))
    with pytest.raises(OtherAnswersError, match="was altered"):
        score_folder(tmp_path)


def test_a_unit_that_does_not_fit_into_memory_is_halved_and_says_so(
    model, processor, tmp_path, monkeypatch
):
    source = layouts.pope(tmp_path / "files")
    asked_in(tmp_path / "whole", model, processor, "pope", source)
    real = model.generate

    def small_memory(**inputs):
        if len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(**inputs)

    monkeypatch.setattr(model, "generate", small_memory)
    store = asked_in(tmp_path / "halved", model, processor, "pope", source)
    assert [head["halved"] for head in store.answers(store.items())[1]] == [2, 2, 2, 2]
    whole = Store(tmp_path / "whole" / "pope")
    texts = [[answer.text for answer in one.answers(one.items())[0]] for one in (store, whole)]
    assert texts[0] == texts[1]
    scores = score_folder(tmp_path / "halved")
    assert "8 batches halved" in report(scores)
    monkeypatch.setattr(model, "generate", _no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        asked_in(tmp_path / "none", model, processor, "pope", source)


def _no_memory(**inputs):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_blank_and_shuffled_images_are_not_the_real_ones(tmp_path):
    items = read_items(BENCHMARKS["mme"], layouts.mme(tmp_path, pairs=3), Prompt(), subset=True)
    real = {item.images[0].name: read_reference(item.images[0]).tobytes() for item in items}
    shuffled = ask.image_loader(items, "shuffled")
    for item in items:
        shown = shuffled(item.images[0]).tobytes()
        assert shown in real.values()
        assert shown != real[item.images[0].name]
        blank = ask.image_loader(items, "blank")(item.images[0])
        assert blank.size == (64, 64)
        assert blank.getcolors() == [(64 * 64, (128, 128, 128))]
    with pytest.raises(UserError, match="one image cannot be shuffled"):
        ask.image_loader(items[:2], "shuffled")
    with pytest.raises(UserError, match="expected one of real, blank, shuffled"):
        ask.image_loader(items, "none")


def test_an_unreadable_image_is_named(model, processor, tmp_path):
    source = layouts.gqa(tmp_path / "files")
    (source / "images" / "n0.jpg").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"images/n0.jpg is not an image"):
        asked_in(tmp_path, model, processor, "gqa", source)


def test_losses_of_options_equal_cross_entropy_of_each_alone(model, processor, tmp_path):
    shown = [ImageRef(colour, 0, partial(layouts.draw, colour, 4)) for colour in ("red", "blue")]
    items = [
        Item(id="a", prompt="<image>\nWhat is it?", images=shown[:1], truth="", options=OPTIONS),
        Item(id="b", prompt="<image>\nWhat? " * 2, images=shown, truth="", options=OPTIONS[:2]),
    ]
    for item, answer in zip(items, rank_options(model, processor, items), strict=True):
        pixels = torch.stack([processor.pixels(read_reference(image)) for image in item.images])
        assert len(answer.losses) == len(item.options)
        for option, (loss, tokens) in zip(item.options, answer.losses, strict=True):
            turns = [
                {"role": "user", "content": item.prompt},
                {"role": "assistant", "content": option},
            ]
            ids, labels = processor.encode_conversation(turns)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0, :-1]
            alone = F.cross_entropy(
                logits, torch.tensor(labels[1:]), ignore_index=-100, reduction="sum"
            )
            # measured: 1e-7 relative, the rounding of fp32 sums over another number of rows
            assert loss == pytest.approx(float(alone), rel=1e-5)
            assert tokens == sum(label != -100 for label in labels)


def test_margins_are_those_of_the_first_token(model, processor):
    turns = [[{"role": "user", "content": "<image>\nWhat is it?"}]]
    image = read_reference(ImageRef("one", 0, lambda: layouts.draw("red", 4)))
    (answer,) = generate(model, processor, turns, [[image]], max_new_tokens=3)
    inputs = processor.apply_chat_template(
        turns, images=[[image]], add_generation_prompt=True, tokenize=True, return_tensors="pt"
    )
    with torch.no_grad():
        best, second = model(**inputs).logits[0, -1].topk(2).values.tolist()
    spacing = np.spacing(np.float32(best))
    # measured: 1e-7 relative, the rounding of the logits
    assert answer.margin == pytest.approx((best - second) / spacing, rel=1e-5)
    (beams,) = generate(model, processor, turns, [[image]], max_new_tokens=3, beams=2)
    assert beams.margin is None


@pytest.mark.parametrize(
    ("row", "length", "cut"),
    [
        ([5, 6, 2, 2], 2, False),
        ([5, 6, 7, 8], 4, True),
        ([2, 2, 2, 2], 0, False),
        ([5, 3], 1, False),
    ],
)
def test_an_answer_without_an_end_was_cut(row, length, cut):
    assert length_of(row, {2, 3}, 4) == (length, cut)


def test_options_are_needed_where_they_are_ranked(processor):
    item = Item(id="q1", prompt="what?", images=(), truth="A")
    with pytest.raises(UserError, match="question q1 has no options"):
        ask.plan(processor, [item], Prompt(likelihood=True), SMALL)


def test_two_questions_of_one_id_are_refused():
    def twice(source, prompt):
        return [Item(id="q", prompt="", images=(), truth="")] * 2

    benchmark = dataclasses.replace(BENCHMARKS["scenes"], read=twice)
    with pytest.raises(UserError, match="1 questions stand twice: q"):
        read_items(benchmark, None, Prompt(), subset=False)


def test_answers_come_back_as_they_were_written(tmp_path):
    store = Store(tmp_path)
    answers = [
        Answer(id="a", text="ja \u2028 nein", tokens=3, cut=True, margin=None),
        Answer(id="b", losses=((1.25, 3), (0.5, 2))),
    ]
    items = [Item(id=name, prompt="", images=(), truth="") for name in "ba"]
    store.open({"questions": "x", "units": 1}, items)
    store.write(0, {"halved": 0}, answers)
    assert store.answers(items) == ([answers[1], answers[0]], [{"halved": 0}])
    with pytest.raises(OtherAnswersError, match="2 answers to 1 questions"):
        store.answers(items[:1])
