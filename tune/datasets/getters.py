"""Datasets by name, for programs that do without a config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tune.config.instantiate import instantiate_by_name
from tune.config.slots import DATASET

if TYPE_CHECKING:
    from tune.datasets.packed import ReportingDataset
    from tune.tokenizers import Tokenizer


def get_dataset(name: str, tokenizer: Tokenizer, **arguments: Any) -> ReportingDataset:
    """Return the dataset that a short name or dotted path builds, as `dataset:` in a config does.

    Args:
        name: such as "alpaca" or "instruct".
        tokenizer: gives the ids.
        arguments: of the builder.

    Raises:
        ConfigError: there is no such builder, or arguments it does not take or needs.
    """
    dataset: ReportingDataset = instantiate_by_name(name, DATASET, tokenizer, **arguments)
    return dataset
