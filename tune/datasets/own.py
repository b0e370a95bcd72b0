"""A dataset of the user's own: what it does not offer is made up for, and what is wrong in it is told."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, Protocol

from torch.utils.data import Dataset

from tune.data import CROSS_ENTROPY_IGNORE_IDX, DataReport
from tune.datasets.sampling import SampledExample, current_sample
from tune.errors import DataError

__all__ = ["OwnDataset"]


class _Examples(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class OwnDataset(Dataset[dict[str, Any]]):
    """Any object with `__len__` and `__getitem__`, with a report of what there is to learn from it.

    Every item is a mapping with `tokens` and `labels`: token ids, and the same again where they are to be learnt, or
    -100; unshifted, of equal length. There may be `weights` as well, what the loss of each token is multiplied by.
    Lists, arrays and tensors will do. Further entries are for a `collate_fn` of one's own.

    Args:
        examples: every item is looked at once, to be counted. Its own `report()` and `render_prompt(text)` are used if
            there are any.
        name: what to call it.

    Raises:
        DataError: an item is not of that form, or there is nothing to learn.
    """

    def __init__(self, examples: _Examples, name: str) -> None:
        self._examples = examples
        self._name = name
        self._size = self._sampled_size()
        self._report = self._count()
        if own := getattr(examples, "report", None):
            self._report = own()

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self._examples[index]
        if not isinstance(item, Mapping):
            raise self._wrong(index, f"is a {type(item).__name__}, not a mapping with tokens and labels")
        ids = {key: self._ids(index, key, item) for key in ("tokens", "labels")}
        if len(ids["tokens"]) != len(ids["labels"]):
            raise self._wrong(
                index,
                f"has {len(ids['tokens'])} tokens, but {len(ids['labels'])} labels; a token has one each",
            )
        if min(ids["tokens"]) < 0:
            raise self._wrong(index, f"has a token below 0: {min(ids['tokens'])}")
        if wrong := [label for label in ids["labels"] if label < 0 and label != CROSS_ENTROPY_IGNORE_IDX]:
            raise self._wrong(
                index, f"has a label {wrong[0]}; one that is not learnt is {CROSS_ENTROPY_IGNORE_IDX}"
            )
        return {**item, **ids, **self._weights(index, item, len(ids["tokens"]))}

    def length(self, index: int) -> int:
        """Return the number of tokens of an example."""
        return len(self[index]["tokens"])

    def report(self) -> DataReport:
        """Return what there is: examples, tokens, the share trained on."""
        return self._report

    def render_prompt(self, text: str) -> str | list[int]:
        """Return what the model reads when a user says `text`: as the dataset writes it, or the text itself."""
        own = getattr(self._examples, "render_prompt", None)
        rendered: str | list[int] = own(text) if own else text
        return rendered

    def _sampled_size(self) -> int:
        """Return the number of examples, or of the first of them where only a sample is asked for."""
        size = len(self._examples)
        if (sample := current_sample()) is None:
            return size
        kept = size if sample.max_examples is None else min(size, sample.max_examples)
        sample.examples += [SampledExample(f"{self._name}, example {index}") for index in range(kept)]
        sample.is_partial = kept < size
        return kept

    def _count(self) -> DataReport:
        report = DataReport(source=self._name, num_rows=len(self), num_examples=len(self))
        for index in range(len(self)):
            item = self[index]
            report.num_tokens += len(item["tokens"])
            # A row's first label has no token before it that could predict it.
            learnt = [label != CROSS_ENTROPY_IGNORE_IDX for label in item["labels"]][1:]
            report.num_target_tokens += sum(learnt)
            weights = item.get("weights", ())[1:]
            report.num_weighted_tokens += sum(is_one and w != 1.0 for is_one, w in zip(learnt, weights))
            report.longest = max(report.longest, len(item["tokens"]))
        if not report.num_target_tokens:
            what = "every label is -100" if len(self) else "it is empty"
            raise DataError(f"there is nothing to learn from {self._name}: {what}")
        return report

    def _ids(self, index: int, key: str, item: Mapping[str, Any]) -> list[int]:
        if key not in item:
            raise self._wrong(index, f"has no {key}, only {', '.join(map(str, item)) or 'nothing'}")
        values = item[key]
        values = values.tolist() if hasattr(values, "tolist") else values
        if not isinstance(values, (list, tuple)) or not values:
            raise self._wrong(index, f"has {key} that are no list of token ids, or an empty one")
        ids = []
        for value in values:
            try:
                if isinstance(value, bool):
                    raise TypeError
                ids.append(operator.index(value))  # also numpy's numbers, and tensors of one
            except TypeError:
                raise self._wrong(index, f"has {value!r} among its {key}, which is no token id") from None
        return ids

    def _weights(self, index: int, item: Mapping[str, Any], num_tokens: int) -> dict[str, list[float]]:
        if "weights" not in item:
            return {}
        values = item["weights"]
        values = values.tolist() if hasattr(values, "tolist") else list(values)
        if len(values) != num_tokens:
            raise self._wrong(
                index, f"has {num_tokens} tokens, but {len(values)} weights; a token has one each"
            )
        for value in values:
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise self._wrong(index, f"has the weight {value!r}, expected a number from 0 up")
        return {"weights": [float(value) for value in values]}

    def _wrong(self, index: int, what: str) -> DataError:
        return DataError(f"{self._name}: example {index} {what}")
