"""Examples one by one, each with the row it came from: what is looked at singly, and not learnt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tune.config.component import Component
from tune.data import DataReport, merge_reports
from tune.data.packing import split_example
from tune.datasets.concat import build_datasets
from tune.datasets.holdout import Subset, hold_out
from tune.datasets.packed import PackedDataset, ReportingDataset
from tune.datasets.sampling import Sample, SampledExample, sampling
from tune.errors import DataError
from tune.tokenizers import Tokenizer

__all__ = ["Document", "read_documents"]


@dataclass(frozen=True)
class Document:
    """One example.

    Args:
        item: `tokens` and `labels`, with `weights` where there are some.
        place: of its row, or its number.
        values: of its row, by column; empty where nobody knows.
    """

    item: dict[str, list[Any]]
    place: str
    values: Mapping[str, Any] = field(default_factory=dict)


def read_documents(
    components: Component | Sequence[Component],
    tokenizer: Tokenizer,
    *,
    val_split: float | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> tuple[list[Document], DataReport]:
    """Return the examples of some datasets, packed or not, one by one and in order; and what was read.

    Args:
        components: each builds a dataset from a tokenizer.
        tokenizer: gives the ids.
        val_split, seed: of these examples, those alone that a run with this seed sets aside, see `hold_out`.
        limit: the first so many alone; without `val_split` no further rows are read.

    Raises:
        ConfigError, DataError: as `build_datasets` and `hold_out`.
    """
    several = [components] if isinstance(components, Component) else list(components)
    datasets: list[ReportingDataset] = []
    rows: list[Sequence[SampledExample]] = []
    for component in several:
        stops_at = None if val_split is not None else limit
        with sampling(Sample(stops_at, gives_up=False, keeps_values=True)) as sample, _naming(component):
            datasets.append(build_datasets((component,), tokenizer))
        rows.append(sample.examples)
    if val_split is not None:
        _, datasets = hold_out(datasets, val_split, seed)
    documents: list[Document] = []
    for dataset, own in zip(datasets, rows, strict=True):
        documents += _documents(dataset, own)
    return documents[:limit], merge_reports([dataset.report() for dataset in datasets])


@contextmanager
def _naming(component: Component) -> Iterator[None]:
    """Within, what is said to be a setting of `dataset` is said with what it takes to set it here."""
    try:
        yield
    except DataError as error:
        if "dataset.on_" not in str(error):
            raise
        builder = component.path.rpartition(".")[2].removesuffix("_dataset")
        raise DataError(
            f"{error}\n(dataset.* goes with dataset={builder} dataset.source=..., in place of data=...)"
        ) from error


def _documents(dataset: ReportingDataset, rows: Sequence[SampledExample]) -> Iterator[Document]:
    whole = dataset.documents if isinstance(dataset, PackedDataset) else dataset
    for index in range(len(whole)):
        member = whole.indices[index] if isinstance(whole, Subset) else index
        row = rows[member] if member < len(rows) else SampledExample(f"example {member + 1}")
        for item in split_example(whole[index]):
            yield Document(item, row.place, row.values)
