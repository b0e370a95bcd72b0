"""Which modules take the same memory."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn

__all__ = ["Alike"]

_TENSORS_AND_PARTS = ("_parameters", "_buffers", "_modules")


class Alike:
    """A module that equals those built of the same parts with the same settings: what is measured of one holds."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self._types = [type(part) for _, part in module.named_modules(remove_duplicate=False)]
        # Part by part: it is also asked for where memory has run out.
        digest = hashlib.blake2b(digest_size=16)
        for name, part in module.named_modules(remove_duplicate=False):
            tensors = [
                (own, tensor.shape, tensor.dtype, tensor.requires_grad)
                for own, tensor in (*part._parameters.items(), *part._buffers.items())
                if tensor is not None
            ]
            # What has no text of its own is written with its address, and equals itself alone.
            settings = [pair for pair in vars(part).items() if pair[0] not in _TENSORS_AND_PARTS]
            digest.update(repr((name, tensors, settings)).encode())
        self._digest = digest.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alike) and (self._types, self._digest) == (other._types, other._digest)

    def __hash__(self) -> int:
        return hash(self._digest)
