"""Datasets by name, for programs that do without a config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tune.config.component_check import resolve_component
from tune.config.instantiate import instantiate
from tune.config.slots import DATASET
from tune.errors import ConfigError

if TYPE_CHECKING:
    from tune.datasets.concat import ReportingDataset
    from tune.tokenizers import Tokenizer


def get_dataset(name: str, tokenizer: Tokenizer, **arguments: Any) -> ReportingDataset:
    """Returns the dataset that a short name or dotted path builds, as `dataset:` in a config does.

    Args:
        name: such as "alpaca" or "instruct".
        tokenizer: gives the ids.
        arguments: of the builder.

    Raises:
        ConfigError: there is no such builder, or arguments it does not take or needs.
    """
    resolved = resolve_component(name, DATASET)
    if resolved.errors:
        raise ConfigError("\n".join(error.message for error in resolved.errors))
    dataset: ReportingDataset = instantiate(resolved.path, tokenizer, **arguments)
    return dataset
