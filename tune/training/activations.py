"""Trading work for activation memory, block by block. Parameter names stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpoint_activations"]


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
