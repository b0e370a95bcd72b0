"""What a recipe can be told that loads a model and trains nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import agreed_values, check_params, param
from tune.recipes.params.checks import check_checkpointer, check_sizes
from tune.recipes.params.loaded_model import DEVICE, LoadedModelParams


@dataclass(frozen=True)
class ModelParams(LoadedModelParams):
    """Which model is loaded, from where, and onto what; each recipe adds what is its own."""

    model_checkpoint: str | None = param(
        None,
        short_for="checkpointer.checkpoint_dir",
        group="Model",
        help="Folder of a run, of a saved step, of a model in Hugging Face or Meta layout, or of an adapter.",
    )
    adapter_checkpoint: str | None = param(
        None,
        short_for="checkpointer.adapter_checkpoint",
        group="Model",
        help="Folder of a LoRA adapter in PEFT layout (or a saved step that has one), put on the weights.",
    )
    device: str | None = param(None, **DEVICE)
    dtype: Literal["bf16", "fp32", "fp16"] | None = param(
        None,
        group="Device",
        help="Precision of weights and computation; null takes bf16 on a GPU, fp32 on a CPU.",
    )
    log_level: Literal["DEBUG", "INFO", "WARN", "WARNING", "ERROR"] = param(
        "INFO", group="Output", help="How much is printed to standard error."
    )

    _agreed: Any = agreed_values()

    def __post_init__(self) -> None:
        check_params(self)

    def cross_checks(self) -> Iterator[Diagnostic]:
        """Yield what is wrong between fields that are each right on their own."""
        if not self.checkpointer.kwargs.get("checkpoint_dir"):
            yield problem(
                "is required: the folder with the weights",
                ("model_checkpoint", "checkpointer.checkpoint_dir"),
            )
        yield from check_checkpointer(self.checkpointer)
        builder = self.model.path.rpartition(".")[2]
        if builder.startswith(("lora_", "qlora_")):
            yield problem(
                f"adds adapters ({builder}), which no checkpoint has: name it {builder.split('lora_', 1)[1]}, "
                "and the folder of the adapter in adapter_checkpoint",
                ("model",),
            )
        yield from check_sizes(self.model)
