"""The parameters of every recipe that loads a model: declared once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tune.config.component import Component
from tune.config.params import param
from tune.config.slots import CHECKPOINTER, MODEL, TOKENIZER

# Where it goes: a field of its own in each, since it stands among others that say how to compute.
DEVICE: dict[str, Any] = {
    "pattern": r"cpu|mps|cuda(:\d+)?",
    "pattern_help": "cpu, cuda, cuda:N or mps",
    "group": "Device",
    "help": "cpu, cuda, cuda:N or mps; null takes a GPU when there is one.",
}


@dataclass(frozen=True)
class LoadedModelParams:
    """Which model is loaded, and from where."""

    model: Component = param(
        "auto",
        slot=MODEL,
        group="Model",
        help="Architecture: a builder such as llama2_7b, or auto to build what the checkpoint describes.",
    )
    model_checkpoint: str | None = param(
        None,
        short_for="checkpointer.checkpoint_dir",
        group="Model",
        help="Folder with the weights to start from (Hugging Face or Meta layout).",
    )
    checkpointer: Component = param(
        "tune.training.FullModelCheckpointer",
        slot=CHECKPOINTER,
        group="Model",
        help="Reads the weights, and writes those that were trained.",
    )
    tokenizer: Component = param(
        "auto",
        slot=TOKENIZER,
        group="Model",
        help="Tokenizer: a builder such as llama2_tokenizer, or auto to read the one in the checkpoint folder.",
    )
    tokenizer_checkpoint: str | None = param(
        None,
        short_for="tokenizer.path",
        group="Model",
        help="The tokenizer's file, for example tokenizer.model.",
    )
