"""A frozen matrix, as it is or in 4 bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tune.errors import ConfigError
from tune.modules.cast_matmul import cast_matmul
from tune.modules.peft.nf4 import NF4Weight, nf4_linear
from tune.modules.products import linear


class FrozenLinear(nn.Module):
    """W x + bias, neither of which is trained.

    Args:
        in_dim: i, width in.
        out_dim: o, width out.
        use_bias: there is a bias.
        quantize_base: W is kept in 4 bits (NF4) from `fill_weight` on; until then it is on the meta device.
    """

    def __init__(
        self, in_dim: int, out_dim: int, use_bias: bool = False, quantize_base: bool = False
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.quantize_base = quantize_base
        # `fill_weight` puts the codes where the placeholder was: room for the whole matrix is never needed.
        matrix = torch.empty(out_dim, in_dim, device="meta" if quantize_base else None)
        self.weight: nn.Parameter | None = nn.Parameter(matrix, requires_grad=False)
        self.nf4: NF4Weight | None = None
        self.bias = nn.Parameter(torch.zeros(out_dim), requires_grad=False) if use_bias else None
        if not self.weight.is_meta:
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., o] for x [..., i]."""
        return self._base_linear(x.to(compute_dtype(x)), self.bias)

    def merged_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the one matrix [o, i] that does what this module does; None: in the dtype it is kept for."""
        return self._base_matrix(dtype)

    @torch.no_grad()
    def fill_weight(self, tensor: Tensor) -> None:
        """Take a matrix [o, i] as the frozen one, as it is or quantised; its device and dtype become the base's.

        Raises:
            ConfigError: it is of another shape.
        """
        if tensor.shape != (self.out_dim, self.in_dim):
            raise ConfigError(
                f"a matrix {list(tensor.shape)} cannot stand where {[self.out_dim, self.in_dim]} is needed"
            )
        if self.quantize_base:
            self.nf4, self.weight = self.empty_nf4(tensor.dtype, "meta").fill_(tensor), None
        else:
            self.weight = nn.Parameter(tensor.detach(), requires_grad=False)

    def empty_nf4(self, dtype: torch.dtype, device: torch.device | str) -> NF4Weight:
        """Return room for the matrix in 4 bits, which dequantises to `dtype`."""
        return NF4Weight((self.out_dim, self.in_dim), dtype=dtype, device=device)

    @property
    def base_dtype(self) -> torch.dtype:
        """What the frozen matrix is, or what 4 bits are turned into."""
        return self._base.dtype

    @property
    def base_device(self) -> torch.device:
        """Where the frozen matrix is; meta until it is filled."""
        return self._base.device

    def extra_repr(self) -> str:
        """What torch prints between the brackets."""
        return f"{self.in_dim}, {self.out_dim}, bias={self.bias is not None}"

    @property
    def _base(self) -> nn.Parameter | NF4Weight:
        base = self.nf4 if self.weight is None else self.weight
        assert base is not None, "fill_weight puts the one where the other was"
        return base

    def _base_matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        base = self._base
        if isinstance(base, NF4Weight):
            return base.dequantize(dtype)
        return base if dtype is None else base.to(dtype)

    def _base_linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return [..., o] in x's dtype; autocast finds everything in its dtype already."""
        base = self._base
        if isinstance(base, NF4Weight):
            return nf4_linear(x, base, bias)
        if base.dtype != x.dtype:
            out: Tensor = cast_matmul(x, base, bias, True)
            return out
        return linear(x, base, None if bias is None else bias.to(x.dtype))


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return what products with x are computed in: its dtype, or autocast's where that is on."""
    return torch.get_autocast_dtype(x.device.type) if is_autocast(x) else x.dtype


def is_autocast(x: Tensor) -> bool:
    """Return whether autocast turns x into its own dtype, or finds it so."""
    kind = x.device.type
    # Meta knows no autocast and refuses to be asked for it.
    return kind != "meta" and torch.is_autocast_enabled(kind) and x.dtype != torch.float64
