"""Which modules take the same memory."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["Alike"]

_TENSORS_AND_PARTS = ("_parameters", "_buffers", "_modules")


class Alike:
    """A module that equals those built of the same parts with the same settings: what is measured of one holds."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        weights = [(name, p.shape, p.dtype, p.requires_grad) for name, p in module.named_parameters()]
        buffers = [(name, b.shape, b.dtype) for name, b in module.named_buffers()]
        # What has no text of its own is written with its address, and equals itself alone.
        settings = [
            {name: value for name, value in vars(part).items() if name not in _TENSORS_AND_PARTS}
            for part in module.modules()
        ]
        self._types = [(name, type(part)) for name, part in module.named_modules(remove_duplicate=False)]
        self._text = repr((weights, buffers, settings))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alike) and (self._types, self._text) == (other._types, other._text)

    def __hash__(self) -> int:
        return hash(self._text)
