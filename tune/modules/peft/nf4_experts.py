"""The matrices of a layer's experts in 4 bits, each quantised for itself, and products with them.

Shapes: n rows, E experts, o output and i input features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tune.errors import ConfigError, TrainingError
from tune.modules.grouped_linear import can_group, grouped_matmul, runs_of
from tune.modules.peft.nf4 import NF4Weight
from tune.modules.peft.nf4_codes import dequantize_buffers


class NF4Experts(NF4Weight):
    """E frozen matrices [o, i], each as `NF4Weight` keeps it: its buffers have a first dimension of experts.

    Args:
        shape: (E, o, i).
        dtype, device: as in `NF4Weight`.

    Raises:
        ConfigError: no stack of matrices.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        if len(shape) != 3 or min(shape) < 1:
            raise ConfigError(f"experts in NF4 are matrices [experts, out, in], not {list(shape)}")
        super().__init__((shape[1], shape[2]), dtype=dtype, device="meta")
        self.shape = torch.Size(shape)
        for name, buffer in list(self.named_buffers()):
            if name == "_like":
                continue
            setattr(self, name, torch.empty((shape[0], *buffer.shape), dtype=buffer.dtype, device=device))
        if not self.codes.is_meta:
            self._like = self._like.to(self.codes.device)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """What `nf4_grouped_matmul` takes after the buffers: o, i and the double block size."""
        return self.shape[1], self.shape[2], self.double_block_size

    @torch.no_grad()
    def fill_(self, tensor: Tensor) -> NF4Experts:
        """Quantise all matrices [E, o, i], on the tensor's device; errors as in `NF4Weight.fill_`."""
        if tensor.shape != self.shape:
            raise TrainingError(
                f"an NF4 weight of shape {list(self.shape)} cannot be filled from {list(tensor.shape)}"
            )
        if self.device != tensor.device:
            self.to_empty(device=tensor.device)
        for place, matrix in enumerate(tensor):
            self.fill_expert_(place, matrix)
        return self

    @torch.no_grad()
    def fill_expert_(self, place: int, tensor: Tensor) -> None:
        """Quantise one expert's matrix [o, i] where this is; errors as in `NF4Weight.fill_`."""
        one = NF4Weight((self.shape[1], self.shape[2]), dtype=self.dtype, device="meta").fill_(tensor)
        for room, filled in zip(self.buffers_in_order(), one.buffers_in_order(), strict=True):
            room[place] = filled

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the matrices [E, o, i]; None: in this weight's own dtype."""
        return _dequantize_all(self.buffers_in_order(), self.sizes, self.dtype if dtype is None else dtype)

    def dequantize_expert(self, place: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return one expert's matrix [o, i]; None: in this weight's own dtype."""
        wanted = self.dtype if dtype is None else dtype
        return _dequantize_one(place, self.buffers_in_order(), self.sizes, wanted)


Buffers = tuple[Tensor, Tensor, Tensor, Tensor]


def _dequantize_one(place: int, buffers: Buffers, sizes: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    codes, scale_codes, range_bits, mean_bits = (buffer[place] for buffer in buffers)
    return dequantize_buffers(codes, scale_codes, range_bits, mean_bits, *sizes, dtype)


def _dequantize_all(buffers: Buffers, sizes: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    codes = buffers[0]
    stack = torch.empty(len(codes), *sizes[:2], dtype=dtype, device=codes.device)
    for place in range(len(codes)):
        stack[place] = _dequantize_one(place, buffers, sizes, dtype)
    return stack


@torch.library.custom_op("tune::nf4_grouped_matmul", mutates_args=())
def nf4_grouped_matmul(
    x: Tensor,
    ends: Tensor,
    codes: Tensor,
    scale_codes: Tensor,
    range_bits: Tensor,
    mean_bits: Tensor,
    num_rows: int,
    num_columns: int,
    double_block_size: int,
    transposed: bool,
) -> Tensor:
    """Return what `grouped_matmul` does; the matrices are dequantised for the product, and kept by neither pass."""
    buffers = (codes, scale_codes, range_bits, mean_bits)
    sizes = (num_rows, num_columns, double_block_size)
    if len(x) and ends.device == x.device and can_group(x.device, x.dtype, num_rows, num_columns):
        product: Tensor = grouped_matmul(x, ends, _dequantize_all(buffers, sizes, x.dtype), transposed)
        return product
    out = x.new_empty(len(x), num_rows if transposed else num_columns)
    for place, rows in runs_of(ends):
        matrix = _dequantize_one(place, buffers, sizes, x.dtype)
        torch.mm(x[rows], matrix.t() if transposed else matrix, out=out[rows])
    return out


@nf4_grouped_matmul.register_fake
def _matmul_shape(
    x: Tensor,
    ends: Tensor,
    codes: Tensor,
    scale_codes: Tensor,
    range_bits: Tensor,
    mean_bits: Tensor,
    num_rows: int,
    num_columns: int,
    double_block_size: int,
    transposed: bool,
) -> Tensor:
    return x.new_empty(x.shape[0], num_rows if transposed else num_columns)
