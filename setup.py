"""Packaging: what `pip install` needs to know. Tool settings are in pyproject.toml, tested pins in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "tune/__init__.py").read_text(), re.M).group(1)

CORE = [
    "torch>=2.11",
    "numpy",
    "pyyaml>=6",
    "dacite>=1.8",
    "safetensors>=0.4",
    "sentencepiece>=0.2",
    "tokenizers>=0.20",
    "tiktoken>=0.7",
    "jinja2>=3.1.6",
    "huggingface_hub>=1.31",
    "datasets>=3",
    "pyarrow",
    "tqdm",
    "matplotlib",
]
TENSORBOARD = ["tensorboard"]
# transformers, peft and trl are references in the tests; the program itself never imports them. What trl computes
# differs between its versions.
REFERENCES = ["transformers>=5", "peft", "protobuf", "trl==1.16.0"]
# Published tasks to score a model on; in the tests its own numbers are the reference.
EVAL = ["lm-eval>=0.4.9"]
TOOLS = ["pytest", "pytest-xdist", "hypothesis", "jsonschema", "ruff", "mypy", "types-PyYAML", "types-tqdm"]
# Kernels for layers that keep a state, on a GPU; the rest of flash-linear-attention is not needed.
STATE_KERNELS = ["fla-core[cuda]>=0.6"]
# A torch for GPUs brings its own; beside one for CPUs it interprets the kernels in the tests.
INTERPRETER = ["triton; platform_system == 'Linux'"]

setup(
    name="tune",
    version=VERSION,
    description="Fine-tuning of large language models in native PyTorch: typed configs, readable recipes.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=[*find_packages(include=["tune", "tune.*"]), "recipes"],
    # Configs and the bundled tiny model belong to the recipes and travel with them. `tune/recipes` is a link to where
    # recipes are read and copied; installed they lie below tune, where no folder of the user's hides them.
    # `recipes` itself is another name for the same modules; nothing here asks by it.
    package_data={
        "tune.recipes": ["configs/**/*.yaml", "configs/*.yaml", "bundled/**/*"],
        "tune": [
            "py.typed",
            "config/foreign_names.yaml",
            "hub/card.md.jinja",
            "hub/short_names.toml",
            "report/page.css",
            "report/page.js",
            "tokenizers/chat_templates/*.jinja",
        ],
    },
    include_package_data=False,
    install_requires=CORE,
    extras_require={
        "tensorboard": TENSORBOARD,
        "wandb": ["wandb"],
        "bitsandbytes": ["bitsandbytes"],
        "fla": STATE_KERNELS,
        "eval": EVAL,
        "dev": TENSORBOARD + REFERENCES + EVAL + TOOLS + INTERPRETER,
    },
    entry_points={"console_scripts": ["tune = tune.cli.main:main"]},
)
