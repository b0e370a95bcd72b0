"""What a fine-tuning recipe can be told about precision, memory and processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import param
from tune.recipes.params.limits import MANY_SEQUENCES
from tune.recipes.params.loaded_model import DEVICE


@dataclass(frozen=True)
class DeviceParams:
    """On what it computes, in which precision, and how memory is saved."""

    device: str | None = param(None, **DEVICE)
    dtype: Literal["bf16", "fp32", "fp16"] = param(
        "bf16", group="Device", fixed_on_resume=True, help="Precision of the forward and backward pass."
    )
    param_dtype: Literal["bf16", "fp32"] | None = param(
        None,
        group="Device",
        fixed_on_resume=True,
        help="Precision the weights and the optimizer are kept in; null means dtype (fp32 for fp16).",
    )
    compile: bool | Literal["auto"] = param(
        "auto",
        group="Device",
        help="Compile each block with torch.compile: slower start, faster steps. auto does so on a GPU that can.",
    )
    enable_activation_checkpointing: bool | Literal["auto"] = param(
        "auto",
        group="Device",
        help="Recompute each block in the backward pass: less memory, about a third more work. auto recomputes as few "
        "blocks as memory allows.",
    )
    enable_activation_offloading: bool = param(
        False, group="Device", help="Keep saved activations in host memory. Needs a GPU."
    )

    # --- Many processes ---------------------------------------------------------------------------------
    enable_fsdp: bool = param(
        True, group="Distributed", help="Shard weights over the processes; without effect on one process."
    )
    data_parallel_replicate_dim: int = param(
        1,
        minimum=1,
        maximum=MANY_SEQUENCES,
        group="Distributed",
        help="Groups of processes that each hold a full copy.",
    )
    data_parallel_shard_dim: int = param(
        -1,
        minimum=-1,
        maximum=MANY_SEQUENCES,
        group="Distributed",
        help="Processes one copy is sharded over; -1 means all that are left.",
    )
    fsdp_cpu_offload: bool = param(
        False, group="Distributed", help="Keep sharded weights and optimizer in host memory."
    )
    custom_sharded_layers: list[str] | None = param(
        None,
        group="Distributed",
        help="Further layers gathered on their own; blocks and untied embeddings are in any case.",
    )
    low_cpu_ram: bool = param(
        False,
        group="Distributed",
        help="Accepted from older configs. Loading holds at most one copy of the weights either way.",
    )

    def shard_settings(self) -> dict[str, Any]:
        """Return how weights are sharded, as `shard_model` takes it."""
        return {"own_layers": self.custom_sharded_layers, "cpu_offload": self.fsdp_cpu_offload}

    def check_precision_and_device(self) -> Iterator[Diagnostic]:
        """Yield which precisions and savings of memory do not go together, or not on this device."""
        if self.dtype == "fp32" and self.param_dtype == "bf16":
            yield problem("is less precise than dtype fp32; use fp32 or null", ("param_dtype", "dtype"))
        if self.dtype == "fp16" and self.param_dtype == "bf16":
            yield problem("must be fp32 (or null) when dtype is fp16", ("param_dtype", "dtype"))
        if self.device == "cpu" and self.dtype == "fp16":
            yield problem("fp16 has no useful speed on a CPU; use bf16 or fp32", ("dtype", "device"))
        for name, what in (("enable_activation_offloading", "activations"), ("fsdp_cpu_offload", "weights")):
            if self.device in ("cpu", "mps") and getattr(self, name):
                yield problem(f"moves {what} off a GPU, but device is {self.device}", (name, "device"))
