"""Trading work or transfers for activation memory, block by block. Parameter names stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tune.errors import TrainingError

__all__ = ["activation_offloading", "checkpoint_activations"]

# Below this a transfer costs more than the memory is worth.
MIN_OFFLOAD_BYTES = 1024**2


def checkpoint_activations(blocks: Iterable[nn.Module]) -> None:
    """Make each block keep only its input and run its forward pass again in the backward pass (arXiv:1604.06174).

    The blocks are changed in place; without gradients (validation, generation) they run once, as before.
    """
    for block in blocks:
        block.forward = _recomputing(block.forward)


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def activation_offloading(
    model: nn.Module, device: torch.device, enabled: bool
) -> AbstractContextManager[object]:
    """Return a context in which activations that the backward pass needs wait in pinned host memory.

    Weights, which autograd also saves, stay where they are. When not enabled, the context changes nothing.

    Raises:
        TrainingError: the device is not a GPU, so there is nothing to move away from.
    """
    if not enabled:
        return nullcontext()
    if device.type != "cuda":
        raise TrainingError(
            f"enable_activation_offloading moves activations from a GPU to the host, but the device is "
            f"{device}. Set it to false."
        )
    # A saved weight may be a transposed view: views share the storage, so that is what is compared.
    # A quantised base is buffers, which a compiled block saves as it saves weights.
    kept = chain(model.parameters(), model.buffers())
    weights = {tensor.untyped_storage().data_ptr() for tensor in kept}

    def pack(tensor: Tensor) -> tuple[torch.device, Tensor]:
        small = tensor.numel() * tensor.element_size() < MIN_OFFLOAD_BYTES
        if small or tensor.device.type == "cpu" or tensor.untyped_storage().data_ptr() in weights:
            return tensor.device, tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        # On the same stream as the computation, so the copy is ordered before the memory is used again.
        host.copy_(tensor, non_blocking=True)
        return tensor.device, host

    def unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
        origin, tensor = packed
        return tensor.to(origin, non_blocking=True)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
