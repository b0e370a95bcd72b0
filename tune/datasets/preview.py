"""A look at a dataset: its report, and its first examples token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
_KEYS = ("tokens", "labels", "weights", "input_pos", "margins")


@dataclass(frozen=True)
class ShownExample:
    """One example that is shown.

    Args:
        item: as the dataset gives it.
        preview: what each of its tokens is.
        sources: the rows in it, several where it is packed; of a pair of answers the same for each.
        names: of its documents, where they have some: chosen and rejected.
    """

    item: dict[str, Any]
    preview: list[PreviewToken]
    sources: Sequence[SampledExample]
    names: Sequence[str] = ()

    @property
    def cuts(self) -> list[int]:
        """Tokens beyond the limit that each of its documents has lost."""
        return [source.num_cut for source in self.sources]

    def describe(self) -> str:
        """Return rows and counts in a few words; texts of files among them are to be escaped."""
        different = [*dict.fromkeys(source.place for source in self.sources)]
        places = different[:_NUM_NAMED]
        more = len(different) - len(places)
        named = " + ".join(places) + (f" and {more} more" if more else "")
        learnt = sum(token.is_learnt for token in self.preview)
        verdict = {1: ", judged good", -1: ", judged bad"}.get(self.item.get("verdict", 0), "")
        margins = "".join(f", margin {margin:g}" for margin in self.item.get("margins", ()))
        return f"{named}, {len(self.preview):,} tokens, {learnt:,} learnt{verdict}{margins}"

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
            **({"names": list(self.names)} if self.names else {}),
            **({"verdict": self.item["verdict"]} if "verdict" in self.item else {}),
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
        number = self.report.num_rows
        rows = "1 row of it was" if number == 1 else f"{number:,} rows of it were"
        note = f"  Only {rows} read, and nothing else is counted: --all reads all"
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
    **how: Any,
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
        **how: data is tokenized where all of it is read, as `build_datasets` takes it.

    Raises:
        DataError: what is read cannot be learnt from.
    """
    splits = val_split is not None and row is None and (reads_all or validation)
    shown_rows = None if row is not None else max_examples
    found: list[tuple[str, ReportingDataset, Sample]] = []
    for name, component in components.items():
        reads_here = splits or row is not None or (reads_all and component.kwargs.get("packed"))
        with sampling(Sample(None if reads_here else max_examples, row, gives_up=not reads_all)) as sample:
            dataset = _build(component, tokenizer, sample)
        if dataset is not None:
            found.append((name, dataset, sample))
    sides = [dataset for _, dataset, _ in found]
    if splits and val_split is not None:
        kept, held = hold_out(sides, val_split, seed)
        sides = held if validation else kept
    shown = [
        _show_dataset(name, side, sample, tokenizer, shown_rows)
        for (name, _, sample), side in zip(found, sides)
        if len(side)
    ]
    if not reads_all:
        return shown
    return [_with_whole_report(item, components[item.name], tokenizer, how) for item in shown]


def _with_whole_report(
    item: ShownDataset, component: Component, tokenizer: Tokenizer, how: Mapping[str, Any]
) -> ShownDataset:
    """Return it with the report of all rows, which are tokenized as a run tokenizes them, or have been."""
    if not item.is_partial:
        return item
    whole = build_datasets((component,), tokenizer, **how)
    return replace(item, size=len(whole), report=whole.report(), is_partial=False)


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
    preview, names = preview_tokens(tokenizer, item), []
    num_documents = preview[-1].document + 1 if preview else 0
    if num_documents == 2 * len(members):  # both sides of each pair
        members = [place for member in members for place in (2 * member, 2 * member + 1)]
        names = ["chosen", "rejected"] * (num_documents // 2)
    return ShownExample(item, preview, [sources[member] for member in members], names)
