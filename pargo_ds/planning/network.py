"""Seconds of a collective, by an alpha-beta model: a fixed time for each, and bytes over bandwidth.

Rings as NCCL builds them: within a node every GPU receives all but its own part over its link;
between nodes a node receives all but its own part over its adapters, both at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence

from pargo_ds.planning.hardware import OF_LINK, OF_NETWORK, Gpu, Network

START_S = 15e-6
"""Of any collective: launch and the first hop; 15 to 20 microseconds are reported for NCCL."""
NODE_S = 5e-6
"""For each further node of the ring."""


def nodes_of(ranks: int, gpu: Gpu) -> int:
    """Nodes that so many ranks fill."""
    return -(-ranks // gpu.of_node)


def gather_s(nbytes: float, ranks: int, gpu: Gpu, network: Network) -> float:
    """Seconds until all ranks hold `nbytes` of which each has its part; a reduce-scatter takes as
    long, an all-reduce twice.
    """
    if ranks == 1 or not nbytes:
        return 0.0
    nodes = nodes_of(ranks, gpu)
    local = min(ranks, gpu.of_node)
    inside = nbytes * (local - 1) / local / (gpu.link_gbs * 1e9 * OF_LINK)
    between = nbytes * (nodes - 1) / nodes / (network.gbs * 1e9 * OF_NETWORK)
    return START_S + NODE_S * (nodes - 1) + max(inside, between)


def total_s(
    numels: Sequence[int], size: int, ranks: int, gpu: Gpu, network: Network, twice: bool = False
) -> float:
    """Seconds of collectives one after another, of `numels` numbers of `size` bytes each; `twice`:
    all-reduces.
    """
    one = sum(gather_s(numel * size, ranks, gpu, network) for numel in numels)
    return 2 * one if twice else one
