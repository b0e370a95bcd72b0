"""Examples one by one, each with the row it came from: what is looked at singly, and not learnt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tune.config.component import Component
from tune.data import DataReport, merge_reports
from tune.datasets.concat import build_datasets
from tune.datasets.holdout import Subset, hold_out
from tune.datasets.packed import PackedDataset, ReportingDataset
from tune.datasets.sampling import Sample, SampledExample, sampling
from tune.tokenizers import Tokenizer

__all__ = ["Document", "documents_of", "read_documents"]


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
        with sampling(Sample(stops_at, gives_up=False, keeps_values=True)) as sample:
            datasets.append(build_datasets((component,), tokenizer))
        rows.append(sample.examples)
    if val_split is not None:
        _, datasets = hold_out(datasets, val_split, seed)
    documents: list[Document] = []
    for dataset, own in zip(datasets, rows, strict=True):
        documents += _documents(dataset, own)
    return documents[:limit], merge_reports([dataset.report() for dataset in datasets])


def documents_of(dataset: ReportingDataset, limit: int | None = None) -> list[Document]:
    """Return the first examples of a dataset, packed or not, one by one."""
    found: list[Document] = []
    for index in range(len(dataset)):
        found += [Document(item, f"example {len(found) + 1}") for item in _split(dataset[index])]
        if limit is not None and len(found) >= limit:
            break
    return found[:limit]


def _documents(dataset: ReportingDataset, rows: Sequence[SampledExample]) -> Iterator[Document]:
    whole = dataset.documents if isinstance(dataset, PackedDataset) else dataset
    for index in range(len(whole)):
        member = whole.indices[index] if isinstance(whole, Subset) else index
        row = rows[member] if member < len(rows) else SampledExample(f"example {member + 1}")
        for item in _split(whole[index]):
            yield Document(item, row.place, row.values)


def _split(item: Mapping[str, Any]) -> Iterator[dict[str, list[Any]]]:
    """Yield the documents of an example, by the positions that begin anew with each."""
    keys = [key for key in ("tokens", "labels", "weights") if key in item]
    positions = item.get("input_pos", ())
    starts = [0, *(place for place in range(1, len(positions)) if positions[place] == 0)]
    for start, end in pairwise([*starts, len(item["tokens"])]):
        yield {key: list(item[key][start:end]) for key in keys}
