"""NF4 on a GPU in one pass over memory: dequantised whole, or multiplied with a few rows where it lies.

Of each number 0.52 bytes are read; a product for a token is nothing but that reading, four times less than in bf16.

Shapes: n rows of x, o output and i input features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BYTES_PER_PROGRAM = 1024
# Of a product: matrix rows of a program, and bytes of each that it reads at a time.
_ROWS_PER_PROGRAM = 4
_BYTES_PER_STEP = 128


@triton.jit  # type: ignore[untyped-decorator]
def _scales(block, inside, scale_codes, ranges, mean, scale_table, double_block_size: tl.constexpr):  # type: ignore[no-untyped-def]
    scale = tl.load(scale_table + tl.load(scale_codes + block, mask=inside, other=0).to(tl.int32))
    scale = scale * tl.load(ranges + block // double_block_size, mask=inside, other=0.0) + tl.load(mean)
    return tl.maximum(scale, 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _multiply(  # type: ignore[no-untyped-def]
    x,
    codes,
    scale_codes,
    ranges,
    mean,
    code_table,
    scale_table,
    out,
    num_x,
    num_rows,
    row_bytes: tl.constexpr,
    half: tl.constexpr,
    double_block_size: tl.constexpr,
    x_size: tl.constexpr,
    row_size: tl.constexpr,
    step: tl.constexpr,
):
    row = tl.program_id(0) * row_size + tl.arange(0, row_size)  # [o]
    x_row = tl.arange(0, x_size)  # [n]
    sums = tl.zeros((x_size, row_size, step), tl.float32)
    for start in range(0, row_bytes, step):
        column = start + tl.arange(0, step)  # of bytes, two numbers each
        inside = (row < num_rows)[:, None] & (column < row_bytes)[None, :]
        # 64 bits: a matrix may have more than 2^31 numbers.
        place = row.to(tl.int64)[:, None] * row_bytes + column[None, :]
        byte = tl.load(codes + place, mask=inside, other=0).to(tl.int32)
        scale = _scales(place // half, inside, scale_codes, ranges, mean, scale_table, double_block_size)
        # Rounded as a dequantised matrix is.
        earlier = (tl.load(code_table + (byte >> 4)) * scale).to(x.dtype.element_ty).to(tl.float32)
        later = (tl.load(code_table + (byte & 15)) * scale).to(x.dtype.element_ty).to(tl.float32)
        at = x_row[:, None] * (2 * row_bytes) + 2 * column[None, :]
        is_there = (x_row < num_x)[:, None] & (column < row_bytes)[None, :]
        x_earlier = tl.load(x + at, mask=is_there, other=0.0).to(tl.float32)
        x_later = tl.load(x + at + 1, mask=is_there, other=0.0).to(tl.float32)
        sums += earlier[None] * x_earlier[:, None] + later[None] * x_later[:, None]
    result = tl.sum(sums, 2)  # [n, o]
    target = x_row[:, None] * num_rows + row[None, :]
    is_result = (x_row < num_x)[:, None] & (row < num_rows)[None, :]
    tl.store(out + target, result.to(out.dtype.element_ty), mask=is_result)


def multiply(
    x: Tensor,
    codes: Tensor,
    scale_codes: Tensor,
    ranges: Tensor,
    mean: Tensor,
    code_table: Tensor,
    scale_table: Tensor,
    num_rows: int,
    double_block_size: int,
) -> Tensor:
    """Return x times the transposed matrix [n, o], summed in fp32; arguments as in `dequantize`.

    Args:
        x: [n, i], a few rows; i a multiple of the block size.
        num_rows: o.
    """
    x = x.contiguous()
    out = x.new_empty(len(x), num_rows)
    # Triton launches on the current device, which need not be the weight's.
    with torch.cuda.device_of(codes):  # type: ignore[no-untyped-call]
        _multiply[(triton.cdiv(num_rows, _ROWS_PER_PROGRAM),)](
            x,
            codes,
            scale_codes,
            ranges,
            mean,
            code_table,
            scale_table,
            out,
            len(x),
            num_rows,
            row_bytes=x.shape[1] // 2,
            half=codes.shape[1],
            double_block_size=double_block_size,
            x_size=triton.next_power_of_2(len(x)),
            row_size=_ROWS_PER_PROGRAM,
            step=_BYTES_PER_STEP,
            enable_fp_fusion=False,
        )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _dequantize(  # type: ignore[no-untyped-def]
    codes,
    scale_codes,
    ranges,
    mean,
    code_table,
    scale_table,
    out,
    numel,
    half: tl.constexpr,
    double_block_size: tl.constexpr,
    size: tl.constexpr,
):
    # 64 bits: a matrix may have more than 2^31 numbers.
    first = tl.program_id(0).to(tl.int64) * size
    place = first + tl.arange(0, size)  # of bytes, two numbers each
    inside = 2 * place < numel
    byte = tl.load(codes + place, mask=inside, other=0).to(tl.int32)
    block = place // half
    scale = _scales(block, inside, scale_codes, ranges, mean, scale_table, double_block_size)
    # Sixteen numbers that stay in the cache next to the arithmetic.
    earlier = tl.load(code_table + (byte >> 4)) * scale
    later = tl.load(code_table + (byte & 15)) * scale
    target = 2 * first + tl.arange(0, 2 * size)
    values = tl.interleave(earlier, later).to(out.dtype.element_ty)
    tl.store(out + target, values, mask=target < numel)


def dequantize(
    codes: Tensor,
    scale_codes: Tensor,
    ranges: Tensor,
    mean: Tensor,
    code_table: Tensor,
    scale_table: Tensor,
    shape: tuple[int, int],
    double_block_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return the matrix [o, i] of an NF4 weight, bit for bit as torch computes it.

    Args:
        codes: packed, [n_b, block_size / 2].
        scale_codes: [n_b], uint8.
        ranges: [n_g], fp32.
        mean: [1], fp32.
        code_table: [16], fp32.
        scale_table: [256], fp32.
        shape: (o, i).
        double_block_size: scales that share a range.
        dtype: of the result.
    """
    out = torch.empty(shape, dtype=dtype, device=codes.device)
    num_programs = triton.cdiv(triton.cdiv(out.numel(), 2), _BYTES_PER_PROGRAM)
    # Triton launches on the current device, which need not be the weight's.
    with torch.cuda.device_of(codes):  # type: ignore[no-untyped-call]
        # A fused multiply-add would round the scales otherwise than every other device does.
        _dequantize[(num_programs,)](
            codes,
            scale_codes,
            ranges,
            mean,
            code_table,
            scale_table,
            out,
            out.numel(),
            half=codes.shape[1],
            double_block_size=double_block_size,
            size=_BYTES_PER_PROGRAM,
            enable_fp_fusion=False,
        )
    return out
