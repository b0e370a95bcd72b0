"""Experts stored in MXFP4: numbers of 4 bits, 32 of which share a power of two.  # OCP Microscaling Formats 1.0

    NAME_blocks   uint8, [E, rows, groups, 16]: two numbers a byte, the first in its lower half
    NAME_scales   uint8, [E, rows, groups]: 127 more than the power

What they stand for is NAME, [E, 32 groups, rows], as bf16, which has room for every such number.
# transformers, integrations/mxfp4.py
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tune.checkpoints.file_formats import TensorInfo
from tune.errors import CheckpointError

BLOCKS, SCALES = "_blocks", "_scales"
_HALVES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = (*_HALVES, *(-value for value in _HALVES))
_BYTES = 16  # of a group


def find_mxfp4(infos: Mapping[str, TensorInfo]) -> tuple[dict[str, TensorInfo], set[str]]:
    """Return what experts in MXFP4 are read as, and the names of the tensors that hold them.

    Raises:
        CheckpointError: blocks and scales do not fit together, or the weight is there a second time.
    """
    found, serving = {}, set()
    for blocks, info in infos.items():
        name = blocks.removesuffix(BLOCKS)
        scales = infos.get(f"{name}{SCALES}")
        if name == blocks or scales is None:
            continue
        fits = len(info.shape) == 4 and info.shape[3] == _BYTES and info.shape[:3] == scales.shape
        if not fits or not info.dtype == scales.dtype == "U8":
            raise CheckpointError(
                f"{info.file}: {blocks} is {list(info.shape)} {info.dtype} and {name}{SCALES} {list(scales.shape)} "
                f"{scales.dtype}: read as MXFP4 are bytes (U8), [experts, rows, groups, {_BYTES}] beside "
                "[experts, rows, groups]"
            )
        if name in infos:
            raise CheckpointError(f"{info.file}: {name} is there in MXFP4 and a second time as it is")
        num_experts, rows, groups, _ = info.shape
        found[name] = TensorInfo((num_experts, groups * 2 * _BYTES, rows), torch.bfloat16, info.file)
        serving |= {blocks, f"{name}{SCALES}"}
    return found, serving


def dequantize_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """Return the weight [E, columns, rows] that blocks and scales stand for, bf16, as a transposed view."""
    num_experts, rows, groups, _ = blocks.shape
    # A byte's two numbers at once. A scale of 255 is no number there, and infinite here: `load_into` refuses it.
    pairs = torch.tensor(
        [[_VALUES[byte & 15], _VALUES[byte >> 4]] for byte in range(256)], dtype=torch.bfloat16
    )
    weight = torch.empty(num_experts, rows, groups * 2 * _BYTES, dtype=torch.bfloat16)
    for expert, stored, powers in zip(weight, blocks, scales, strict=True):
        values = torch.nn.functional.embedding(stored.int(), pairs).view(rows, groups, 2 * _BYTES)
        factors = torch.pow(2.0, powers.int() - 127).to(torch.bfloat16)
        torch.mul(values, factors[..., None], out=expert.view(rows, groups, 2 * _BYTES))
    return weight.transpose(1, 2)
