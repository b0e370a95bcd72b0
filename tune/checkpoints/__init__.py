"""Weights in files: reading, writing, and the names they go by."""

from __future__ import annotations

from tune.checkpoints.adapter_config import find_adapter_dir
from tune.checkpoints.adapter_files import (
    adapter_tokenizer_dir,
    base_difference,
    has_tokenizer,
    read_adapter_base,
    read_base_quantization,
)
from tune.checkpoints.adapters import add_adapters, load_adapter, read_adapter_config, save_adapter
from tune.checkpoints.atomic_dir import require_space, staged_directory
from tune.checkpoints.carried import Carried, CarriedTensor, carried_tensors, find_carried
from tune.checkpoints.check_config import check_against_config
from tune.checkpoints.compare import find_layout, match_weights, same_bits
from tune.checkpoints.config_fields import ConfigFields, read_json
from tune.checkpoints.finite import count_nonfinite, describe_nonfinite
from tune.checkpoints.load import load_into
from tune.checkpoints.locate import find_model_dir
from tune.checkpoints.mapping import LayoutTensor, StoredWeights, tensors_in_layout, weight_shapes
from tune.checkpoints.save import MAX_SHARD_BYTES, describe_model, save_meta, save_model, token_ids
from tune.checkpoints.side_files import copy_side_files
from tune.checkpoints.weights import WeightSource, open_weights
from tune.checkpoints.writers import write_json, write_pickle, write_shards

__all__ = [
    "MAX_SHARD_BYTES",
    "Carried",
    "CarriedTensor",
    "ConfigFields",
    "LayoutTensor",
    "StoredWeights",
    "WeightSource",
    "adapter_tokenizer_dir",
    "add_adapters",
    "base_difference",
    "carried_tensors",
    "check_against_config",
    "copy_side_files",
    "count_nonfinite",
    "describe_model",
    "describe_nonfinite",
    "find_adapter_dir",
    "find_carried",
    "find_layout",
    "find_model_dir",
    "has_tokenizer",
    "load_adapter",
    "load_into",
    "match_weights",
    "open_weights",
    "read_adapter_base",
    "read_adapter_config",
    "read_base_quantization",
    "read_json",
    "require_space",
    "same_bits",
    "save_adapter",
    "save_meta",
    "save_model",
    "staged_directory",
    "tensors_in_layout",
    "token_ids",
    "weight_shapes",
    "write_json",
    "write_pickle",
    "write_shards",
]
