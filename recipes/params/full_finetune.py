"""The parameters of the full fine-tuning recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import param
from tune.recipes.params.checks import check_trains_all
from tune.recipes.params.finetune import FinetuneParams


@dataclass(frozen=True)
class FullFinetuneParams(FinetuneParams):
    """Parameters of `full_finetune`: every weight of the model is trained."""

    recipe_names: ClassVar[tuple[str, ...]] = (
        "full_finetune",
        "finetune_llm",
        "full_finetune_single_device",
        "full_finetune_distributed",
    )

    train_from_scratch: bool = param(
        False,
        group="Model",
        help="Start from random weights instead of a checkpoint (pre-training). Needs a model other than auto.",
    )

    def cross_checks(self) -> Iterator[Diagnostic]:
        """Yield what is wrong between fields that are each right on their own."""
        yield from super().cross_checks()
        has_checkpoint = bool(self.checkpointer.kwargs.get("checkpoint_dir"))
        builder = self.model.path.rpartition(".")[2]
        if builder.startswith(("lora_", "qlora_")):
            yield problem(
                f"freezes the weights and adds adapters ({builder}), but this recipe trains every weight: use the "
                f"recipe lora_finetune, or the model {builder.split('lora_', 1)[1]}",
                ("model",),
            )
        yield from check_trains_all(self.optimizer)
        if self.checkpointer.kwargs.get("adapter_checkpoint"):
            yield problem(
                "names an adapter, but this recipe trains every weight: use the recipe lora_finetune, or merge the "
                "adapter into the weights first",
                ("checkpointer.adapter_checkpoint",),
            )
        if self.train_from_scratch and has_checkpoint:
            yield problem(
                "starts from random weights, but a checkpoint to start from is set too; remove one of the two",
                ("train_from_scratch", "checkpointer.checkpoint_dir"),
            )
        if not self.train_from_scratch and not has_checkpoint:
            yield problem(
                "is required: the folder with the weights to start from (or train_from_scratch=true)",
                ("model_checkpoint", "checkpointer.checkpoint_dir"),
            )
        if self.train_from_scratch and self.model.path == "tune.models.auto":
            yield problem(
                "needs a model with sizes, such as llama2: auto reads them from a checkpoint, and there is none",
                ("train_from_scratch", "model"),
            )
        if (
            self.train_from_scratch
            and self.tokenizer.path == "tune.tokenizers.auto"
            and not self.tokenizer.kwargs.get("path")
        ):
            yield problem(
                "needs tokenizer_checkpoint: there is no checkpoint folder to find the tokenizer in",
                ("train_from_scratch", "tokenizer_checkpoint"),
            )
