"""The names of floating-point types that configs use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune.errors import TrainingError

if TYPE_CHECKING:
    import torch

DTYPE_NAMES = ("bf16", "fp32", "fp16")


def get_dtype(name: str, device: torch.device | None = None) -> torch.dtype:
    """Return the torch dtype called `name` in configs ("bf16", "fp32", "fp16").

    Raises:
        TrainingError: the name is unknown, or `device` is a GPU too old for bf16.
    """
    import torch

    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
    if name not in dtypes:
        raise TrainingError(f"dtype {name!r} is not one of {', '.join(DTYPE_NAMES)}.")
    if name == "bf16" and device is not None and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise TrainingError(
            f"dtype bf16 is not supported by {torch.cuda.get_device_name(device)}. Use dtype=fp16 or fp32."
        )
    return dtypes[name]
