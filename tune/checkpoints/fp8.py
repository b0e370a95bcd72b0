"""Weights stored in 8-bit floating point, beside the scales that make them what they stand for.

    NAME.weight             float8_e4m3, [o, i]
    NAME.weight_scale_inv   one number, or one for each block of a grid [o / block, i / block]
    NAME.activation_scale   of what the matrix is multiplied with, where a program computes in 8 bits: not needed here

# transformers, integrations/finegrained_fp8.py; DeepSeek-V3, "fp8_cast_bf16"
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from tune.checkpoints.file_formats import TensorInfo
from tune.errors import CheckpointError
from tune.utils import get_logger

__all__ = ["SCALE", "dequantize", "find_fp8", "say_once"]

SCALE = "_scale_inv"
_ACTIVATION = "activation_scale"
_KINDS = ("F8_E4M3", "F8_E5M2")


def find_fp8(infos: Mapping[str, TensorInfo]) -> tuple[dict[str, TensorInfo], set[str]]:
    """Return what 8-bit weights with scales are read as, bf16, and the names of the tensors that serve this alone.

    Raises:
        CheckpointError: a scale is no number and no grid that divides its weight.
    """
    found, serving = {}, set()
    for name, info in infos.items():
        scale = infos.get(f"{name}{SCALE}")
        if info.dtype not in _KINDS or scale is None:
            continue
        grid = _grid(scale.shape)
        fits = len(info.shape) == 2 and all(n > 0 and length % n == 0 for length, n in zip(info.shape, grid))
        if not fits or isinstance(scale.dtype, str):
            raise CheckpointError(
                f"{info.file}: {name}{SCALE} is {list(scale.shape)} {scale.dtype}, which scales no "
                f"{list(info.shape)} of {info.dtype}: read is one number, or a grid whose sides divide the weight's"
            )
        found[name] = TensorInfo(info.shape, torch.bfloat16, info.file)
        serving |= {f"{name}{SCALE}", f"{name.rpartition('.')[0]}.{_ACTIVATION}"}
    return found, serving


def dequantize(weight: Tensor, scale: Tensor) -> Tensor:
    """Return the weight [o, i] that 8-bit numbers and their scales stand for, rounded once, to bf16."""
    rows, columns = _grid(tuple(scale.shape))
    blocks = weight.float().view(rows, weight.shape[0] // rows, columns, weight.shape[1] // columns)
    return (blocks * scale.float().view(rows, 1, columns, 1)).view(weight.shape).to(torch.bfloat16)


@cache
def say_once(path: str, kind: str) -> None:
    """Say what becomes of weights of such a kind, once for each place."""
    get_logger().info(
        f"{path} holds weights in {kind}: they are read as bf16, and what is saved holds no {kind}"
    )


def _grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the sides of a grid of scales, 0 where it is none."""
    if math.prod(shape) == 1:
        return 1, 1
    return (shape[0], shape[1]) if len(shape) == 2 else (0, 0)
