"""How many machines the data is divided over, from what launchers say."""

import pytest

from pargo_ds.assembly.loaders import num_nodes


@pytest.mark.parametrize(
    "environment, nodes",
    [
        ({}, 1),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, 2),
        ({"WORLD_SIZE": "16", "LOCAL_SIZE": "4"}, 4),  # the deepspeed launcher's name
        ({"WORLD_SIZE": "12", "LOCAL_WORLD_SIZE": "8"}, 1),  # machines of 8 and 4 ranks
    ],
)
def test_nodes_are_counted_from_the_launchers_variables(environment, nodes, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert num_nodes() == nodes
