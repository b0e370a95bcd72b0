"""In which precision a run keeps its weights and in which it computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from tune.errors import TrainingError
from tune.utils import get_dtype

__all__ = ["Precision", "plan_precision"]


@dataclass(frozen=True)
class Precision:
    """Two types: weights, gradients and optimizer are kept in one, matrix products run in the other."""

    param_dtype: torch.dtype
    compute_dtype: torch.dtype
    device_type: str

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context the forward pass runs in: autocast when the two types differ."""
        if self.param_dtype == self.compute_dtype:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.compute_dtype)

    @property
    def needs_loss_scaling(self) -> bool:
        """Whether small gradients must be scaled up to survive: fp16's smallest number is 6e-8."""
        return self.compute_dtype == torch.float16

    def __str__(self) -> str:
        kept, compute = (
            str(dtype).removeprefix("torch.") for dtype in (self.param_dtype, self.compute_dtype)
        )
        return compute if kept == compute else f"{compute} with weights in {kept}"


def plan_precision(dtype: str, param_dtype: str | None, device: torch.device) -> Precision:
    """Return what `dtype` and `param_dtype` mean on `device`.

    Args:
        dtype: type of the forward and backward pass: "bf16", "fp32" or "fp16".
        param_dtype: type of weights, gradients and optimizer; None is `dtype`, or fp32 when that is fp16.
        device: where the run takes place.

    Raises:
        TrainingError: the device lacks the type, or fp16 gradients would have to be unscaled in fp16.
    """
    compute = get_dtype(dtype, device)
    if param_dtype is None:
        param_dtype = "fp32" if dtype == "fp16" else dtype
    kept = get_dtype(param_dtype, device)
    if compute == torch.float16 and kept != torch.float32:
        raise TrainingError(
            f"dtype fp16 needs weights in fp32, because its scaled gradients are unscaled there; param_dtype is "
            f"{param_dtype}. Set param_dtype=fp32, or dtype=bf16."
        )
    return Precision(kept, compute, device.type)
