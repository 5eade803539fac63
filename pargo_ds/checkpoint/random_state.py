"""The random state of a rank as tensors, so that dropout continues as if the run had never
stopped.
"""

from __future__ import annotations

import numpy as np
import torch


def random_file(rank: int) -> str:
    """Return the name of a rank's random state in a checkpoint."""
    return f"random/rank_{rank:05d}.safetensors"


def random_state() -> dict[str, torch.Tensor]:
    """Return the random state of torch (CPU and this rank's GPU) and numpy."""
    numpy = np.random.get_state()
    assert isinstance(numpy, tuple)  # a dict only if asked for
    _, keys, position, has_gauss, gauss = numpy
    state = {
        "torch": torch.get_rng_state(),
        "numpy_keys": torch.from_numpy(keys.astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    """Restore a state that `random_state` returned."""
    torch.set_rng_state(state["torch"])
    position, has_gauss, gauss = state["numpy_rest"].tolist()
    keys = state["numpy_keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_new_rank(seed: int, step: int, rank: int) -> None:
    """Seed the random numbers of a rank for which the checkpoint has no state, because fewer ranks
    wrote it.
    """
    drawn = np.random.SeedSequence([seed, step, rank]).generate_state(2)
    torch.manual_seed(int(drawn[0]))
    np.random.seed(int(drawn[1]))
