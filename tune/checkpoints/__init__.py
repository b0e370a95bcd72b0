"""Weights in files: reading, writing, and the names they go by."""

from __future__ import annotations

from tune.checkpoints.check_config import check_against_config
from tune.checkpoints.config_fields import ConfigFields, read_json
from tune.checkpoints.file_formats import TensorInfo
from tune.checkpoints.load import load_into
from tune.checkpoints.locate import find_model_dir
from tune.checkpoints.save import save_meta, save_model
from tune.checkpoints.weights import WeightSource, open_weights

__all__ = [
    "ConfigFields",
    "TensorInfo",
    "WeightSource",
    "check_against_config",
    "find_model_dir",
    "load_into",
    "open_weights",
    "read_json",
    "save_meta",
    "save_model",
]
