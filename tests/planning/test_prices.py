"""Prices of collectives, memory and time move where physics says that they must."""

import pytest

from pargo_ds.assembly.freezing import PartCount
from pargo_ds.errors import ConfigError
from pargo_ds.planning import memory
from pargo_ds.planning.gathers import ZeroSizes
from pargo_ds.planning.hardware import GPUS, Network, gpu_named, network_of, word_of_gpu
from pargo_ds.planning.host import table_times
from pargo_ds.planning.network import gather_s, total_s
from pargo_ds.planning.schedule import StepTime
from pargo_ds.planning.storage import checkpoint_bytes, save_s

H100, SLOW, FAST = GPUS["h100"], Network(50), Network(400)
COUNTS = [2**n for n in range(13)]


def test_a_gather_takes_longer_with_more_bytes_more_ranks_and_a_slower_network():
    times = [gather_s(1e9, ranks, H100, SLOW) for ranks in COUNTS]
    assert times == sorted(times)
    assert times[0] == 0.0
    assert gather_s(2e9, 64, H100, SLOW) > gather_s(1e9, 64, H100, SLOW)
    assert gather_s(1e9, 64, H100, SLOW) > gather_s(1e9, 64, H100, FAST)
    assert gather_s(1e9, 8, H100, SLOW) == gather_s(1e9, 8, H100, FAST)


def test_a_whole_7b_gather_on_eight_h100_is_near_the_bandwidth_that_torchs_model_of_nccl_has():
    """13.5 GB at 358 GB/s bus are 33 ms."""
    assert gather_s(13.5e9, 8, H100, FAST) == pytest.approx(33e-3, rel=0.05)


def test_many_small_gathers_cost_more_than_a_large_one_and_an_all_reduce_twice():
    where = (2, 64, H100, FAST)
    assert total_s([1000] * 10, *where) > total_s([10_000], *where)
    assert total_s([1000], *where, twice=True) == 2 * total_s([1000], *where)


@pytest.mark.parametrize("word, gbs", [("400g", 50), ("8x400G", 400), ("2x100g", 25)])
def test_networks_are_of_a_node(word, gbs):
    assert network_of(word).gbs == gbs


@pytest.mark.parametrize("word", ["400", "fast", "0g", "x400g"])
def test_a_word_that_is_no_network_or_gpu_is_refused_with_what_is_expected(word):
    with pytest.raises(ConfigError, match="expected Gbit/s of a node such as 400g"):
        network_of(word)
    with pytest.raises(ConfigError, match="expected one of a100, h100"):
        gpu_named(word)


@pytest.mark.parametrize(
    "name, memory_gib, word",
    [
        ("NVIDIA H100 80GB HBM3", 79.1, "h100"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100"),
        ("NVIDIA H200", 139.7, "h200"),
        ("NVIDIA A100-SXM4-40GB", 39.4, None),
        ("NVIDIA GH200 480GB", 94.5, None),
        ("NVIDIA H200 MIG 3g.71gb", 69.5, None),
        ("Tesla V100-SXM2-32GB", 31.7, None),
    ],
)
def test_a_machines_gpu_is_planned_for_only_if_the_table_describes_it(name, memory_gib, word):
    assert word_of_gpu(name, memory_gib) == word


def test_memory_falls_with_the_stage_and_with_ranks_and_checkpointing():
    rows = [PartCount("llm", "full", 7_000_000_000, 7_000_000_000)]

    def states(stage, ranks):
        parts = memory.zero_bytes(rows, stage, ranks, "bf16", ZeroSizes(), live=10**9)
        return sum(parts[kind] for kind in ("weights", "gradients", "optimizer"))

    assert states(1, 1) == states(2, 1) == states(3, 1) == 16 * 7e9
    assert states(1, 8) > states(2, 8) > states(3, 8) == 16 * 7e9 / 8
    summed = memory.zero_bytes(rows, 3, 8, "bf16", ZeroSizes(), live=10**9, fp32_sum=True)
    assert summed["gradients"] == 4 * 7e9 / 8
    totals = [states(3, ranks) for ranks in COUNTS]
    assert totals == sorted(totals, reverse=True)
    packs = [sum(memory.pack_bytes(5.0, 1.0, 4, 2.0, n).values()) for n in range(5)]
    assert packs == sorted(packs, reverse=True)


def test_a_step_is_bound_by_the_largest_of_its_parts_and_never_shorter_than_one():
    def step(gpu, host, network):
        return StepTime(3, {"llm": gpu}, host, network, update=0.1)

    assert step(1.0, 0.5, 0.5).binding == "GPU"
    assert step(1.0, 2.0, 0.5).binding == "host"
    assert step(1.0, 0.5, 3.0).binding == "network"
    assert step(1.0, 0.5, 0.5).seconds == pytest.approx(3.1)
    slower = [step(1.0, 0.5, n / 2).seconds for n in range(8)]
    assert slower == sorted(slower)
    assert slower[-1] >= 3 * 3.5


def test_host_time_grows_with_layers_and_checkpointing_and_is_less_under_zero2():
    times = table_times("frozen")
    plain, again = times.seconds(3, "layers", 32, 0), times.seconds(3, "layers", 32, 32)
    assert plain == pytest.approx(0.178)
    assert times.seconds(2, "layers", 32, 0) < plain < times.seconds(3, "layers", 32, 16) < again
    assert times.seconds(3, "modules", 32, 0) > again
    assert times.seconds(3, "layers", 64, 0) == pytest.approx(2 * plain)


def test_a_checkpoint_is_written_faster_by_more_nodes_and_no_faster_than_the_network():
    assert checkpoint_bytes(1000) == 12_000
    assert save_s(8e9, 1, 2.0, FAST) == 4.0
    assert save_s(8e9, 4, 2.0, FAST) == 1.0
    assert save_s(8e9, 1, 1000.0, SLOW) == pytest.approx(8 / 50)
