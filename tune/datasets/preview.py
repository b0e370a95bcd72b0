"""A look at a dataset: its report, and its first examples token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tune.config.component import Component
from tune.data import DataReport
from tune.data.preview import PreviewToken, group_tokens, preview_tokens, text_of
from tune.datasets.concat import build_datasets
from tune.datasets.holdout import Subset, hold_out
from tune.datasets.packed import PackedDataset, ReportingDataset
from tune.datasets.sampling import Sample, SampledExample, sampling
from tune.errors import DataError
from tune.tokenizers import Tokenizer

# Rows of a packed sequence that its title names.
_NUM_NAMED = 4
_KEYS = ("tokens", "labels", "weights", "input_pos")


@dataclass(frozen=True)
class ShownExample:
    """One example that is shown.

    Args:
        item: as the dataset gives it.
        preview: what each of its tokens is.
        sources: the rows in it, several where it is packed.
    """

    item: dict[str, Any]
    preview: list[PreviewToken]
    sources: Sequence[SampledExample]

    @property
    def cuts(self) -> list[int]:
        """Tokens beyond the limit that each of its documents has lost."""
        return [source.num_cut for source in self.sources]

    def describe(self) -> str:
        """Return rows and counts in a few words; texts of files among them are to be escaped."""
        places = [source.place for source in self.sources[:_NUM_NAMED]]
        more = len(self.sources) - len(places)
        named = " + ".join(places) + (f" and {more} more" if more else "")
        learnt = sum(token.is_learnt for token in self.preview)
        return f"{named}, {len(self.preview):,} tokens, {learnt:,} learnt"

    def to_json(self) -> dict[str, Any]:
        """Return it as `tune preview --json` writes it."""
        pieces, start = [], 0
        for alike in group_tokens(self.preview):
            first, end = alike[0], start + len(alike)
            pieces.append(
                {
                    "start": start,
                    "end": end,
                    "text": text_of(alike),
                    "learnt": first.is_learnt,
                    "weight": first.weight,
                    "special": first.is_special,
                    "document": first.document,
                }
            )
            start = end
        keys: list[str] = [key for key in _KEYS if key in self.item]
        return {
            "places": [source.place for source in self.sources],
            "num_cut": sum(self.cuts),
            **{key: list(self.item[key]) for key in keys},
            "pieces": pieces,
        }


@dataclass(frozen=True)
class ShownDataset:
    """A dataset that is shown.

    Args:
        name: where it stands in a config.
        size: examples, or packed sequences.
        report: counts of what was read.
        is_partial: whether rows were left unread.
        examples: the first ones.
    """

    name: str
    size: int
    report: DataReport
    is_partial: bool
    examples: list[ShownExample]

    def report_text(self) -> str:
        """Return the report, which says where it does not cover the whole dataset."""
        if not self.is_partial:
            return str(self.report)
        rows = f"{self.report.num_rows:,} row{'s' * (self.report.num_rows != 1)}"
        note = f"  Only {rows} of it were read, and only these are counted: --all reads them all"
        return f"{self.report}\n{note}"

    def to_json(self) -> dict[str, Any]:
        """Return it as `tune preview --json` writes it."""
        return {
            "name": self.name,
            "is_partial": self.is_partial,
            "report": self.report.to_dict(),
            "examples": [example.to_json() for example in self.examples],
        }


def look_at(
    components: Mapping[str, Component],
    tokenizer: Tokenizer,
    *,
    max_examples: int,
    row: str | None = None,
    reads_all: bool = False,
    val_split: float | None = None,
    seed: int = 0,
    validation: bool = False,
) -> list[ShownDataset]:
    """Return the first examples of each dataset, or those of one row; none of a dataset that has no such row.

    Args:
        components: build the datasets from a tokenizer, each by what to call it.
        tokenizer: gives the ids.
        max_examples: to show; no more rows are read than they need.
        row: the one row to show, see `Sample`.
        reads_all: read all rows all the same, so that the reports cover them.
        val_split, seed: what is set aside of them, see `hold_out`; it is known where all rows are read.
        validation: show what is set aside.

    Raises:
        DataError: what is read cannot be learnt from.
    """
    splits = val_split is not None and row is None and (reads_all or validation)
    found: list[tuple[str, ReportingDataset, Sample]] = []
    for name, component in components.items():
        whole = reads_all or splits or row is not None
        with sampling(Sample(None if whole else max_examples, row)) as sample:
            dataset = _build(component, tokenizer, sample)
            if dataset is not None:
                found.append((name, dataset, sample))
    sides = [dataset for _, dataset, _ in found]
    if splits and val_split is not None:
        kept, held = hold_out(sides, val_split, seed)
        sides = held if validation else kept
    return [
        _show_dataset(name, side, sample, tokenizer, None if row is not None else max_examples)
        for (name, _, sample), side in zip(found, sides)
        if len(side)
    ]


def _build(component: Component, tokenizer: Tokenizer, sample: Sample) -> ReportingDataset | None:
    """Return the dataset as far as the sample goes; None where it lacks the one row."""
    lacks_row = sample.row is not None
    try:
        dataset = build_datasets((component,), tokenizer)
    except DataError as error:
        if lacks_row and not sample.is_found:
            return None
        if sample.is_partial and not sample.is_found:
            raise DataError(f"{error}\nOnly the first rows were read; --all reads them all") from error
        raise
    return None if lacks_row and not sample.is_found else dataset


def _show_dataset(
    name: str, dataset: ReportingDataset, sample: Sample, tokenizer: Tokenizer, max_examples: int | None
) -> ShownDataset:
    number = len(dataset) if max_examples is None else min(len(dataset), max_examples)
    examples = [_show(dataset, index, sample.examples, tokenizer) for index in range(number)]
    return ShownDataset(name, len(dataset), dataset.report(), sample.is_partial, examples)


def _show(
    dataset: ReportingDataset, index: int, sources: Sequence[SampledExample], tokenizer: Tokenizer
) -> ShownExample:
    item: dict[str, Any] = dataset[index]
    members, documents = [index], dataset
    if isinstance(dataset, PackedDataset):
        members, documents = dataset.members(index), dataset.documents
    if isinstance(documents, Subset):
        members = [documents.indices[member] for member in members]
    return ShownExample(item, preview_tokens(tokenizer, item), [sources[member] for member in members])
