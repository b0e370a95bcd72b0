"""Which device a run uses."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tune.errors import TrainingError
from tune.utils.ranks import get_local_rank

if TYPE_CHECKING:
    import torch


def get_device(name: str | None = None) -> torch.device:
    """Return the torch device for `name`, having checked that it is there.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps"; None picks an accelerator if there is one. A plain "cuda" means
            the device of this process's local rank.

    Raises:
        TrainingError: the device is not present on this machine, or torch does not know the name.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainingError(
            f"device {name!r} is not a device torch knows. Use cpu, cuda or cuda:N."
        ) from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise TrainingError(f"device {name!r} was asked for, but torch sees no GPU here. Use device=cpu.")
        index = device.index if device.index is not None else get_local_rank()
        count = torch.cuda.device_count()
        if index >= count:
            raise TrainingError(
                f"device {name!r}: GPU {index} was asked for, but torch sees {count} (numbered from 0)."
            )
        device = torch.device("cuda", index)
        if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
            # Segments that grow leave fewer gaps where lengths vary. Torch may have read the environment already.
            torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
        torch.cuda.set_device(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise TrainingError(f"device {name!r} was asked for, but torch sees no Apple GPU. Use device=cpu.")
    return device
