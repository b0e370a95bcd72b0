"""A look at a dataset: its report, and its first examples token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tune.config.component import Component
from tune.data import DataReport
from tune.data.preview import PreviewToken, group_tokens, preview_tokens, text_of
from tune.datasets.concat import build_datasets
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
        report: counts of what was read.
        is_partial: whether rows were left unread.
        examples: the first ones.
    """

    name: str
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
    name: str,
    component: Component,
    tokenizer: Tokenizer,
    *,
    max_examples: int,
    row: str | None = None,
    reads_all: bool = False,
) -> ShownDataset | None:
    """Return the first examples of a dataset, or those of one row; None where there is no such row.

    Args:
        name: what to call it.
        component: builds it from a tokenizer.
        tokenizer: gives the ids.
        max_examples: to show; no more rows are read than they need.
        row: the one row to show, see `Sample`.
        reads_all: read all rows all the same, so that the report covers them.

    Raises:
        DataError: what is read cannot be learnt from.
    """
    with sampling(Sample(None if reads_all or row is not None else max_examples, row)) as sample:
        try:
            dataset = build_datasets(component, tokenizer)
        except DataError as error:
            if row is not None and not sample.is_found:
                return None
            if sample.is_partial:
                raise DataError(f"{error}\nOnly the first rows were read; --all reads them all") from error
            raise
        if row is not None and not sample.is_found:
            return None
        number = len(dataset) if row is not None else min(len(dataset), max_examples)
        examples = [_show(dataset, index, sample.examples, tokenizer) for index in range(number)]
    return ShownDataset(name, dataset.report(), sample.is_partial, examples)


def _show(
    dataset: ReportingDataset, index: int, sources: Sequence[SampledExample], tokenizer: Tokenizer
) -> ShownExample:
    item: dict[str, Any] = dataset[index]
    members = dataset.members(index) if isinstance(dataset, PackedDataset) else [index]
    return ShownExample(item, preview_tokens(tokenizer, item), [sources[member] for member in members])
