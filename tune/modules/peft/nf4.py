"""Frozen matrices in 4-bit NormalFloat with doubly quantised scales, and products with them.  # arXiv:2305.14314, 3

Each run of `block_size` numbers (rows one after the other) is divided by its largest magnitude and rounded to the
nearest of 16 codes; those magnitudes, less their mean, are in turn kept in 8 bits, with one fp32 range per
`double_block_size` of them. That is 4 + 8/64 + 32/(64 * 256) = 4.127 bits, 0.516 bytes, per number.
Codes and scales agree bit for bit with bitsandbytes' `nf4` with compressed statistics, so an adapter meets the same
base there and here.

Shapes: o output and i input features, n_b blocks, n_g groups of blocks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune.errors import CheckpointError, ConfigError, TrainingError

# The code book, arXiv:2305.14314, appendix E: quantiles of a normal distribution, scaled to [-1, 1], and zero itself.
NF4_CODES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

# Numbers that pass through the fp32 workspace at a time. A CPU's fits its cache; a GPU wants few, large launches.
_CHUNK_ON_CPU = 1 << 18
_CHUNK_ELSEWHERE = 1 << 24
# Blocks of zeros, or of subnormal numbers, must not be multiplied by an infinite reciprocal.
_SMALLEST_SCALE = 1e-38


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
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=device), persistent=False)

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
            TrainingError: another shape, or a dtype that is not one of these.
            CheckpointError: not every number is finite.
        """
        if tensor.shape != self.shape:
            raise TrainingError(
                f"an NF4 weight of shape {list(self.shape)} cannot be filled from {list(tensor.shape)}"
            )
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise TrainingError(f"NF4 quantises fp32, bf16 or fp16, not {tensor.dtype}: convert it first")
        codes, scales = _quantize_blocks(tensor.detach(), self.block_size)
        self.codes = codes
        self.scale_codes, self.range_bits, self.mean_bits = _quantize_scales(scales, self.double_block_size)
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
        matrix: Tensor = _dequantize(*self._buffers_in_order(), *self.shape, self.double_block_size, dtype)
        return matrix

    def forward(self, x: Tensor) -> Tensor:
        """Return `nf4_linear(x, self)`."""
        return nf4_linear(x, self)

    def extra_repr(self) -> str:
        """What torch prints between the brackets."""
        return f"{list(self.shape)}, block_size={self.block_size}, dtype={self.dtype}"

    def _buffers_in_order(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.codes, self.scale_codes, self.range_bits, self.mean_bits


def quantize_nf4(tensor: Tensor, block_size: int = 64, double_block_size: int = 256) -> NF4Weight:
    """Return `tensor` in NF4, on its device; dequantises to its dtype. A few MiB are needed beside the result.

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

    The matrix is dequantised for the product, in the forward and again in the backward pass, and kept by neither.
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
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(kind))
    if bias is not None:
        bias = bias.to(x.dtype)
    buffers = weight._buffers_in_order()
    out: Tensor = _matmul(x, bias, *buffers, *weight.shape, weight.double_block_size, True)
    return out


# Dequantisation and product are one operator: to torch.compile it is one call, which can neither keep the dequantised
# matrix for the backward pass nor find that both passes compute the same matrix and share it.
@torch.library.custom_op("tune::nf4_matmul", mutates_args=())
def _matmul(
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
    matrix = dequantize_buffers(
        codes, scale_codes, range_bits, mean_bits, num_rows, num_columns, double_block_size, x.dtype
    )
    # One flat product whatever the strides: what comes out is contiguous, as the compiler was told.
    flat = x.reshape(-1, x.shape[-1])
    out = F.linear(flat, matrix if transposed else matrix.t(), bias)
    return out.view(*x.shape[:-1], out.shape[-1])


@_matmul.register_fake
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
    grad_x = _matmul(grad, None, *ctx.weight, not ctx.transposed) if ctx.needs_input_grad[0] else None
    grad_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
    return grad_x, grad_bias, *(None,) * 8


_matmul.register_autograd(_matmul_backward, setup_context=_remember)


def dequantize_buffers(
    codes: Tensor,
    scale_codes: Tensor,
    range_bits: Tensor,
    mean_bits: Tensor,
    num_rows: int,
    num_columns: int,
    double_block_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return the matrix [o, i] that the buffers of an `NF4Weight` stand for."""
    scales = _dequantize_scales(scale_codes, range_bits, mean_bits, double_block_size)[:, None]  # [n_b, 1]
    num_blocks, half = codes.shape
    pairs = _pair_table(codes.device)
    out = torch.empty(num_blocks, 2 * half, dtype=dtype, device=codes.device)
    step = max(1, (_CHUNK_ON_CPU if codes.device.type == "cpu" else _CHUNK_ELSEWHERE) // (2 * half))
    for start in range(0, num_blocks, step):
        part = slice(start, start + step)
        values = pairs.index_select(0, codes[part].reshape(-1).int())
        values = values.view(torch.float32).view(-1, 2 * half)  # [blocks, block_size]
        torch.mul(values, scales[part], out=out[part])
    numel = num_rows * num_columns
    # The padding of a last block is cut off by a copy: a view would keep it and could not be an operator's output.
    flat = out.view(-1) if out.numel() == numel else out.view(-1)[:numel].clone()
    return flat.view(num_rows, num_columns)


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


def _quantize_blocks(tensor: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Return packed codes [n_b, block_size / 2] and each block's largest magnitude [n_b], fp32."""
    flat = tensor.reshape(-1)
    num_blocks = -(-flat.numel() // block_size)
    codes = torch.empty(num_blocks, block_size // 2, dtype=torch.uint8, device=tensor.device)
    scales = torch.empty(num_blocks, dtype=torch.float32, device=tensor.device)
    bounds = _midpoints(torch.tensor(NF4_CODES, device=tensor.device))
    step = max(1, (_CHUNK_ON_CPU if tensor.device.type == "cpu" else _CHUNK_ELSEWHERE) // block_size)
    for start in range(0, num_blocks, step):
        part = flat[start * block_size : (start + step) * block_size].float()
        part = F.pad(part, (0, -part.numel() % block_size)).view(-1, block_size)  # [blocks, block_size]
        largest = part.abs().amax(1)
        nearest = _nearest(part, largest, bounds)
        codes[start : start + step] = nearest[:, ::2] << 4 | nearest[:, 1::2]
        scales[start : start + step] = largest
    return codes, scales


def _quantize_scales(scales: Tensor, double_block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return 8-bit codes [n_b], the bits of their ranges [n_g] and the bits of the scales' mean [1]."""
    mean = scales.mean()
    if not mean.isfinite():
        num_bad = int((~scales.isfinite()).sum())
        raise CheckpointError(
            f"{num_bad} of {scales.numel()} NF4 blocks hold a number that is infinite or not a number; "
            "only finite weights can be quantised: check the checkpoint"
            if num_bad
            else "the weights are finite, but too large for the fp32 mean of their blocks' scales: check the checkpoint"
        )
    centred = F.pad(scales - mean, (0, -scales.numel() % double_block_size)).view(-1, double_block_size)
    ranges = centred.abs().amax(1)  # [n_g]
    codes = _nearest(centred, ranges, _midpoints(_scale_table(scales.device)))
    return codes.view(-1)[: scales.numel()].clone(), ranges.view(torch.int32), mean[None].view(torch.int32)


def _dequantize_scales(
    scale_codes: Tensor, range_bits: Tensor, mean_bits: Tensor, double_block_size: int
) -> Tensor:
    """Return the scales [n_b], fp32."""
    ranges = range_bits.view(torch.float32).repeat_interleave(double_block_size)[: scale_codes.numel()]
    scales = _scale_table(scale_codes.device).index_select(0, scale_codes.int()) * ranges
    # A block far smaller than its neighbours may round to below zero, which would turn its signs: it is zero then.
    return scales.add_(mean_bits.view(torch.float32)).clamp_(min=0.0)


def _nearest(values: Tensor, largest: Tensor, bounds: Tensor) -> Tensor:
    """Return the codes, uint8, nearest to each row over its largest magnitude; between two, the lower."""
    reciprocal = 1.0 / largest.clamp(min=_SMALLEST_SCALE)
    return torch.bucketize(values * reciprocal[:, None], bounds, out_int32=True).to(torch.uint8)


def _midpoints(codes: Tensor) -> Tensor:
    return (codes[:-1] + codes[1:]) / 2


@lru_cache(maxsize=16)
def _pair_table(device: torch.device) -> Tensor:
    """Return the two fp32 codes of each byte, [256], as one int64 each: torch gathers those in half the time."""
    codes = torch.tensor(NF4_CODES, device=device)
    return torch.cartesian_prod(codes, codes).contiguous().view(torch.int64).view(-1)


@lru_cache(maxsize=16)
def _scale_table(device: torch.device) -> Tensor:
    """Return the 256 numbers of 8-bit dynamic quantisation, ascending, fp32.  # arXiv:2110.02861, 2.1 and figure 2

    A sign, a decimal exponent written as a run of zeros, and what bits are left for a fraction: 2^k fractions between
    0.1 and 1 for the exponent k - 6, each the middle of its interval. Zero and one are added.
    """
    values = [torch.tensor([0.0, 1.0])]
    for k in range(7):
        edges = torch.linspace(0.1, 1, 2**k + 1, dtype=torch.float32, device="cpu")
        middles = 10 ** (k - 6) * ((edges[:-1] + edges[1:]) / 2.0)
        values += [middles, -middles]
    return torch.cat(values).sort().values.to(device)
