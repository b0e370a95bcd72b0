"""The parameters that all fine-tuning recipes share, by subject in the files beside this one, and what spans these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from tune.config.diagnostics import Diagnostic
from tune.config.params import agreed_values, check_params, refuse_unknown
from tune.recipes.params.checks import check_checkpointer, check_processes, check_sizes
from tune.recipes.params.data_checks import check_streaming
from tune.recipes.params.finetune_data import DataParams
from tune.recipes.params.finetune_devices import DeviceParams
from tune.recipes.params.finetune_optimization import OptimizationParams
from tune.recipes.params.finetune_output import OutputParams
from tune.recipes.params.loaded_model import LoadedModelParams
from tune.recipes.params.shared_rows import warn_of_shared_rows
from tune.utils.exclusions import Choices


@dataclass(frozen=True)
class FinetuneParams(OutputParams, DeviceParams, OptimizationParams, DataParams, LoadedModelParams):
    """What a recipe that trains a model on examples can be told; each recipe adds what is its own.

    A dataclass takes the fields of its last base first.
    """

    _agreed: Any = agreed_values()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse what is no parameter in our words: `MyParams(**vars(args))` may hand in anything."""
        refuse_unknown(cls, kwargs)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_params(self)

    def memory_settings(self) -> dict[str, Any]:
        """Return what decides how much memory the run needs, as `PlannedRun` takes it."""
        return {
            "optimizer": self.optimizer,
            "batch_size": self.batch_size,
            "accumulates": self.gradient_accumulation_steps > 1,
            "cpu_offload": self.fsdp_cpu_offload,
            "activation_checkpointing": self.enable_activation_checkpointing,
            "activation_offloading": self.enable_activation_offloading,
            "optimizer_in_backward": self.optimizer_in_bwd,
        }

    def step_settings(self) -> dict[str, Any]:
        """Return what a step is made of, and what ends an epoch or the run, as `TrainState.plan_steps` takes it."""
        return {
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "max_steps_per_epoch": self.max_steps_per_epoch,
            "max_steps": self.max_steps,
            "best_by": self.best_by,
            "patience": self.early_stopping_patience,
        }

    def requires_shards(self) -> bool:
        """Tell whether weights have to be sharded, where one could choose.

        It was asked for by number; or steps within the backward pass come before the gradients of whole copies are
        added up.
        """
        return self.data_parallel_shard_dim > 1 or self.fsdp_cpu_offload or self.optimizer_in_bwd

    def notices(self, is_sharded: bool) -> Iterator[str]:
        """Yield what is to be said of data that is both learnt and validated on, and of settings that do nothing."""
        yield from warn_of_shared_rows(self.dataset, self.dataset_val)
        if self.custom_sharded_layers and not is_sharded:
            yield f"Nothing is sharded: custom_sharded_layers {self.custom_sharded_layers} has no effect."
        if self.low_cpu_ram:
            yield "Loading holds one tensor beside the model's own, with or without low_cpu_ram."

    def process_choices(self) -> Choices:
        """Return how the processes of the run are split, and what they have to carry out together."""
        return Choices(
            enable_fsdp=self.enable_fsdp,
            replicate_dim=self.data_parallel_replicate_dim,
            shard_dim=self.data_parallel_shard_dim,
            cpu_offload=self.fsdp_cpu_offload,
            optimizer_in_bwd=self.optimizer_in_bwd,
            dtype=self.dtype,
        )

    def cross_checks(self) -> Iterator[Diagnostic]:
        """Yield what is wrong between fields that are each right on their own."""
        yield from self.check_optimization()
        yield from self.check_precision_and_device()
        yield from check_checkpointer(self.checkpointer)
        yield from check_processes(
            self.process_choices(), self.optimizer, self._quantized_by(), self.custom_sharded_layers or ()
        )
        yield from check_sizes(self.model)
        yield from self.check_data()
        yield from check_streaming(self.dataset, self.dataset_val, self.max_steps, self.val_split)
        yield from self.check_intervals(self.validates)
        yield from self.check_scores(self.validates)

    def _quantized_by(self) -> str:
        """Return the field that asks for weights in 4 bits; "" where none does."""
        return ""
