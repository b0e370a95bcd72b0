"""What the tests of conversions share: a small model, and comparing checkpoints bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tune.checkpoints import open_weights, same_bits, save_model
from tune.models.llama2 import llama2
from tune.modules import TransformerDecoder

VOCAB, LAYERS, HEADS, KV_HEADS, WIDTH, HIDDEN = 29, 3, 4, 2, 24, 20


def build(**changes: Any) -> TransformerDecoder:
    return llama2(VOCAB, LAYERS, HEADS, WIDTH, 33, num_kv_heads=KV_HEADS, intermediate_dim=HIDDEN, **changes)


def tensors_of(directory: Path) -> dict[str, Tensor]:
    source = open_weights(directory)
    return {name: source.read(name).clone() for name in source}


def assert_same(first: Path, second: Path) -> None:
    left, right = tensors_of(first), tensors_of(second)
    assert left.keys() == right.keys()
    assert all(same_bits(left[name], right[name]) for name in left)


def assert_untouched(directory: Path) -> None:
    """Nothing stands there, or nothing was made."""
    assert not directory.exists() or not list(directory.iterdir())


def save_sharded(directory: Path) -> Path:
    """Write the model in bf16, in several files."""
    torch.manual_seed(3)
    save_model(build().to(torch.bfloat16), directory, max_shard_bytes=6000)
    return directory
