"""Datasets by name, for programs that do without a config."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from tune.errors import ConfigError

if TYPE_CHECKING:
    from tune.datasets.concat import ReportingDataset
    from tune.tokenizers import Tokenizer


def get_dataset(name: str, tokenizer: Tokenizer, **arguments: Any) -> ReportingDataset:
    """Returns the dataset of a short name, such as "alpaca" or "instruct".

    Args:
        name: of a builder of this package, with or without `_dataset`.
        tokenizer: gives the ids.
        arguments: of the builder.

    Raises:
        ConfigError: there is no such builder, or it has no such argument.
    """
    package = importlib.import_module("tune.datasets")
    known = [builder.removesuffix("_dataset") for builder in package.__all__ if builder.endswith("_dataset")]
    known.remove("get")
    short = name.removesuffix("_dataset")
    if short not in known:
        near = difflib.get_close_matches(short, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"there is no dataset {name!r}; known are {', '.join(known)}{hint}")
    builder = getattr(package, f"{short}_dataset")
    unknown = [key for key in arguments if key not in builder.__kwdefaults__ and key != "source"]
    if unknown:
        raise ConfigError(
            f"{short}_dataset has no argument {unknown[0]!r}; it has {', '.join(builder.__kwdefaults__)}"
        )
    dataset: ReportingDataset = builder(tokenizer, **arguments)
    return dataset
