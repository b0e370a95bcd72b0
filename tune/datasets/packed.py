"""Several documents in one sequence, none of which sees another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from tune.data import DataReport, pack_lengths
from tune.data.packing import join_examples
from tune.errors import ConfigError


class ReportingDataset(Protocol):
    """What every dataset of this package offers."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, list[Any]]: ...
    def length(self, index: int) -> int: ...
    def report(self) -> DataReport: ...
    def render_prompt(self, text: str) -> str | list[int]: ...


class PackedDataset(Dataset[dict[str, list[Any]]]):
    """Sequences of up to `max_seq_len` tokens that hold whole examples of another dataset.

    Items are `{"tokens", "labels", "input_pos"}`, and `"weights"` where an example in it has them: positions start at 0
    with each example, and from them `tune.data.padded_collate_sft` makes the mask that keeps examples apart, so that
    loss and gradients are those of the examples one by one. The first token of an example is never a target.

    Args:
        dataset: the examples, each shorter than a sequence.
        max_seq_len: tokens of a sequence; by default the limit that the examples were cut to.

    Attributes:
        documents: the dataset of the examples.
        capacity: tokens of a sequence.

    Raises:
        ConfigError: there is no limit.
    """

    def __init__(self, dataset: ReportingDataset, max_seq_len: int | None = None) -> None:
        capacity = max_seq_len or dataset.report().max_seq_len
        if capacity is None:
            raise ConfigError(
                "packed needs to know how long a sequence is: set dataset.max_seq_len or tokenizer.max_seq_len"
            )
        self.documents = dataset
        self.capacity = capacity
        lengths = np.fromiter(map(dataset.length, range(len(dataset))), np.int32, len(dataset))
        self._packs = pack_lengths(lengths, capacity)
        self._report = replace(dataset.report(), num_packs=len(self._packs), max_seq_len=capacity)

    def __len__(self) -> int:
        return len(self._packs)

    def __getitem__(self, index: int) -> dict[str, list[Any]]:
        return join_examples([self.documents[member] for member in self._packs[index]])

    def length(self, index: int) -> int:
        """Return the number of tokens of a sequence without making it."""
        return sum(self.documents.length(member) for member in self._packs[index])

    def members(self, index: int) -> list[int]:
        """Return which examples of the other dataset a sequence holds."""
        return self._packs[index]

    def report(self) -> DataReport:
        """Return what was read, and how full the sequences are."""
        return self._report

    def render_prompt(self, text: str) -> str | list[int]:
        """Return what the model reads when a user says `text`."""
        return self.documents.render_prompt(text)
