"""Weights in files: reading, writing, and the names they go by."""

from __future__ import annotations

from .config_fields import ConfigFields, read_json
from .family import Family, Layout, WeightRule
from .load import load_into
from .locate import find_model_dir
from .save import save_meta, save_model
from .weights import TensorInfo, WeightSource, open_weights

__all__ = [
    "ConfigFields",
    "Family",
    "Layout",
    "TensorInfo",
    "WeightRule",
    "WeightSource",
    "find_model_dir",
    "load_into",
    "open_weights",
    "read_json",
    "save_meta",
    "save_model",
]
