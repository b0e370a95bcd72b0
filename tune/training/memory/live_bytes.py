"""The bytes of the tensors that stand, counted while operators run."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

__all__ = ["LiveBytes", "storage_key"]


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, every tensor an operator returns is counted until its storage is freed.

    Numbers that a tensor without memory cannot tell are assumed: experts get equally many tokens, every position is a
    target, and a check of values finds nothing.

    Args:
        weights: what was there before, and does not count; nor do views of it.
        max_targets: more positions are not taken for targets.
    """

    def __init__(self, weights: Iterable[Tensor] = (), max_targets: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.max_targets = max_targets
        self.now = self.peak = 0
        self.weights = {storage_key(weight) for weight in weights}
        self.casts: set[int] = set()
        self.seen = set(self.weights)

    def restart(self) -> int:
        """Return the peak since the last call, and begin a new one."""
        peak, self.peak = self.peak, self.now
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self._assumed(func, args, kwargs or {})
        if out is None:
            out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        if func is torch.ops.aten._to_copy.default and storage_key(args[0]) in self.weights:
            self.casts.add(storage_key(out))
        return out

    def _assumed(self, func: Any, args: Any, kwargs: Any) -> Any:
        aten = torch.ops.aten
        if func is aten._local_scalar_dense.default:
            return 0.5 if args[0].is_floating_point() else args[0].dtype != torch.bool
        if func is aten.nonzero.default:
            num = min(args[0].numel(), self.max_targets or args[0].numel())
            return args[0].new_empty((num, args[0].dim()), dtype=torch.int64)
        if func is aten.bincount.default and (num_bins := max(0, *args[2:], kwargs.get("minlength", 0))):
            share, left = divmod(args[0].numel(), num_bins)
            with _disable_current_modes():
                return torch.tensor([share + (i < left) for i in range(num_bins)])
        return None

    def _count(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), storage_key(tensor)
        if key not in self.seen:
            self.seen.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.casts.discard(key)
        self.now -= size


def storage_key(tensor: Tensor) -> int:
    """Return what tensors have in common that share memory."""
    return int(tensor.untyped_storage()._cdata)
