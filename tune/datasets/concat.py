"""Several datasets one after another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

from torch.utils.data import Dataset

from tune.config.component import Component
from tune.config.instantiate import instantiate
from tune.config.slots import DATASET, WEIGHT
from tune.data import DataReport, merge_reports
from tune.data.mixture import Mixture, MixUntil
from tune.datasets.holdout import Subset, hold_out
from tune.datasets.own import OwnDataset
from tune.datasets.packed import PackedDataset, ReportingDataset
from tune.datasets.sampling import current_sample
from tune.datasets.sft import SFTDataset
from tune.datasets.streamed import StreamedDataset, build_streamed, is_streamed, mix_streams
from tune.datasets.text_completion import TextCompletionDataset
from tune.datasets.tokenizing import preparing
from tune.errors import ConfigError
from tune.tokenizers import Tokenizer, refuse_dropped_tokens


def build_datasets(
    components: Component | tuple[Component, ...],
    tokenizer: Tokenizer,
    num_proc: int | None = None,
    data_cache_dir: str | None = None,
    mix_until: MixUntil = "first_exhausted",
) -> ReportingDataset:
    """Return the dataset a config describes: one, or several as one.

    Args:
        components: each builds a dataset from a tokenizer. One of several may have a `weight`, see `Mixture`.
        tokenizer: gives the ids.
        num_proc: processes that tokenize; None for one per core.
        data_cache_dir: where tokens are kept for the next time: null or "" for the default place, "off" for nowhere.
        mix_until: when an epoch of datasets with weights ends.

    Raises:
        ConfigError: the list is empty, mixes packed and unpacked ones, or what was built is no dataset; or the
            tokenizer has tokens that its model has no row for.
        DataError: a source cannot be read or learnt from.
    """
    return _join(_build_all(components, tokenizer, num_proc, data_cache_dir), components, mix_until)


def build_splits(
    components: Component | tuple[Component, ...],
    validation: Component | None,
    val_split: float | None,
    mix_until: MixUntil,
    tokenizer: Tokenizer,
    seed: int,
    num_proc: int | None = None,
    data_cache_dir: str | None = None,
) -> tuple[ReportingDataset, ReportingDataset | None]:
    """Return what is trained on, and what is validated on, if anything is.

    Args:
        components: the training data, as `build_datasets` takes it.
        validation: builds a dataset of its own.
        val_split: share or number of training examples to set aside for validation instead, see `hold_out`.
        mix_until: when an epoch of datasets with weights ends.
        tokenizer: gives the ids.
        seed: decides what is set aside.
        num_proc, data_cache_dir: as for `build_datasets`.

    Raises:
        ConfigError, DataError: as `build_datasets` and `hold_out`.
    """
    datasets = _build_all(components, tokenizer, num_proc, data_cache_dir)
    held: list[ReportingDataset] = []
    if val_split is not None:
        datasets, held = hold_out(datasets, val_split, seed)
        held = [dataset for dataset in held if len(dataset)]
    train = _join(datasets, components, mix_until)
    if validation:
        return train, build_datasets(validation, tokenizer, num_proc, data_cache_dir)
    return train, (held[0] if len(held) == 1 else ConcatDataset(held)) if held else None


def _build_all(
    components: Component | tuple[Component, ...],
    tokenizer: Tokenizer,
    num_proc: int | None,
    data_cache_dir: str | None,
) -> list[ReportingDataset]:
    refuse_dropped_tokens(tokenizer)  # before a template writes them in pieces
    several = (components,) if isinstance(components, Component) else components
    with preparing(num_proc, data_cache_dir):
        if current_sample() is None and any(map(is_streamed, several)):
            return _build_streams(several, tokenizer)
        return [_build(component, tokenizer) for component in several]


def _build_streams(components: Sequence[Component], tokenizer: Tokenizer) -> list[ReportingDataset]:
    if not all(map(is_streamed, components)):
        raise ConfigError("streamed data cannot be joined with data that is not: set streaming alike for all")
    return [
        build_streamed(component, component.kwargs.get(WEIGHT, 1.0), partial(_build, tokenizer=tokenizer))
        for component in components
    ]


def _for_builder(component: Component) -> Component:
    """Return a component without what it says to the recipe."""
    own = (WEIGHT, *(DATASET.of_recipe if component.path.startswith("tune.") else ()))
    return replace(
        component, kwargs={key: value for key, value in component.kwargs.items() if key not in own}
    )


def _join(
    datasets: Sequence[ReportingDataset],
    components: Component | tuple[Component, ...],
    mix_until: MixUntil,
) -> ReportingDataset:
    if isinstance(components, Component) or len(datasets) == 1:
        return datasets[0]
    weights = [component.kwargs[WEIGHT] for component in components if WEIGHT in component.kwargs]
    if weights and len(weights) < len(datasets):
        raise ConfigError(
            f"{len(weights)} of {len(datasets)} datasets have a weight: give one to each of them, or to none"
        )
    streams = [dataset for dataset in datasets if isinstance(dataset, StreamedDataset)]
    if streams:
        return mix_streams(streams, ConcatDataset([stream.sample for stream in streams]))
    return ConcatDataset(datasets, weights, mix_until)


def _build(component: Component, tokenizer: Tokenizer) -> ReportingDataset:
    built: Any = instantiate(_for_builder(component), tokenizer)
    if isinstance(built, (SFTDataset, TextCompletionDataset, PackedDataset, ConcatDataset, Subset)):
        return built
    if not hasattr(built, "__len__") or not hasattr(built, "__getitem__"):
        raise ConfigError(
            f"dataset {component.path} is a {type(built).__name__}, which has no __len__ or no __getitem__: examples "
            "are taken by their number"
        )
    return OwnDataset(built, component.path)


class ConcatDataset(Dataset[dict[str, list[Any]]]):
    """All examples of all datasets; a shuffling sampler mixes them.

    Packed sequences hold examples of one dataset each.

    Args:
        datasets: at least one; all packed, or none.
        weights: of each, to be mixed in these shares (of sequences, where they are packed); empty takes all examples.
        mix_until: when an epoch ends that is mixed, see `Mixture`.

    Attributes:
        mixture: what `ResumableSampler` takes to mix them; None where all examples are taken.

    Raises:
        ConfigError: there is none, or packed and unpacked ones are mixed.
    """

    def __init__(
        self,
        datasets: Sequence[ReportingDataset],
        weights: Sequence[float] = (),
        mix_until: MixUntil = "first_exhausted",
    ) -> None:
        if not datasets:
            raise ConfigError("dataset is an empty list: name at least one")
        if len({isinstance(dataset, PackedDataset) for dataset in datasets}) > 1:
            raise ConfigError(
                "packed and unpacked datasets cannot share batches: set packed alike for all of them"
            )
        self._datasets = list(datasets)
        sizes = tuple(len(dataset) for dataset in datasets)
        self._ends = list(accumulate(sizes))
        self.mixture = Mixture(sizes, tuple(weights), mix_until) if weights else None

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
        reports = [dataset.report() for dataset in self._datasets]
        merged = merge_reports(reports)
        if self.mixture is not None:
            sources, tokens = zip(*((report.source, report.num_tokens) for report in reports))
            merged.remarks.insert(0, self.mixture.describe(sources, tokens))
        return merged

    def render_prompt(self, text: str) -> str | list[int]:
        """Return what the model reads when a user says `text`, as the first dataset writes it."""
        return self._datasets[0].render_prompt(text)

    def _find(self, index: int) -> tuple[ReportingDataset, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside of the {len(self)} examples")
        index %= len(self)
        which = bisect_right(self._ends, index)
        return self._datasets[which], index - (self._ends[which - 1] if which else 0)
