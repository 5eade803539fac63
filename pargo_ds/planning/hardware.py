"""GPUs and networks that a plan can be made for, and how much of them a step gets.

Peaks are those of the vendor's data sheets (SXM modules where nothing else is said, dense bf16).
What a step gets of a peak is an estimate, with its source: no GPU has confirmed it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pargo_ds.errors import ConfigError
from pargo_ds.training.meters import PEAK_TFLOPS


@dataclass(frozen=True)
class Gpu:
    """One device and the node that it stands in."""

    name: str
    memory_gib: float
    """As nvidia-smi shows it, GiB."""
    tflops: float
    """Dense bf16 peak, TFLOP/s."""
    memory_gbs: float
    """Bandwidth of its memory, GB/s."""
    link_gbs: float
    """To the other GPUs of its node, one direction, GB/s."""
    of_peak: float
    """Part of `tflops` that large matrix products reach in a training run."""
    of_node: int = 8
    """GPUs of a node."""


GPUS = {
    "a100": Gpu("a100", 80.0, PEAK_TFLOPS["A100"], 2039, 300, of_peak=0.70),
    "h100": Gpu("h100", 79.6, PEAK_TFLOPS["H100"], 3350, 450, of_peak=0.55),
    "h200": Gpu("h200", 140.4, PEAK_TFLOPS["H200"], 4800, 450, of_peak=0.55),
    "b200": Gpu("b200", 179.0, PEAK_TFLOPS["B200"], 8000, 900, of_peak=0.55),
    "l40s": Gpu("l40s", 45.0, PEAK_TFLOPS["L40S"], 864, 25, of_peak=0.55),
}
"""By the word of the command line: 80 GB A100, 80 GB H100, L40S over PCIe 4. `of_peak` of A100 and
H100 is set so that published runs of others come out (docs/scaling.md); the others have the H100's.
"""

OF_LARGE = {"llm": 1.0, "attention": 0.7, "vision": 0.6, "projector": 0.5}
"""Speed of a part's matrix products over that of large ones: an estimate. Small ViTs of a public
benchmark ran at 0.07 uncompiled and 0.22 compiled of the peak.
"""
OF_BANDWIDTH = 0.75
"""Part of the memory's bandwidth that elementwise operators reach."""
OF_LINK = 0.78
"""Part of NVLink's that NCCL reaches: torch's own model of NCCL says 358 of 450 GB/s for a gather
of 405 MiB on 8 H100.
"""
OF_NETWORK = 0.85
"""Part of the network's line rate that NCCL reaches in large messages."""
CONTEXT_GIB = 2.0
"""CUDA's context, NCCL's buffers and cuBLAS' work space; 1.5 to 3 GiB are reported."""
FRAGMENTATION = 0.07
"""Of what is allocated, lost between blocks; 5 to 10 % are reported."""


@dataclass(frozen=True)
class Network:
    """What joins the nodes."""

    gbs: float
    """Of a node, all its adapters together, one direction, GB/s."""

    def __str__(self) -> str:
        return f"{self.gbs * 8:,.0f} Gbit/s a node"


def gpu_named(word: str, of_node: int = 8) -> Gpu:
    """With so many in a node. Raises ConfigError for a GPU that is not in the table."""
    if (found := GPUS.get(word.lower())) is None:
        raise ConfigError(f"--gpu {word} is not known; expected one of {', '.join(GPUS)}")
    return replace(found, of_node=of_node)


def word_of_gpu(name: str, memory_gib: float) -> str | None:
    """Return the table's word for a GPU that calls itself `name`. None where it is not in the
    table, which the same name with other memory is not either: a 40 GB A100, a slice of a GPU.
    """
    for word, gpu in GPUS.items():
        named = re.search(rf"\b{word}\b", name.lower())
        if named and abs(memory_gib - gpu.memory_gib) < 0.1 * gpu.memory_gib:
            return word
    return None


def network_of(word: str) -> Network:
    """`400g` is 400 Gbit/s for a node, `8x400g` eight such adapters. Raises ConfigError."""
    found = re.fullmatch(r"(?:(\d+)x)?(\d+(?:\.\d+)?)g", word.lower())
    gbits = int(found[1] or 1) * float(found[2]) if found else 0.0
    if gbits <= 0:
        raise ConfigError(
            f"--network {word} is no network; expected Gbit/s of a node such as 400g, or 8x400g for "
            "eight adapters"
        )
    return Network(gbits / 8)
