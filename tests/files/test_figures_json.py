import json
import math

from pargo_ds.files.figures_json import figures_json


def test_a_number_that_cannot_be_told_is_null_at_any_depth():
    text = figures_json({"a": math.nan, "b": [1.5, (math.inf, "é")]})
    assert json.loads(text, parse_constant=lambda name: f"not JSON: {name}") == {
        "a": None,
        "b": [1.5, [None, "é"]],
    }
    assert "é" in text
    assert text.endswith("\n")
