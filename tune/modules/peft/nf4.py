"""Frozen matrices in 4-bit NormalFloat with doubly quantised scales, and products with them.  # arXiv:2305.14314, 3

Each run of `block_size` numbers (rows one after the other) is divided by its largest magnitude and rounded to the
nearest of 16 codes; those magnitudes, less their mean, are in turn kept in 8 bits, with one fp32 range per
`double_block_size` of them. That is 4 + 8/64 + 32/(64 * 256) = 4.127 bits, 0.516 bytes, per number.
Everything stored is what bitsandbytes' `nf4` with compressed statistics stores, to the bit, except that where its CPU
kernel takes the second nearest code for a scale (1 in 500) the nearest is taken here: an adapter meets the same base
there and here.

Shapes: o output and i input features, n_b blocks, n_g groups of blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tune.errors import ConfigError, TrainingError
from tune.modules.peft.nf4_codes import (
    can_multiply_few,
    dequantize_buffers,
    multiply_few,
    quantize_blocks,
    quantize_scales,
)
from tune.modules.products import multiply


class NF4Weight(nn.Module):
    """A frozen matrix [o, i] in about 0.516 bytes per number; `nf4_linear` multiplies with it.

    A module of buffers rather than a tensor subclass: `state_dict`, `.to(device)`, the meta device, copies and
    torch.compile know what to do with those, optimizers and FSDP's sharding leave them alone (every rank keeps the
    whole matrix). All buffers are integers, the fp32 ranges as their bits, so that `model.to(torch.bfloat16)` changes
    what the matrix dequantises to, never what is stored.

    Args:
        shape: (o, i).
        block_size: numbers that share a scale; even.
        double_block_size: scales that share a range.
        dtype: what `dequantize` returns unless told; follows `.to(dtype)`.
        device: the buffers are uninitialised there until `fill_` or `load_state_dict`.

    Raises:
        ConfigError: a size is no positive number, or the block size is odd.
    """

    codes: Tensor
    scale_codes: Tensor
    range_bits: Tensor
    mean_bits: Tensor
    _like: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        block_size: int = 64,
        double_block_size: int = 256,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if len(shape) != 2 or min(shape) < 1:
            raise ConfigError(f"NF4 holds matrices [out, in] of at least one number, not {list(shape)}")
        if block_size < 2 or block_size % 2:
            raise ConfigError(
                f"an NF4 block is an even number of numbers, 64 as a rule; block_size={block_size}"
            )
        if double_block_size < 1:
            raise ConfigError(f"double_block_size={double_block_size} must be at least 1; 256 as a rule")
        if not dtype.is_floating_point:
            raise ConfigError(f"NF4 dequantises to a floating-point dtype, not to {dtype}")
        self.shape = torch.Size(shape)
        self.block_size = block_size
        self.double_block_size = double_block_size
        num_blocks = -(-shape[0] * shape[1] // block_size)
        num_groups = -(-num_blocks // double_block_size)
        codes, scale_codes, range_bits = (num_blocks, block_size // 2), (num_blocks,), (num_groups,)
        # Two codes per byte, the earlier number in the high half.
        self.register_buffer("codes", torch.empty(codes, dtype=torch.uint8, device=device))
        self.register_buffer("scale_codes", torch.empty(scale_codes, dtype=torch.uint8, device=device))
        self.register_buffer("range_bits", torch.empty(range_bits, dtype=torch.int32, device=device))
        self.register_buffer("mean_bits", torch.empty(1, dtype=torch.int32, device=device))
        # Empty, and there for its dtype alone: what `.to(dtype)` does to the other weights, it does to this one.
        # Never on the meta device: loading with `assign=True` would leave it there, and nothing could move it away.
        beside = "cpu" if self.codes.is_meta else self.codes.device
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=beside), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """What `dequantize` returns unless told otherwise."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """Where the buffers are."""
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers together."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @torch.no_grad()
    def fill_(self, tensor: Tensor) -> NF4Weight:
        """Quantise `tensor` into this weight, on the tensor's device, and return it; `dtype` stays.

        Args:
            tensor: [o, i] of this weight's shape, fp32, bf16 or fp16.

        Raises:
            TrainingError: another shape, a dtype that is not one of these, or a tensor on the meta device.
            CheckpointError: not every number is finite.
        """
        if tensor.shape != self.shape:
            raise TrainingError(
                f"an NF4 weight of shape {list(self.shape)} cannot be filled from {list(tensor.shape)}"
            )
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise TrainingError(f"NF4 quantises fp32, bf16 or fp16, not {tensor.dtype}: convert it first")
        if tensor.is_meta:
            raise TrainingError(
                "a tensor on the meta device has no numbers to quantise: load its values first"
            )
        codes, scales = quantize_blocks(tensor.detach(), self.block_size)
        # All or nothing: this raises for numbers that are not finite.
        self.scale_codes, self.range_bits, self.mean_bits = quantize_scales(scales, self.double_block_size)
        self.codes = codes
        self._like = torch.empty(0, dtype=self.dtype, device=tensor.device)
        return self

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the matrix [o, i], each number the fp32 product of code and scale, rounded to `dtype`.

        Args:
            dtype: None: this weight's own.
        """
        dtype = self.dtype if dtype is None else dtype
        if not dtype.is_floating_point:
            raise ConfigError(f"NF4 dequantises to a floating-point dtype, not to {dtype}")
        matrix: Tensor = _dequantize(*self.buffers_in_order(), *self.sizes, dtype)
        return matrix

    def forward(self, x: Tensor) -> Tensor:
        """Return `nf4_linear(x, self)`."""
        return nf4_linear(x, self)

    def extra_repr(self) -> str:
        """What torch prints between the brackets."""
        return f"{list(self.shape)}, block_size={self.block_size}, dtype={self.dtype}"

    def buffers_in_order(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `nf4_matmul` takes for the matrix."""
        return self.codes, self.scale_codes, self.range_bits, self.mean_bits

    @property
    def sizes(self) -> tuple[int, int, int]:
        """What `nf4_matmul` takes after that: o, i and the double block size."""
        return self.shape[0], self.shape[1], self.double_block_size


def quantize_nf4(tensor: Tensor, block_size: int = 64, double_block_size: int = 256) -> NF4Weight:
    """Return `tensor` in NF4, on its device; dequantises to its dtype.

    Beside the result it needs a workspace of some 20 MiB, on a GPU of some 200.

    Args:
        tensor: [o, i], fp32, bf16 or fp16; any number of numbers, the last block is padded.
        block_size: numbers that share a scale; even.
        double_block_size: scales that share a range.

    Raises:
        ConfigError: no matrix, or an impossible block size.
        TrainingError: another dtype.
        CheckpointError: not every number is finite.
    """
    if tensor.dim() != 2:
        raise ConfigError(f"NF4 holds matrices [out, in], not {list(tensor.shape)}")
    if not tensor.is_floating_point():
        raise TrainingError(f"NF4 quantises fp32, bf16 or fp16, not {tensor.dtype}: convert it first")
    o, i = tensor.shape
    weight = NF4Weight((o, i), block_size, double_block_size, tensor.dtype, device="meta")
    return weight.fill_(tensor)


def nf4_linear(x: Tensor, weight: NF4Weight, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias` [..., o] in x's dtype, or in autocast's where that is on.

    The matrix is dequantised for the product, in the forward and again in the backward pass, and kept by neither. A few
    rows, as tokens that are written one by one, meet the codes where they lie.
    Gradients reach x, and the bias if it wants one.

    Args:
        x: [..., i].
        weight: [o, i].
        bias: [o].

    Raises:
        TrainingError: x's last dimension is not i, or x is no floating-point tensor.
    """
    if x.shape[-1] != weight.shape[1] or not x.is_floating_point():
        raise TrainingError(
            f"an NF4 weight [{weight.shape[0]}, {weight.shape[1]}] multiplies floating-point rows of "
            f"{weight.shape[1]}; this input is {list(x.shape)}, {x.dtype}"
        )
    kind = x.device.type
    # Meta knows no autocast and refuses to be asked for it; fp64 is never cast. The kind is compared by name, since
    # the compiler of torch 2.11 cuts the graph at torch.amp.is_autocast_available.
    if kind != "meta" and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(kind))
    if bias is not None:
        bias = bias.to(x.dtype)
    out: Tensor = nf4_matmul(x, bias, *weight.buffers_in_order(), *weight.sizes, True)
    return out


# Dequantisation and product are one operator: to torch.compile it is one call, which can neither keep the dequantised
# matrix for the backward pass nor find that both passes compute the same matrix and share it.
@torch.library.custom_op("tune::nf4_matmul", mutates_args=())
def nf4_matmul(
    x: Tensor,
    bias: Tensor | None,
    codes: Tensor,
    scale_codes: Tensor,
    range_bits: Tensor,
    mean_bits: Tensor,
    num_rows: int,
    num_columns: int,
    double_block_size: int,
    transposed: bool,
) -> Tensor:
    """Return x [..., i] times the transposed matrix [..., o], or x [..., o] times the matrix itself [..., i]."""
    # One flat product whatever the strides: what comes out is contiguous, as the compiler was told.
    flat = x.reshape(-1, x.shape[-1])
    buffers, sizes = (codes, scale_codes, range_bits, mean_bits), (num_rows, num_columns, double_block_size)
    if transposed and can_multiply_few(flat, codes, num_columns):
        out = multiply_few(flat, *buffers, *sizes)
        out = out if bias is None else out.add_(bias)
    else:
        matrix = dequantize_buffers(*buffers, *sizes, x.dtype)
        out = multiply(flat, matrix.t() if transposed else matrix, bias)
    return out.view(*x.shape[:-1], out.shape[-1])


@nf4_matmul.register_fake
def _matmul_shape(
    x: Tensor,
    bias: Tensor | None,
    codes: Tensor,
    scale_codes: Tensor,
    range_bits: Tensor,
    mean_bits: Tensor,
    num_rows: int,
    num_columns: int,
    double_block_size: int,
    transposed: bool,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], num_rows if transposed else num_columns)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    # As attributes, not saved tensors: hooks that move activations to the host would move the whole base with them.
    ctx.weight = inputs[2:9]
    ctx.transposed = inputs[9]


def _matmul_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = nf4_matmul(grad, None, *ctx.weight, not ctx.transposed) if ctx.needs_input_grad[0] else None
    grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
    return grad_x, grad_bias, *(None,) * 8


nf4_matmul.register_autograd(_matmul_backward, setup_context=_remember)


@torch.library.custom_op("tune::nf4_dequantize", mutates_args=())
def _dequantize(
    codes: Tensor,
    scale_codes: Tensor,
    range_bits: Tensor,
    mean_bits: Tensor,
    num_rows: int,
    num_columns: int,
    double_block_size: int,
    dtype: torch.dtype,
) -> Tensor:
    return dequantize_buffers(
        codes, scale_codes, range_bits, mean_bits, num_rows, num_columns, double_block_size, dtype
    )


@_dequantize.register_fake
def _dequantize_shape(
    codes: Tensor,
    scale_codes: Tensor,
    range_bits: Tensor,
    mean_bits: Tensor,
    num_rows: int,
    num_columns: int,
    double_block_size: int,
    dtype: torch.dtype,
) -> Tensor:
    return codes.new_empty(num_rows, num_columns, dtype=dtype)
