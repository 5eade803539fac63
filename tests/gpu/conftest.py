"""Tests that need a CUDA device (`make test-gpu`); elsewhere each one is skipped with the reason."""

import pytest
import torch

# Major compute capabilities that a provider has kernels for; the others take 8.x and later.
CAPABILITIES = {"flash_attn_3": (9,), "flash_attn_4": (9, 10)}


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The first GPU."""
    if not torch.cuda.is_available():
        pytest.skip(
            "no CUDA device: torch.cuda.is_available() is False (docs/gpu.md lists what this leaves open)"
        )
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    return torch.device("cuda", 0)


@pytest.fixture
def need_provider(device):
    """Function (provider) that skips where it is not installed or has no kernels for this GPU."""
    from pargo_ds.model.flash import check_installed

    def check(provider: str) -> None:
        try:
            check_installed(provider)
        except ValueError as error:
            pytest.skip(str(error))
        major = torch.cuda.get_device_capability(device)[0]
        if provider and (major < 8 or major not in CAPABILITIES.get(provider, (major,))):
            pytest.skip(f"{provider} has no kernels for compute capability {major}.x")

    return check
