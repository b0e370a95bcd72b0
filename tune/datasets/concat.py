"""Several datasets one after another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from torch.utils.data import Dataset

from tune.config.component import Component
from tune.config.instantiate import instantiate
from tune.data import DataReport, merge_reports
from tune.datasets.own import OwnDataset
from tune.datasets.packed import PackedDataset, ReportingDataset
from tune.datasets.sft import SFTDataset
from tune.datasets.text_completion import TextCompletionDataset
from tune.datasets.tokenizing import preparing
from tune.errors import ConfigError
from tune.tokenizers import Tokenizer, refuse_dropped_tokens


def build_datasets(
    components: Component | tuple[Component, ...],
    tokenizer: Tokenizer,
    num_proc: int | None = None,
    data_cache_dir: str | None = None,
) -> ReportingDataset:
    """Return the dataset a config describes: one, or several as one.

    Args:
        components: each builds a dataset from a tokenizer.
        tokenizer: gives the ids.
        num_proc: processes that tokenize; None for one per core.
        data_cache_dir: where tokens are kept for the next time: null or "" for the default place, "off" for nowhere.

    Raises:
        ConfigError: the list is empty, mixes packed and unpacked ones, or what was built is no dataset; or the
            tokenizer has tokens that its model has no row for.
        DataError: a source cannot be read or learnt from.
    """
    refuse_dropped_tokens(tokenizer)  # before a template writes them in pieces
    several = components if isinstance(components, tuple) else (components,)
    with preparing(num_proc, data_cache_dir):
        datasets = [_build(component, tokenizer) for component in several]
    return datasets[0] if len(datasets) == 1 else ConcatDataset(datasets)


def _build(component: Component, tokenizer: Tokenizer) -> ReportingDataset:
    built: Any = instantiate(component, tokenizer)
    if isinstance(built, (SFTDataset, TextCompletionDataset, PackedDataset, ConcatDataset)):
        return built
    if not hasattr(built, "__len__") or not hasattr(built, "__getitem__"):
        raise ConfigError(
            f"dataset {component.path} is a {type(built).__name__}, which has no __len__ or no __getitem__: examples "
            "are taken by their number"
        )
    return OwnDataset(built, component.path)


class ConcatDataset(Dataset[dict[str, list[Any]]]):
    """All examples of all datasets; a shuffling sampler mixes them.

    Args:
        datasets: at least one; all packed, or none.

    Raises:
        ConfigError: there is none, or packed and unpacked ones are mixed.
    """

    def __init__(self, datasets: Sequence[ReportingDataset]) -> None:
        if not datasets:
            raise ConfigError("dataset is an empty list: name at least one")
        if len({isinstance(dataset, PackedDataset) for dataset in datasets}) > 1:
            raise ConfigError(
                "packed and unpacked datasets cannot share batches: set packed alike for all of them"
            )
        self._datasets = list(datasets)
        self._ends = list(accumulate(len(dataset) for dataset in datasets))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, list[Any]]:
        dataset, inner = self._find(index)
        return dataset[inner]

    def length(self, index: int) -> int:
        """Return the number of tokens of an example without making it."""
        dataset, inner = self._find(index)
        return dataset.length(inner)

    def report(self) -> DataReport:
        """Return the counts of all datasets together."""
        return merge_reports([dataset.report() for dataset in self._datasets])

    def render_prompt(self, text: str) -> str | list[int]:
        """Return what the model reads when a user says `text`, as the first dataset writes it."""
        return self._datasets[0].render_prompt(text)

    def _find(self, index: int) -> tuple[ReportingDataset, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside of the {len(self)} examples")
        index %= len(self)
        which = bisect_right(self._ends, index)
        return self._datasets[which], index - (self._ends[which - 1] if which else 0)
