"""Settings files mean one thing, say each thing once, and every fault has its file and line."""

import pytest

from pargo_ds.errors import ConfigError
from pargo_ds.settings_file import format_yaml, parse_value, parse_yaml, read_json, read_yaml


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("yes", "a truth value or a text"),
        ("Off", "write true or false"),
        ("n", "a truth value or a text"),
        ("010", "an octal number or a decimal one"),
        ("-08", "without the leading zero"),
        ("0o17", "write a decimal number"),
        ("0b11", "a number or a text"),
        ("1:30", "to the base 60"),
        ("1:30.5", "to the base 60"),
        ("50_000", "without underscores"),
        ("0x_ff", "without underscores"),
        ("None", "write null"),
    ],
)
@pytest.mark.parametrize(
    "form", ["a: 1\nb: {{c: [1, {}]}}", "a: 1\nb: {{{}: 2}}", "a: 1\nb: &x {}"]
)
def test_a_word_that_versions_of_yaml_read_differently_is_refused_with_its_line(form, word, said):
    if word.startswith("1:30") and "]" in form:
        form = "a: 1\nb: [{}]"
    with pytest.raises(ConfigError) as caught:
        parse_yaml(form.format(word), "run.yaml")
    assert str(caught.value).startswith(f"run.yaml, line 2: {word} is ")
    assert said in str(caught.value)


def test_quotes_and_blocks_make_any_word_a_text():
    text = "a: 'yes'\nb: \"010\"\nc: |-\n  1:30\nd: no way\ne: 1:30 in the morning\nf: v1_0"
    expected = {
        "a": "yes",
        "b": "010",
        "c": "1:30",
        "d": "no way",
        "e": "1:30 in the morning",
        "f": "v1_0",
    }
    assert parse_yaml(text, "x").values == expected


def test_numbers_are_those_of_yaml_1_2_and_dates_are_texts():
    text = (
        "a: 1e-4\nb: 2.5E+3\nc: .5e2\nd: 2026-11-29\ne: 0x1F\nf: -0.5\ng: 0\nh: ~\ni: true\nj: .inf"
    )
    found = parse_yaml(text, "x").values
    assert found == {
        "a": 1e-4, "b": 2500.0, "c": 50.0, "d": "2026-11-29", "e": 31, "f": -0.5, "g": 0, "h": None, "i": True,
        "j": float("inf"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {a: 1}\nx: 2\ntrain: {b: 2}", "line 3: the key train stands in line 1 already"),
        ("x:\n  lr: 1\n  'lr': 2", "line 3: the key lr stands in line 2 already"),
        ("x: [{a: 1, a: 2}]", "line 1: the key a stands in line 1 already"),
        ("a: [", "line 1: not valid YAML"),
        ("a: 1\n\tb: 2", "line 2: not valid YAML"),
        ("a: 1\n---\nb: 2", "line 2: not valid YAML"),
        ("a: *nowhere", "line 1: not valid YAML"),
        (
            "a: !!python/object:os.system x",
            "line 1: the tag tag:yaml.org,2002:python/object:os.system is not for",
        ),
        ("a: !!int word", "not valid YAML"),
        ("? [a]\n: 1", "line 1: not valid YAML"),
        ("[" * 2000, "not valid YAML"),
        ("a: x\nb: x\0y", "line 2: the character U+0000 may not stand in YAML"),
        ("a: \udcff", "line 1: the character U+DCFF"),
        ("a: 1\nb: !!int '010'", "line 2: 010 is an octal number or a decimal one"),
        ("a: !!bool 'yes'", "line 1: yes is a truth value or a text"),
    ],
)
def test_what_a_parser_would_take_in_silence_or_fail_on_is_one_error(text, said):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "run.yaml")
    assert said in str(caught.value)
    assert str(caught.value).startswith("run.yaml")
    assert "\n" not in str(caught.value)


def test_a_merged_mapping_may_be_overridden():
    text = "base: &base {a: 1, b: 2}\nother: {<<: *base, b: 3}"
    assert parse_yaml(text, "x").values["other"] == {"a": 1, "b": 3}


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_in_another_encoding_is_named(tmp_path, encoding):
    path = tmp_path / "run.yaml"
    path.write_bytes("name: x\nllm: café".encode(encoding))
    with pytest.raises(
        ConfigError, match="run.yaml, line [12]: byte 0x.. is not UTF-8; save the file in UTF-8"
    ):
        read_yaml(path)


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes("name: café\r\nseed: 1\r\n".encode("utf-8-sig"))
    assert read_yaml(path).values == {"name": "café", "seed": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[x", "not valid YAML"),
        ("a #b", "#b would be dropped as a comment"),
        ("#b", "#b would be dropped as a comment"),
        ("[1, 2] # two", "# two would be dropped"),
        ("off", "a truth value or a text"),
        ("--- Hello", "--- would be dropped"),
        ("&x Hello", "&x would be dropped"),
        ("Hello\n...", "... would be dropped"),
        ("a\x07b", "the character U+0007"),
    ],
)
def test_a_value_of_the_command_line_is_taken_whole_or_refused(text, said):
    with pytest.raises(ConfigError, match="--set x") as caught:
        parse_value(text, "--set x")
    assert said in str(caught.value)


def test_values_of_the_command_line():
    texts = ["1e-4", "[q, 'v']", "{mode: full}", "C#", '"a #b"', "", "two words "]
    expected = [1e-4, ["q", "v"], {"mode": "full"}, "C#", "a #b", None, "two words"]
    assert [parse_value(text, "x") for text in texts] == expected


def test_what_is_written_reads_back_as_the_same():
    texts = [
        "1e5",
        "yes",
        "010",
        "2026-11-29",
        "1:30",
        "12e4567",
        "~",
        "0o7",
        "08",
        "y",
        "café",
        "50_000",
        "a #b",
        "",
    ]
    values = {"texts": texts, "numbers": [1e-5, 1e22, 0.1, 7], "n": {"on": None, "y": True}}
    assert parse_yaml(format_yaml(values), "x").values == values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": {"b": 1, "b": 2}}', "the key b stands twice"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ("[1]", "holds list, expected an object"),
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
    ],
)
def test_a_json_file_is_one_object_that_says_each_thing_once(tmp_path, text, said):
    path = tmp_path / "zero.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="zero.json") as caught:
        read_json(path)
    assert said in str(caught.value)
