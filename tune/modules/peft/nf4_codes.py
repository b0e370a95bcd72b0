"""The numbers of NF4: from a matrix to packed codes and doubly quantised scales, and back.  # arXiv:2305.14314, 3

Plain torch on any device, in parts that keep the fp32 workspace small.

Shapes: o output and i input features, n_b blocks, n_g groups of blocks.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from tune.errors import CheckpointError
from tune.modules.kernels import has_triton

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
# Of x that meet the codes where they lie: of more, a product with the whole matrix takes less.
_FEW_ROWS = 8
# Blocks of zeros, or of subnormal numbers, must not be multiplied by an infinite reciprocal.
_SMALLEST_SCALE = 1e-38


def quantize_blocks(tensor: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Return packed codes [n_b, block_size / 2] and each block's largest magnitude [n_b], fp32."""
    flat = tensor.reshape(-1)
    num_blocks = -(-flat.numel() // block_size)
    codes = torch.empty(num_blocks, block_size // 2, dtype=torch.uint8, device=tensor.device)
    scales = torch.empty(num_blocks, dtype=torch.float32, device=tensor.device)
    bounds = _midpoints(torch.tensor(NF4_CODES, device="cpu")).tolist()
    step = max(1, (_CHUNK_ON_CPU if tensor.device.type == "cpu" else _CHUNK_ELSEWHERE) // block_size)
    for start in range(0, num_blocks, step):
        part = flat[start * block_size : (start + step) * block_size].float()
        part = F.pad(part, (0, -part.numel() % block_size)).view(-1, block_size)  # [blocks, block_size]
        largest = part.abs().amax(1)
        scaled = _over_largest(part, largest)
        # Between two codes, the lower. Fifteen comparisons take a third of the time of a search (`torch.bucketize`).
        nearest = (scaled > bounds[0]).view(torch.uint8)
        for bound in bounds[1:]:
            nearest += (scaled > bound).view(torch.uint8)
        codes[start : start + step] = nearest[:, ::2] << 4 | nearest[:, 1::2]
        scales[start : start + step] = largest
    return codes, scales


def quantize_scales(scales: Tensor, double_block_size: int) -> tuple[Tensor, Tensor, Tensor]:
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
    codes = torch.bucketize(
        _over_largest(centred, ranges), _midpoints(_scale_table(scales.device)), out_int32=True
    )
    codes = codes.view(-1)[: scales.numel()].to(torch.uint8)
    return codes, ranges.view(torch.int32), mean[None].view(torch.int32)


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
    if codes.is_cuda and has_triton():
        from tune.modules.kernels.nf4_triton import dequantize

        ranges, mean = range_bits.view(torch.float32), mean_bits.view(torch.float32)
        tables = _code_table(codes.device), _scale_table(codes.device)
        shape = (num_rows, num_columns)
        return dequantize(codes, scale_codes, ranges, mean, *tables, shape, double_block_size, dtype)
    scales = dequantize_scales(scale_codes, range_bits, mean_bits, double_block_size)[:, None]  # [n_b, 1]
    num_blocks, half = codes.shape
    out = torch.empty(num_blocks, 2 * half, dtype=dtype, device=codes.device)
    step = max(1, (_CHUNK_ON_CPU if codes.device.type == "cpu" else _CHUNK_ELSEWHERE) // (2 * half))
    for start in range(0, num_blocks, step):
        part = slice(start, start + step)
        _look_up(codes[part], scales[part], out[part])
    numel = num_rows * num_columns
    # The padding of a last block is cut off by a copy: a view would keep it and could not be an operator's output.
    flat = out.view(-1) if out.numel() == numel else out.view(-1)[:numel].clone()
    return flat.view(num_rows, num_columns)


def multiply_few(
    x: Tensor,
    codes: Tensor,
    scale_codes: Tensor,
    range_bits: Tensor,
    mean_bits: Tensor,
    num_rows: int,
    num_columns: int,
    double_block_size: int,
) -> Tensor:
    """Return x [n, i] times the transposed matrix, [n, o], for a few rows; the matrix is never there as a whole."""
    if x.is_cuda and has_triton():
        from tune.modules.kernels.nf4_triton import multiply

        ranges, mean = range_bits.view(torch.float32), mean_bits.view(torch.float32)
        tables = _code_table(x.device), _scale_table(x.device)
        return multiply(x, codes, scale_codes, ranges, mean, *tables, num_rows, double_block_size)
    scales = dequantize_scales(scale_codes, range_bits, mean_bits, double_block_size)[:, None]  # [n_b, 1]
    blocks_per_row = num_columns // (2 * codes.shape[1])
    step = max(1, _CHUNK_ON_CPU // num_columns)  # rows that stay in the cache until they are multiplied
    chunk = x.new_empty(step * blocks_per_row, 2 * codes.shape[1])
    out = x.new_empty(len(x), num_rows)
    for start in range(0, num_rows, step):
        part = slice(start * blocks_per_row, (start + step) * blocks_per_row)
        values = chunk[: len(scales[part])]
        _look_up(codes[part], scales[part], values)
        out[:, start : start + step] = x @ values.view(-1, num_columns).t()
    return out


def can_multiply_few(x: Tensor, codes: Tensor, num_columns: int) -> bool:
    """Return whether `multiply_few` is for this x [..., i]: few rows, and each of the matrix begins a block."""
    num_rows = x.numel() // num_columns
    # A CPU turns each piece of a bf16 matrix around before it multiplies: for small ones that takes longer.
    is_large = x.dtype == torch.float32 or codes.numel() >= 1 << 21
    is_fast = (x.is_cuda and has_triton() and x.dtype != torch.float64) or (
        x.device.type == "cpu" and is_large
    )
    return is_fast and 0 < num_rows <= _FEW_ROWS and num_columns % (2 * codes.shape[1]) == 0


def _look_up(codes: Tensor, scales: Tensor, out: Tensor) -> None:
    """Write the numbers that codes [n_b, block_size / 2] and scales [n_b, 1] stand for, [n_b, block_size]."""
    pairs, places = _pair_table(codes.device), codes.reshape(-1).int()
    if out.dtype == torch.float32:  # looked up where they are to be: a pass over memory less
        torch.index_select(pairs, 0, places, out=out.view(torch.int64).view(-1))
        out.mul_(scales)
    else:
        values = pairs.index_select(0, places).view(torch.float32).view(out.shape)
        torch.mul(values, scales, out=out)


def dequantize_scales(
    scale_codes: Tensor, range_bits: Tensor, mean_bits: Tensor, double_block_size: int
) -> Tensor:
    """Return the scales [n_b], fp32."""
    ranges = range_bits.view(torch.float32).repeat_interleave(double_block_size)[: scale_codes.numel()]
    scales = _scale_table(scale_codes.device).index_select(0, scale_codes.int()) * ranges
    # A block far smaller than its neighbours may round to below zero, which would turn its signs: it is zero then.
    return scales.add_(mean_bits.view(torch.float32)).clamp_(min=0.0)


def _over_largest(values: Tensor, largest: Tensor) -> Tensor:
    """Return each row over its largest magnitude, as the reference does it: times the reciprocal."""
    return values * (1.0 / largest.clamp(min=_SMALLEST_SCALE))[:, None]


def _midpoints(codes: Tensor) -> Tensor:
    return (codes[:-1] + codes[1:]) / 2


@lru_cache(maxsize=16)
def _code_table(device: torch.device) -> Tensor:
    return torch.tensor(NF4_CODES, device=device)


@lru_cache(maxsize=16)
def _pair_table(device: torch.device) -> Tensor:
    """Return the two fp32 codes of each byte, [256], as one int64 each: torch gathers those in half the time."""
    codes = _code_table(device)
    return torch.cartesian_prod(codes, codes).contiguous().view(torch.int64).view(-1)


@lru_cache(maxsize=16)
def _scale_table(device: torch.device) -> Tensor:
    """Return the 256 numbers of 8-bit dynamic quantisation, ascending, fp32.  # arXiv:2110.02861, 2.1 and figure 2

    A sign, a decimal exponent written as a run of zeros, and what bits are left for a fraction: 2^k fractions between
    0.1 and 1 for the exponent k - 6, each the middle of its interval. Zero and one are added.
    """
    values = [torch.tensor([0.0, 1.0], device="cpu")]
    for k in range(7):
        edges = torch.linspace(0.1, 1, 2**k + 1, dtype=torch.float32, device="cpu")
        middles = 10 ** (k - 6) * ((edges[:-1] + edges[1:]) / 2.0)
        values += [middles, -middles]
    return torch.cat(values).sort().values.to(device)
